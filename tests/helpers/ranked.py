"""Trainings by several processes: `python tests/helpers/ranked.py FOLDER` prints what came of each,
a JSON object.

Everything heavy is imported once; each rank is a fork of this process, which itself computes
nothing.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyro
import torch
import torch.distributed
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_seq import Pair, RunFolder, SequenceBatch, UserError
from pyro_seq.runs import ranks
from pyro_seq.train.optimizer import JointOptimiser
from pyro_seq.train.ranks import RowsOfRank
from pyro_seq.train.svi import SVIUpdates
from pyro_seq.train.trainer import Hooks
from small_trainings import Stream, function_pair, new_pair, new_trainer, settings

Work = Callable[[], Any]
SEQUENCES, STEPS = 9, 4
UNLIMITED = resource.RLIM_INFINITY
LENGTHS = [4, 2, 1, 3, 2, 4, 2, 3, 4]


def on_ranks(folder: Path, number: int, work: Work) -> list[Any]:
    """What the work returns on each of so many ranks, or the error that it raises, in words."""
    name = f"{len(list(folder.iterdir()))}"
    children = []
    for rank in range(number):
        child = os.fork()
        if not child:
            be(rank, number, folder / name, work)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-*.json"))]


def be(rank: int, number: int, place: Path, work: Work) -> None:
    torch.set_num_threads(1)
    try:
        store = torch.distributed.FileStore(f"{place}.store", number)
        if number > 1:
            torch.distributed.init_process_group(
                "gloo", store=store, rank=rank, world_size=number, timeout=timedelta(minutes=1)
            )
        try:
            found = work()
        except (UserError, KeyboardInterrupt) as error:
            found = f"{type(error).__name__}: {error}"
        resource.setrlimit(resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))
        Path(f"{place}-{rank}.json").write_text(json.dumps(found))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


# the gradient of one step


class SameNoise(TorchFunctionMode):
    """Noise of a rank's sequences as one process draws it for all of them."""

    def __init__(self, whole: int) -> None:
        super().__init__()
        self.whole, self.calls = whole, 0
        self.rows = list(range(whole))[ranks.rank() :: ranks.size()] or [0]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn:
            return self.drawn([size for size in args if isinstance(size, int)])
        if func is Tensor.normal_:
            return args[0].copy_(self.drawn(list(args[0].shape)))
        return func(*args, **kwargs)

    def drawn(self, shape: list[int]) -> Tensor:
        self.calls += 1
        random = torch.Generator().manual_seed(self.calls)
        of_rows = [i for i, size in enumerate(shape) if size == len(self.rows)][:1]
        for i in of_rows:
            shape[i] = self.whole
        noise = torch.empty(shape).normal_(generator=random)
        for i in of_rows:
            noise = noise.index_select(i, torch.tensor(self.rows))
        return noise


def ragged(sequences: int = SEQUENCES, *, missing: bool = False) -> Stream:
    def make(random: torch.Generator) -> SequenceBatch:
        values = torch.randint(0, 3, (sequences, STEPS), generator=random)
        batch = SequenceBatch(values, LENGTHS[:sequences])
        return batch.with_missing([1, 3]) if missing else batch

    return Stream(make)


def numbers(random: torch.Generator) -> SequenceBatch:
    return SequenceBatch(torch.randn(SEQUENCES, STEPS, generator=random).double(), LENGTHS)


def with_unused() -> Pair:
    pair = new_pair("rnn")
    model: Any = pair.model
    model.unused = nn.Linear(2, 2)
    return pair


def srnn(layout: str) -> Callable[[], Pair]:
    return lambda: new_pair("srnn", layout=layout, hidden_size=8)


Case = tuple[Callable[[], Pair], Stream, dict[str, Any]]
CASES: dict[str, Callable[[], Case]] = {
    "exact": lambda: (lambda: new_pair("rnn"), ragged(), {}),
    "an unused parameter": lambda: (with_unused, ragged(), {}),
    "path, trace": lambda: (srnn("path"), ragged(), {}),
    "steps, trace": lambda: (srnn("steps"), ragged(), {}),
    "steps, mean field": lambda: (srnn("steps"), ragged(), {"objective": "mean_field"}),
    "path, mean field, gaps": lambda: (
        srnn("path"),
        ragged(missing=True),
        {"objective": "mean_field"},
    ),
    "path, free bits": lambda: (srnn("path"), ragged(), {"free_bits": 0.11}),
    "steps, free bits": lambda: (srnn("steps"), ragged(), {"free_bits": 0.11}),
    "path, free bits, 2 particles": lambda: (
        srnn("path"),
        ragged(),
        {"free_bits": 0.11, "num_particles": 2},
    ),
    "path, 2 particles": lambda: (srnn("path"), ragged(), {"num_particles": 2}),
    "path, iwae": lambda: (srnn("path"), ragged(), {"objective": "iwae", "num_particles": 2}),
    "functions": lambda: (function_pair, Stream(numbers), {}),
    "functions, free bits": lambda: (function_pair, Stream(numbers), {"free_bits": 0.3}),
    "fewer rows than ranks": lambda: (srnn("path"), ragged(1), {"free_bits": 0.11}),
}


# of three ranks, where there is little time
QUICK = ("path, free bits", "functions", "an unused parameter", "fewer rows than ranks")


class Seen(JointOptimiser):
    """Keeps the gradients of a step in place of making it."""

    gradients: dict[str, list[float] | None]

    def __call__(self, params: Any, *args: object, **kwargs: object) -> None:
        self.gradients = {
            name: None if p.grad is None else (p.grad * self.gradient_scale).flatten().tolist()
            for name, p in self.parameters.items()
        }
        self.optimiser.zero_grad()


