"""What a step over several processes takes: each one's rows of a batch, and what all wish."""

from __future__ import annotations

import hashlib
import signal
from typing import Any, NamedTuple

import torch

from pyro_seq._pytree import tree_leaves
from pyro_seq._schema import Kind, described
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.runs import ranks

OF_RANK = 1_000_003  # between the seeds of two ranks' noise


class Wishes(NamedTuple):
    """What steers a training beside its figures, added up over the ranks with each step.

    These are rank 0's minutes, its wish for a checkpoint, and who has received a signal.
    """

    minutes: float = 0.0
    checkpoint: float = 0.0
    interrupted: float = 0.0
    terminated: float = 0.0

    @property
    def signal(self) -> int:
        """The number of the signal that any rank has received, 0 for none."""
        return int(signal.SIGTERM if self.terminated else signal.SIGINT if self.interrupted else 0)


class RowsOfRank:
    """A stream of batches of which each rank keeps rows r, r + R, r + 2 R, ….

    All ranks draw the same batches, so that there is one position in the stream. A rank for which a
    small batch has no row is given the first one, and is `idle`: what it makes of it does not
    count.

    Args:
        inner: the stream of whole batches.

    Raises `UserError` for batches that are smaller than the number of ranks.
    """

    def __init__(self, inner: Any) -> None:
        self.inner, self.idle = inner, False
        position = inner.state()
        first, _ = inner.draw()
        inner.load_state(position)
        self.fingerprint = fingerprint(first)
        most = getattr(inner, "batch_size", len(first))
        if most < ranks.size():
            raise UserError(
                f"a batch has {most} sequence{'s' * (most != 1)}, fewer than the {ranks.size()} "
                "processes that share it: start fewer processes, or raise the batch size"
            )

    def draw(self) -> tuple[SequenceBatch, bool]:
        """Draw this rank's rows of the next batch, and whether they go on from the last ones."""
        batch, follows = self.inner.draw()
        self.idle = len(batch) <= ranks.rank()
        rows = slice(0, 1) if self.idle else slice(ranks.rank(), None, ranks.size())
        return batch.select(rows), follows

    def state(self) -> Any:
        """Return the place of the stream."""
        return self.inner.state()

    def load_state(self, state: Any) -> None:
        """Restore a `state()`."""
        self.inner.load_state(state)

    def describe_state(self) -> Kind:
        """Return the kind of a `state()`."""
        return described(self.inner)


def fingerprint(batch: SequenceBatch) -> str:
    """Return the SHA-256 of a batch's observations, lengths and side inputs."""
    digest = hashlib.sha256()
    for leaf in tree_leaves((batch.values, batch.missing_cells, batch.inputs, batch.lengths)):
        if leaf is not None:
            digest.update(leaf.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def seed_noise() -> None:
    """Give each rank noise of its own; rank 0 keeps the one that it has."""
    seed = ranks.from_first(torch.initial_seed)
    if not ranks.is_first():
        torch.manual_seed((seed + OF_RANK * ranks.rank()) % 2**63)


def check_number(saved: object, where: object) -> None:
    """Raise `UserError` for a checkpoint that was written by another number of processes."""
    kept = saved.get("ranks") if isinstance(saved, dict) else None
    wrote = len(kept) if isinstance(kept, list) else 1
    if wrote != ranks.size():
        raise UserError(
            f"{where} was written by {_processes(wrote)}, and this is a training by "
            f"{_processes(ranks.size())}: go on with as many as before (torchrun "
            f"--nproc-per-node {wrote}), since each has its own noise and states"
        )


def _processes(number: int) -> str:
    return f"{number} process{'es' * (number != 1)}"
