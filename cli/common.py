"""What the programs of the command share: options, and where their values lead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import torch

F = TypeVar("F", bound=Callable[..., Any])

RUN_DIR = click.option(
    "--run-dir",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The run folder: everything that a training keeps.",
)
SEED = click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of all randomness.")
DEVICE = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda",
    help="Where to compute; auto takes a GPU if there is one.",
)


def training_options(command: F) -> F:
    """The options of every program's `train`."""
    for option in reversed(
        [
            RUN_DIR,
            click.option("--num-steps", type=click.IntRange(1), metavar="N", help="Parameter updates at most (training.num_steps)."),
            click.option(
                "--max-minutes",
                type=click.FloatRange(0, min_open=True),
                metavar="M",
                help="Minutes at most (training.max_minutes).",
            ),
            click.option(
                "--config",
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="Settings as TOML or JSON, as --print-config shows them.",
            ),
            click.option("--set", "words", multiple=True, metavar="KEY=VALUE", help="One setting; after --config, and as often as needed."),
            SEED,
            DEVICE,
            click.option("--resume", is_flag=True, help="Go on where the run in --run-dir stopped."),
            click.option("--quiet", is_flag=True, help="No progress on stderr."),
        ]
    ):
        command = option(command)
    return command


def pick_device(name: str) -> torch.device:
    """The device of that name; raises `UserError` if there is none."""
    import torch

    from pyro_seq.errors import UserError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} is not to be had: {str(error).splitlines()[0]}") from None
    return device
