"""A part of the training images, and noise in their labels: what studies of small, rare and wrong data train on."""

from collections.abc import Mapping

import torch

from hyperzoo import names
from hyperzoo.data.images import draw
from hyperzoo.data.load import Images
from hyperzoo.errors import InputError


def per_class(images: Images, count: int, seed: int = 0) -> Images:
    """Keep `count` images of each class, drawn as in `ImageSet.hold_out`.

    Raises:
        InputError: a class has fewer images.
    """
    size, name = min(zip(sizes(images), images.classes, strict=True))
    if not 0 < count <= size:
        raise InputError(
            f"the class {name!r} of {images.name} has {size} training images, the fewest of all; {count} of each class "
            f"were asked for. Take 1 to {size}"
        )
    return _drawn(images, [count] * len(images.classes), seed)


def thin(images: Images, fractions: Mapping[str, float], seed: int = 0) -> Images:
    """Make classes rare: keep the given fraction of each named class, and all images of the others.

    Drawn as in `ImageSet.hold_out`; a class keeps its size times the fraction, rounded, but at least one image.

    Raises:
        UnknownNameError: no such class.
        InputError: a fraction outside (0, 1].
    """
    quota = sizes(images)
    for name, fraction in fractions.items():
        if name not in images.classes:
            raise names.unknown(f"class of {images.name}", name, images.classes)
        if not 0 < fraction <= 1:
            raise InputError(f"the fraction of {name!r} to keep must be above 0 and at most 1; got {fraction!r}")
        label = images.classes.index(name)
        quota[label] = max(1, round(fraction * quota[label]))
    return _drawn(images, quota, seed)


def long_tail(classes: tuple[str, ...], factor: float) -> dict[str, float]:
    """The fraction of each class, for `thin`, that makes its size fall geometrically from class to class.

    Class k of K keeps factor^(-k / (K - 1)): the first one all of its images, the last one 1 / factor of them.

    Raises:
        InputError: a factor below 1.
    Example:
        >>> long_tail(('a', 'b', 'c'), 100)
        {'a': 1.0, 'b': 0.1, 'c': 0.01}
    """
    if not factor >= 1:
        raise InputError(f"the factor of a long tail must be 1 or more; got {factor!r}")
    return {name: factor ** (-k / max(len(classes) - 1, 1)) for k, name in enumerate(classes)}


def label_noise(images: Images, part: float, seed: int = 0) -> Images:
    """Replace the labels of round(part N) images, drawn at random, by a class drawn uniformly from all K.

    So about (1 - 1 / K) of the drawn labels become wrong. This is the corruption of the mixup paper (arXiv 1710.09412,
    Table 2, labels replaced by random noise), after the "uniform random class" of Zhang et al. (arXiv 1611.03530,
    section 2.1), who draw each image independently with probability `part`.

    Raises:
        InputError: a part outside [0, 1].
    """
    if not 0 <= part <= 1:
        raise InputError(f"label noise must be from 0 to 1; got {part!r}")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(images), generator=generator, device="cpu")[: round(part * len(images))]
    labels = images.labels.clone()
    labels[drawn] = torch.randint(len(images.classes), (len(drawn),), generator=generator, device="cpu")
    return images.relabeled(labels, f"{len(drawn)} labels of it drawn at random")


def sizes(images: Images) -> list[int]:
    """The number of images of each class."""
    return torch.bincount(images.labels, minlength=len(images.classes)).tolist()


def _drawn(images: Images, quota: list[int], seed: int) -> Images:
    return images.take(draw(images.labels, torch.tensor(quota, device="cpu"), seed).nonzero().flatten())
