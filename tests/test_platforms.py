"""Loading, evaluating and predicting run on Windows; what does not says so."""

import os
import subprocess
import sys

import pytest
from PIL import Image

COMMAND = """
import fcntl, os, stat, sys
import hyperzoo.models, accelerate
from hyperzoo.cli.main import main
sys.platform = "win32"
posix_open, posix_fsync, read_flags = os.open, os.fsync, fcntl.fcntl
sys.modules["fcntl"] = None  # importing it raises ModuleNotFoundError

def windows_open(path, *args, **kwargs):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return posix_open(path, *args, **kwargs)

def windows_fsync(descriptor):
    if read_flags(descriptor, 3) & os.O_ACCMODE == os.O_RDONLY:  # 3: F_GETFL
        raise OSError(9, "Bad file descriptor")
    posix_fsync(descriptor)

os.open, os.fsync = windows_open, windows_fsync
main({arguments!r})
"""


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["verify", "spherenet20.sphere_c10"], "spherenet20.sphere_c10"),
        (["predict", "spherenet20.sphere_c10", "x.png", "--csv", "x.csv"], ""),
    ],
)
def test_weights_can_be_used_on_windows(arguments, says, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    code = COMMAND.format(arguments=arguments)
    env = {key: value for key, value in os.environ.items() if key != "HYPERZOO_DATA"}  # the test images of the package
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0) and says in done.stdout
    assert "--csv" not in arguments or (tmp_path / "x.csv").read_text().startswith("file,")


@pytest.mark.parametrize("arguments", [["train", "some.yaml"], ["reproduce", "spherenet20.sphere_c10"]])
@pytest.mark.fault("command on another operating system")
def test_training_on_windows_is_refused_in_one_sentence(arguments, tmp_path):
    code = COMMAND.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("PlatformError: training and publishing need") and "WSL" in done.stderr
