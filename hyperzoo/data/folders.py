"""Image files in class folders."""

from collections import Counter
from pathlib import Path

from hyperzoo.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".pgm", ".ppm")


def class_files(folder: Path, what: str, others: Counter[str] | None = None) -> dict[str, list[Path]]:
    """The image files of each class, in order, without hidden ones.

    Args:
        what: names the images in an error.
        others: counts the files that are not read, by kind; see `image_files`.
    Raises:
        DataError: no such folder, no class in it, or a class without images.
    """
    classes = sorted(path.name for path in folders(folder)) if folder.is_dir() else []
    if not classes:
        raise DataError(f"{folder} has no class folders; put {what} there as <class>/<image>")
    found: dict[str, list[Path]] = {}
    for name in classes:
        if any("\ud800" <= character <= "\udfff" for character in name):  # Python's stand-ins for undecodable bytes
            raise DataError(f"the name of the class folder {str(folder / name)!a} is not UTF-8; rename the folder")
        found[name] = image_files(folder / name, others)
        if not found[name]:
            raise DataError(f"{folder / name} has no image ({', '.join(SUFFIXES)}); add one or remove the folder")
    return found


def image_files(folder: Path, others: Counter[str] | None = None) -> list[Path]:
    """The image files in a folder and its subfolders, without hidden ones and those that macOS adds to archives.

    Args:
        others: counts the other files that are not hidden, by suffix; '' stands for no suffix or an unusual one.
    """
    inside = [path for path in sorted(folder.rglob("*")) if not any(map(_hidden, path.relative_to(folder).parts))]
    if others is not None:
        others.update(_kind(path) for path in inside if not _is_image(path) and path.is_file())
    return [path for path in inside if _is_image(path) and path.is_file()]


def count_loose(folder: Path, others: Counter[str]) -> None:
    """Count the files that lie beside the class folders, where none is read; `others` as for `image_files`."""
    loose = [path for path in folder.iterdir() if path.is_file() and not _hidden(path.name)]
    others.update(_kind(path) + " beside the class folders" * _is_image(path) for path in loose)


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones and those that macOS adds to archives."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not _hidden(path.name)]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return suffix if suffix[1:].isalnum() else ""


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")
