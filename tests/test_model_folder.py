"""A saved model opens in timm and in transformers; a folder that contradicts itself is refused, whoever opens it."""

import copy
import json
import pickle
import struct

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support.bomb import Bomb

import hyperzoo
from hyperzoo import errors, zoo
from hyperzoo.analysis import activation_statistics
from hyperzoo.cli import main
from hyperzoo.publishing.export import export
from hyperzoo.zoo import weight_files
from hyperzoo.zoo.model_folder import save_model

ARCH, ARGS = "plain_cnn3", dict(widths=(4, 6, 8))
CONFIG, TENSORS = "config.json", "model.safetensors"


def saved(folder, classes=("a", "b", "c"), **args):
    model = timm.create_model(ARCH, num_classes=len(classes), **ARGS, **args).eval()
    save_model(model, folder, classes=tuple(classes), args=ARGS)
    return model


@pytest.fixture
def run(tmp_path):
    """A folder with a saved model of three classes."""
    saved(tmp_path / "run")
    return tmp_path / "run"


def edit(folder, change):
    """Change the values of config.json in place."""
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def retensor(folder, change):
    """Change the tensors of model.safetensors in place."""
    state = load_file(folder / TENSORS)
    change(state)
    save_file(state, folder / TENSORS)


DOORS = {
    "timm": lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True),
    "load": lambda folder: hyperzoo.load(f"local-dir:{folder}"),
    "any_network": lambda folder: zoo.any_network(f"local-dir:{folder}"),
}


def as_transformers(config):
    """The network that transformers' TimmWrapper builds: `num_classes` and `model_args` go to one call."""
    return timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])


@pytest.mark.parametrize("name", ["saved", *weight_files.MANIFEST.bundled()])
def test_transformers_and_timm_build_the_network_of_a_folder(tmp_path, name):
    if name == "saved":
        saved(tmp_path, in_chans=1)
    folder = tmp_path if name == "saved" else weight_files.MANIFEST.folder(name)
    config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / TENSORS)
    classes = len(zoo.class_names(folder))
    assert config["num_classes"] == classes and "num_classes" not in config["model_args"]
    as_transformers(config).load_state_dict(tensors)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert again.num_classes == classes
    assert all(torch.equal(value, tensors[key]) for key, value in again.state_dict().items())


# Names of the classes


@pytest.mark.parametrize("args, classes", [({}, "abc"), (dict(num_classes=3), "abc"), (dict(num_classes=7), "")])
def test_classes_name_the_outputs_or_nothing(run, args, classes):
    assert hyperzoo.load(f"local-dir:{run}", **args).classes == tuple(classes)
    assert len(hyperzoo.load("spherenet20", num_classes=7).classes) == 0
    assert hyperzoo.load("spherenet20", features_only=True).classes == ()


@pytest.mark.fault("class names that do not fit the outputs", 5)
@pytest.mark.parametrize("names", [["a", "b"], list("abcd"), ["a", "b", 3], "abc", None])
def test_class_names_that_do_not_fit_the_outputs_are_refused(run, tmp_path, names):
    edit(run, lambda config: config.update(label_names=names))
    for use in (DOORS["load"], lambda folder: export(str(folder), tmp_path / "x.pt2")):
        with pytest.raises(errors.WeightFileError, match=r"label_names .*3"):
            use(run)
    assert not (tmp_path / "x.pt2").exists()


def test_a_model_is_not_saved_with_names_that_do_not_fit(tmp_path):
    model = timm.create_model(ARCH, num_classes=3, **ARGS)
    for names in (("a", "b"), ("a", "b", "c", "d"), ("a", "b", 3)):
        with pytest.raises(errors.WeightFileError, match="needs a list of 3 class names"):
            save_model(model, tmp_path / "x", classes=names, args=ARGS)
    assert not (tmp_path / "x").exists()


# Tensors


def test_a_frozen_model_reads_back(tmp_path):
    model = timm.create_model("resnet20_cifar").eval()
    timm.utils.freeze(model)  # its batch norms lose num_batches_tracked
    assert not [key for key in model.state_dict() if "num_batches_tracked" in key]
    save_model(model, tmp_path, classes=tuple(f"class {i}" for i in range(10)))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for door in ("timm", "any_network"):
        again = DOORS[door](tmp_path).eval()
        torch.testing.assert_close(again(x), model(x), rtol=1e-5, atol=1e-5)  # frozen norms round differently


KINDS = {
    "int8": lambda value: value.to(torch.int8),
    "bool": lambda value: value.bool(),
    "complex64": lambda value: value.to(torch.complex64),
    "float8": lambda value: value.to(torch.float8_e4m3fn),
    "NaN": lambda value: value.fill_(torch.nan),
    "infinity": lambda value: value.fill_(torch.inf),
    "both infinities": lambda value: value.index_fill_(0, torch.tensor(0), torch.inf).index_fill_(
        0, torch.tensor(1), -torch.inf
    ),
}


