"""The command `hyperzoo` and its subcommands."""

import click

from hyperzoo.cli import networks, publishing, runs, weights


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Hyperspherical and regularised networks: list, train, evaluate and verify.

    Exit codes: 0 fine, 1 an error or a check that failed, 2 wrong usage, 130 and 143 interrupted.
    """


for _command in (
    weights.list_,
    weights.info,
    runs.train,
    networks.eval_,
    weights.verify,
    runs.reproduce,
    runs.queue,
    publishing.card,
    publishing.publish,
    weights.export,
    publishing.site,
    runs.plot,
    networks.energy,
    networks.activations,
    networks.generate,
):
    cli.add_command(_command)
