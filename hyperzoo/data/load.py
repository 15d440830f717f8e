"""Load a split of a data set by its code: images in memory, streamed images, or a text."""

from pathlib import Path

from hyperzoo.data import sources
from hyperzoo.data.images import ImageSet, load_in_memory
from hyperzoo.data.own import OwnImages
from hyperzoo.data.streamed import StreamedSet, load_imagenet
from hyperzoo.data.text import TextSet, load_text
from hyperzoo.names import TEXTS

Images = ImageSet | StreamedSet
Samples = Images | TextSet


def load_images(name: str, split: str, mirror: Path | None = None) -> Images:
    """Load a split of an image data set from the mirror in HYPERZOO_DATA, or from the Hub if that is not set.

    The first call decodes the images and caches them as `<HF_HOME>/hyperzoo/<name>-<split>-<id>.safetensors`. Later
    calls read the cache if the paths, sizes and modification times of the source files are unchanged. A damaged cache
    is replaced, with a warning. ImageNet is not cached but streamed, see `streamed.py`. The split 'test' is for
    `hyperzoo.analysis.evaluate` only.

    Args:
        name: code of the data set: 'c10', 'c100', 'mnist', 'svhn', 'tiny' or 'imagenet'.
        mirror: folder of the mirror [default: HYPERZOO_DATA].
    Raises:
        UnknownNameError: no such data set.
        DataError: an unknown split, an absent or damaged data set or shard, a cache that cannot be written, or the Hub
            cannot be reached.
        MissingExtraError: `datasets` is missing: pip install hyperzoo[train].
    """
    if name == "imagenet":
        return load_imagenet(split, mirror)
    return load_in_memory(sources.find(name, split, mirror))


def locate_test_split(name: str | OwnImages) -> int:
    """Check that the test split exists; own images in memory are also decoded, so that the cache has them.

    Returns:
        The number of images that `data.on_error: skip` leaves out.
    Raises:
        As `load_images`.
    """
    if isinstance(name, OwnImages):
        return len(getattr(name.load("test"), "skipped", ()))
    if name == "imagenet":
        load_imagenet("test")  # a list of files, or of labels
    else:
        (sources.find_text if name in TEXTS else sources.find)(name, "test")
    return 0


def load_split(name: str | OwnImages, split: str, mirror: Path | None = None) -> Samples:
    """Load a split of own images, or of a data set of images or of a text by its code; as `load_images`."""
    if isinstance(name, OwnImages):
        return name.load(split)
    return load_text(name, split, mirror) if name in TEXTS else load_images(name, split, mirror)
