"""Commands print stable lines, explain themselves, and end with the code that says what happened."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.published import ARCH, MHE, PLAIN, publish, withdraw

from hyperzoo import errors
from hyperzoo.cli import main
from hyperzoo.publishing import verify
from hyperzoo.zoo import weight_files

COMMANDS = sorted(main.cli.commands)


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    yield publish(tmp_path, monkeypatch)
    withdraw(monkeypatch)


@pytest.fixture
def run(capsys):
    """Run a command as the console script does; returns exit code, stdout, stderr."""

    def command(*words):
        with pytest.raises(SystemExit) as end:
            main.main(list(words))
        return end.value.code, *capsys.readouterr()

    return command


def test_all_commands_exist():
    known = "activations card energy eval export generate info list plot publish reproduce train verify".split()
    assert set(COMMANDS) >= set(known)


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_each_command_has_help(run, words):
    code, out, _ = run(*words)
    assert code == 0 and out.startswith("Usage: hyperzoo") and len(out.splitlines()) > 4


def test_a_pipe_gets_one_record_a_line(zoo, run):
    code, out, _ = run("list")
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and {len(row) for row in rows} == {5}
    assert [ARCH, "plain_c10", "91.25", "1", "272474"] in rows
    assert ["spherenet56_sigmoid", "-", "-", "-", "-"] in rows


def test_a_terminal_gets_a_table(zoo, run, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, _ = run("info", PLAIN)
    assert code == 0 and "metrics.accuracy.mean" in out and ("┃" in out or "|" in out)


def test_info_shows_the_manifest(zoo, run):
    code, out, _ = run("info", ARCH)
    values = dict(line.split("\t") for line in out.splitlines())
    assert code == 0 and values["name"] == PLAIN and values["metrics.accuracy.sd"] == "-"
    assert values["files.model.safetensors"] == weight_files.MANIFEST.info(PLAIN).files["model.safetensors"]
    assert values["input.mean"] == "0.5, 0.4, 0.3"


@pytest.mark.parametrize(
    "words, code, text",
    [
        (["info", "resnet110_cifar.plain_c10"], 1, "Closest: resnet20_cifar.plain_c10"),
        (["info", "../x"], 1, "InvalidNameError"),
        (["eval", "resnet21_cifar"], 1, "no architecture 'resnet21_cifar'. Closest: resnet"),
        (["verify"], 2, "--all"),
        (["verify", "resnet20_cifar", "--all"], 2, "--all"),
        (["eval", "resnet20_cifar", "--split", "half"], 2, "half"),
        (["nothing"], 2, "No such command"),
        (["train", "nowhere.yaml"], 1, "cannot read the recipe nowhere.yaml"),
        (["plot", "nowhere"], 1, "cannot read the log nowhere/metrics.jsonl"),
        (["publish", "resnet20_cifar.plain_c10"], 2, "RUNS"),
        (["publish", "resnet20_cifar.plain_c10", "nowhere"], 1, "is not a finished run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_explained_in_one_sentence(zoo, run, words, code, text):
    found, out, err = run(*words)
    assert (found, out) == (code, "") and text in err and "Traceback" not in err


@pytest.mark.parametrize(
    "error, code",
    [
        (errors.LaunchError("asked for 2"), 2),
        (errors.DataError("no shard"), 1),
        (KeyboardInterrupt(), 130),
        (ModuleNotFoundError("No module", name="ruamel.yaml"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception | KeyboardInterrupt) else None,
)
def test_exit_codes(run, monkeypatch, error, code):
    def fail(*_):
        raise error

    monkeypatch.setattr(main.cli.commands["list"], "callback", fail)
    found, _, err = run("list")
    assert found == code
    assert not isinstance(error, ModuleNotFoundError) or 'pip install "hyperzoo[train]"' in err


def test_a_signal_that_stopped_a_run_is_in_the_exit_code(run, monkeypatch):
    from hyperzoo.training.loop import Stopped

    def stop(*_):
        raise Stopped(signal.SIGTERM, 3)

    monkeypatch.setattr(main.cli.commands["list"], "callback", stop)
    code, _, err = run("list")
    assert code == 143 and "resumes after epoch 3" in err


def test_a_fault_of_ours_is_not_hidden(monkeypatch):
    def fail():
        raise ModuleNotFoundError("No module", name="hyperzoo.nothing")

    monkeypatch.setattr(main.cli.commands["list"], "callback", fail)
    with pytest.raises(ModuleNotFoundError):
        main.main(["list"])


def test_a_reader_that_leaves_early_is_no_error():
    """The reader of the pipe is gone before anything is printed."""
    read, write = os.pipe()
    os.close(read)
    code = "from hyperzoo.cli.main import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 1 and done.stderr == ""


def test_verify_sees_each_kind_of_damage(zoo, run, monkeypatch):
    monkeypatch.delenv("HYPERZOO_DATA", raising=False)
    monkeypatch.setattr(verify, "_sample", lambda info, model: (None, "left out"))
    monkeypatch.setattr(verify, "_golden", lambda info, model: (None, "left out"))
    code, out, _ = run("verify", MHE)
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and [row[1] for row in rows] == ["hash", "tensors", "size", "golden", "sample", "test set"]
    assert [row[2] for row in rows] == ["ok", "ok", "ok", "skipped", "skipped", "skipped"]

    zoo.entries[MHE]["parameters"] += 1
    zoo.rehash(MHE)
    code, out, _ = run("verify", MHE)
    assert code == 1 and "DIFFERS" in out.splitlines()[2] and "the manifest says (272475" in out

    zoo.file(MHE).write_bytes(zoo.file(MHE).read_bytes()[:-1] + b"\0")
    code, out, _ = run("verify", MHE)
    assert code == 1 and len(out.splitlines()) == 1 and "Reinstall hyperzoo" in out


def test_verify_compares_golden_outputs(zoo, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    import hyperzoo
    from hyperzoo.publishing.checkout import Checkout
    from hyperzoo.publishing.publish import golden_input

    place = Checkout(tmp_path)
    monkeypatch.setattr(verify.checkout, "here", lambda: place)
    info, model = weight_files.MANIFEST.info(PLAIN), hyperzoo.load(PLAIN).model
    assert verify._golden(info, model) == (False, f"tests/golden/{PLAIN}.safetensors is missing")
    place.golden(PLAIN).parent.mkdir(parents=True)
    save_file(verify.outputs(model, golden_input(model)), place.golden(PLAIN))
    assert verify._golden(info, model)[0] is True
    changed = load_file(place.golden(PLAIN))
    changed["pre_logits"][0, 0] += 1
    save_file(changed, place.golden(PLAIN))
    ok, detail = verify._golden(info, model)
    assert ok is False and detail.startswith("pre_logits: largest difference 1.0e+00")


def test_verify_counts_right_answers(zoo, tmp_path, monkeypatch):
    """Against one's own slow count, over twelve images."""
    import dataclasses

    from support import finished

    import hyperzoo
    from hyperzoo import data
    from hyperzoo.publishing.checkout import Checkout

    place = Checkout(tmp_path / "clone")
    finished.mirror(place.mirror, slice(0, 4), slice(0, 12))
    monkeypatch.setattr(verify.checkout, "here", lambda: place)
    loaded = hyperzoo.load(PLAIN)
    images = data.load_images("c10", "test", place.mirror)
    prepared = hyperzoo.preprocess(PLAIN)(images.images)
    said = [int(loaded.model(x[None]).argmax()) for x in prepared]
    correct = sum(a == b for a, b in zip(said, images.labels.tolist(), strict=True))

    def stated(count, fingerprint=images.fingerprint):
        this = loaded.record.metrics.this_file
        sample = dataclasses.replace(this.sample, correct=count, total=12, fingerprint=fingerprint)
        metrics = dataclasses.replace(loaded.record.metrics, this_file=dataclasses.replace(this, sample=sample))
        return verify._sample(dataclasses.replace(loaded.record, metrics=metrics), loaded.model)

    assert stated(correct) == (True, f"correct of 12: {correct}")
    assert stated(correct + 1)[0] is True and stated(correct + 2)[0] is False
    ok, detail = stated(correct, "0" * 64)
    assert ok is False and images.fingerprint in detail
    assert Path(place.mirror).is_dir()


def test_energy_of_any_network(run, tmp_path):
    code, out, _ = run("energy", "resnet20_cifar", "--out", str(tmp_path / "e.png"))
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and rows[-1] == [str(tmp_path / "e.png")] and (tmp_path / "e.png").is_file()
    assert rows[0][:2] == ["conv1", "16 x 27"] and rows[-2][:2] == ["fc (output)", "10 x 64"]
    assert all(float(row[2]) > 0 and float(row[3]) > 0 for row in rows[:-1])
    assert run("energy", "test_resnet.r160_in1k", "--half-space", "--out", str(tmp_path / "t.png"))[0] == 0
    code, _, err = run("energy", "resnet20_cifr")
    assert code == 1 and "no model 'resnet20_cifr'. Closest: resnet20_cifar" in err
    assert run("energy", "hf_hub:x/y")[0] == 1
