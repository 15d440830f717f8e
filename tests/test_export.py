"""`hyperzoo export` writes a file with the same outputs that runs without hyperzoo, or raises and writes nothing."""

import copy
import json
import re
import resource
import sys
import zipfile
from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import save_file
from support.published import ARCH, MHE, PLAIN, publish, withdraw

import hyperzoo
from hyperzoo import errors
from hyperzoo.cli import main
from hyperzoo.files import sha256
from hyperzoo.publishing import export, verify
from hyperzoo.publishing.checkout import Checkout
from hyperzoo.zoo.model_folder import save_model

ROOT = Path(__file__).parent.parent
SUFFIX = {"torch": ".pt2", "onnx": ".onnx"}
QUICK = [("plain_cnn3", "torch"), ("sphere_cnn3", "onnx")]
# Plain strings in ONNX; the rest is JSON.
TEXT = ("name", "architecture", "license", "sha256", "hyperzoo", "interpolation")
CLOSE = dict(rtol=1e-4, atol=1e-5)  # another runtime rounds differently


def tier(arch, form):
    """Deep sphere networks take ONNX a minute and have the same operators as shallow ones."""
    if (arch, form) in QUICK:
        return ()
    deep = int(re.search(r"\d+|$", arch)[0] or 0) > 20
    return pytest.mark.slow if deep else pytest.mark.full


ARCHS = [
    pytest.param(arch, form, marks=tier(arch, form), id=f"{arch}-{form}")
    for arch in hyperzoo.list_models("image-classification")
    for form in SUFFIX
]


def made(arch):
    """An untrained network whose outputs depend on every parameter and buffer, and that barely amplifies rounding."""
    torch.manual_seed(0)
    model = timm.create_model(arch).train()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    for module in model.modules():
        if hasattr(module, "momentum"):
            module.momentum = 1.0  # running statistics become those of the next batch
            if module.bias is not None:  # half-closed ReLUs amplify rounding
                torch.nn.init.normal_(module.bias, 1.0 if arch.startswith("plain") else 0.35, std=0.1)
    with torch.no_grad():
        model(torch.rand(8, 3, 32, 32))
    return model.eval()


def opened(file, monkeypatch):
    """A function that runs a file where neither hyperzoo nor timm can be imported."""
    if file.suffix == ".onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (name,) = [value.name for value in session.get_inputs()]
        return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])
    with monkeypatch.context() as missing:
        for name in [name for name in sys.modules if re.match(r"(hyperzoo|timm)\b", name)]:
            missing.setitem(sys.modules, name, None)
        return torch.export.load(file).module()


def metadata(file):
    """The metadata of a file."""
    if file.suffix == ".onnx":
        found = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
        return {key: value if key in TEXT else json.loads(value) for key, value in found.items()}
    extra = {"hyperzoo.json": ""}
    torch.export.load(file, extra_files=extra)
    return json.loads(extra["hyperzoo.json"])


