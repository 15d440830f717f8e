"""A damaged, foreign or hostile weight file raises one clear error, executes nothing and changes no model."""

import copy
import io
import json
import pickle
import pickletools
import random
import struct
import zipfile

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support import fuzz_weights
from support.bomb import Bomb
from support.published import ARCH, MHE, PLAIN

import hyperzoo
from hyperzoo import errors
from hyperzoo.files import sha256
from hyperzoo.zoo import hub, weight_files
from hyperzoo.zoo.manifest import Manifest

MUTATED = "mutated weight file"


def own(file):
    return timm.create_model(ARCH, pretrained=True, pretrained_cfg_overlay=dict(file=str(file)))


def with_header(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


@pytest.fixture
def small(tmp_path):
    """A complete file of 2 x 3 floats: 24 bytes of data."""
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3)}, file)
    return file


@pytest.mark.fault("weight file cut short")
@pytest.mark.parametrize("cut", ["0", "7", "half", "-1"])
def test_a_file_cut_short_names_path_and_both_sizes(small, cut):
    whole = small.read_bytes()
    kept = {"half": len(whole) // 2, "-1": len(whole) - 1}.get(cut, int(cut) if cut.isdigit() else 0)
    small.write_bytes(whole[:kept])
    expected = {0: "at least 8", 7: "at least 8"}.get(kept, str(len(whole)))
    if cut == "half":  # inside the header: its length is all that is known
        expected = f"more than {8 + struct.unpack('<Q', whole[:8])[0]}"
    with pytest.raises(errors.WeightFileError) as caught:
        weight_files.check_file(small)
    assert f"{small} is cut short or malformed: {kept} bytes found, {expected} expected" in str(caught.value)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD = {
    "header longer than the file": with_header(b"{}", length=1_000),
    "header of 2 ** 63 bytes": with_header(b"{}", length=2**63),
    "empty header": with_header(b""),
    "not JSON": with_header(b"{'a': 1}"),
    "not UTF-8": with_header(b'{"\xff\xfe": 1}'),
    "a list": with_header([1, 2]),
    "unknown dtype": with_header({"a": F32 | {"dtype": "F33"}}, bytes(8)),
    "negative shape": with_header({"a": F32 | {"shape": [-2]}}, bytes(8)),
    "shape that overflows": with_header({"a": F32 | {"shape": [2**62, 8]}}, bytes(8)),
    "offsets beyond the end": with_header({"a": F32 | {"data_offsets": [0, 16], "shape": [4]}}, bytes(8)),
    "offsets backwards": with_header({"a": F32 | {"data_offsets": [8, 0]}}, bytes(8)),
    "overlap": with_header({"a": F32, "b": F32}, bytes(8)),
    "a hole": with_header({"a": F32 | {"data_offsets": [8, 16]}}, bytes(16)),
    "bytes behind the end": with_header({"a": F32}, bytes(12)),
    "nested a thousand times": with_header(b"[" * 1_000 + b"]" * 1_000),
}


@pytest.mark.fault("malformed header of a weight file")
@pytest.mark.parametrize("fault", BAD)
def test_bad_headers(tmp_path, fault):
    file = tmp_path / "model.safetensors"
    file.write_bytes(BAD[fault])
    with pytest.raises(errors.WeightFileError) as caught:
        weight_files.check_file(file)
    assert str(file) in str(caught.value) and f"{len(BAD[fault])} bytes found" in str(caught.value)


def archive(bomb):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as stored:
        stored.writestr("archive/data.pkl", pickle.dumps(bomb))
    return data.getvalue()


PICKLES = {f"protocol {p}": lambda bomb, p=p: pickle.dumps(bomb, protocol=p) for p in range(6)} | {"zip": archive}


@pytest.mark.fault("pickle in the place of a weight")
@pytest.mark.parametrize("ending", [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ""])
@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_are_refused_under_any_name(tmp_path, kind, ending):
    marker, file = tmp_path / "marker", tmp_path / f"weight{ending}"
    file.write_bytes(PICKLES[kind](Bomb(marker)))
    with pytest.raises(errors.WeightFileError, match="weight"):
        own(file)
    assert not marker.exists()


@pytest.mark.parametrize("ending", [".bin", ".pt", ".pth", ".ckpt", ""])
def test_another_extension_alone_is_refused(small, ending):
    file = small.rename(small.with_suffix(ending))
    with pytest.raises(errors.WeightFileError, match=r"is not a \.safetensors file"):
        weight_files.check_file(file)


def test_the_bomb_is_live(tmp_path):
    """The call in the pickle writes the file; nothing here unpickles it."""
    marker = tmp_path / "marker"
    told = [(opcode.name, value) for opcode, value, _ in pickletools.genops(pickle.dumps(Bomb(marker), protocol=2))]
    assert ("GLOBAL", "io open") in told and ("BINUNICODE", str(marker)) in told and ("REDUCE", None) in told
    function, arguments = Bomb(marker).__reduce__()
    function(*arguments).close()
    assert marker.exists()


def test_a_folder_with_a_pickle_only_is_refused(zoo, tmp_path):
    marker, folder = tmp_path / "marker", tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_bytes((zoo.file(PLAIN).parent / "config.json").read_bytes())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker), protocol=2))
    with pytest.raises(errors.WeightUnavailableError, match=r"mine/model\.safetensors does not exist"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    with pytest.raises(
        RuntimeError, match="weights_only=True blocked"
    ):  # timm reads this file itself, and refuses what is not plain tensors
        timm.create_model(ARCH, checkpoint_path=str(folder / "pytorch_model.bin"))
    assert not marker.exists()


def test_a_pickle_on_the_hub_is_refused_by_its_name():
    overlay = dict(hf_hub_id="someone/x", hf_hub_filename="pytorch_model.bin")
    with pytest.raises(errors.WeightFileError, match=r"pytorch_model\.bin of someone/x is not a \.safetensors file"):
        timm.create_model(ARCH, pretrained=True, pretrained_cfg_overlay=overlay)


def test_a_url_is_refused():
    with pytest.raises(errors.WeightFileError, match=r"https://example\.org/w\.pth"):
        timm.create_model(ARCH, pretrained=True, pretrained_cfg_overlay=dict(url="https://example.org/w.pth"))


def test_a_header_that_begins_like_a_pickle_is_no_pickle(tmp_path):
    header = json.dumps({"a": F32}).encode().ljust(0x0480)  # the length 0x480 is stored as 80 04: pickle, protocol 4
    file = tmp_path / "model.safetensors"
    file.write_bytes(with_header(header, bytes(8)))
    assert file.read_bytes()[:2] == pickle.dumps(None, protocol=4)[:2]
    weight_files.check_file(file)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1100000\n"


def test_a_git_lfs_pointer(zoo, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(POINTER)
    with pytest.raises(errors.WeightFileError, match=r"is a Git LFS pointer.*git lfs pull"):
        own(file)
    zoo.file(PLAIN).write_bytes(POINTER)
    with pytest.raises(errors.WeightHashError, match="Reinstall hyperzoo"):
        hyperzoo.load(PLAIN)


def damage(zoo, kind):
    file, data = zoo.file(PLAIN), zoo.file(PLAIN).read_bytes()
    if kind == "renamed":
        file.write_bytes(zoo.file(MHE).read_bytes())
    elif kind == "flipped bit":
        file.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    else:
        file.write_bytes(data[: {"empty": 0, "7": 7, "half": len(data) // 2, "-1": len(data) - 1}[kind]])


@pytest.mark.fault("damaged file of a published weight")
@pytest.mark.parametrize("kind", ["renamed", "flipped bit", "empty", "7", "half", "-1"])
def test_a_damaged_bundled_file_names_both_hashes(zoo, kind):
    wanted = zoo.entries[PLAIN]["files"]["model.safetensors"]
    damage(zoo, kind)
    if kind == "flipped bit":
        assert load_file(zoo.file(PLAIN)).keys() == zoo.tensors[PLAIN].keys()  # safetensors sees nothing
    with pytest.raises(errors.WeightHashError) as caught:
        hyperzoo.load(PLAIN)
    file = zoo.file(PLAIN)
    says = f"{PLAIN}: {file} has sha256 {sha256(file)}, weights.json says {wanted}. Reinstall hyperzoo."
    assert str(caught.value) == says


def test_a_changed_config_and_a_missing_file(zoo):
    config = zoo.file(PLAIN).parent / "config.json"
    config.write_text(config.read_text().replace("class 3", "class 4"))
    with pytest.raises(errors.WeightHashError, match=r"config\.json has sha256"):
        hyperzoo.load(PLAIN)
    config.unlink()
    with pytest.raises(errors.WeightUnavailableError, match=r"config\.json is missing from the package\. Reinstall"):
        hyperzoo.load(PLAIN)


def test_a_pickle_with_the_right_hash_is_still_refused(zoo, tmp_path):
    marker = tmp_path / "marker"
    zoo.file(PLAIN).write_bytes(pickle.dumps(Bomb(marker)))
    zoo.rehash(PLAIN)
    with pytest.raises(errors.WeightFileError, match="is a pickle or an archive"):
        hyperzoo.load(PLAIN)
    assert not marker.exists()


def test_a_failed_comparison_leaves_the_model_as_it_was(zoo):
    model = timm.create_model(ARCH)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: value for key, value in zoo.tensors[PLAIN].items() if key != "layer3.2.bn2.weight"}
    with pytest.raises(errors.WeightFileError, match=r"missing: layer3\.2\.bn2\.weight"):
        weight_files.same_keys(state, model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert len(state) == len(before) - 1
    assert weight_files.same_keys(zoo.tensors[PLAIN], model) is zoo.tensors[PLAIN]


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(300, marks=pytest.mark.fault(MUTATED, 300)),
        pytest.param(10_000, marks=[pytest.mark.full, pytest.mark.fault(MUTATED, 10_000)]),
    ],
)
def test_random_damage_is_refused_or_loads(tmp_path, count):
    outcomes = fuzz_weights.campaign(count, seed=count, folder=tmp_path)
    assert outcomes.total() == count and outcomes["refused"] > count / 2 and outcomes["loaded"] > count / 50


def test_a_finding_is_named_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "check_file", lambda file: [][0])
    with pytest.raises(AssertionError, match="mutation 0 of seed 3: IndexError; see "):
        fuzz_weights.campaign(9, seed=3, folder=tmp_path)
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.fault("mutated file of a published weight", 30)
def test_a_published_file_never_survives_random_damage(zoo):
    data = zoo.file(PLAIN).read_bytes()
    cases = [case for n in range(60) if (case := fuzz_weights.mutated(data, random.Random(n))) != data][:30]
    assert len(cases) == 30
    for changed in cases:
        zoo.file(PLAIN).write_bytes(changed)
        with pytest.raises(errors.WeightHashError):
            hyperzoo.load(PLAIN)


def test_the_second_fetch_repairs_a_rotted_cache_or_is_the_last(zoo, monkeypatch):
    """Here a folder stands in for the Hub; `test_hub.py` makes real requests."""
    calls, good = [], zoo.root / "good"
    folder = zoo.copy(zoo.file(PLAIN).parent, zoo.snapshot("someone", PLAIN))
    zoo.copy(folder, good)
    (folder / "model.safetensors").write_bytes(b"rotted")

    def fetch(repo, revision, filename, *, cache_dir=None, force=False, size=0):
        calls.append(force)
        return (good if force else folder) / filename

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub, "offline", lambda: False)
    assert weight_files.path(PLAIN, repo=f"someone/{PLAIN}") == good / "model.safetensors"
    (good / "model.safetensors").write_bytes(b"wrong as well")
    with pytest.raises(errors.WeightHashError, match=rf"Fetched twice from someone/{PLAIN}@main.*local-dir:"):
        weight_files.path(PLAIN, repo=f"someone/{PLAIN}")
    assert calls == [False, True, False, True]


def change(entry, path, value):
    *parents, key = path
    for parent in parents:
        entry = entry[parent]
    if value is None:
        del entry[key]
    else:
        entry[key] = value


MANIFEST_FAULTS = [
    (["bytes"], None, "lacks bytes"),
    (["metrics", "this_file", "ece"], None, "metrics: this_file lacks ece"),
    (["colour"], "red", "has unknown fields: colour"),
    (["input", "colour"], "red", "input has unknown fields: colour"),
    (["bytes"], "12", "bytes must be of type int; got '12'"),
    (["default"], 1, "default must be of type bool; got 1"),
    (["bytes"], True, "bytes must be of type int; got True"),
    (["files", "model.safetensors"], "abc", "64 hexadecimal digits"),
    (["files", "extra.bin"], "0" * 64, r"files must hold model\.safetensors and config\.json"),
    (["commit"], "main", "40 hexadecimal digits"),
    (["bundled"], False, "neither bundled nor on the Hub"),
    (["task"], "segmentation", "task must be one of"),
    (["metrics", "accuracy", "n"], 3, "n, seeds and values must agree"),
    (["metrics", "accuracy", "sd"], 0.1, "sd must be a number for n > 1"),
    (["default"], False, "has 0 default weights"),
]


@pytest.mark.fault("false entry of the manifest")
@pytest.mark.parametrize("path, value, message", MANIFEST_FAULTS)
def test_a_false_manifest_entry_is_refused_by_name(zoo, path, value, message):
    zoo.entries = copy.deepcopy(zoo.entries)
    change(zoo.entries[PLAIN], path, value)
    zoo.save()
    with pytest.raises(errors.WeightFileError, match=message) as caught:
        Manifest(zoo.root)
    assert (ARCH if path == ["default"] and value is False else PLAIN) in str(caught.value)


def test_two_defaults_and_a_malformed_manifest(zoo):
    zoo.entries[MHE]["default"] = True
    zoo.save()
    with pytest.raises(errors.WeightFileError, match=f"{ARCH} has 2 default weights"):
        Manifest(zoo.root)
    for text in ("", "{}", '{"format": 2}'):
        (zoo.root / "weights.json").write_text(text)
        with pytest.raises(errors.WeightFileError, match=r"weights\.json"):
            Manifest(zoo.root)
