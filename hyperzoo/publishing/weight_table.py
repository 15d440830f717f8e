"""All weights as a table, for the README and the page: data set, test metric, baseline, minutes to retrain, size."""

from collections.abc import Mapping

from hyperzoo import names
from hyperzoo.analysis import summary
from hyperzoo.publishing.marked_tables import markdown
from hyperzoo.zoo.weight_description import WeightInfo

NO_BASELINE = "no baseline of the same budget"


def listed(published: Mapping[str, WeightInfo]) -> list[WeightInfo]:
    """All weights by data set, the best first."""
    return sorted(published.values(), key=lambda info: (dataset_title(info), -rank(info), info.name))


def table(published: Mapping[str, WeightInfo], baselines: Mapping[str, WeightInfo | None]) -> str:
    """The README's table: one line per weight, with the baseline that had the same budget."""
    head = "weight", "data set", "test metric", "epochs", "baseline, same budget", "minutes to retrain", "size"
    lines = []
    for info in listed(published):
        base = baselines.get(info.name)
        text = f"{_link(base)}: {mean(base)}" if base else without_baseline(info)
        epochs = str(info.training.epochs)
        lines.append((_link(info), dataset_title(info), score(info), epochs, text, minutes(info), size(info)))
    return markdown([head, *lines])


def _link(info: WeightInfo) -> str:
    return f"[`{info.name}`](model_cards/{info.name}.md)"


def dataset_title(info: WeightInfo) -> str:
    """The short name of the data set: 'CIFAR-10'; its id on the Hub where none is known."""
    return summary.TITLES.get(names.parse(info.name).dataset, info.dataset.id)


def rank(info: WeightInfo) -> float:
    """The test metric, turned so that larger is better."""
    return info.score.mean if info.metric == "accuracy" else -info.score.mean


def score(info: WeightInfo) -> str:
    """The test metric of a weight with its number of runs: '91.25 % (n = 1)', or 'perplexity 88.03 (n = 1)'."""
    return f"{f'{info.metric} ' * (info.metric != 'accuracy')}{mean(info)} (n = {info.score.n})"


def without_baseline(info: WeightInfo) -> str:
    """What stands in the place of the baseline of a weight that has none."""
    return "no method" if names.parse(info.name).method == "plain" else NO_BASELINE


def minutes(info: WeightInfo) -> str:
    """Minutes of the published run and its machine: '36 (2 threads, AVX512, bf16)'."""
    machine = info.training.machine.removeprefix("cpu (x86_64), ")
    return f"{info.training.minutes:.0f} ({machine}, {info.training.precision})"


def size(info: WeightInfo) -> str:
    """Size of the file, and whether it must be downloaded."""
    return f"{info.bytes / 1e6:.2f} MB{', from the Hub' * (not info.bundled)}"


def mean(info: WeightInfo) -> str:
    """The mean over all runs of a weight in its unit, with the standard deviation if there are several."""
    score = info.score
    return info.shown(score.mean) if score.sd is None else f"{score.mean:.2f} ± {info.shown(score.sd)}"
