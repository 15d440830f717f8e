"""Every route from a weight's name loads exactly the published tensors, or raises an error and returns no model."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support.published import ARCH, COMMIT, LABELS, MHE, MIXUP, PLAIN

import hyperzoo
from hyperzoo import errors
from hyperzoo.files import sha256
from hyperzoo.zoo import weight_files

ROOT = str(Path(__file__).parent.parent)
BACKBONE = "layer2.0.conv1.weight"


def has_exactly(model, tensors):
    state = model.state_dict()
    assert state.keys() == tensors.keys()
    return all(torch.equal(state[key], tensors[key]) for key in tensors)


def own_file(zoo, drop=(), **replace):
    """A folder of the caller's own with the tensors of PLAIN, some of them dropped or replaced."""
    tensors = {key: value for key, value in zoo.tensors[PLAIN].items() if key not in drop} | replace
    folder = zoo.root / "own"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_bytes((zoo.file(PLAIN).parent / "config.json").read_bytes())
    return folder / "model.safetensors"


ROUTES = {
    "default": lambda zoo, **kw: timm.create_model(ARCH, pretrained=True, **kw),
    "tag": lambda zoo, **kw: timm.create_model(PLAIN, pretrained=True, **kw),
    "load": lambda zoo, **kw: hyperzoo.load(PLAIN, **kw).model,
    "load by architecture": lambda zoo, **kw: hyperzoo.load(ARCH, **kw).model,
    "description from timm": lambda zoo, **kw: timm.create_model(
        ARCH, pretrained=True, pretrained_cfg=timm.get_pretrained_cfg(PLAIN).to_dict(), **kw
    ),
    "torch.hub": lambda zoo, **kw: torch.hub.load(ROOT, ARCH, source="local", pretrained=True, **kw),
    "hf-hub": lambda zoo, **kw: timm.create_model(
        f"hf-hub:someone/{PLAIN}@{COMMIT}", pretrained=True, cache_dir=zoo.cache, **kw
    ),
    "load hf-hub": lambda zoo, **kw: hyperzoo.load(f"hf-hub:someone/{PLAIN}@{COMMIT}", cache_dir=zoo.cache, **kw).model,
    "local-dir": lambda zoo, **kw: timm.create_model(f"local-dir:{zoo.file(PLAIN).parent}", pretrained=True, **kw),
}
HASHED = [route for route in ROUTES if route != "local-dir"]  # there the caller names the file
CALLERS = {
    "file": lambda file, **kw: timm.create_model(
        ARCH, pretrained=True, pretrained_cfg_overlay=dict(file=str(file)), **kw
    ),
    "state_dict": lambda file, **kw: timm.create_model(
        ARCH, pretrained=True, pretrained_cfg_overlay=dict(state_dict=load_file(file)), **kw
    ),
    "local-dir": lambda file, **kw: timm.create_model(f"local-dir:{file.parent}", pretrained=True, **kw),
}


@pytest.fixture
def cached(zoo):
    """The small zoo, with the files of PLAIN in the client's cache as another owner's repository."""
    zoo.copy(zoo.file(PLAIN).parent, zoo.snapshot("someone", PLAIN))
    return zoo


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_loads_the_published_tensors_and_adapts_them(cached, route):
    load, tensors = ROUTES[route], cached.tensors[PLAIN]
    assert has_exactly(load(cached), tensors)
    for classes in (7, 0):
        other = load(cached, num_classes=classes)
        assert agrees_but_for(other, tensors, "fc.") and other(torch.zeros(2, 3, 32, 32)).shape == (2, classes or 64)
    gray = load(cached, in_chans=1)
    stem = tensors["conv1.weight"].sum(1, keepdim=True)  # one channel: the sum over red, green and blue
    torch.testing.assert_close(gray.conv1.weight.detach(), stem, rtol=0, atol=1e-6)  # order of a sum of three
    assert agrees_but_for(gray, tensors, "conv1.")
    both = load(cached, in_chans=1, num_classes=5)  # what timm's own tests ask of every pretrained weight
    assert agrees_but_for(both, tensors, ("conv1.", "fc.")) and both(torch.zeros(1, 1, 32, 32)).shape == (1, 5)
    features = load(cached, features_only=True)
    assert torch.equal(features.state_dict()[BACKBONE], tensors[BACKBONE])
    assert [tuple(x.shape[1:]) for x in features(torch.zeros(1, 3, 32, 32))] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def agrees_but_for(model, tensors, other):
    state = model.state_dict()
    return all(torch.equal(state[key], value) for key, value in tensors.items() if not key.startswith(other))