def gradients(*names: str) -> dict[str, Any]:
    """Of these cases, or all, the gradients and the figures of a step."""
    torch.set_default_dtype(torch.float64)
    found = {}
    for name, make in ((name, CASES[name]) for name in names or CASES):
        torch.manual_seed(3)
        new, stream, changes = make()
        pair = new()
        annealed = {"kl_schedule": "linear", "kl_start": 0.3, "kl_steps": 10}
        updates = SVIUpdates(pair, settings(**annealed, **changes))
        with pair.scope(), pyro.validation_enabled(False):
            updates.prepare(stream)
            updates.optimiser.__class__ = Seen
            whole = len(stream.draw()[0])
            stream.load_state({"drawn": 0, "random": torch.Generator().manual_seed(0).get_state()})
            rows = RowsOfRank.__new__(RowsOfRank)
            rows.inner = stream
            batch, _ = rows.draw()
            updates.idle = rows.idle
            with SameNoise(whole):
                figures = updates.update(batch, 0, 1.0)
        del figures["gradient_norm"]
        seen: Any = updates.optimiser
        found[name] = {"gradients": seen.gradients, "figures": figures}
    return found


# whole trainings


def learnt(run: Path | None = None, **changes: Any) -> Any:
    """A training of an RNN without dropout: its steps, validations and weights."""
    torch.manual_seed(0)
    losses: list[float] = []
    pair = new_pair("rnn", hidden_size=16)

    def validate() -> dict[str, float]:
        model: Any = pair.model
        losses.append(float(sum(p.abs().mean() for p in model.parameters())))
        return {"loss": losses[-1]}

    options = {"num_steps": 60, "valid_every": 20, "learning_rate": 0.02} | changes
    trainer = new_trainer(
        pair,
        options.pop("batches", None) or ragged(),
        run=None if run is None else RunFolder(run, "test"),
        hooks=options.pop("hooks", Hooks(validate=validate)),
        **options,
    )
    trainer.fit(resume=run is not None and (run / "last.safetensors").exists())
    return {
        "step": trainer.step,
        "minutes": trainer.minutes,
        "best": trainer.best_loss,
        "validations": len(losses),
        "weights": {k: v.flatten().tolist() for k, v in pair.weights()["model"].items()},
    }


class Meddled(Stream):
    """A stream that does something on one rank as it draws a batch."""

    def __init__(self, rank: int, at: int, action: Callable[[], Any]) -> None:
        super().__init__(ragged().make)
        self.rank, self.at, self.action = rank, at, action

    def draw(self) -> tuple[SequenceBatch, bool]:
        batch, follows = super().draw()
        if ranks.rank() == self.rank and self.drawn == self.at:
            self.action()
        return batch, follows


def spoilt() -> Any:
    """A training whose weights on rank 1 become NaN."""

    def spoil(module: nn.Module, args: Any) -> None:
        calls[0] += 1
        if calls[0] == 12 and ranks.rank() == 1:
            with torch.no_grad():
                next(module.parameters()).fill_(math.nan)

    calls, pair = [0], new_pair("rnn")
    model: Any = pair.model
    model.register_forward_pre_hook(spoil)
    new_trainer(pair, ragged(), num_steps=60).fit()


def full_disk(run: Path) -> Any:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, UNLIMITED))

    return learnt(run, batches=Meddled(0, 8, limit), checkpoint_seconds=0.0)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def step_kept(run: Path) -> int:
    from pyro_seq.runs.checkpoint import load_tree

    return int(load_tree(run / "last.safetensors")["step"])


def main() -> None:
    """Do all of it, and print what came of it."""
    folder, runs = Path(sys.argv[1]), Path(sys.argv[1]) / "runs"
    runs.mkdir()

    def go(number: int, work: Work) -> list[Any]:
        return on_ranks(folder, number, work)

    torch.optim.AdamW([torch.zeros(1)])  # imports a compiler, for seconds
    best_at = Hooks(validate=lambda: {"loss": 1.0})
    found: dict[str, Any] = {}
    three = () if sys.argv[2:] == ["gradients"] else QUICK
    found["gradients"] = {1: go(1, gradients), 3: go(3, lambda: gradients(*three))}
    if not three:
        print(json.dumps(found))
        return
    found["gradients"][2] = go(2, gradients)
    found["weights"] = {1: go(1, lambda: learnt(runs / "a")), 2: go(2, lambda: learnt(runs / "b"))}
    found["another number"] = go(1, lambda: learnt(runs / "b", num_steps=70))
    found["nan"] = go(2, spoilt)
    found["patience"] = go(2, lambda: learnt(hooks=best_at, patience=2, valid_every=3))
    found["minutes"] = go(2, lambda: learnt(num_steps=10**6, max_minutes=0.01, valid_every=10**6))
    found["small batch"] = go(3, lambda: learnt(batches=ragged(2)))
    found["other settings"] = go(2, lambda: learnt(learning_rate=0.1 + ranks.rank()))
    found["other data"] = go(2, lambda: learnt(batches=ragged(SEQUENCES - ranks.rank())))
    for name, act in (("terminated", terminate), ("interrupted", interrupt)):
        found[name] = go(2, lambda: learnt(runs / name, batches=Meddled(1, 9, act)))  # noqa: B023
        found[name].append(step_kept(runs / name))
    found["full disk"] = [*go(2, lambda: full_disk(runs / "full")), step_kept(runs / "full")]
    died = Meddled(1, 9, lambda: os._exit(1))
    found["died"] = [*go(2, lambda: learnt(runs / "died", batches=died)), step_kept(runs / "died")]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
