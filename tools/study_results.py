"""Write results/STUDY.json, which the guides and the figures read, from the sweep.json of a study.

    python tools/study_results.py runs/sweeps/per_lstm/sweep.json results/per_lstm.json [--epochs] [--reports TERM]
        [--fgsm COUNT]

Keeps the settings, environments and metrics of all runs, and the last epoch of their logs. `--epochs` keeps all epochs,
for curves. `--reports TERM` keeps the means and variances of activations that a term reported. `--fgsm COUNT` adds the
accuracy under FGSM with epsilon 4/255 on COUNT test images, which are the same for all runs; it loads each run from its
folder next to the sweep.json. Each line of the file is a recipe, a run, an epoch or an environment.
"""

import argparse
import json
from pathlib import Path
from typing import Any

ATTACK = "FGSM 4/255"  # with 8/255 the accuracies of networks without a defense are too low to compare


def reduced(row: dict[str, Any], reports: str | None) -> dict[str, Any]:
    """The metrics of an epoch, and the means and variances that a term reported."""
    kept = {key: value for key, value in row.items() if isinstance(value, int | float)}
    if reports:
        of_layers = row["reports"][reports].items()
        kept["reports"] = {reports: {k: v for k, v in of_layers if k.endswith(("/mean", "/variance"))}}
    return kept


def under_attack(values: dict[str, Any], runs: Path, count: int) -> dict[str, Any]:
    """The contents of a sweep.json with `fgsm`, the accuracy in % under attack, among the metrics of each run.

    Args:
        runs: folder of the runs, <label>/<seed>.
        count: test images to attack.
    """
    from hyperzoo.analysis import evaluate, robustness

    attacked = []
    for run in values["runs"]:
        model, images = evaluate.load_model_and_samples(str(runs / run["label"] / str(run["seed"])), limit=count)
        found = robustness.measure(model, images, only=[ATTACK]).conditions[-1]
        attacked.append({**run, "metrics": {**run["metrics"], "fgsm": found.accuracy}})
    return {**values, "runs": attacked}


def text(values: dict[str, Any], *, epochs: bool = False, reports: str | None = None) -> str:
    """Turn the contents of a sweep.json into a results file."""
    parts = {key: json.dumps(value) for key, value in values.items() if key != "unfinished"}
    if "recipes" in values:
        lines = ",\n  ".join(f"{json.dumps(label)}: {json.dumps(said)}" for label, said in values["recipes"].items())
        parts["recipes"] = f"{{\n  {lines}\n }}"
    parts["environments"] = _lines(map(json.dumps, values["environments"]), " ")
    runs = []
    for run in values["runs"]:
        rows = [json.dumps(reduced(row, reports)) for row in run["log"][0 if epochs else -1 :]]
        head = json.dumps({key: value for key, value in run.items() if key != "log"})
        runs.append(f'{head[:-1]}, "log": {_lines(rows, "  ")}}}')
    parts["runs"] = _lines(runs, " ")
    return "{\n" + ",\n".join(f' "{key}": {part}' for key, part in parts.items()) + "\n}\n"


def _lines(items: Any, indent: str) -> str:
    """A JSON list with one item per line."""
    return "[\n" + ",\n".join(f"{indent} {item}" for item in items) + f"\n{indent}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="the sweep.json that `hyperzoo train STUDY` wrote")
    parser.add_argument("out", type=Path, help="the file to write, results/STUDY.json")
    parser.add_argument("--epochs", action="store_true", help="keep every epoch, for a figure of curves")
    parser.add_argument("--reports", metavar="TERM", help="keep what this term reported of the activations")
    parser.add_argument("--fgsm", type=int, metavar="COUNT", help="attack each run on this many test images")
    given = parser.parse_args()
    values = json.loads(given.sweep.read_text(encoding="utf-8"))
    if given.fgsm:
        values = under_attack(values, given.sweep.parent, given.fgsm)
    given.out.write_text(text(values, epochs=given.epochs, reports=given.reports), encoding="utf-8")


if __name__ == "__main__":
    main()
