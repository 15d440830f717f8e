"""Commands that run a network: its metrics, energies of its filters, its activations, text that it writes."""

from pathlib import Path

import click

from hyperzoo.cli.tables import flat, show


@click.command("eval")
@click.argument("name")
@click.option("--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True)
@click.option("--data", "dataset", help="Code of the data set: c10, c100, ...; a weight of ours has its own.")
@click.option("--pretrained", is_flag=True, help="Fetch timm's weight for a model of timm.")
@click.option("--limit", type=click.IntRange(1), help="Only so many of the images, always the same ones.")
@click.option("--robustness", is_flag=True, help="Also deformed and attacked images, and a picture.")
@click.option("--seed", default=0, show_default=True, help="Of the deformations and the attacks.")
@click.option("--out", type=click.Path(path_type=Path), help="That picture; robustness.png without it.")
def eval_(
    name: str,
    split: str,
    dataset: str | None,
    pretrained: bool,
    limit: int | None,
    robustness: bool,
    seed: int,
    out: Path | None,
) -> None:
    """Accuracy (%), NLL (nats) and calibration error (%), or perplexity, of NAME on a split of a data set; no verdict.

    NAME is a weight, any model of timm, or local-dir:FOLDER (a run folder is one). With --robustness also accuracy and
    NLL on rotated, sheared and zoomed images and under attack: some 60 times the work, see --limit.
    """
    import hyperzoo
    from hyperzoo.analysis import evaluate

    model, images = evaluate.subject(name, split=split, dataset=dataset, pretrained=pretrained, limit=limit)
    if robustness:
        from hyperzoo.analysis import robustness as measuring

        found = measuring.measure(model, images, seed=seed)
        show(measuring.COLUMNS, [condition.shown() for condition in found.conditions])
        click.echo(f"calibration error\t{found.ece:.2f} %\nimages\t{found.origin}\nseed\t{seed}")
        click.echo(measuring.draw(found, out or Path("robustness.png"), title=name))
        return
    metrics = evaluate.measure(model, images)
    show(("metric", "value"), [*flat(metrics.as_dict()), ("data", images.origin)])
    if dataset is None and limit is None:
        published = hyperzoo.weight_info(name).dataset
        known = {"test": published.test_fingerprint, "train": published.train_fingerprint}
        if metrics.fingerprint != known.get(split, metrics.fingerprint):
            click.echo("this is not the data that the published number stands for: another fingerprint", err=True)


@click.command()
@click.argument("model")
@click.option("--power", type=click.IntRange(0, 2), default=2, show_default=True, help="s of the energy.")
@click.option("--half-space", is_flag=True, help="Of lines rather than directions: a filter repels with its negative.")
@click.option("--angular", is_flag=True, help="Of angles rather than chords.")
@click.option("--pretrained", is_flag=True, help="Fetch timm's weight for a model of timm.")
@click.option("--out", type=click.Path(path_type=Path), help="The picture; energy.png without it.")
def energy(model: str, power: int, half_space: bool, angular: bool, pretrained: bool, out: Path | None) -> None:
    """How the filters of MODEL are spread: a weight, any model of timm, or local-dir:FOLDER.

    For each layer its hyperspherical energy, that of random directions, the least possible where it is known, and the
    closest pair of filters; the same and the angles of all pairs as a picture.
    """
    from hyperzoo import zoo
    from hyperzoo.analysis import neuron_energy as measuring

    network = zoo.any_network(model, pretrained=pretrained)
    rows = measuring.layer_energies(network, power=power, half_space=half_space, angular=angular)
    show(measuring.COLUMNS, [row.shown() for row in rows])
    click.echo(measuring.draw(rows, out or Path("energy.png"), title=model))


@click.command()
@click.argument("model", type=str)
@click.option("--data", "dataset", help="Code of the data set: c10, ptb, ...; a weight or a run of ours has its own.")
@click.option("--layers", multiple=True, help="Names, patterns, or type:ReLU; all nonlinearities and LSTMs without it.")
@click.option("--batch-size", default=128, show_default=True, help="Images.")
@click.option("--pretrained", is_flag=True, help="Fetch timm's weight for a model of timm.")
@click.option("--out", type=click.Path(path_type=Path), help="The picture; activations.png without it.")
def activations(
    model: str, dataset: str | None, layers: tuple[str, ...], batch_size: int, pretrained: bool, out: Path | None
) -> None:
    """How the activations of MODEL are distributed: a weight, any model of timm, or a run folder.

    For each layer mean, variance, quantiles, and the sliced W1 distance to N(0, I), as a table and as a picture. Of a
    run whose terms reported them also the course over its training.
    """
    from hyperzoo.analysis import activation_statistics as measuring

    network, batch, told = measuring.subject(model, dataset=dataset, pretrained=pretrained, batch_size=batch_size)
    rows = measuring.layer_activations(network, batch, list(layers) or None)
    show(measuring.COLUMNS, [row.shown() for row in rows])
    click.echo(f"batch\t{told}")
    picture = out or Path("activations.png")
    click.echo(measuring.draw(rows, picture, title=model))
    if measuring.has_reports(Path(model)):
        course = picture.with_stem(f"{picture.stem}_training")
        click.echo(measuring.draw_training({model: Path(model)}, course))


@click.command()
@click.argument("name")
@click.option("--prompt", default="", help="Words to go on from; without any, a new line.")
@click.option("--tokens", default=50, show_default=True, help="Words to write.")
@click.option(
    "--temperature", default=1.0, show_default=True, help="Below 1 likely words get likelier; 0 takes the best."
)
@click.option("--top-k", type=int, help="Draw from the K likeliest words only.")
@click.option("--top-p", type=float, help="Draw from the fewest likeliest words that have this probability together.")
@click.option("--seed", default=0, show_default=True)
def generate(
    name: str, prompt: str, tokens: int, temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> None:
    """Let the language model NAME write: a weight, or local-dir:FOLDER (a run folder is one).

    Words of the prompt that it does not know are read as <unk>, and said.
    """
    from hyperzoo.analysis import generate as generating

    written = generating.run(name, prompt, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    if written.unknown:
        click.echo(f"not in the vocabulary, read as <unk>: {', '.join(written.unknown)}", err=True)
    click.echo(written.text)
