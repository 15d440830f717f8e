"""Paths in a checkout of the repository that an installed package does not have."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hyperzoo import names


@dataclass(frozen=True)
class Checkout:
    """A clone of the repository, given by its root folder."""

    root: Path

    @property
    def package(self) -> Path:
        return self.root / "hyperzoo"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other publications out of the checkout, or wait for one; a lock on the folder leaves no file behind."""
        import fcntl  # not on Windows, where nothing is published

        descriptor = os.open(self.package, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @property
    def readme(self) -> Path:
        return self.root / "README.md"

    @property
    def recipes(self) -> Path:
        return self.root / "recipes"

    @property
    def docs(self) -> Path:
        return self.root / "docs"

    def results(self, study: str) -> Path:
        """The results file of a study."""
        return self.root / "results" / f"{study}.json"

    @property
    def mirror(self) -> Path:
        """The embedded sample of the data sets, laid out like HYPERZOO_DATA."""
        return self.root / "tests" / "assets" / "mirror"

    def has_sample(self, code: str) -> bool:
        """Whether a sample of a data set is embedded; the terms of most data sets do not allow it."""
        return (self.mirror / names.DATASETS[code]).is_dir()

    @property
    def card_template(self) -> Path:
        """The template of image models."""
        return self.root / "model_cards" / "TEMPLATE.md"

    @property
    def text_card_template(self) -> Path:
        """The template of language models."""
        return self.root / "model_cards" / "TEMPLATE_TEXT.md"

    def card(self, name: str, suffix: str = ".md") -> Path:
        """The card of a weight, or a file next to it: '.png', '.energy.png', '.metrics.jsonl'."""
        return self.root / "model_cards" / f"{names.parse(name)}{suffix}"

    def golden(self, name: str) -> Path:
        """The golden file of a weight: an input, and the outputs at publication."""
        return self.root / "tests" / "golden" / f"{names.parse(name)}.safetensors"


def find_checkout() -> Checkout | None:
    """The checkout that this package is imported from; None for an installed wheel."""
    checkout = Checkout(Path(__file__).parent.parent.parent)
    return checkout if checkout.card_template.is_file() else None
