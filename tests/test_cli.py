"""The command line: results in each form, help, errors, exit codes, and a start without torch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.published import ARCH, MHE, MIXUP, PLAIN

from hyperzoo import errors
from hyperzoo.cli import commands, main, tables, weights
from hyperzoo.publishing import verify
from hyperzoo.zoo import weight_files

COMMANDS = list(commands.COMMANDS)


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_each_command_has_help(command, words):
    code, out, _ = command(*words)
    assert code == 0 and out.startswith("Usage: hyperzoo") and len(out.splitlines()) > 4


def test_help_lists_every_command_on_one_line(command):
    _, out, _ = command("--help")
    listed = [line.split(maxsplit=1) for line in out.partition("Commands:\n")[2].splitlines()]
    assert listed == [[name, row.help] for name, row in commands.COMMANDS.items()]
    assert all(len(row.help) <= 60 for row in commands.COMMANDS.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_option_json(name):
    command = commands.cli.get_command(None, name)
    assert command.name == name and "--json" in {option for one in command.params for option in one.opts}


COMPLETION = dict(COMP_WORDS="hyperzoo ", COMP_CWORD="1")


@pytest.mark.parametrize(
    "words, variables, expected",
    [
        (["--help"], {}, "Usage: hyperzoo"),
        (["train", "--help"], {}, "Usage: hyperzoo train"),
        (["--version"], {}, "hyperzoo "),
        ([], {"_HYPERZOO_COMPLETE": "bash_complete", **COMPLETION}, "plain,list"),
        ([], {"_HYPERZOO_COMPLETE": "zsh_complete", **COMPLETION}, "plain\nlist\nList weights"),
        ([], {"_HYPERZOO_COMPLETE": "fish_complete", **COMPLETION, "COMP_CWORD": ""}, "plain,list"),
        ([], {"_HYPERZOO_COMPLETE": "zsh_source"}, "#compdef hyperzoo"),
    ],
    ids=["help", "help of a command", "version", "bash", "zsh", "fish", "zsh script"],
)
def test_the_start_imports_neither_torch_nor_timm(words, variables, expected):
    """In a fresh process that reports every import."""
    command = [sys.executable, "-X", "importtime", "-m", "hyperzoo", *words]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and done.stdout.startswith(expected), done.stderr
    assert "hyperzoo.cli.main" in imported and not imported & {"torch", "timm", "numpy", "hyperzoo.models"}


def test_a_process_spawned_by_the_command_registers_the_architectures_before_it_trains():
    """Such as the workers of `hyperzoo queue`, which inherit the name of the command."""
    code = "import sys; sys.argv = ['hyperzoo']; import hyperzoo.experiments.build, timm; "
    code += "sys.exit(0 if timm.is_model('spherenet20') else 3)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_list_in_a_pipe(zoo, command):
    code, out, _ = command("list")
    header, *rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and header == list(weights.LIST_COLUMNS) and [row[0] for row in rows] == sorted(zoo.entries)
    size = f"{zoo.entries[PLAIN]['bytes'] / 1e6:.2f} MB"
    assert [PLAIN, "uoft-cs/cifar10", "91.25 %", "30", "1", "272474", size, "yes"] in rows
    assert [row[-1] for row in rows] == ["no", "no", "yes"]  # mhe, mixup, plain
    everything = command("list", "--all")[1].splitlines()
    assert set(out.splitlines()) < set(everything)
    assert "\t".join(["lstm200", "-", "-", "-", "-", "2653200", "-", "-"]) in everything


def test_list_shows_mean_and_spread_of_several_seeds():
    row = weights.ListRow("a.per_ptb", "a", 7, "ptb", "perplexity", 88.0, 1.5, 18, (0, 1, 2), 10_000, False)
    assert row.shown() == ("a.per_ptb", "ptb", "perplexity 88.00 ± 1.50", "18", "3", "7", "0.01 MB", "no")


@pytest.mark.parametrize(
    "words, names",
    [
        (["--method", "mhe"], [MHE]),
        (["--data", "c10"], [MHE, MIXUP, PLAIN]),
        (["--data", "ptb"], []),
        (["--family", "resnet_cifar", "--method", "plain", "--all"], [PLAIN]),
        (["--family", "lstm_lm"], []),
    ],
    ids=" ".join,
)
def test_list_filters(zoo, command, words, names):
    code, out, _ = command("list", *words, "--json")
    assert code == 0 and [row["name"] for row in json.loads(out)] == names


def test_a_terminal_gets_a_table_that_cuts_nothing(zoo, command, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = command("info", PLAIN)
    digest = weight_files.MANIFEST.info(PLAIN).files["model.safetensors"]
    cells = [line.split("│")[2].strip() for line in out.splitlines() if line.count("│") == 3]
    assert code == 0 and "┃" in out and "…" not in out and digest in "".join(cells)


def test_info_shows_the_manifest_entry_of_a_weight(zoo, command):
    code, out, _ = command("info", PLAIN)
    values = dict(line.split("\t") for line in out.splitlines())
    assert code == 0 and values["name"] == PLAIN and values["metrics.accuracy.sd"] == "-"
    assert values["files.model.safetensors"] == weight_files.MANIFEST.info(PLAIN).files["model.safetensors"]
    assert values["input.mean"] == "0.5, 0.4, 0.3"
    entry = json.loads(command("info", PLAIN, "--json")[1])
    assert entry.pop("name") == PLAIN and entry == zoo.entries[PLAIN]


def test_info_describes_an_architecture(zoo, command):
    """ResNet-20 of the CIFAR family: 0.27 M parameters, stages of 16, 32 and 64 channels (arXiv 1512.03385, 4.2)."""
    code, out, _ = command("info", ARCH, "--json")
    found = json.loads(out)
    assert code == 0 and (found["name"], found["family"], found["parameters"]) == (ARCH, "resnet_cifar", 272474)
    assert found["input_size"] == [3, 32, 32] and found["weights"] == [PLAIN, MHE, MIXUP] and found["description"]
    assert [(stage["channels"], stage["stride"]) for stage in found["stages"]] == [(16, 1), (32, 2), (64, 4)]
    values = dict(line.split("\t") for line in command("info", ARCH)[1].splitlines())
    assert values["input_size"] == "3 x 32 x 32" and "64 channels, stride 4" in values["stages"]
    text = json.loads(command("info", "lstm200", "--json")[1])
    assert (text["task"], text["input_size"], text["stages"]) == ("text-generation", [35], [])


def test_json_is_standard():
    """NaN and infinity are not JSON; a strict reader refuses them."""
    plain = tables._plain({"a": float("inf"), "b": (1, Path("x")), 3: weights.ListRow("n", "f", 1)})
    assert plain["a"] is None and plain["b"] == [1, "x"] and plain["3"]["name"] == "n"
    json.dumps(plain, allow_nan=False)


@pytest.mark.parametrize(
    "words, code, text",
    [
        (["info", "resnet110_cifar.plain_c10"], 1, "Closest: resnet20_cifar.plain_c10"),
        (["info", "resnet21_cifar"], 1, "no architecture 'resnet21_cifar'. Closest: resnet"),
        (["list", "--family", "resnet_cifr"], 1, "no family 'resnet_cifr'. Closest: resnet_cifar"),
        (["list", "--data", "c11"], 2, "'c11' is not one of 'c10'"),
        (["info", "../x"], 1, "InvalidNameError"),
        (["info", "tests"], 1, "tests is a folder, which has no manifest entry; for a run, read tests/result.json, or"),
        (["verify", "local-dir:tests/x.y"], 1, "or evaluate it: hyperzoo eval tests/x.y"),
        (
            ["train", "tests/support"],
            1,
            "tests/support is a folder; to resume a run, repeat its command: the recipe, and",
        ),
        (["eval", "resnet21_cifar"], 1, "no architecture 'resnet21_cifar'. Closest: resnet"),
        (["verify"], 2, "--all"),
        (["verify", "resnet20_cifar", "--all"], 2, "--all"),
        (["eval", "resnet20_cifar", "--split", "half"], 2, "half"),
        (["eval", "nothing", "--robustness", "--tta", "flip"], 2, "leave out --tta"),  # before anything is loaded
        (["eval", "nothing", "--seed", "0"], 2, "--seed is for --robustness"),
        (["eval", "nothing", "--out", "x.png"], 2, "--out is for --robustness"),
        (["queue", "nowhere.yaml", "--minutes", "1", "--processes", "-1"], 2, "-1 is not in the range x>=1"),
        (["queue", "nowhere.yaml", "--minutes", "1", "--epochs", "0"], 2, "0 is not in the range x>=1"),
        (["queue", "recipes/queue.yaml", "--minutes", "nan"], 1, "minutes must be a finite number above 0; got nan"),
        (["queue", "recipes/queue.yaml", "--minutes", "-5"], 1, "minutes must be a finite number above 0; got -5.0"),
        (["nothing"], 2, "No such command"),
        (["train", "nowhere.yaml"], 1, "cannot read the recipe nowhere.yaml"),
        (["plot", "operatos"], 1, "no run folder, results file or figure 'operatos'. Figures: clouds, half_space,"),
        (["plot", "tests"], 1, "cannot read the log tests/metrics.jsonl"),
        (["train", "spherenet20.sphere_c1"], 1, "no recipe 'spherenet20.sphere_c1'. Closest: spherenet20.sphere_c10 ("),
        (["train", "spherenet20.sphere_c10", "optim.lrr=1"], 1, "override optim.lrr=1: unknown key 'lrr'"),
        (["publish", "resnet20_cifar.plain_c10"], 2, "RUNS"),
        (["publish", "resnet20_cifar.plain_c10", "nowhere"], 1, "is not a finished run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_explained_in_one_sentence(zoo, command, words, code, text):
    found, out, err = command(*words)
    assert (found, out) == (code, "") and text in err and "Traceback" not in err


@pytest.mark.parametrize(
    "words, picture",
    [
        (["energy", "nothing"], "energy.png"),
        (["activations", "nothing"], "activations.png"),
        (["eval", "nothing", "--robustness"], "robustness.png"),
    ],
)
def test_a_picture_that_cannot_be_written_stops_the_command_at_once(command, tmp_path, monkeypatch, words, picture):
    monkeypatch.chdir(tmp_path)
    Path(picture).mkdir()
    code, out, err = command(*words)
    assert (code, out) == (2, "") and f"{picture} cannot be written" in err


@pytest.mark.parametrize(
    "error, code",
    [
        (errors.LaunchError("asked for 2"), 2),
        (errors.DataError("no shard"), 1),
        (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
        (ModuleNotFoundError("No module", name="ruamel.yaml"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception | KeyboardInterrupt) else None,
)
def test_exit_codes(command, monkeypatch, error, code):
    def fail(**_):
        raise error

    monkeypatch.setattr(weights.list_, "callback", fail)
    found, _, err = command("list")
    assert found == code
    assert type(error) is not OSError or "OSError: [Errno 28] No space left on device" in err
    assert not isinstance(error, ModuleNotFoundError) or 'pip install "hyperzoo[train]"' in err


def test_a_signal_that_stopped_a_run_is_in_the_exit_code(command, monkeypatch):
    from hyperzoo.training.loop import Stopped

    def stop(**_):
        raise Stopped(signal.SIGTERM, 3)

    monkeypatch.setattr(weights.list_, "callback", stop)
    code, _, err = command("list")
    assert code == 143 and "resumes after epoch 3" in err


def test_a_fault_of_ours_is_not_hidden(monkeypatch):
    def fail(**_):
        raise ModuleNotFoundError("No module", name="hyperzoo.nothing")

    monkeypatch.setattr(weights.list_, "callback", fail)
    with pytest.raises(ModuleNotFoundError):
        main.main(["list"])


@pytest.mark.parametrize("words, code", [(["list"], 0), (["list", "--json"], 0), (["--help"], 1)], ids=str)
def test_a_reader_that_leaves_early_is_no_error(words, code):
    """The reader of the pipe is gone before anything is printed; a result that nobody reads is no failure."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "hyperzoo", *words]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == code and done.stderr == ""


