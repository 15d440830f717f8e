"""Hyperspherical energy of each layer, compared with random directions and with the least possible energy.

For any model, trained with MHE or not. The energy is `regularizers.hyperspherical_energy` with eps = 0.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hyperzoo.analysis import plots
from hyperzoo.errors import InputError
from hyperzoo.layers.precision import full_precision
from hyperzoo.regularizers import hyperspherical_energy
from hyperzoo.regularizers.neurons import select

BINS = 36  # angles from 0 to 180 degrees, 5 degrees per bin
COLUMNS = ("layer", "neurons", "energy", "random", "least", "closest pair (degrees)")
_BLOCK = 1024  # rows


@dataclass(frozen=True)
class LayerEnergy:
    """A layer of `neurons` directions in `size` dimensions.

    Attributes:
        energy: of the weights.
        random: expectation for independent random directions; infinite in few dimensions.
        least: the minimum, if it is known (full space: a simplex, N <= D + 1; half space: orthogonal rows, N <= D). In
            full space with `angular` and power 0 only for N <= 3: two opposite pairs have less energy than a simplex.
        closest: the two rows with the smallest angle, in half space between lines; None for a single row.
        closest_deg: that angle.
        zeros: number of zero rows, which count as orthogonal to all others.
        histogram: number of pairs per angle, in `BINS` equal bins from 0 to 180 degrees.
    """

    name: str
    is_output: bool
    neurons: int
    size: int
    energy: float
    random: float
    least: float | None
    closest: tuple[int, int] | None
    closest_deg: float | None
    zeros: int
    histogram: tuple[int, ...]

    def shown(self) -> tuple[str, ...]:
        """The table row of the layer, in the order of `COLUMNS`."""
        least = "-" if self.least is None else f"{self.least:.4g}"
        pair = "-" if self.closest is None else f"{self.closest[0]} and {self.closest[1]}, {self.closest_deg:.1f}"
        name = f"{self.name} (output)" if self.is_output else self.name
        return name, f"{self.neurons} x {self.size}", f"{self.energy:.4g}", f"{self.random:.4g}", least, pair


@torch.no_grad()
def layer_energies(
    model: nn.Module,
    *,
    power: int = 2,
    half_space: bool = False,
    angular: bool = False,
    layers: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
) -> list[LayerEnergy]:
    """Measure every layer that `regularizers.MHE` selects, frozen or not; the output layer comes last.

    Args:
        power, half_space, angular: see `regularizers.hyperspherical_energy`.
        layers, exclude: see `regularizers.neurons.select`.
    Raises:
        InputError, UnknownNameError: no layer, a pattern without a match, or weights that are sharded or not finite.
    Example:
        >>> net = nn.Linear(3, 3)
        >>> _ = nn.init.eye_(net.weight)
        >>> row, = layer_energies(net)
        >>> row.energy, round(row.least, 4), row.closest_deg        # orthogonal rows; a triangle has the least energy
        (0.5, 0.3333, 90.0)
    """
    chosen = select(model, layers=layers, exclude=exclude, frozen=True)
    if not chosen.hidden + chosen.output:
        raise InputError(f"the model has no layer to measure; skipped: {', '.join(chosen.skipped) or 'none'}")
    settings = (power, half_space, angular)
    rows = []
    for layer in chosen.hidden + chosen.output:
        w = full_precision(layer.rows().detach())
        energy = hyperspherical_energy(w, power=power, half_space=half_space, angular=angular, eps=0)
        unit = w / torch.linalg.vector_norm(w, dim=1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
        histogram, closest, angle = _angles(unit, half_space)
        rows.append(
            LayerEnergy(
                name=layer.name,
                is_output=layer in chosen.output,
                neurons=w.size(0),
                size=w.size(1),
                energy=energy.item(),
                random=_random(w.size(0), w.size(1), *settings),
                least=_least(w.size(0), w.size(1), *settings),
                closest=closest,
                closest_deg=angle,
                zeros=int((unit == 0).all(1).sum()),
                histogram=histogram,
            )
        )
    return rows


def comparison_table(models: Mapping[str, Sequence[LayerEnergy]]) -> list[tuple[str, ...]]:
    """Energies of several models with the same layers, as a table: a head and one row per layer.

    Raises:
        InputError: no model, or layers of different names or sizes.
    """
    layers = [[(row.name, row.neurons, row.size) for row in rows] for rows in models.values()]
    if not (layers and layers[0]) or any(other != layers[0] for other in layers):
        raise InputError(f"only models with the same layers can be compared; got {', '.join(models) or 'none'}")
    shared = ("layer", "neurons", "random", "least")
    lines = [tuple(_cell(row, column) for column in shared) for row in next(iter(models.values()))]
    energies = [tuple(_cell(row, "energy") for row in rows) for rows in models.values()]
    return [
        (*shared, *models),
        *(line + values for line, values in zip(lines, zip(*energies, strict=True), strict=True)),
    ]


def _cell(row: LayerEnergy, column: str) -> str:
    return row.shown()[COLUMNS.index(column)]


def _angles(unit: Tensor, half_space: bool) -> tuple[tuple[int, ...], tuple[int, int] | None, float | None]:
    """Histogram of the angles of all pairs, the closest pair, and its angle in degrees."""
    counts = torch.zeros(BINS, dtype=torch.int64)
    nearest, closest = -2.0, None
    for i in range(0, len(unit), _BLOCK):
        for j in range(i, len(unit), _BLOCK):
            cosine = (unit[i : i + _BLOCK] @ unit[j : j + _BLOCK].mT).clamp(-1, 1)
            pairs = torch.ones_like(cosine, dtype=torch.bool)
            if i == j:
                pairs = pairs.triu(1)
            angles = cosine[pairs].arccos().rad2deg()
            counts += torch.histc(angles.float(), BINS, 0, 180).cpu().long()
            near = (cosine.abs() if half_space else cosine).masked_fill(~pairs, -2)
            best = int(near.argmax())
            if near.flatten()[best] > nearest:
                nearest = near.flatten()[best].item()
                closest = (i + best // near.size(1), j + best % near.size(1))
    if closest is None:
        return tuple(counts.tolist()), None, None
    return tuple(counts.tolist()), closest, math.degrees(math.acos(nearest))


def _repulsion(angle: float, power: int, angular: bool) -> float:
    distance = angle if angular else 2 * math.sin(angle / 2)
    return -math.log(distance) if power == 0 else distance**-power


def _least(count: int, size: int, power: int, half_space: bool, angular: bool) -> float | None:
    """The least energy of `count` directions, or None if it is not known."""
    opposite, right = _repulsion(math.pi, power, angular), _repulsion(math.pi / 2, power, angular)
    if half_space:
        return (2 * (count - 1) * right + opposite) / (2 * count - 1) if count <= size else None
    if count == 1:
        return 0.0
    if count > size + 1 or (angular and power == 0 and count > 3):
        return None
    return _repulsion(math.acos(-1 / (count - 1)), power, angular)


def _random(count: int, size: int, power: int, half_space: bool, angular: bool) -> float:
    """Expected energy of independent random directions; the density of their angle is sin(angle)^(size - 2)."""
    if count > 1 and size - 1 <= power:
        return math.inf
    mean = 0.0
    if count > 1:
        nodes = (torch.arange(20_000, dtype=torch.float64) + 0.5) * (math.pi / 20_000)
        density = torch.exp((size - 2) * nodes.sin().log())
        distance = nodes if angular else 2 * (nodes / 2).sin()
        value = -distance.log() if power == 0 else distance**-power
        mean = float((value * density).sum() / density.sum())
    if not half_space:
        return mean
    return (2 * (count - 1) * mean + _repulsion(math.pi, power, angular)) / (2 * count - 1)


def draw(
    rows: Iterable[LayerEnergy],
    picture: Path,
    *,
    title: str,
    power: int = 2,
    half_space: bool = False,
    angular: bool = False,
) -> Path:
    """Draw the energy of each layer with its two references, and the angles of its pairs; returns the path.

    Args:
        picture: output PNG, in an existing folder.
        power, half_space, angular: with which `layer_energies` measured the rows.
    Raises:
        InputError: no rows.
    """
    rows = list(rows)
    if not rows:
        raise InputError("no layers to draw; measure a model with layer_energies first")
    places = range(len(rows))
    figure, (left, right) = plots.figure(1, 2, (11.0, 1.6 + 0.2 * len(rows)), sharey=True)
    for values, mark, color, label in (
        ([row.energy for row in rows], "o", plots.BLUE, "this layer"),
        ([row.random for row in rows], "x", plots.ORANGE, "random directions"),
        ([row.least for row in rows], "|", plots.GREEN, "least possible"),
    ):
        known = [(value, i) for i, value in enumerate(values) if value is not None and math.isfinite(value)]
        if known:
            left.scatter(*zip(*known, strict=True), marker=mark, color=color, label=label, zorder=3)
    if min(row.energy for row in rows) > 0 and max(row.energy for row in rows) > 10:
        left.set_xscale("log")
    else:
        left.locator_params("x", nbins=6)  # more ticks with five digits do not fit
    left.set_yticks(places, [f"{row.name}  {row.neurons} x {row.size}" for row in rows], fontsize=7)
    left.set_ylim(len(rows) - 0.5, -0.5)
    space, distance = "half" if half_space else "full", ", distances as angles" if angular else ""
    left.set_xlabel(f"{space}-space energy, s = {power}{distance}")
    left.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    shares = [[count / max(sum(row.histogram), 1) for count in row.histogram] for row in rows]
    image = right.imshow(shares, aspect="auto", cmap="viridis", extent=(0, 180, len(rows) - 0.5, -0.5))
    right.set_xticks(range(0, 181, 30))
    right.set_xlabel("angle of a pair (degrees)")
    figure.colorbar(image, ax=right, label="share of pairs")
    figure.suptitle(title)
    return plots.save(figure, picture)
