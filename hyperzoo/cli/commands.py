"""The command `hyperzoo`: a table of its subcommands, each imported when it is used."""

import importlib
from typing import NamedTuple

import click

from hyperzoo import __version__


class Subcommand(NamedTuple):
    """Where a subcommand is: the attribute of a module of `hyperzoo.cli`; and its line in `hyperzoo --help`."""

    module: str
    attribute: str
    help: str


COMMANDS = {
    "list": Subcommand("weights", "list_", "List weights, with data set, test metric and size"),
    "info": Subcommand("weights", "info", "Describe a weight or an architecture"),
    "train": Subcommand("runs", "train", "Train a recipe or a sweep of recipes; resumes by itself"),
    "finetune": Subcommand("runs", "finetune", "Fine-tune a weight on a folder of your own images"),
    "eval": Subcommand("networks", "eval_", "Accuracy, NLL and calibration error, or perplexity"),
    "predict": Subcommand("networks", "predict", "Classes of image files, as a table, CSV or contact sheet"),
    "verify": Subcommand("weights", "verify", "Check a weight against its manifest entry"),
    "reproduce": Subcommand("runs", "reproduce", "Retrain a weight with new seeds and compare"),
    "export": Subcommand("weights", "export", "Write a network as .pt2 (torch.export) or .onnx"),
    "plot": Subcommand("runs", "plot", "Draw a learning curve, a sweep or a figure of a paper"),
    "energy": Subcommand("networks", "energy", "Hyperspherical energy of the filters of a model"),
    "activations": Subcommand("networks", "activations", "Distribution of the activations of a model"),
    "generate": Subcommand("networks", "generate", "Sample text from a language model"),
    "queue": Subcommand("runs", "queue", "Train many runs within a given time"),
    "push": Subcommand("publishing", "push", "Push a run of yours to the Hub, with a card"),
    "publish": Subcommand("publishing", "publish", "Turn finished runs into a published weight"),
    "card": Subcommand("publishing", "card", "Regenerate the model cards and the README's table"),
    "site": Subcommand("publishing", "site", "Write all weights as one HTML page"),
}


class LazyGroup(click.Group):
    """A group that lists its commands from `COMMANDS` and imports the module of a command when that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        row = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"hyperzoo.cli.{row.module}"), row.attribute)
        command.short_help = row.help  # what shell completion shows
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.help) for name, row in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Hyperspherical and regularized networks: list, train, evaluate and verify.

    \b
    Exit codes: 0 success; 1 an error, or a check that failed; 2 wrong usage;
    130 and 143 interrupted.

    \b
    Shell completion, to be added to the start-up file of the shell:
      bash  eval "$(_HYPERZOO_COMPLETE=bash_source hyperzoo)"
      zsh   eval "$(_HYPERZOO_COMPLETE=zsh_source hyperzoo)"
      fish  _HYPERZOO_COMPLETE=fish_source hyperzoo | source
    """