def test_verify_sees_each_kind_of_damage(zoo, command, monkeypatch):
    monkeypatch.delenv("HYPERZOO_DATA", raising=False)
    monkeypatch.setattr(verify, "_sample", lambda info, model: (None, "left out"))
    monkeypatch.setattr(verify, "_golden", lambda info, model: (None, "left out"))
    code, out, _ = command("verify", MHE)
    header, *rows = [line.split("\t") for line in out.splitlines()]
    assert header == ["weight", "check", "result", "detail"]
    assert code == 0 and [row[1] for row in rows] == ["hash", "tensors", "size", "golden", "sample", "test set"]
    assert [row[2] for row in rows] == ["ok", "ok", "ok", "skipped", "skipped", "skipped"]

    zoo.entries[MHE]["parameters"] += 1
    zoo.rehash(MHE)
    code, out, _ = command("verify", MHE)
    assert [check["ok"] for check in json.loads(command("verify", MHE, "--json")[1])][:3] == [True, True, False]
    assert code == 1 and "DIFFERS" in out.splitlines()[3] and "but (272475, " in out

    zoo.file(MHE).write_bytes(zoo.file(MHE).read_bytes()[:-1] + b"\0")
    code, out, _ = command("verify", MHE)
    assert code == 1 and len(out.splitlines()) == 2 and "Reinstall hyperzoo" in out


