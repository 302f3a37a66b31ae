"""Train by several processes: who this one is among them, and what all of them agree on.

The processes are the ranks of a `torch.distributed` group, whoever has started them (torchrun,
Slurm, Ray Train). Rank 0 alone writes and speaks. Without a group, or in one of a single process,
all functions here do at once what they are asked to do for all.
"""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import reduce
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_seq.errors import UserError, said

if dist.is_available():
    # its functions keep, as a default, the group that is there when it is first imported: a group
    # would outlive its end, and its threads would abort the interpreter's
    importlib.import_module("torch.distributed.nn.functional")

T = TypeVar("T")

LONGEST = timedelta(days=1)  # of what rank 0 does while the others wait, as a validation
JOINING = timedelta(minutes=5)
# a step that takes longer than so many seconds, and so many times the usual, hangs
PATIENCE, TIMES = 15.0, 20.0
FIRST_STEP = 600.0  # seconds, of the first step, whose usual time nobody knows
LOOKING = 2.0  # seconds to look for what a rank that has ended had to say
OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Lost(UserError):
    """Another process of the training has ended, or hangs."""

    hangs = False  # of which it says nothing, now or later
    explained = False  # by the words of the process that has ended first

    def followed_by(self, words: str) -> Lost:
        """Return the error with more words."""
        more = Lost(f"{self}{words}")
        more.hangs, more.explained = self.hangs, self.explained
        return more


def size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return dist.get_rank() if size() > 1 else 0


def is_first() -> bool:
    """Tell whether this process writes and speaks for all."""
    return rank() == 0


def launched() -> bool:
    """Tell whether a launcher has started this process as one of several."""
    named = all(name in os.environ for name in OF_LAUNCHERS)
    return named and os.environ["WORLD_SIZE"] != "1"


def restarts() -> int:
    """Return how often torchrun has started the processes anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


@contextmanager
def joined(device: torch.device | str = "cpu") -> Iterator[None]:
    """Join the processes that a launcher has started, inside.

    What the launcher says in the environment is read (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT);
    a group that is there is used as it is. A process that ends with an error leaves its reason for
    the others.

    Args:
        device: where this process computes; the group is NCCL's for a GPU, else gloo's.

    Raises `UserError` if the processes do not find each other, and `Lost` if one of them ends.
    """
    if dist.is_initialized() or not launched():
        yield
        return
    device = torch.device(device)
    try:
        store, number, among = next(iter(dist.rendezvous("env://", timeout=JOINING)))
        # torchrun's own store outlives a restart, and the dead would be taken for the living
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = dist.PrefixStore(f"attempt-{restarts()}", store)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=number, world_size=among, timeout=LONGEST
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes do not find each other: {_first_line(error)}") from None
    try:
        with _terminated_in_words():
            yield
    except BaseException as error:
        with suppress(ValueError):  # outside the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which a launcher sends to the others
        if not isinstance(error, Lost):
            with suppress(RuntimeError):
                store.set(f"ended-{number}", said(error) if str(error) else type(error).__name__)
            raise
        found = None if error.hangs else _reason(store, number, among)
        if found is None:
            raise
        explained = Lost(found)
        explained.explained = True
        raise explained from None
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()


@contextmanager
def _terminated_in_words() -> Iterator[None]:
    """Let SIGTERM raise `KeyboardInterrupt` inside, with its number."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, which alone receives signals
        yield
        return
    yield
    signal.signal(signal.SIGTERM, before)


def _reason(store: dist.Store, number: int, among: int) -> str | None:
    """Return what another rank has said before it ended, `None` if none has."""
    until = time.monotonic() + LOOKING
    while time.monotonic() < until:
        for other in range(among):
            with suppress(RuntimeError):
                if other != number and store.check([f"ended-{other}"]):
                    return f"process {other}: {store.get(f'ended-{other}').decode()}"
        time.sleep(0.05)
    return None


@contextmanager
def _together() -> Iterator[None]:
    """Say in words that another rank does not answer."""
    try:
        yield
    except RuntimeError as error:
        hangs = "timed out" in str(error).lower()
        lost = Lost(
            f"another process of this training {'hangs' if hangs else 'has ended'}, so process "
            f"{rank()} of {size()} ends too"
        )
        lost.hangs = hangs
        raise lost from error