@pytest.mark.parametrize("part", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("route", HASHED)
def test_every_route_hashes_every_file_on_every_load(cached, route, part):
    load = ROUTES[route]
    load(cached)
    folder = cached.snapshot("someone", PLAIN) if route.endswith("hf-hub") else cached.file(PLAIN).parent
    if part == "config.json":
        (folder / part).write_text((folder / part).read_text().replace("class 3", "class 4"))
    else:
        flip(folder / part)
    remedy = "HF_HUB_OFFLINE=1 forbids a sec" if route.endswith("hf-hub") else "Reinstall hyperzoo"
    with pytest.raises(errors.WeightHashError, match=rf"{PLAIN}: .*{part} has sha256.*{remedy}"):
        load(cached)


def flip(file: Path) -> None:
    """Flip one bit of the last tensor, which only a hash detects."""
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("route", CALLERS)
def test_a_file_of_the_callers_own_loads_without_a_hash(zoo, route, caplog):
    other = torch.full_like(zoo.tensors[PLAIN][BACKBONE], 0.5)
    with caplog.at_level(logging.INFO, "hyperzoo"):
        model = CALLERS[route](own_file(zoo, **{BACKBONE: other}))
    assert torch.equal(model.state_dict()[BACKBONE], other)
    assert "no hash" in caplog.text


def test_checkpoint_path_passes_through(zoo):
    model = timm.create_model(ARCH, checkpoint_path=str(zoo.file(MHE)))
    assert has_exactly(model, zoo.tensors[MHE])


def test_a_repository_of_the_callers_own_takes_precedence_over_the_bundled_file(zoo):
    zoo.copy(zoo.file(MHE).parent, zoo.snapshot("someone", "else"))
    overlay = dict(hf_hub_id=f"someone/else@{COMMIT}")
    model = timm.create_model(PLAIN, pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=zoo.cache)
    assert has_exactly(model, zoo.tensors[MHE])


def test_tags_are_different_weights_and_one_is_the_default(zoo):
    assert has_exactly(timm.create_model(MHE, pretrained=True), zoo.tensors[MHE])
    assert hyperzoo.weight_info(ARCH).name == PLAIN
    assert timm.get_pretrained_cfg(ARCH).tag == "plain_c10"
    assert set(timm.list_pretrained(f"{ARCH}*")) == {PLAIN, MHE, MIXUP}


def test_a_weight_in_the_cache_needs_no_network_and_is_hashed(zoo):
    assert has_exactly(hyperzoo.load(MIXUP, cache_dir=zoo.cache).model, zoo.tensors[MIXUP])
    file = zoo.snapshot("hyperzoo", MIXUP) / "model.safetensors"
    flip(file)
    with pytest.raises(errors.WeightHashError) as caught:
        timm.create_model(MIXUP, pretrained=True, cache_dir=zoo.cache)
    wanted = zoo.entries[MIXUP]["files"]["model.safetensors"]
    for part in (MIXUP, str(file), sha256(file), wanted, "HF_HUB_OFFLINE=1 forbids a second download"):
        assert part in str(caught.value)


def test_the_config_of_a_cached_weight_is_hashed_although_timm_does_not_read_it(zoo):
    file = zoo.snapshot("hyperzoo", MIXUP) / "config.json"
    file.write_text(file.read_text().replace("class 3", "class 4"))
    with pytest.raises(errors.WeightHashError, match=rf"{MIXUP}: .*config\.json has sha256 {sha256(file)}"):
        timm.create_model(MIXUP, pretrained=True, cache_dir=zoo.cache)


def test_offline_and_not_cached_is_one_sentence(zoo, tmp_path):
    with pytest.raises(errors.WeightUnavailableError) as caught:
        timm.create_model(MIXUP, pretrained=True, cache_dir=tmp_path / "empty")
    parts = (MIXUP, "1.1 MB", str(tmp_path / "empty"), f"hyperzoo/{MIXUP}@{COMMIT}", "HF_HUB_OFFLINE=1")
    for part in (*parts, f"hyperzoo verify {MIXUP}", f"Bundled: {MHE}, {PLAIN}"):
        assert part in str(caught.value)
    assert isinstance(caught.value, OSError)


def test_five_channels_dtype_and_meta(zoo):
    assert timm.create_model(ARCH, pretrained=True, in_chans=5)(torch.zeros(1, 5, 32, 32)).shape == (1, 10)
    half = timm.create_model(ARCH, pretrained=True, dtype=torch.bfloat16)
    assert torch.equal(half.state_dict()[BACKBONE], zoo.tensors[PLAIN][BACKBONE].bfloat16())
    assert timm.create_model(ARCH, device="meta").fc.weight.is_meta


@pytest.mark.parametrize("kwargs", [{}, dict(num_classes=7), dict(in_chans=1), dict(features_only=True)])
@pytest.mark.parametrize("route", CALLERS)
def test_a_missing_backbone_tensor_is_never_accepted(zoo, route, kwargs):
    with pytest.raises(errors.WeightFileError, match=f"missing: {BACKBONE}"):
        CALLERS[route](own_file(zoo, drop=[BACKBONE]), **kwargs)


@pytest.mark.parametrize("route", [route for route in HASHED if not route.endswith("hf-hub")])
def test_a_missing_backbone_tensor_with_the_right_hash_too(zoo, route):
    save_file({k: v for k, v in zoo.tensors[PLAIN].items() if k != BACKBONE}, zoo.file(PLAIN))
    zoo.rehash(PLAIN)
    with pytest.raises(errors.WeightFileError, match=f"missing: {BACKBONE}"):
        ROUTES[route](zoo, num_classes=7)


def test_all_faults_of_the_tensors_are_listed_at_once(zoo):
    replace = {"bn1.weight": torch.zeros(17), "alien.weight": torch.zeros(2)}
    with pytest.raises(errors.WeightFileError) as caught:
        CALLERS["file"](own_file(zoo, drop=["bn1.bias", "fc.bias"], **replace))
    for part in ("missing: bn1.bias, fc.bias", "unexpected: alien.weight", "bn1.weight (17,), not (16,)", PLAIN, "own"):
        assert part in str(caught.value)
    assert str(zoo.root / "own" / "model.safetensors") in str(caught.value)


@pytest.mark.parametrize(
    "replace, kwargs",
    [
        ({"fc.weight": torch.zeros(7, 64)}, {}),
        ({"conv1.weight": torch.zeros(16, 1, 3, 3)}, {}),
        ({"conv1.weight": torch.zeros(17, 3, 3, 3)}, dict(in_chans=1)),
        ({"conv1.weight": torch.zeros(16, 3, 5, 5)}, dict(in_chans=1)),
    ],
)
def test_a_head_or_stem_that_nobody_asked_to_change_must_fit(zoo, replace, kwargs):
    with pytest.raises(errors.WeightFileError, match=f"other shape: {next(iter(replace))}"):
        CALLERS["file"](own_file(zoo, **replace), **kwargs)


def test_another_head_is_saved_and_loaded_by_local_dir(zoo, tmp_path):
    model = timm.create_model(ARCH, pretrained=True, num_classes=7, in_chans=1)
    timm.models.save_for_hf(model, tmp_path / "mine", safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'mine'}", pretrained=True)
    assert has_exactly(again, model.state_dict())
    headless = timm.create_model(f"local-dir:{tmp_path / 'mine'}", pretrained=True, num_classes=0)
    assert not [key for key in headless.state_dict() if key.startswith("fc.")]


def test_load_takes_a_path_and_names_arguments_that_do_not_fit(zoo):
    assert has_exactly(hyperzoo.load(zoo.file(PLAIN).parent).model, zoo.tensors[PLAIN])
    with pytest.raises(errors.InputError, match=f"{PLAIN} cannot be loaded with nonsense: .*'nonsense'"):
        hyperzoo.load(PLAIN, nonsense=1)
    with pytest.raises(errors.InputError, match="no task 3. Known: image-classification, text-generation"):
        hyperzoo.list_models(3)


def test_unknown_tags_and_architectures_without_weights(zoo):
    for pretrained in (False, True):
        with pytest.raises(errors.UnknownTagError) as caught:
            timm.create_model(f"{ARCH}.sphere_c10", pretrained=pretrained)
        assert "sphere_c10" in str(caught.value) and "mhe_c10, mixup_c10, plain_c10" in str(caught.value)
        assert isinstance(caught.value, RuntimeError)  # as timm's own
    with pytest.raises(errors.UnknownTagError, match=r"resnet32_cifar has no published weight.*pretrained=False"):
        timm.create_model("resnet32_cifar", pretrained=True)
    with pytest.raises(errors.UnknownNameError, match="resnet32_cifar has no published weight"):
        hyperzoo.load("resnet32_cifar")


def test_load_returns_model_classes_and_info(zoo):
    loaded = hyperzoo.load(PLAIN, num_classes=10)
    assert not loaded.model.training
    assert loaded.classes == tuple(LABELS)
    assert loaded.info == hyperzoo.weight_info(PLAIN)
    assert loaded.info.metrics.accuracy.mean == 91.25 and loaded.info.input.size == (3, 32, 32)
    with pytest.raises(errors.InputError, match=r"checkpoint_path.*timm\.create_model"):
        hyperzoo.load(PLAIN, checkpoint_path="x")


def test_load_takes_a_folder_with_its_class_names(zoo):
    folder = own_file(zoo).parent
    loaded = hyperzoo.load(f"local-dir:{folder}", num_classes=7)
    assert not loaded.model.training and loaded.model.num_classes == 7
    assert agrees_but_for(loaded.model, zoo.tensors[PLAIN], "fc.")
    assert loaded.classes == () and loaded.info is None  # no name fits these seven outputs
    assert hyperzoo.load(f"local-dir:{folder}").classes == tuple(LABELS)
    with pytest.raises(errors.WeightUnavailableError, match=r"has no config\.json, so it is not a saved model"):
        hyperzoo.load(f"local-dir:{folder.parent}")
    config = folder / "config.json"
    config.write_text(config.read_text().replace("label_names", "other"))
    with pytest.raises(errors.WeightFileError, match=r"neither vocab\.txt nor label_names"):
        hyperzoo.load(f"local-dir:{folder}")


def test_the_cfg_that_timm_gets_is_the_manifests(zoo):
    cfg = timm.get_pretrained_cfg(PLAIN)
    assert (cfg.mean, cfg.std, cfg.input_size) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), (3, 32, 32))
    assert timm.get_pretrained_cfg(MIXUP).hf_hub_id == f"hyperzoo/{MIXUP}@{COMMIT}"
    assert timm.get_pretrained_cfg(MIXUP).hf_hub_filename == "model.safetensors"  # never timm's pickle