def test_rounding_is_relative_to_the_largest_output():
    """Between AVX2 and AMX, features of a wide network of up to 16.4 differ by 2.7e-5, also where they are near 0."""
    large, small = torch.tensor([16.4, 0.0]), torch.tensor([0.4, 0.0])
    off = torch.tensor([0.0, 2.7e-5])
    assert verify.agree(large + off, large)
    assert not verify.agree(small + off, small)
    assert verify.agree(small + off, small, slack=3e-5)
    assert not verify.agree(large * (1 + 2e-5), large)
    assert not verify.agree(large + torch.nan, large)


def test_verify_compares_golden_outputs(zoo, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    import hyperzoo
    from hyperzoo.publishing.checkout import Checkout
    from hyperzoo.publishing.publish import golden_input

    checkout = Checkout(tmp_path)
    monkeypatch.setattr(verify, "find_checkout", lambda: checkout)
    info, model = weight_files.MANIFEST.info(PLAIN), hyperzoo.load(PLAIN).model
    assert verify._golden(info, model) == (False, f"tests/golden/{PLAIN}.safetensors is missing")
    checkout.golden(PLAIN).parent.mkdir(parents=True)
    save_file(verify.golden_outputs(model, golden_input(model)), checkout.golden(PLAIN))
    assert verify._golden(info, model)[0] is True
    changed = load_file(checkout.golden(PLAIN))
    changed["pre_logits"][0, 0] += 1
    save_file(changed, checkout.golden(PLAIN))
    ok, detail = verify._golden(info, model)
    assert ok is False and detail.startswith("pre_logits: largest difference 1.0e+00")


def test_verify_counts_right_answers(zoo, tmp_path, monkeypatch):
    """Compared with a slow count over twelve images."""
    import dataclasses

    from support import finished

    import hyperzoo
    from hyperzoo import data
    from hyperzoo.publishing.checkout import Checkout

    checkout = Checkout(tmp_path / "clone")
    finished.mirror(checkout.mirror, slice(0, 4), slice(0, 12))
    monkeypatch.setattr(verify, "find_checkout", lambda: checkout)
    loaded = hyperzoo.load(PLAIN)
    images = data.load_images("c10", "test", checkout.mirror)
    prepared = hyperzoo.preprocess(PLAIN)(images.images)
    said = [int(loaded.model(x[None]).argmax()) for x in prepared]
    correct = sum(a == b for a, b in zip(said, images.labels.tolist(), strict=True))

    def stated(count, fingerprint=images.fingerprint):
        this = loaded.info.metrics.this_file
        sample = dataclasses.replace(this.sample, correct=count, total=12, fingerprint=fingerprint)
        metrics = dataclasses.replace(loaded.info.metrics, this_file=dataclasses.replace(this, sample=sample))
        return verify._sample(dataclasses.replace(loaded.info, metrics=metrics), loaded.model)

    assert stated(correct) == (True, f"correct of 12: {correct}")
    assert stated(correct + 1)[0] is True and stated(correct + 2)[0] is False
    ok, detail = stated(correct, "0" * 64)
    assert ok is False and images.fingerprint in detail
    assert Path(checkout.mirror).is_dir()


def test_energy_of_any_network(command, tmp_path):
    code, out, err = command("energy", "resnet20_cifar", "--out", str(tmp_path / "e.png"))
    header, *rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and err == f"{tmp_path / 'e.png'}\n" and (tmp_path / "e.png").is_file()
    assert header[:3] == ["layer", "neurons", "energy"]
    assert rows[0][:2] == ["conv1", "16 x 27"] and rows[-1][:2] == ["fc (output)", "10 x 64"]
    assert all(float(row[2]) > 0 and float(row[3]) > 0 for row in rows)
    found = json.loads(command("energy", "resnet20_cifar", "--out", str(tmp_path / "e.png"), "--json")[1])
    assert [layer["name"] for layer in found["layers"]] == [row[0].removesuffix(" (output)") for row in rows]
    assert found["picture"] == str(tmp_path / "e.png")
    assert command("energy", "test_resnet.r160_in1k", "--half-space", "--out", str(tmp_path / "t.png"))[0] == 0
    code, _, err = command("energy", "resnet20_cifr")
    assert code == 1 and "no model 'resnet20_cifr'. Closest: resnet20_cifar" in err
    assert command("energy", "hf_hub:x/y")[0] == 1


def test_activations_along_an_axis(command, tmp_path):
    words = ("activations", "test_vit", "--layers", "blocks.0", "--batch-size", "2", "--out", tmp_path / "a.png")

    def distance(*axis):
        torch.manual_seed(0)  # of the untrained network
        return json.loads(command(*words, *axis, "--json")[1])["layers"][0]["distance"]

    assert distance() == distance("--axis", "-1") != distance("--axis", "1")
    assert "axis=7 is the batch or missing" in command(*words, "--axis", "7")[2]


def test_train_prints_json_alone_and_says_when_a_run_is_finished(command, data_mirror, tmp_path):
    recipe, out = str(Path(__file__).parent.parent / "recipes" / "demo.yaml"), tmp_path / "run"
    words = ("train", recipe, "train.epochs=1", "optim.warmup_epochs=0", "--out", str(out))
    code, printed, err = command(*words, "--json")
    result = json.loads((out / "result.json").read_text())
    assert code == 0 and json.loads(printed) == {"folder": str(out), **result} and "epoch 1/1" in err
    code, printed, err = command(*words)
    accuracy = f"{result['metrics']['accuracy']:.2f} %"
    assert (code, err) == (0, "")
    assert printed == f"{out} is finished: test accuracy {accuracy} after epoch 1. Use another --out to train again\n"
    assert json.loads(command(*words, "--json")[1]) == {"folder": str(out), **result}
