"""One training by several processes, as torchrun and others start them: rank 0 speaks for all."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import click

from pyro_seq.cli.common import pick_device

WRONG = 2


@contextmanager
def among_processes(run_dir: Path | None, device: str) -> Iterator[tuple[str, bool]]:
    """Join the other processes inside, if a launcher has started several.

    Yields the name of this process's device, and whether the run is to be gone on with since
    torchrun has started the processes anew. An error that all processes share is said by rank 0.
    """
    if run_dir is None or os.environ.get("WORLD_SIZE", "1") == "1":
        yield device, False
        return
    import torch

    from pyro_seq.errors import UserError
    from pyro_seq.runs import ranks

    on_gpu = device.startswith("cuda") or device == "auto"
    if on_gpu and torch.cuda.is_available() and ":" not in device:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    here = device if torch.cuda.is_available() and on_gpu else "cpu"
    try:
        with ranks.joined(here):
            with ranks.agreed():
                pick_device(device)
            restarted = ranks.restarts() > 0
            yield device, restarted and ranks.from_first((run_dir / "run.json").exists)
    except UserError as error:
        unheard = isinstance(error, ranks.Lost) and not error.explained
        if speaks() or unheard:
            raise
        sys.exit(WRONG)


def resumable(run_dir: Path, how: str) -> AbstractContextManager[None]:
    """Say how to resume a training that Ctrl-C or SIGTERM has stopped inside."""

    def words() -> str:
        begun = (run_dir / "run.json").exists()
        return f"the run is kept, go on with: {how}" if begun else ""

    return stoppable(words, otherwise="stopped before the run had begun")


@contextmanager
def stoppable(words: Callable[[], str], otherwise: str = "stopped") -> Iterator[None]:
    """Say what is kept of work that Ctrl-C or SIGTERM has stopped inside.

    The exit code is that of the signal in a shell.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args and isinstance(stop.args[0], int) else signal.SIGINT
        if speaks():
            kept = words()
            click.echo(f"pyroseq: {f'stopped; {kept}' if kept else otherwise}", err=True)
        raise click.exceptions.Exit(128 + number) from None


def speaks() -> bool:
    """Tell whether this process speaks: of several that train together the first one does."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"
