"""The split of a data set by its code: images in memory, images read one by one, or a text."""

from pathlib import Path

from hyperzoo.data import sources
from hyperzoo.data.images import ImageSet, load_in_memory
from hyperzoo.data.streamed import StreamedSet, load_imagenet
from hyperzoo.data.text import TextSet, load_text
from hyperzoo.names import TEXTS

Images = ImageSet | StreamedSet
Samples = Images | TextSet


def load_images(name: str, split: str, mirror: Path | None = None) -> Images:
    """Load a split of an image data set, from the mirror named by HYPERZOO_DATA or else from the Hub.

    ImageNet comes as a `StreamedSet`, see `streamed.py`; for all others:

    The first call decodes every image; the tensor is then kept as `<HF_HOME>/hyperzoo/<name>-<split>-<id>.safetensors`.
    A later call reads this file if the paths, sizes and modification times of the source files are still the same, and
    checks its fingerprint: a damaged one is decoded again, with a warning. If the folder cannot be written, a warning
    says so and nothing is kept. Only `hyperzoo.analysis.evaluate` may ask for the split 'test'.

    Args:
        name: code of the data set: 'c10', 'c100', 'mnist', 'svhn', 'tiny' or 'imagenet'.
        mirror: a mirror to read in the place of the one that HYPERZOO_DATA names.
    Raises:
        UnknownNameError: no such data set.
        DataError: an unknown split; the data set or one of its shards is absent or damaged; the Hub cannot be reached.
        MissingExtraError: decoding needs `datasets`: pip install hyperzoo[train].
    """
    if name == "imagenet":
        return load_imagenet(split, mirror)
    return load_in_memory(sources.find(name, split, mirror))


def load_split(name: str, split: str, mirror: Path | None = None) -> Samples:
    """A split of a data set by its code: images, or a text."""
    return load_text(name, split, mirror) if name in TEXTS else load_images(name, split, mirror)
