"""Commands that run a network: metrics, predictions, energy of the filters, activations, sampled text."""

from pathlib import Path
from typing import Literal

import click

from hyperzoo.cli.options import ModelCommand, OutputFile, Picture, json_option
from hyperzoo.cli.tables import flat, note, show, show_json, write

pretrained_option = click.option("--pretrained", is_flag=True, help="Load timm's weight, for a model of timm.")


@click.command("eval", cls=ModelCommand)
@click.argument("name")
@click.option("--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True)
@click.option(
    "--data",
    "dataset",
    help="Data set code (c10, c100, ...), or a folder with a folder of images per class [default: the weight's own]",
)
@pretrained_option
@click.option("--limit", type=click.IntRange(1), help="Evaluate a fixed subset of this many images.")
@click.option(
    "--tta",
    type=click.Choice(["none", "flip", "multicrop"]),
    default="none",
    show_default=True,
    help="Test-time augmentation: average the logits over mirrored, or mirrored and shifted, views.",
)
@click.option("--confusion", type=Picture(), help="Output PNG of the confusion matrix; also a table of the classes.")
@click.option("--robustness", is_flag=True, help="Also deformations and attacks, with a figure.")
@click.option("--seed", type=int, help="Seed of the deformations and attacks of --robustness [default: 0]")
@click.option("--out", type=Picture(), help="Output PNG of --robustness [default: robustness.png]")
@json_option
def eval_(
    name: str,
    split: str,
    dataset: str | None,
    pretrained: bool,
    limit: int | None,
    tta: str,
    confusion: Path | None,
    robustness: bool,
    seed: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Evaluate NAME on a split: accuracy (%), NLL (nats) and calibration error (%), or perplexity.

    NAME is a weight, any model of timm, or a run folder. The folders of --data are named like classes of NAME; a class
    without a folder counts no image. --robustness adds accuracy and NLL on rotated, sheared and zoomed images and under
    attack. It takes about 60 times as long; see --limit. --confusion prints, for each class, its images, recall,
    precision and the class that its images are most often taken for.
    """
    from hyperzoo.analysis import evaluate

    if robustness and (tta != "none" or confusion):
        raise click.UsageError("--robustness measures single views of changed images; leave out --tta and --confusion")
    if not robustness and (seed is not None or out):
        raise click.UsageError(f"{'--out' if out else '--seed'} is for --robustness; add it, or leave this out")
    picture = out or Picture().convert("robustness.png", None, None) if robustness else None
    model, images = evaluate.load_model_and_samples(
        name, split=split, dataset=dataset, pretrained=pretrained, limit=limit
    )
    if picture:
        from hyperzoo.analysis import robustness as measuring

        seed = seed or 0
        found = measuring.measure(model, images, seed=seed)
        measuring.draw(found, picture, title=name)
        if as_json:
            show_json({"name": name, "split": split, "seed": seed, "picture": picture, **vars(found)})
            return
        show(measuring.COLUMNS, [condition.shown() for condition in found.conditions])
        note(f"calibration error {found.ece:.2f} %; seed {seed}; {found.origin}\n{picture}")
        return
    common = {"name": name, "split": split, "tta": tta, "data": images.origin}
    metrics: evaluate.ImageMetrics | evaluate.LanguageMetrics
    if confusion:
        from hyperzoo.analysis import confusion as confusing

        metrics, counts, rows = confusing.measure(model, images, tta=tta)
        confusing.draw(counts, tuple(row.name for row in rows), confusion, title=f"{name}, {split}")
        if as_json:
            values = {"classes": rows, "confusion": counts.tolist(), "picture": confusion}
            show_json({**common, **metrics.as_dict(), **values})
        else:
            show(confusing.COLUMNS, [row.shown() for row in rows])
            note(f"{metrics}; {images.origin}\n{confusion}")
    else:
        metrics = evaluate.measure(model, images, tta=tta)
        if as_json:
            show_json({**common, **metrics.as_dict()})
        else:
            show(("metric", "value"), [*flat(metrics.as_dict()), ("data", images.origin)])


@click.command(cls=ModelCommand)
@click.argument("name")
@click.argument("path", metavar="FILE|FOLDER", type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(1), help="Number of classes per image [default: 3, or all if fewer]")
@click.option(
    "--csv", "table", type=OutputFile(".csv", stdout=True), help="Output CSV; - prints it instead of a table."
)
@click.option("--sheet", type=Picture(), help="Output PNG: the first 48 images, each with its class.")
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="At an image that cannot be decoded, stop; or skip it and name it at the end.",
)
@json_option
def predict(
    name: str,
    path: Path,
    top: int | None,
    table: Path | None,
    sheet: Path | None,
    on_error: Literal["stop", "skip"],
    as_json: bool,
) -> None:
    """Predict the class of an image, or of every image in a folder and its subfolders.

    NAME is a weight or a run folder. Probabilities are in percent in the table, and from 0 to 1 in CSV and JSON.
    """
    from hyperzoo.analysis import predict as predicting

    to_stdout = table == Path("-")
    if to_stdout and as_json:
        raise click.UsageError("--csv - and --json both print to stdout; give --csv a file")
    found = predicting.run(name, path, top=top, on_error=on_error)
    if table and not to_stdout:
        predicting.write_csv(found.files, table)
    if sheet:
        predicting.draw(found.files, sheet, title=name)
    if as_json:
        broken = [str(error) for error in found.broken]
        show_json({"name": name, "files": found.files, "skipped": broken, "csv": table, "sheet": sheet})
    elif to_stdout:
        write(predicting.as_csv(found.files).removesuffix("\n"))
    else:
        show(predicting.COLUMNS, [row.shown() for row in found.files])
    for error in found.broken:
        note(f"skipped: {error}")


@click.command(cls=ModelCommand)
@click.argument("model")
@click.option("--power", type=click.IntRange(0, 2), default=2, show_default=True, help="Power s of the energy.")
@click.option("--half-space", is_flag=True, help="Half-space energy: f and -f count as one direction.")
@click.option("--angular", is_flag=True, help="Measure distances by angles instead of chords.")
@pretrained_option
@click.option("--out", type=Picture(), default="energy.png", show_default=True, help="Output PNG.")
@json_option
def energy(model: str, power: int, half_space: bool, angular: bool, pretrained: bool, out: Path, as_json: bool) -> None:
    """Measure how evenly the filters of MODEL cover the sphere.

    MODEL is a weight, any model of timm, or a run folder. Prints, for each layer, its hyperspherical energy, that
    of random directions, the least possible energy where it is known, and the closest pair of filters. The figure adds
    the angles of all pairs.
    """
    from hyperzoo import zoo
    from hyperzoo.analysis import neuron_energy as measuring

    network = zoo.any_network(model, pretrained=pretrained)
    rows = measuring.layer_energies(network, power=power, half_space=half_space, angular=angular)
    picture = measuring.draw(rows, out, title=model, power=power, half_space=half_space, angular=angular)
    if as_json:
        show_json({"model": model, "layers": rows, "picture": picture})
        return
    show(measuring.COLUMNS, [row.shown() for row in rows])
    note(str(picture))


@click.command(cls=ModelCommand)
@click.argument("model", type=str)
@click.option(
    "--data",
    "dataset",
    help="Data set code (c10, ptb, ...), or a folder with a folder of images per class [default: the weight's own]",
)
@click.option("--layers", multiple=True, help="Names, patterns or type:ReLU [default: all nonlinearities and LSTMs]")
@click.option("--axis", type=int, help="Axis whose entries form a vector: -1 for (B, H, W, C) [default: as in PER]")
@click.option("--batch-size", default=128, show_default=True, help="Number of images.")
@pretrained_option
@click.option("--out", type=Picture(), default="activations.png", show_default=True, help="Output PNG.")
@json_option
def activations(
    model: str,
    dataset: str | None,
    layers: tuple[str, ...],
    axis: int | None,
    batch_size: int,
    pretrained: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Describe the distribution of the activations of MODEL.

    MODEL is a weight, any model of timm, or a run folder. Prints and draws, for each layer, mean, variance, quantiles
    and the sliced W1 distance to N(0, I). If a run logged them, a second figure shows them over its training.
    """
    from hyperzoo import zoo
    from hyperzoo.analysis import activation_statistics as measuring

    network, batch, origin = measuring.load_model_and_batch(
        model, dataset=dataset, pretrained=pretrained, batch_size=batch_size
    )
    rows = measuring.layer_activations(network, batch, list(layers) or None, axis=axis)
    pictures = [measuring.draw(rows, out, title=model)]
    if (folder := zoo.local_folder(model)) and measuring.has_reports(folder):
        course = out.with_stem(f"{out.stem}_training")
        pictures.append(measuring.draw_training({model: folder}, course))
    if as_json:
        show_json({"model": model, "batch": origin, "layers": rows, "pictures": pictures})
        return
    show(measuring.COLUMNS, [row.shown() for row in rows])
    note("\n".join([f"measured on {origin}", *map(str, pictures)]))


@click.command(cls=ModelCommand)
@click.argument("name")
@click.option("--prompt", default="", help="Words to continue [default: a new line]")
@click.option("--tokens", default=50, show_default=True, help="Number of words to sample.")
@click.option(
    "--temperature", default=1.0, show_default=True, help="Below 1 favors likely words; 0 takes the likeliest."
)
@click.option("--top-k", type=int, help="Sample from the K likeliest words only.")
@click.option("--top-p", type=float, help="Sample from the fewest words whose probabilities sum to P.")
@click.option("--seed", default=0, show_default=True)
@json_option
def generate(
    name: str,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Sample text from the language model NAME, a weight or a run folder.

    Unknown words of the prompt become <unk>; a warning lists them.
    """
    from hyperzoo.analysis import generate as generating

    written = generating.run(name, prompt, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    if written.unknown:
        note(f"not in the vocabulary, read as <unk>: {', '.join(written.unknown)}")
    if as_json:
        show_json({"name": name, "text": written.text, "prompt": written.prompt, "words": written.words, "seed": seed})
    else:
        write(written.text)
