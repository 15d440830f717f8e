"""Where the files of a checkout lie that are not part of the installed package."""

from dataclasses import dataclass
from pathlib import Path

from hyperzoo import names


@dataclass(frozen=True)
class Checkout:
    """A clone of the repository, by its root folder."""

    root: Path

    @property
    def package(self) -> Path:
        return self.root / "hyperzoo"

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
        """The results of a study, which the documents quote."""
        return self.root / "results" / f"{study}.json"

    @property
    def mirror(self) -> Path:
        """The embedded sample of the data sets, in the layout of HYPERZOO_DATA."""
        return self.root / "tests" / "assets" / "mirror"

    def embeds(self, code: str) -> bool:
        """Whether a sample of this data set is embedded; the terms of most allow none."""
        return (self.mirror / names.DATASETS[code]).is_dir()

    @property
    def card_template(self) -> Path:
        return self.root / "model_cards" / "TEMPLATE.md"

    @property
    def text_card_template(self) -> Path:
        """Of language models."""
        return self.root / "model_cards" / "TEMPLATE_TEXT.md"

    def card(self, name: str, suffix: str = ".md") -> Path:
        """The card of a weight, or what lies beside it: '.png', '.energy.png', '.metrics.jsonl'."""
        return self.root / "model_cards" / f"{names.parse(name)}{suffix}"

    def golden(self, name: str) -> Path:
        """Input and outputs of a weight when it was published."""
        return self.root / "tests" / "golden" / f"{names.parse(name)}.safetensors"


def here() -> Checkout | None:
    """The checkout that this package is imported from; None for an installed wheel."""
    found = Checkout(Path(__file__).parent.parent.parent)
    return found if found.card_template.is_file() else None
