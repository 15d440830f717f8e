"""Predictions of files equal the softmax of the loaded model on the preprocessed image."""

import csv
import io
import json

import pytest
import torch
from PIL import Image

import hyperzoo
from hyperzoo.analysis import predict
from hyperzoo.errors import DataError, InputError
from hyperzoo.zoo.model_folder import save_model

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
    for hidden in ("._a.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/b.png", "Vögel 2/.trash/b.jpg"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_text("no image either")
    return folder


def test_every_image_of_a_folder_is_predicted_in_order(folder):
    found = predict.run(NAME, folder, top=2).files
    assert [row.file.relative_to(folder).as_posix() for row in found] == ["Vögel 2/b.jpg", "a.png", "c.PNG"]
    loaded, transform = hyperzoo.load(NAME), hyperzoo.preprocess(NAME)
    for row in found:
        with torch.inference_mode():
            expected = loaded.model(transform(Image.open(row.file))[None]).softmax(1)[0]
        by_hand = sorted(zip(expected.tolist(), loaded.classes, strict=True), reverse=True)[:2]
        assert row.classes == tuple(name for _, name in by_hand)
        assert row.probabilities == pytest.approx([p for p, _ in by_hand], abs=1e-5)


def test_one_file(folder):
    (row,) = predict.run(NAME, folder / "a.png", top=1).files
    assert len(row.classes) == 1
    assert row.shown() == (str(folder / "a.png"), row.classes[0], f"{100 * row.probabilities[0]:.1f}", "")


def test_csv_has_one_line_per_class(folder):
    found = predict.run(NAME, folder, top=3).files
    lines = list(csv.DictReader(predict.as_csv(found).splitlines()))
    assert [line["rank"] for line in lines] == ["1", "2", "3"] * 3
    assert lines[3]["file"] == str(found[1].file)
    assert float(lines[3]["probability"]) == pytest.approx(found[1].probabilities[0], abs=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_the_contact_sheet_is_drawn(folder, tmp_path, count):
    sheet = predict.draw(predict.run(NAME, folder).files[-count:], tmp_path / "sheet.png", title="made")
    with Image.open(sheet) as drawn:
        assert drawn.width == 160 * count
        assert drawn.convert("RGB").getcolors(256) is None, "only black and gray: no image is on it"


@pytest.mark.fault("damaged image")
@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_broken_file_is_named(folder, content):
    (folder / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png cannot be decoded.*Remove or replace it"):
        predict.run(NAME, folder)


@pytest.mark.fault("picture that cannot be decoded", 2)
def test_all_broken_files_are_named_in_one_error(folder):
    for name in ("first.png", "last.png"):
        (folder / name).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^2 of the \d+ images in .* cannot be decoded: .*first\.png, .*last\.png; "):
        predict.run(NAME, folder)


def test_wrong_arguments_are_named(folder, tmp_path):
    with pytest.raises(InputError, match="between 1 and the 10 classes of spherenet20; got 11"):
        predict.run(NAME, folder, top=11)
    with pytest.raises(DataError, match="nowhere does not exist"):
        predict.run(NAME, folder / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no image"):
        predict.run(NAME, tmp_path / "empty")


def test_a_photo_is_turned_upright_as_its_camera_says(tmp_path):
    """Upper half white, lower half black, stored turned by 90 degrees with the EXIF orientation that undoes it."""
    upright = Image.new("RGB", (32, 32))
    upright.paste("white", (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    upright.rotate(90).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    turned, plain = predict.run(NAME, tmp_path).files
    assert turned.probabilities == plain.probabilities
    with Image.open(predict.draw([turned], tmp_path / "sheet.png", title="made")) as drawn:
        lower = drawn.convert("L").crop((80 - 30, drawn.height - 40, 80 + 30, drawn.height - 30))
    assert lower.getextrema() == (0, 0), "the lower half is black from left to right"


def test_the_command_prints_a_table_csv_or_json(folder, tmp_path, command):
    expected = predict.run(NAME, folder, top=2).files
    code, out, err = command("predict", NAME, folder, "--top", 2)
    header, *rows = [line.split("\t") for line in out.splitlines()]
    assert (code, err) == (0, "") and header == list(predict.COLUMNS)
    assert rows == [list(row.shown()) for row in expected]
    table, sheet = tmp_path / "found.csv", tmp_path / "sheet.png"
    code, out, err = command("predict", NAME, folder, "--top", 2, "--csv", table, "--sheet", sheet, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "") and sheet.is_file()
    assert [(row["file"], row["classes"]) for row in found["files"]] == [(str(r.file), [*r.classes]) for r in expected]
    assert (found["skipped"], found["csv"], found["sheet"]) == ([], str(table), str(sheet))
    lines = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [line["class"] for line in lines] == [name for row in expected for name in row.classes]
    code, out, err = command("predict", NAME, folder, "--top", 2, "--csv", "-")
    assert (code, out, err) == (0, table.read_text(), "")


@pytest.mark.fault("damaged image")
def test_a_broken_file_stops_the_command_or_is_skipped_and_named(folder, tmp_path, command):
    (folder / "broken.png").write_bytes(b"no image")
    table = tmp_path / "found.csv"
    code, out, err = command("predict", NAME, folder, "--csv", table)
    assert (code, out) == (1, "") and "broken.png cannot be decoded" in err and not table.exists()
    code, out, err = command("predict", NAME, folder, "--on-error", "skip")
    assert code == 0 and len(out.splitlines()) == 1 + 3
    assert err.startswith("skipped: the image ") and "broken.png cannot be decoded" in err and err.count("\n") == 1
    (skipped,) = json.loads(command("predict", NAME, folder, "--on-error", "skip", "--json")[1])["skipped"]
    assert "broken.png" in skipped
    code, _, err = command("predict", NAME, folder / "broken.png", "--on-error", "skip")
    assert code == 1 and "none of the 1 images" in err and "broken.png cannot be decoded" in err


@pytest.mark.parametrize(
    "words, code, text",
    [
        (["--csv", "found.txt"], 2, "found.txt must end in .csv"),
        (["--csv", "nowhere/found.csv"], 2, "nowhere must be a writable folder"),
        (["--csv", "-", "--json"], 2, "give --csv a file"),
        (["--sheet", "-"], 2, "- must end in .png"),
        (["--top", "0"], 2, "0 is not in the range"),
        (["--top", "11"], 1, "between 1 and the 10 classes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_options_are_named_before_any_file_is_written(folder, command, words, code, text):
    found, out, err = command("predict", NAME, folder, *words)
    assert (found, out) == (code, "") and text in err


def test_a_network_of_two_classes_has_two_predictions(folder, tmp_path):
    model = hyperzoo.models.resnet_cifar.resnet20_cifar(num_classes=2)
    (tmp_path / "run").mkdir()
    save_model(model, tmp_path / "run", classes=("left", "right"))
    (row,) = predict.run(str(tmp_path / "run"), folder / "a.png").files
    assert {*row.classes} == {"left", "right"} and sum(row.probabilities) == pytest.approx(1)