def test_lists(zoo):
    assert hyperzoo.list_weights() == hyperzoo.list_weights(ARCH) == sorted((PLAIN, MHE, MIXUP))
    assert hyperzoo.list_weights("resnet32_cifar") == []
    assert {ARCH, "spherenet20"} <= set(hyperzoo.list_models("image-classification")) <= set(hyperzoo.list_models())
    assert "lstm200" in hyperzoo.list_models("text-generation")
    with pytest.raises(errors.InputError, match="no task"):
        hyperzoo.list_models("image_classification")
    with pytest.raises(errors.UnknownNameError, match="spherenet20"):
        hyperzoo.list_weights("spherenet21")


@pytest.mark.parametrize("name", hyperzoo.list_weights())
def test_each_weight_of_the_package(name):
    info = hyperzoo.weight_info(name)
    file = weight_files.path(name)
    tensors = load_file(file)
    assert file.stat().st_size == info.bytes and sha256(file) == info.files["model.safetensors"]
    assert info.bytes <= 12_000_000 or not info.bundled
    loaded = hyperzoo.load(name)
    for model in (loaded.model, timm.create_model(name, pretrained=True), hub_local(file)):
        assert has_exactly(model, tensors)
    assert sum(p.numel() for p in loaded.model.parameters()) == info.parameters
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert len(loaded.classes) == info.num_classes == loaded.model.num_classes
    if info.task != "image-classification":
        return
    for classes in (5, 0):
        other = timm.create_model(name, pretrained=True, in_chans=1, num_classes=classes)
        assert other.num_classes == classes and other.in_chans == 1
    assert len(timm.create_model(name, pretrained=True, features_only=True)(torch.zeros(1, *info.input.size))) >= 3


