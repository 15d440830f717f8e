"""Predictions of files equal the softmax of the loaded model on the preprocessed image."""

import csv

import pytest
import torch
from PIL import Image

import hyperzoo
from hyperzoo.analysis import predict
from hyperzoo.errors import DataError, InputError

NAME = "spherenet20"


@pytest.fixture
def folder(tmp_path):
    """Three images of different kind and size, one in a subfolder with a space and an umlaut, and a text."""
    folder = tmp_path / "own images"
    (folder / "Vögel 2").mkdir(parents=True)
    for place, mode, size in (("a.png", "RGB", (40, 32)), ("Vögel 2/b.jpg", "L", (64, 64)), ("c.PNG", "RGBA", (9, 70))):
        noise = torch.randint(0, 256, (size[1], size[0], 4), generator=torch.Generator().manual_seed(size[0]))
        Image.fromarray(noise.to(torch.uint8).numpy(), "RGBA").convert(mode).save(folder / place)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_every_image_of_a_folder_is_predicted_in_order(folder):
    found = predict.run(NAME, folder, top=2)
    assert [row.file.relative_to(folder).as_posix() for row in found] == ["Vögel 2/b.jpg", "a.png", "c.PNG"]
    loaded, transform = hyperzoo.load(NAME), hyperzoo.preprocess(NAME)
    for row in found:
        with torch.inference_mode():
            expected = loaded.model(transform(Image.open(row.file))[None]).softmax(1)[0]
        by_hand = sorted(zip(expected.tolist(), loaded.classes, strict=True), reverse=True)[:2]
        assert row.classes == tuple(name for _, name in by_hand)
        assert row.probabilities == pytest.approx([p for p, _ in by_hand], abs=1e-5)


def test_one_file(folder):
    (row,) = predict.run(NAME, folder / "a.png", top=1)
    assert len(row.classes) == 1
    assert row.shown() == (str(folder / "a.png"), row.classes[0], f"{100 * row.probabilities[0]:.1f}", "")


def test_csv_has_one_line_per_class(folder):
    found = predict.run(NAME, folder, top=3)
    lines = list(csv.DictReader(predict.as_csv(found).splitlines()))
    assert [line["rank"] for line in lines] == ["1", "2", "3"] * 3
    assert lines[3]["file"] == str(found[1].file)
    assert float(lines[3]["probability"]) == pytest.approx(found[1].probabilities[0], abs=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_the_contact_sheet_is_drawn(folder, tmp_path, count):
    sheet = predict.draw(predict.run(NAME, folder)[-count:], tmp_path / "sheet.png", title="made")
    with Image.open(sheet) as drawn:
        assert drawn.width == 160 * count
        assert drawn.convert("RGB").getcolors(256) is None, "only black and gray: no image is on it"


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_broken_file_is_named(folder, content):
    (folder / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png cannot be decoded.*Remove or replace it"):
        predict.run(NAME, folder)


def test_wrong_arguments_are_named(folder, tmp_path):
    with pytest.raises(InputError, match="between 1 and the 10 classes of spherenet20; got 11"):
        predict.run(NAME, folder, top=11)
    with pytest.raises(DataError, match="nowhere does not exist"):
        predict.run(NAME, folder / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no image"):
        predict.run(NAME, tmp_path / "empty")
