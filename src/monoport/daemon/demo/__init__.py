"""`monoport demo`: a whole cluster on one port of localhost, from the same commands that anyone would type.

Belongs here: setting it up, saying what to paste, taking it down. Does not belong here: anything that a cluster needs
elsewhere too; the demo runs `monoport start`, `tctl` and `tsh` as other processes and knows no shortcut.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from monoport import __version__
from monoport.daemon.demo.check import check_all
from monoport.daemon.demo.cluster import Cluster
from monoport.daemon.demo.commands import Commands
from monoport.errors import Failure

__all__ = ["run"]

WIDTH = 150  # characters of a line where there is no terminal to ask


def run(folder: Path | None, port: int, check: bool) -> int:
    """Start the demonstration and keep it until Ctrl-C; with `check` run every printed command instead.

    Args: where to keep it (None: a temporary folder, removed at the end), the one port, whether to check.
    Returns: the exit status: 0, or 1 where a checked command failed. Raises Failure.
    """
    made = folder is None
    root = Path(tempfile.mkdtemp(prefix="monoport-demo-")) if folder is None else folder.absolute()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o711)  # PostgreSQL's own account passes through to its folder
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)
    stop = _on_signals()
    cluster = Cluster(root, port, temporary=made)
    try:
        commands = Commands(cluster)
        _start(console, cluster, commands)
        if check:
            return 0 if check_all(console, cluster, commands) else 1
        _explain(console, cluster, commands)
        while not stop.wait(1.0):
            ended = cluster.ended()
            if ended:
                raise Failure(f"{ended.name} ended by itself; its log is {ended.log}")
        console.print("\nStopping …")
        return 0
    except KeyboardInterrupt:
        console.print("\nStopping …")
        return 0
    finally:
        try:
            if still_there := cluster.sign_out():
                console.print(f"[yellow]{escape(still_there)}[/]")
        finally:
            cluster.stop()
            if made:
                shutil.rmtree(root, ignore_errors=True)


def _on_signals() -> threading.Event:
    """An event that SIGTERM sets; Ctrl-C sets it too, or interrupts what is being started."""
    stop = threading.Event()

    def terminate(_number: int, _frame: object) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, terminate)
    return stop


def _start(console: Console, cluster: Cluster, commands: Commands) -> None:
    console.print(f"[bold]monoport {__version__}[/]: a whole cluster on one port of localhost\n")
    for what, step in cluster.steps():
        if console.is_terminal:
            with console.status(what):
                note = step()
        else:
            note = step()
        console.print(f"  [green]✓[/] {what:<34} [dim]{note}[/]" if note else f"  [green]✓[/] {what}")
    for what, package in commands.missing():
        verb = "are" if "," in what else "is"
        note = f"[dim]apt-get install {package}, and start again[/]"
        console.print(f"  [yellow]-[/] {what} {verb} not installed here  {note}")


def _explain(console: Console, cluster: Cluster, commands: Commands) -> None:
    console.print("\nEverything listens on [bold]one port[/], and only there: ", end="")
    console.print(f"[bold cyan]https://localhost:{cluster.port}/[/]")
    console.print("The agents dialled out to it. In another terminal, paste these, line by line:\n")
    for command in (*commands.setup(), *commands.all()):
        if command.why:
            console.print(f"  [dim]# {command.why}[/]")
        console.print(f"  {command.line}", markup=False)
    console.print("\nLogs: ", end="")
    console.print(", ".join(str(process.log) for process in cluster.processes), style="dim")
    console.print("Ctrl-C stops everything" + (" and removes it." if cluster.temporary else "."))
    sys.stdout.flush()
