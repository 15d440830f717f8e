"""Predict the classes of image files, as a table, CSV or contact sheet."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hyperzoo import pixels, zoo
from hyperzoo.analysis import plots
from hyperzoo.data import folders
from hyperzoo.data.progress_line import counted
from hyperzoo.errors import DataError, InputError, listed
from hyperzoo.files import write_whole

BATCH = 64
TOP = 3
SHEET = 48  # images on a contact sheet
THUMBNAIL_PX = 160
OnError = Literal["stop", "skip"]
COLUMNS = ("file", "class", "probability (%)", "next")


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of a file, likeliest first.

    Attributes:
        classes, probabilities: the same number of each; probabilities in [0, 1].
    """

    file: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    def shown(self) -> tuple[str, ...]:
        """A row of `COLUMNS`."""
        others = (f"{name} {100 * p:.1f}" for name, p in zip(self.classes[1:], self.probabilities[1:], strict=True))
        return (str(self.file), self.classes[0], f"{100 * self.probabilities[0]:.1f}", ", ".join(others))


class Predictions(NamedTuple):
    """The predictions of all files that were decoded, and an error that names each of the others."""

    files: list[Prediction]
    broken: list[DataError]


def run(name: str, path: Path, *, top: int | None = None, on_error: OnError = "stop") -> Predictions:
    """Predict the class of an image file, or of every image in a folder and its subfolders, in order of their paths.

    Args:
        name: a weight, an architecture with a weight, or a run folder; as for `hyperzoo.load`.
        top: number of classes per file [default: 3, or all if there are fewer].
        on_error: 'stop' if there are files that cannot be decoded, and name them, or 'skip' such files.
    Raises:
        InputError: `top` is not between 1 and the number of classes, or a language model.
        DataError: no such path, no image in it, or a file that cannot be decoded; with 'skip', only if none can.
        UnknownNameError, WeightHashError, ...: as `hyperzoo.load`.
    """
    loaded, transform = zoo.load(name), zoo.preprocess(name)
    top = min(TOP, len(loaded.classes)) if top is None else top
    if not 1 <= top <= len(loaded.classes):
        raise InputError(f"top must be between 1 and the {len(loaded.classes)} classes of {name}; got {top}")
    files = image_files(path)
    predictions: list[Prediction] = []
    broken: dict[str, DataError] = {}
    dark: dict[str, int] = {}
    for first in counted(range(0, len(files), BATCH), len(files), f"predicting {path}", each=BATCH):
        inputs: dict[Path, Tensor] = {}
        for file in files[first : first + BATCH]:
            try:
                image = pixels.read(file)
                inputs[file] = transform(image)
                dark |= {str(file): image.info[pixels.LARGEST]} if pixels.LARGEST in image.info else {}
            except DataError as error:
                broken[str(file)] = error
        if not inputs or (broken and on_error == "stop"):  # the others are read to name all that are broken
            continue
        with torch.inference_mode():
            probabilities = loaded.model(torch.stack([*inputs.values()])).softmax(1)
        rows = zip(inputs, probabilities, strict=True)
        predictions += [_prediction(file, row, loaded.classes, top) for file, row in rows]
    errors = [*broken.values()]
    if len(errors) > 1 and on_error == "stop":
        counts = f"{len(errors)} of the {len(files)} images in {path}"
        raise DataError(f"{counts} cannot be decoded: {listed([*broken])}; {errors[0]}")
    if errors and on_error == "stop":
        raise errors[0]
    if not predictions:
        raise DataError(f"none of the {len(files)} images in {path} can be decoded; the first: {errors[0]}")
    pixels.warn_of_dark(pixels.dark_text(dark))
    return Predictions(predictions, errors)


def _prediction(file: Path, probabilities: Tensor, classes: tuple[str, ...], top: int) -> Prediction:
    values, numbers = probabilities.topk(top)
    return Prediction(file, tuple(classes[number] for number in numbers.tolist()), tuple(values.tolist()))


def image_files(path: Path) -> list[Path]:
    """The file, or all images in a folder and its subfolders that are not hidden.

    Raises:
        DataError: no such path, or no image in the folder.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist; pass an image file or a folder of images")
    found = folders.image_files(path)
    if not found:
        raise DataError(f"{path} has no image ({', '.join(folders.SUFFIXES)}), also not in its subfolders")
    return found


def as_csv(predictions: list[Prediction]) -> str:
    """One line per class of a file: file, rank from 1, class, probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "rank", "class", "probability"))
    for found in predictions:
        for rank, (name, p) in enumerate(zip(found.classes, found.probabilities, strict=True), 1):
            writer.writerow((found.file, rank, name, f"{p:.6f}"))
    return text.getvalue()


def write_csv(predictions: list[Prediction], file: Path) -> Path:
    """Write `as_csv` to a file in UTF-8; returns its path. File names in another encoding keep their bytes."""
    write_whole({file: as_csv(predictions).encode(errors="surrogateescape")})
    return file


def draw(predictions: list[Prediction], picture: Path, *, title: str) -> Path:
    """Draw a contact sheet of the first 48 images with class and probability; returns its path."""
    shown = predictions[:SHEET]
    columns = min(plots.COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    drawn, axes = plots.figure(rows, columns, (1.6 * columns, 1.75 * rows + 0.5))
    panels = list(axes.flat) if len(shown) > 1 else [axes]
    for panel in panels:
        panel.axis("off")
    for found, panel in zip(shown, panels, strict=False):
        thumbnail = pixels.read(found.file).convert("RGB")
        thumbnail.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        panel.imshow(thumbnail)
        half, x, y = max(thumbnail.size) / 2, thumbnail.width / 2 - 0.5, thumbnail.height / 2 - 0.5
        panel.set(xlim=(x - half, x + half), ylim=(y + half, y - half))  # all panels square, so that titles align
        panel.set_title(f"{found.classes[0]}\n{100 * found.probabilities[0]:.0f} %", fontsize=9)
    drawn.suptitle(title)
    return plots.save(drawn, picture)
