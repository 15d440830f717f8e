"""A file or folder is replaced as a whole or unchanged: after an error, on a full disk, after kill -9."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hyperzoo import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_contents_and_folders_are_made(tmp_path):
    files.write_whole({tmp_path / "a" / "b.bin": b"\0\xff", tmp_path / "c.txt": b""})
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\0\xff" and (tmp_path / "c.txt").read_bytes() == b""
    files.write_json(tmp_path / "a" / "b.json", {"x": [1, "ä"]})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": [1, "ä"]}
    assert names(tmp_path) == ["a", "c.txt"] and names(tmp_path / "a") == ["b.bin", "b.json"]


def test_the_last_file_is_renamed_last(tmp_path, monkeypatch):
    order, rename = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: [order.append(target.name), rename(self, target)][1])
    files.write_whole({tmp_path / name: b"" for name in "cab"})
    assert order == ["c", "a", "b"]


def test_an_error_in_between_changes_nothing(tmp_path):
    place = tmp_path / "place"
    place.write_text("old")
    with pytest.raises(ZeroDivisionError), files.whole(place) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    with pytest.raises(OSError):
        files.write_whole({place: b"new", place / "below a file": b""})
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        files.write_whole({tmp_path / "folder": b"new"})
    assert place.read_text() == "old" and names(tmp_path) == ["folder", "place"] and names(tmp_path / "folder")


def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    for content in ("one", "two"):
        with files.whole(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["two"]


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256(tmp_path / "abc") == hashlib.sha256(b"abc").hexdigest()
    # FIPS 180-2, appendix B.1
    assert files.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


FULL = """
import resource, signal, sys
from pathlib import Path
from hyperzoo import files
folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files.write_whole({folder / "small": b"new", folder / "large": bytes(2000)})
except OSError as error:
    print(error)
"""


@pytest.mark.fault("full disk")
def test_a_full_disk_changes_nothing(tmp_path):
    files.write_whole({tmp_path / "small": b"old", tmp_path / "large": b"old"})
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"old"} and names(tmp_path) == ["large", "small"]


KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
from hyperzoo import files
file, moments, last = Path(sys.argv[1], "result.json"), random.Random(int(sys.argv[2])), 0
files.write_json(file, [0] * 2_000)
for _ in range(50):
    pid = os.fork()
    if not pid:
        while True:
            last += 1
            files.write_json(file, [last] * 2_000)
    time.sleep(moments.uniform(0.01, 0.2))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    found = json.loads(file.read_text())
    assert len(found) == 2_000 and len(set(found)) == 1 and found[0] >= last
    last = found[0]
print(last, len(list(file.parent.glob(files.TEMPORARY + "*"))))
"""


@pytest.mark.full
@pytest.mark.fault("kill -9 while a file is written", 50)
def test_kills_leave_a_whole_file(tmp_path):
    seed = str(time.time_ns() % 10**6)
    done = subprocess.run([sys.executable, "-c", KILLS, tmp_path, seed], capture_output=True, text=True)
    assert done.returncode == 0, (seed, done.stderr)
    written, torn = map(int, done.stdout.split())
    assert written > 10 and torn > 5, (seed, done.stdout)  # the moments met writes


def test_tensors_have_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "ordinary").touch()
    with files.whole(tmp_path / "x.safetensors") as temporary:
        save_file({"x": torch.zeros(2)}, temporary)
    with files.whole(tmp_path / "folder") as temporary:
        temporary.mkdir()
        save_file({"x": torch.zeros(2)}, temporary / "x.safetensors")
    modes = {name: (tmp_path / name).stat().st_mode for name in ("ordinary", "x.safetensors", "folder/x.safetensors")}
    assert len(set(modes.values())) == 1, modes