def hub_local(file):
    return timm.create_model(f"local-dir:{file.parent}", pretrained=True)


def test_bundled_weights_are_of_registered_architectures():
    bundled = [hyperzoo.weight_info(name) for name in weight_files.MANIFEST.bundled()]
    assert bundled and {info.arch for info in bundled} <= set(hyperzoo.list_models())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"architecture": 3}'])
def test_a_damaged_config_of_a_folder_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    for use in (hyperzoo.load, hyperzoo.preprocess):
        with pytest.raises(errors.WeightFileError, match="config.json is damaged"):
            use(f"local-dir:{tmp_path}")


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(errors.WeightUnavailableError, match="absent does not exist"):
        hyperzoo.load(f"local-dir:{tmp_path / 'absent'}")


@pytest.mark.fault("path that is no saved model", 3)
def test_a_path_that_is_no_saved_model_is_named_and_the_home_folder_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "unfinished" / "checkpoints").mkdir(parents=True)
    for name in (tmp_path / "unfinished", "~/unfinished"):
        with pytest.raises(
            errors.WeightUnavailableError, match="no config.json.* a run has one when its training is f"
        ):
            hyperzoo.load(str(name))
    for name in ("runs/typo", "~nobody/run"):
        with pytest.raises(errors.InvalidNameError, match=f"{name}' is neither an existing folder nor a name"):
            hyperzoo.load(name)
