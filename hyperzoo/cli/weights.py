"""Commands on weights and architectures: list and describe them, verify, export."""

from pathlib import Path
from typing import NamedTuple

import click

from hyperzoo import names
from hyperzoo.cli.options import ModelCommand, json_option
from hyperzoo.cli.tables import flat, show, show_json, write

LIST_COLUMNS = ("weight", "data set", "test metric", "epochs", "seeds", "parameters", "size", "default")


class ListRow(NamedTuple):
    """A weight, or an architecture without one, whose other fields are None."""

    name: str
    family: str
    parameters: int
    dataset: str | None = None
    metric: str | None = None
    mean: float | None = None
    sd: float | None = None
    epochs: int | None = None
    seeds: tuple[int, ...] | None = None
    bytes: int | None = None
    default: bool | None = None

    def shown(self) -> tuple[str, ...]:
        """The row as text, in the order of `LIST_COLUMNS`."""
        if self.mean is None or self.bytes is None or self.seeds is None:
            return self.name, "-", "-", "-", "-", str(self.parameters), "-", "-"
        value = f"{self.mean:.2f}" if self.sd is None else f"{self.mean:.2f} ± {self.sd:.2f}"
        metric = f"{value} %" if self.metric == "accuracy" else f"{self.metric} {value}"
        counts = str(self.epochs), str(len(self.seeds)), str(self.parameters)
        size, default = f"{self.bytes / 1e6:.2f} MB", "yes" if self.default else "no"
        return self.name, str(self.dataset), metric, *counts, size, default


@click.command("list", cls=ModelCommand)
@click.option("--all", "everything", is_flag=True, help="Also architectures without weights; takes some seconds.")
@click.option("--family", help="Only one family, a file of hyperzoo/models: spherenet, resnet_cifar, ...")
@click.option("--method", type=click.Choice(list(names.METHODS)), help="Only weights trained with this method.")
@click.option("--data", "dataset", type=click.Choice(list(names.DATASETS)), help="Only weights for this data set.")
@json_option
def list_(everything: bool, family: str | None, method: str | None, dataset: str | None, as_json: bool) -> None:
    """List the weights.

    The test metric is accuracy in percent, or perplexity; mean ± sd for several seeds. The default weight is the one
    that the bare name of its architecture loads. --method and --data leave out architectures without weights.
    """
    import hyperzoo
    from hyperzoo.zoo import architectures

    families = {arch: architectures.family(arch) for arch in hyperzoo.list_models()}
    if family is not None and family not in families.values():
        raise names.unknown("family", family, set(families.values()))
    rows = []
    for arch in (arch for arch in families if family in (None, families[arch])):
        weights = hyperzoo.list_weights(arch)
        for name in weights:
            info, parsed = hyperzoo.weight_info(name), names.parse(name)
            if method in (None, parsed.method) and dataset in (None, parsed.dataset):
                score = info.score
                trained = score.mean, score.sd, info.training.epochs, score.seeds, info.bytes, info.default
                rows.append(ListRow(name, families[arch], info.parameters, info.dataset.id, info.metric, *trained))
        if everything and not (weights or method or dataset):
            rows.append(ListRow(arch, families[arch], architectures.architecture(arch).parameters))
    if as_json:
        show_json(rows)
    else:
        show(LIST_COLUMNS, [row.shown() for row in rows])


@click.command(cls=ModelCommand)
@click.argument("name")
@json_option
def info(name: str, as_json: bool) -> None:
    """Describe NAME.

    For a weight, its manifest entry. For an architecture: what it is, parameters, input size, feature stages (module,
    channels, stride) and weights.
    """
    import dataclasses

    import hyperzoo
    from hyperzoo.zoo.architectures import Architecture, architecture

    found = hyperzoo.weight_info(name) if "." in name else architecture(name)
    if as_json:
        show_json(found)
        return
    fields = dataclasses.asdict(found)
    if isinstance(found, Architecture):
        stages = [f"{module} ({channels} channels, stride {stride})" for module, channels, stride in found.stages]
        fields |= {"input_size": " x ".join(map(str, found.input_size)), "stages": stages}
    show(("field", "value"), flat(fields))


@click.command(cls=ModelCommand)
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="Verify every published weight.")
@click.option("--hub", is_flag=True, help="Also download the pinned files from the Hub, bundled weights included.")
@json_option
def verify(name: str | None, every: bool, hub: bool, as_json: bool) -> int:
    """Compare NAME with its manifest entry: hash, tensors, golden outputs, correct answers. Exit 1 if any differs."""
    import hyperzoo
    from hyperzoo.publishing import verify as verifying

    if every == (name is not None):
        raise click.UsageError("pass the name of a weight, or --all")
    chosen = [name] if name is not None else hyperzoo.list_weights()
    checks = [check for one in chosen for check in verifying.verify(one, on_hub=hub)]
    if as_json:
        show_json(checks)
    else:
        words = {True: "ok", False: "DIFFERS", None: "skipped"}
        show(("weight", "check", "result", "detail"), [(c.name, c.what, words[c.ok], c.detail) for c in checks])
    return int(any(check.ok is False for check in checks))


@click.command(cls=ModelCommand)
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@json_option
def export(name: str, out: Path, as_json: bool) -> None:
    """Write NAME as one file OUT that runs without hyperzoo.

    The suffix of OUT is the format: .pt2 for a torch.export program, .onnx for ONNX. NAME is a weight or a run folder.
    The file is opened again and its outputs are compared, for a weight with the golden ones; it is
    written only if they agree. It holds class names and normalization.
    """
    from hyperzoo.publishing import export as exporting

    done = exporting.export(name, out)
    size = done.file.stat().st_size
    if as_json:
        show_json(done._asdict() | {"bytes": size})
    else:
        write(f"{done.file}\t{size} bytes\tlargest difference of outputs {done.difference:.1e}")