def gathered(value: T) -> list[T]:
    """Return the values of all ranks, by rank."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    with _together():
        dist.all_gather_object(found, value)
    return found


@contextmanager
def agreed() -> Iterator[None]:
    """Raise on all ranks what one of them meets inside, where nothing else is exchanged.

    A rank's own error is raised as it is, those of others as `UserError`.
    """
    if size() == 1:
        yield
        return
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    words = gathered(None if own is None else said(own))
    if own is not None:
        raise own
    for other, reason in enumerate(words):
        if reason is not None:
            raise UserError(reason if other == 0 else f"process {other}: {reason}")


def from_first(action: Callable[[], T]) -> T:
    """Return on all ranks what `action` returns on rank 0, where alone it is called.

    The others wait. An error of rank 0 is raised on all, on the others as `UserError`.
    """
    if size() == 1:
        return action()
    own: Exception | None = None
    sent: list[Any] = [None, None]
    if is_first():
        try:
            sent[0] = action()
        except Exception as error:
            own, sent[1] = error, said(error)
    with _together():
        dist.broadcast_object_list(sent, src=0)
    if own is not None:
        raise own
    if sent[1] is not None:
        raise UserError(sent[1])
    found: T = sent[0]
    return found


def check_same(known: Mapping[str, object]) -> None:
    """Raise `UserError` on all ranks unless all know the same, by what it is."""
    first, *others = gathered(dict(known))
    for number, theirs in enumerate(others, 1):
        for name, value in first.items():
            if theirs.get(name) != value:
                raise UserError(
                    f"process {number} has other {name} than process 0: all processes of a "
                    "training must be given the same settings, data and seed"
                )


def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by those of rank 0."""
    if size() > 1:
        with _together(), torch.no_grad():
            for tensor in tensors:
                sent = tensor.detach().clone(memory_format=torch.contiguous_format)
                dist.broadcast(sent, src=0)
                tensor.copy_(sent)


class Pace:
    """How long a step usually takes, by which one that hangs is known."""

    def __init__(self) -> None:
        self.since: float | None = None  # when the step under way began
        self.usual: float | None = None  # seconds of a step, a moving average

    def begin(self) -> None:
        """Note that a step begins."""
        self.since = time.monotonic()

    def end(self) -> None:
        """Note that all ranks have come to the same place of a step."""
        if self.since is not None:
            took, self.since = time.monotonic() - self.since, None
            self.usual = took if self.usual is None else 0.9 * self.usual + 0.1 * took

    @property
    def patience(self) -> float:
        """How many seconds a step may take."""
        return FIRST_STEP if self.usual is None else max(PATIENCE, TIMES * self.usual)

    def hangs(self) -> bool:
        """Tell whether the step under way takes so long that the others have given it up."""
        return self.since is not None and time.monotonic() - self.since > 0.9 * self.patience


def total(tensor: Tensor, patience: float = FIRST_STEP) -> Tensor:
    """Return the sum of a tensor over all ranks, without a gradient.

    Raises `Lost` if a rank has ended, or does not come for `patience` seconds.
    """
    summed = tensor.detach().clone()
    if size() > 1:
        options = dist.AllreduceOptions()
        options.reduceOp, options.timeout = dist.ReduceOp.SUM, timedelta(seconds=patience)
        with _together():
            group = dist.group.WORLD
            assert group is not None
            group.allreduce([summed], options).wait()
    return summed


def add_up(parameters: Sequence[Tensor], numbers: Sequence[float], pace: Pace) -> list[float]:
    """Add the gradients that stand on parameters up over all ranks; return the sums of numbers.

    All goes in one message, of the gradients' precision. A gradient that a rank does not have
    counts as zero; one that no rank has is left missing, as it is in one process.
    """
    gradients = [p.grad for p in parameters]
    kind = reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)
    device = parameters[0].device
    parts = [
        torch.zeros(p.numel(), dtype=kind, device=device)
        if gradient is None
        else gradient.detach().flatten().to(device, kind)
        for p, gradient in zip(parameters, gradients, strict=True)
    ]
    there = [float(gradient is not None) for gradient in gradients]
    flat = torch.cat([*parts, torch.tensor([*there, *numbers], dtype=kind, device=device)])
    flat = total(flat, pace.patience)
    pace.end()
    *summed, last = flat.split([*map(len, parts), len(there) + len(numbers)])
    found: list[float] = last.tolist()
    for p, gradient, ranks in zip(parameters, summed, found, strict=False):
        p.grad = gradient.view(p.shape).to(p.device, p.dtype) if ranks else None
    return found[len(there) :]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
