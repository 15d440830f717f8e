"""`preprocess` equals timm's evaluation transform bit for bit, for PIL images and for uint8 batches."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support.published import ARCH, MHE, PLAIN, publish, withdraw

import hyperzoo
from hyperzoo import errors
from hyperzoo.zoo import weight_files


def pictures(count=3, size=(32, 32)):
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pil(picture):
    return Image.fromarray(np.asarray(picture.permute(1, 2, 0)))


OF_IMAGES = [name for name in hyperzoo.list_weights() if hyperzoo.weight_info(name).task == "image-classification"]


def by_timm(name, batch):
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(timm.create_model(name)))
    return torch.stack([transform(pil(picture)) for picture in batch])


@pytest.mark.parametrize("name", ["spherenet20", "resnet32_cifar", *OF_IMAGES])
@pytest.mark.parametrize("size", [(32, 32), (48, 40), (20, 33)])
def test_equal_to_timm_bit_for_bit(name, size):
    batch, prepare = pictures(size=size), hyperzoo.preprocess(name)
    expected = by_timm(name, batch)
    assert expected.shape == (3, 3, 32, 32) and expected.dtype == torch.float32
    assert torch.equal(prepare(batch), expected)
    for picture, one in zip(batch, expected, strict=True):
        assert torch.equal(prepare(pil(picture)), one)


def test_the_formula_and_the_manifests_numbers(tmp_path, monkeypatch):
    publish(tmp_path, monkeypatch)
    try:
        mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
        for name in (ARCH, PLAIN, MHE):
            got = hyperzoo.preprocess(name)(pictures())
            torch.testing.assert_close(got, (pictures() / 255 - mean) / std, rtol=0, atol=1e-6)  # rounding only
    finally:
        withdraw(monkeypatch)


def test_the_input_is_unchanged_and_memory_formats_do_not_matter():
    prepare, batch = hyperzoo.preprocess("spherenet20"), pictures()
    before = batch.clone()
    expected = prepare(batch)
    assert torch.equal(batch, before)
    assert torch.equal(prepare(batch.to(memory_format=torch.channels_last)), expected)
    assert prepare(batch[:0]).shape == (0, 3, 32, 32) and prepare(pictures(0, (9, 9))).shape == (0, 3, 32, 32)
    gray = pil(batch[0]).convert("L")
    assert torch.equal(prepare(gray), prepare(gray.convert("RGB")))


def test_a_run_folder_uses_its_own_config(tmp_path):
    folder = weight_files.MANIFEST.folder("spherenet20.sphere_c10")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= dict(mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3])
    (tmp_path / "config.json").write_text(json.dumps(config))
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    got = hyperzoo.preprocess(f"local-dir:{tmp_path}")(pictures())
    torch.testing.assert_close(got, (pictures() / 255 - mean) / std, rtol=0, atol=1e-6)  # rounding only
    with pytest.raises(errors.WeightUnavailableError, match="nowhere does not exist"):
        hyperzoo.preprocess("local-dir:nowhere")
    words = weight_files.MANIFEST.folder("lstm200.plain_ptb")
    with pytest.raises(errors.InputError, match="reads token ids"):
        hyperzoo.preprocess(f"local-dir:{words}")


def test_it_prints_what_it_does():
    given = hyperzoo.weight_info("spherenet20").input
    assert repr(hyperzoo.preprocess("spherenet20")).splitlines() == [
        "Preprocess(",
        "    convert: RGB",
        f"    resize: shorter side to 32 px, {given.interpolation}",
        "    crop: 32 x 32 px at the center",
        "    scale: to [0, 1]",
        f"    normalize: (x - {given.mean}) / {given.std}",
        "    return: float32, (3, 32, 32) per image",
        ")",
    ]
    large = repr(hyperzoo.preprocess("spherenet18_imagenet"))  # timm's crop_pct 0.875: 224 of 256 pixels
    assert "shorter side to 256 px" in large and "crop: 224 x 224 px" in large


BAD = [
    (torch.zeros(3, 32, 32, dtype=torch.uint8), r"uint8 \(batch, 3, height, width\); got torch\.uint8 \(3, 32, 32\)"),
    (torch.zeros(2, 3, 32, 32), r"got torch\.float32 \(2, 3, 32, 32\)"),
    (torch.zeros(2, 32, 32, 3, dtype=torch.uint8), r"expected 3 channels .* got torch\.uint8 \(2, 32, 32, 3\)"),
    (torch.zeros(2, 3, 0, 32, dtype=torch.uint8), r"at least one pixel; got torch\.uint8 \(2, 3, 0, 32\)"),
    (np.zeros((2, 3, 32, 32), np.uint8), "got ndarray"),
    ("cat.png", "got str"),
    (None, "got NoneType"),
]


@pytest.mark.parametrize("bad, message", BAD)
def test_anything_else_is_one_clear_error(bad, message):
    with pytest.raises(errors.InputError, match=message):
        hyperzoo.preprocess("spherenet20")(bad)
