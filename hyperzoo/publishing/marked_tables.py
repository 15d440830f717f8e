"""Tables between marks in README and guides: of studies, of their summary, and of energies."""

import re
from collections.abc import Mapping, Sequence

from torch import nn

from hyperzoo import zoo
from hyperzoo.analysis import neuron_energy, summary, sweep_table
from hyperzoo.publishing.checkout import Checkout

_SWEEP = re.compile(r"<!-- sweep: (\w+) -->\n.*?<!-- end of sweep -->", re.DOTALL)
_ENERGY = re.compile(r"<!-- energy: ([\w. ]+) -->\n.*?<!-- end of energy -->", re.DOTALL)
_SUMMARY = re.compile(r"<!-- summary: (details|evidence|overview) -->\n.*?<!-- end of summary -->", re.DOTALL)


def fill(
    text: str, checkout: Checkout, found: list[summary.Comparison], models: Mapping[str, nn.Module] | None = None
) -> str:
    """The text with new tables below its marks.

    Args:
        found: the comparisons of all studies.
        models: networks of weights that are about to be published; others are loaded.
    Raises:
        RunError: the text names a study without a file in results/.
    """
    return _with_energies(_with_summary(_with_sweeps(text, checkout), found), models or {})


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *lines = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *lines))


def _with_sweeps(text: str, checkout: Checkout) -> str:
    """Insert the table of results/NAME.json below each line `<!-- sweep: NAME -->`."""

    def filled(match: re.Match[str]) -> str:
        rows = sweep_table.table(sweep_table.lines(checkout.results(match[1])))
        return f"<!-- sweep: {match[1]} -->\n{markdown(rows)}\n<!-- end of sweep -->"

    return _SWEEP.sub(filled, text)


def _with_summary(text: str, found: list[summary.Comparison]) -> str:
    """Insert a table of the comparisons of all studies below each line `<!-- summary: NAME -->`."""

    def filled(match: re.Match[str]) -> str:
        rows = {"details": summary.details, "evidence": summary.evidence, "overview": summary.overview}[match[1]](found)
        return f"<!-- summary: {match[1]} -->\n{markdown(rows)}\n<!-- end of summary -->"

    return _SUMMARY.sub(filled, text)


def _with_energies(text: str, new: Mapping[str, nn.Module]) -> str:
    """Insert the half-space energies of the named weights below each line `<!-- energy: NAME NAME -->`."""

    def filled(match: re.Match[str]) -> str:
        models = {name: new[name] if name in new else zoo.load(name).model for name in match[1].split()}
        rows = neuron_energy.comparison_table(
            {n: neuron_energy.layer_energies(model, half_space=True) for n, model in models.items()}
        )
        return f"<!-- energy: {match[1]} -->\n{markdown(rows)}\n<!-- end of energy -->"

    return _ENERGY.sub(filled, text)
