"""The cache of data sets, <HF_HOME>/hyperzoo: what would take long to compute again."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants
from safetensors import SafetensorError

from hyperzoo.errors import DataError


def cache_path(code: str, split: str, place: str, suffix: str) -> Path:
    """The file of a split of a data set; `place` is an identifier of its files."""
    name = re.sub(r"[^\w.-]", "_", code)[:40]
    return Path(constants.HF_HOME) / "hyperzoo" / f"{name}-{split}-{place}{suffix}"


def check_writable(path: Path) -> None:
    """Create the folder of a file, or raise a DataError: before a long computation, rather than after it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()


@contextmanager
def writing(path: Path, size_bytes: int = 0) -> Iterator[None]:
    """Turn an error of writing a file into a DataError that names the folder and the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        need = f" It needs {size_bytes / 1e6:,.1f} MB." if size_bytes else ""
        raise DataError(
            f"the cache of data sets {path.parent} cannot be written ({error}).{need} Set HF_HOME to a folder that can "
            "be written, or free this one"
        ) from error
