"""Image files in class folders."""

from pathlib import Path

from hyperzoo.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".pgm", ".ppm")


def class_files(folder: Path, what: str) -> dict[str, list[Path]]:
    """The image files of each class, in order; names that begin with a dot are left out.

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
        inside = sorted(path for path in (folder / name).rglob("*") if not path.name.startswith("."))
        found[name] = [path for path in inside if path.suffix.lower() in SUFFIXES and path.is_file()]
        if not found[name]:
            raise DataError(f"{folder / name} has no image ({', '.join(SUFFIXES)}); add one or remove the folder")
    return found


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones and those that macOS adds to archives."""
    inside = sorted(folder.iterdir())
    return [path for path in inside if path.is_dir() and not path.name.startswith(".") and path.name != "__MACOSX"]