@pytest.mark.fault("weight of another kind of number, or NaN", 3)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_another_kind_are_refused(run, kind, door):
    retensor(run, lambda state: state.update({"fc.weight": KINDS[kind](state["fc.weight"])}))
    with pytest.raises(errors.WeightFileError, match=r"(other dtype|NaN or infinity): fc\.weight"):
        DOORS[door](run)


def test_finite_numbers_whose_sum_is_infinite_are_loaded(run):
    retensor(run, lambda state: state["fc.weight"].fill_(torch.finfo(torch.float32).max))
    assert zoo.load(str(run)).model.fc.weight.unique().tolist() == [torch.finfo(torch.float32).max]


@pytest.mark.fault("weight of another kind of number, or NaN")
def test_one_bit_of_a_dtype_is_refused(run):
    data = (run / TENSORS).read_bytes()
    (run / TENSORS).write_bytes(data.replace(b'"dtype":"F32"', b'"dtype":"U32"', 1))
    with pytest.raises(errors.WeightFileError, match="other dtype: .*, not float32"):
        DOORS["timm"](run)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_another_width_load(run, dtype):
    retensor(run, lambda state: state.update({key: value.to(dtype) for key, value in state.items() if value.ndim > 1}))
    assert DOORS["timm"](run).fc.weight.dtype == torch.float32


def rewrite(folder, header):
    """Replace the header of model.safetensors, which `header` returns for the old one as text."""
    data = (folder / TENSORS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    new = header(data[8 : 8 + length].decode().strip()).encode()
    (folder / TENSORS).write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])


@pytest.mark.fault("repeated or reserved name of a tensor", 6)
@pytest.mark.parametrize("door", DOORS)
def test_names_that_mean_two_tensors_or_a_nested_file_are_refused(run, door):
    whole = (run / TENSORS).read_bytes()
    rewrite(run, lambda text: text[:-1] + "," + text[text.index('"fc.weight"') :].partition("}")[0] + "}}")
    assert (run / TENSORS).read_bytes().count(b'"fc.weight"') == 2
    with pytest.raises(errors.WeightFileError, match="names fc.weight twice"):
        DOORS[door](run)
    for name in ("model", "state_dict", "model_ema", "state_dict_ema"):
        (run / TENSORS).write_bytes(whole)
        retensor(run, lambda state, name=name: state.update({name: torch.zeros(1)}))
        with pytest.raises(errors.WeightFileError, match=f"{name}, which timm reads as a nested checkpoint"):
            DOORS[door](run)
    (run / TENSORS).write_bytes(whole)
    retensor(run, lambda state: state.update({"module.fc.weight": torch.zeros(3, 8)}))
    with pytest.raises(errors.WeightFileError, match="names fc.weight twice"):
        DOORS[door](run)


# config.json


def nested(depth):
    return "[" * depth + "]" * depth


TEXTS = ["", "{", "[]", "null", "3", '"x"', '{"a": 1, "a": 2', nested(200_000), '{"architecture": %s}' % ("1" * 9_999)]
CHANGES = {
    "no architecture": lambda config: config.pop("architecture"),
    "architecture null": lambda config: config.update(architecture=None),
    "unknown architecture": lambda config: config.update(architecture="plain_cnn4"),
    "architecture with a source": lambda config: config.update(architecture="hf-hub:a/b"),
    "pretrained_cfg a list": lambda config: config.update(pretrained_cfg=[]),
    "model_args a list": lambda config: config.update(model_args=[1]),
    "unknown argument": lambda config: config["model_args"].update(colour="red"),
    "pretrained": lambda config: config["model_args"].update(pretrained=True),
    "checkpoint_path": lambda config: config["model_args"].update(checkpoint_path="/tmp/x.pth"),
    "argument of another type": lambda config: config["model_args"].update(widths="wide"),
    "classes negative": lambda config: config.update(num_classes=-3),
    "classes a text": lambda config: config.update(num_classes="3"),
    "classes a bool": lambda config: config.update(num_classes=True),
    "huge classes": lambda config: config.update(num_classes=10**9),
    "huge widths": lambda config: config["model_args"].update(widths=[10**9, 6, 8]),
    "NaN": lambda config: config["model_args"].update(drop_rate=float("nan")),
    "huge image": lambda config: config["pretrained_cfg"].update(input_size=[3, 10**9, 10**9]),
    "image of no pixels": lambda config: config["pretrained_cfg"].update(input_size=[3, 0, 32]),
    "image size a text": lambda config: config["pretrained_cfg"].update(input_size="3x32x32"),
    "std 0": lambda config: config["pretrained_cfg"].update(std=[0, 1, 1]),
    "two means": lambda config: config["pretrained_cfg"].update(mean=[0.5, 0.5]),
    "two numbers of classes": lambda config: config["model_args"].update(num_classes=4),
}


@pytest.mark.fault("damaged or hostile config.json", 2)
@pytest.mark.parametrize("door", ["load", "any_network"])
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_a_config_that_is_no_description_is_refused(run, text, door):
    (run / CONFIG).write_text(text)
    with pytest.raises(errors.WeightFileError, match=r"config\.json") as caught:
        DOORS[door](run)
    assert len(str(caught.value)) < 600


