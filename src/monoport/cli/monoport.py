"""The daemon's command: parse arguments, call, exit. No logic.

Belongs here: `monoport`'s commands and options. What they do is in `daemon` and `config`.
"""

from pathlib import Path

import click

from monoport import __version__
from monoport.cli import run as outermost
from monoport.cli.run import Group


@click.group("monoport", cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="monoport")
def group() -> None:
    """An identity-aware access proxy: a whole cluster behind one TLS port."""


@group.command()
@click.option("-c", "--config", "file", required=True, metavar="FILE", type=click.Path(path_type=Path))
def start(file: Path) -> int:
    """Run the services that FILE enables, in the foreground."""
    from monoport import config  # noqa: PLC0415 - `monoport --help` should not wait for what it does not need
    from monoport.daemon.start import run  # noqa: PLC0415

    return run(config.load(file))


@group.command()
def configure() -> None:
    """Print a commented sample configuration."""
    from monoport.config.sample import sample_here  # noqa: PLC0415

    click.echo(sample_here(), nl=False)


@group.command()
@click.option("--dir", "folder", metavar="D", type=click.Path(path_type=Path), help="Keep the cluster in this folder.")
@click.option("--port", default=3080, show_default=True, type=click.IntRange(1, 65_535), help="The one port.")
@click.option("--check", is_flag=True, help="Run every printed command, print what reached what, and exit.")
def demo(folder: Path | None, port: int, check: bool) -> int:
    """Run a whole cluster on one port of localhost and print commands to paste."""
    from monoport.daemon.demo import run  # noqa: PLC0415

    return run(folder, port, check)


def main() -> None:
    """Entry point of the command `monoport`."""
    outermost.run(group)
