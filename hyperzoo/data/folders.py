"""Image files in class folders."""

from pathlib import Path

from hyperzoo.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".pgm", ".ppm")


def class_files(folder: Path, what: str) -> dict[str, list[Path]]:
    """The image files of each class, in order, without hidden ones.

    Args:
        what: names the images in an error.
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
        found[name] = image_files(folder / name)
        if not found[name]:
            raise DataError(f"{folder / name} has no image ({', '.join(SUFFIXES)}); add one or remove the folder")
    return found


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and its subfolders, without hidden ones and those that macOS adds to archives."""
    inside = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return [path for path in inside if not any(map(_hidden, path.relative_to(folder).parts))]


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones and those that macOS adds to archives."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not _hidden(path.name)]


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