def parts(file):
    """The members of a program; an ONNX file is a single one."""
    if file.suffix == ".onnx":
        return {file.name: file.read_bytes()}
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("arch, form", ARCHS)
def test_every_image_architecture_runs_without_hyperzoo(arch, form, tmp_path, monkeypatch):
    model, out = made(arch), tmp_path / f"net{SUFFIX[form]}"
    words = tuple(f"class {i}" for i in range(model.num_classes))
    save_model(model, tmp_path / "model", classes=words)
    done = export.export(f"local-dir:{tmp_path / 'model'}", out)
    assert done.file == out and sorted(path.name for path in tmp_path.iterdir()) == ["model", out.name]
    run = opened(out, monkeypatch)
    for batch in (3, 1):
        x = torch.rand(batch, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            exact = copy.deepcopy(model).double()(x.double())
            rounding = float((model(x) - exact).abs().max())
            assert rounding < 3e-3
            assert batch == 1 or (exact[0] - exact[1]).abs().max() > 1e-3, "outputs that hardly vary prove nothing"
            torch.testing.assert_close(run(x).double(), exact, rtol=1e-4, atol=1e-5 + rounding)

    said, cfg = metadata(out), model.pretrained_cfg
    assert said == done.metadata and said["label_names"] == list(words) and said["architecture"] == arch
    assert (said["input_size"], said["mean"]) == (list(cfg["input_size"]), list(cfg["mean"]))
    assert (said["std"], said["crop_pct"]) == (list(cfg["std"]), cfg["crop_pct"])
    assert said["sha256"] == sha256(tmp_path / "model" / "model.safetensors")
    for name, content in parts(out).items():
        assert "/weights/" in name or not content.startswith((b"\x80", b"PK")), f"{name} is a pickle"
        assert b'"use_pickle": true' not in content
        assert str(ROOT).encode() not in content and sys.prefix.encode() not in content, f"{name} holds a path"


@pytest.mark.full
@pytest.mark.parametrize("form", SUFFIX)
@pytest.mark.parametrize("arch", hyperzoo.list_models("text-generation"))
def test_every_language_model_runs_without_hyperzoo(arch, form, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, out = timm.create_model(arch, num_classes=20).eval(), tmp_path / f"net{SUFFIX[form]}"
    words = tuple(f"word{i}" for i in range(20))
    save_model(model, tmp_path / "model", classes=words)
    said = export.export(f"local-dir:{tmp_path / 'model'}", out).metadata
    assert said == metadata(out) and said["label_names"] == list(words)
    assert said["input_size"] == [35] and "mean" not in said
    run, tokens = opened(out, monkeypatch), torch.randint(20, (3, 35), generator=torch.Generator().manual_seed(1))
    filled = torch.where(torch.arange(35) < 7, tokens, 0)
    with torch.no_grad():
        for batch in (tokens, tokens[:1]):
            torch.testing.assert_close(run(batch), model(batch), **CLOSE)
        torch.testing.assert_close(run(filled)[:, :7], model(tokens[:, :7]), **CLOSE)


@pytest.mark.full
@pytest.mark.parametrize("form", SUFFIX)
@pytest.mark.parametrize("name", hyperzoo.list_weights())
def test_every_published_weight_agrees_with_its_golden_outputs(name, form, tmp_path, monkeypatch):
    done = export.export(name, tmp_path / f"net{SUFFIX[form]}")
    assert (
        done.metadata["name"] == name
        and done.metadata["sha256"] == hyperzoo.weight_info(name).files["model.safetensors"]
    )
    golden = export.load_file(Checkout(ROOT).golden(name))
    taken, run = golden["input"], opened(done.file, monkeypatch)
    if not taken.is_floating_point():  # later words do not change earlier outputs
        taken = torch.nn.functional.pad(taken, (0, done.metadata["input_size"][0] - taken.shape[1]))
    torch.testing.assert_close(run(taken)[:, : golden["output"].shape[1]], golden["output"], **CLOSE)


# The rest needs no exporter: the network itself replaces the file.


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_checkout", lambda: Checkout(tmp_path / "clone"))
    yield publish(tmp_path / "zoo", monkeypatch)
    withdraw(monkeypatch)


@pytest.fixture
def stub(monkeypatch):
    """The format 'torch' without the exporter: the file is a placeholder, and opening it returns the network."""
    kept = {}

    def write(model, x, said):
        kept.update(model=model, x=x)
        return b"a network" * 1000

    monkeypatch.setitem(export.FORMATS, ".pt2", export.Format("torch", (), write, lambda content: kept["model"]))
    return kept


def network(monkeypatch, model, x):
    """Make `export` find this network under every name."""
    monkeypatch.setattr(export, "_network", lambda name: (model, {}, {"input": x, "output": model(x)}))


def test_outputs_are_compared_with_the_golden_outputs(zoo, stub, tmp_path):
    model, out = hyperzoo.load(PLAIN).model, tmp_path / "net.pt2"
    golden = verify.golden_outputs(model, verify.golden_input(model) / 2)
    file = Checkout(tmp_path / "clone").golden(PLAIN)
    file.parent.mkdir(parents=True)
    save_file(golden, file)
    assert export.export(PLAIN, out).difference < 1e-5
    assert torch.equal(stub["x"][:4], golden["input"]) and out.read_bytes() == b"a network" * 1000
    out.write_bytes(b"before")
    save_file({**golden, "output": golden["output"] + 1}, file)
    with pytest.raises(errors.ExportError, match=rf"{PLAIN} as torch gives other outputs.*difference 1\.0e\+00"):
        export.export(PLAIN, out)
    assert out.read_bytes() == b"before" and list(tmp_path.glob("*.pt2*")) == [out]


def test_a_damaged_golden_file_is_named(zoo, stub, tmp_path):
    file = Checkout(tmp_path / "clone").golden(PLAIN)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(errors.WeightFileError, match="Git LFS pointer"):
        export.export(PLAIN, tmp_path / "net.pt2")


def test_without_golden_outputs_the_network_is_the_reference(zoo, stub, tmp_path):
    assert export.export(ARCH, tmp_path / "net.pt2").difference < 1e-5
    assert stub["x"].shape == (8, 3, 32, 32) and not stub["model"].training
    said = export.export(MHE, tmp_path / "net.pt2").metadata
    assert (said["name"], said["license"], said["mean"]) == (MHE, "mit", [0.5, 0.4, 0.3])  # of the manifest
    assert said["label_names"][3] == "class 3" and said["sha256"] == zoo.entries[MHE]["files"]["model.safetensors"]


class OfItsBatch(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2] / len(x)


def test_other_batch_sizes_are_compared_too(stub, tmp_path, monkeypatch):
    network(monkeypatch, OfItsBatch(), torch.ones(4, 3, 8, 8))
    with pytest.raises(errors.ExportError, match=r"largest difference 7\.5e-01"):  # 1 for a batch of one, not 1 / 4
        export.export("any", tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


class Eigenvalues(torch.nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x[:, 0] @ x[:, 0].mT)


class Branch(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else x.flatten(1) * 2


@pytest.mark.parametrize(
    "model, form, says",
    [
        (Eigenvalues(), "onnx", "eigh"),
        (Branch(), "torch", "data-dependent"),
    ],
)
def test_an_unsupported_operator_is_reported(model, form, says, tmp_path, monkeypatch):
    network(monkeypatch, model, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    out = tmp_path / f"net{SUFFIX[form]}"
    with pytest.raises(errors.ExportError, match=rf"^cannot export any as {form}: .*{says}") as caught:
        export.export("any", out)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 and not list(tmp_path.iterdir())


def test_a_full_disk_changes_nothing(zoo, stub, tmp_path):
    out = tmp_path / "net.pt2"
    out.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(errors.ExportError, match=r"cannot write .*net\.pt2: .*File too large"):
            export.export(PLAIN, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_bytes() == b"before" and list(tmp_path.glob("*net*")) == [out]


def test_a_damaged_weight_is_not_exported(zoo, stub, tmp_path):
    data = bytearray(zoo.file(PLAIN).read_bytes())
    data[-2] ^= 1
    zoo.file(PLAIN).write_bytes(data)
    with pytest.raises(errors.WeightHashError, match=PLAIN):
        export.export(PLAIN, tmp_path / "net.pt2")
    assert not list(tmp_path.glob("*.pt2")) and not stub


def test_a_run_folder_is_given_by_path_and_a_weight_by_name(zoo, stub, tmp_path, monkeypatch):
    run = zoo.copy(zoo.file(MHE).parent, tmp_path / "runs" / "0")
    said = export.export(str(run), tmp_path / "net.pt2").metadata
    assert "name" not in said and said["sha256"] == zoo.entries[MHE]["files"]["model.safetensors"]
    assert torch.equal(stub["model"].fc.weight, zoo.tensors[MHE]["fc.weight"])
    zoo.copy(run, tmp_path / PLAIN)
    monkeypatch.chdir(tmp_path)
    assert export.export(PLAIN, Path("net.pt2")).metadata["name"] == PLAIN
    assert export.export(f"local-dir:{PLAIN}", Path("net.pt2")).metadata["sha256"] == said["sha256"]
    (run / "model.safetensors").unlink()
    with pytest.raises(errors.WeightUnavailableError, match=r"model\.safetensors does not exist"):
        export.export(str(run), Path("net.pt2"))


@pytest.mark.parametrize(
    "words, code, text",
    [
        ([PLAIN, "net.h5"], 1, "net.h5 must end in .pt2 (torch) or .onnx (onnx); got .h5"),
        ([PLAIN, "net"], 1, "net must end in .pt2 (torch) or .onnx (onnx); got no suffix"),
        ([PLAIN, "nowhere/net.pt2"], 1, "cannot write nowhere/net.pt2: the folder"),
        (["resnet20_cifar.orth_c10", "net.pt2"], 1, "no weight 'resnet20_cifar.orth_c10'. Closest: resnet20_cifar."),
        (["resnet32_cifar", "net.pt2"], 1, "resnet32_cifar has no published weight"),
        (["local-dir:nowhere", "net.pt2"], 1, "nowhere does not exist or is not a folder"),
        (["../x", "net.pt2"], 1, "InvalidNameError"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_errors_are_one_line(zoo, stub, tmp_path, monkeypatch, capsys, words, code, text):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main._exit_code(["export", *words]) == code
    out, err = capsys.readouterr()
    assert out == "" and text in err and sorted(tmp_path.iterdir()) == before


def test_missing_packages_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else name)
    with pytest.raises(errors.MissingExtraError, match=r'onnx and onnxscript and onnxruntime: .*"hyperzoo\[export\]"'):
        export.export(PLAIN, tmp_path / "net.onnx")


def test_the_command_reports_what_it_wrote(zoo, stub, tmp_path, capsys):
    assert main._exit_code(["export", PLAIN, str(tmp_path / "net.pt2")]) == 0
    name, size, difference = capsys.readouterr().out.strip().split("\t")
    assert (name, size) == (str(tmp_path / "net.pt2"), "9000 bytes")
    assert float(difference.removeprefix("largest difference of outputs ")) < 1e-5
    assert main._exit_code(["export", PLAIN, str(tmp_path / "net.pt2"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["file"], found["bytes"], found["metadata"]["name"]) == (str(tmp_path / "net.pt2"), 9000, PLAIN)