@pytest.mark.fault("damaged or hostile config.json", 2)
@pytest.mark.parametrize("door", ["load", "any_network"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_config_that_contradicts_itself_is_refused(run, change, door):
    edit(run, CHANGES[change])
    with pytest.raises(errors.WeightFileError, match=r"config\.json"):
        DOORS[door](run)


@pytest.mark.fault("damaged or hostile config.json")
def test_only_what_the_caller_asks_for_may_differ(run, monkeypatch, data_mirror):
    edit(run, lambda config: (config.update(num_classes=9), config["model_args"].update(num_classes=3)))
    with pytest.raises(errors.WeightFileError, match=r"num_classes 9, but model_args says 3"):
        DOORS["timm"](run)
    edit(run, lambda config: (config.update(num_classes=9), config["model_args"].pop("num_classes")))
    with pytest.raises(errors.WeightFileError, match=r"other shape: fc\.weight \(3, 8\), not \(9, 8\)"):
        DOORS["timm"](run)
    assert main._exit_code(["eval", f"local-dir:{run}", "--data", "c10"]) == 1


# Architectures of timm


@pytest.mark.fault("pickle in the place of a weight", 2)
@pytest.mark.parametrize("door", ["load", "any_network"])
def test_a_pickle_for_an_architecture_of_timm_is_not_opened(tmp_path, door, monkeypatch):
    model = timm.create_model("resnet10t", num_classes=3)
    save_model(model, tmp_path, classes=("a", "b", "c"))
    DOORS[door](tmp_path)
    opened = []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: opened.append(args))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    (tmp_path / TENSORS).unlink()
    with pytest.raises(errors.WeightUnavailableError, match=r"model\.safetensors does not exist"):
        DOORS[door](tmp_path)
    assert opened == [] and not (tmp_path / "marker").exists()


@pytest.mark.fault("weight of another kind of number, or NaN", 2)
@pytest.mark.parametrize("door", ["load", "any_network"])
def test_tensors_for_an_architecture_of_timm_are_compared_too(tmp_path, door):
    save_model(timm.create_model("resnet10t", num_classes=3), tmp_path, classes=("a", "b", "c"))
    whole = (tmp_path / TENSORS).read_bytes()
    for change in (
        lambda state: state.update({"fc.bias": state["fc.bias"].to(torch.int8)}),
        lambda state: state.update({"fc.bias": torch.full((3,), torch.nan)}),
        lambda state: state.pop("fc.bias"),
    ):
        (tmp_path / TENSORS).write_bytes(whole)
        retensor(tmp_path, change)
        with pytest.raises(errors.WeightFileError, match=r"fc\.bias"):
            DOORS[door](tmp_path)


# A run folder by its path


def test_a_folder_is_named_by_its_path_or_as_local_dir(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "local-dir:run", str(run), f"local-dir:{run}"):
        assert hyperzoo.load(name).classes == ("a", "b", "c")
        assert zoo.any_network(name).num_classes == 3
        assert hyperzoo.preprocess(name).size == [32, 32]
        assert export(name, tmp_path / "x.pt2").metadata["label_names"] == ["a", "b", "c"]
        assert activation_statistics.load_model_and_batch(name, batch_size=2)[1].shape == (2, 3, 32, 32)
    saved(tmp_path / "resnet18")  # a folder does not hide the model of this name
    assert type(zoo.any_network("resnet18")).__name__ == "ResNet"
    (tmp_path / "unfinished").mkdir()
    for door in (hyperzoo.load, zoo.any_network, hyperzoo.preprocess):
        with pytest.raises(errors.WeightUnavailableError, match=r"unfinished has no config\.json"):
            door("local-dir:unfinished")


def test_the_commands_take_both_spellings(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "local-dir:run"):
        assert main._exit_code(["energy", name]) == 0
        assert main._exit_code(["activations", name, "--batch-size", "2"]) == 0
        assert main._exit_code(["plot", name]) == 1
        assert "cannot read the log run/metrics.jsonl" in capsys.readouterr().err


def test_an_unknown_model_lists_ten(run):
    for name in ("qqqq", "qqqq" * 20):
        with pytest.raises(errors.UnknownNameError) as caught:
            zoo.any_network(name)
        assert len(str(caught.value)) < 500


@pytest.mark.fault("hostile name", 4)
@pytest.mark.parametrize(
    "name", ["x" * 100_000, "local-dir:" + "x" * 100_000, "hf-hub:" + "x" * 100_000, "a/" * 50_000]
)
def test_endless_names_are_refused_and_shown_in_part(name):
    for door in (hyperzoo.load, zoo.any_network, hyperzoo.preprocess):
        with pytest.raises(errors.HyperzooError) as caught:
            door(name)
        assert len(str(caught.value)) < 700


def test_the_model_is_left_as_it_was(run):
    model = timm.create_model(ARCH, num_classes=3, **ARGS)
    before = copy.deepcopy(model.state_dict())
    key = next(iter(before))
    state = {**before, key: torch.full_like(before[key], torch.nan)}
    with pytest.raises(errors.WeightFileError, match=f"NaN or infinity: {key}"):
        weight_files.same_keys(state, model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
