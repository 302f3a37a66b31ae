"""Train a pair by stochastic variational inference: the loop with one stage, by `SVI`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_seq._pytree import tree_leaves, tree_map
from pyro_seq._rng import fork_rng
from pyro_seq._schema import MOST, Anything, Items, Number, Optional, Whole, Word
from pyro_seq.errors import UserError
from pyro_seq.infer.smc.fivo import FIVO_ELBO
from pyro_seq.nn.precision import fast_precision
from pyro_seq.pairs.model import declared
from pyro_seq.pairs.pair import Pair
from pyro_seq.runs import ranks
from pyro_seq.runs.checkpoint import weights_in
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.stateful import RANDOM, Entry, States, attributes, position_of, weights_of
from pyro_seq.runs.tensorboard import Sample
from pyro_seq.train.divergence import LatentsInUse, diverged, diverged_words
from pyro_seq.train.log import TrainingLog
from pyro_seq.train.loop import Callback, Checkpoint, EveryNSteps, Loop, Measured, Stage, Validate
from pyro_seq.train.optimizer import JointOptimiser, NonFiniteValue
from pyro_seq.train.preflight import dry_run, refuse_gaps
from pyro_seq.train.ranks import RowsOfRank, check_number, seed_noise
from pyro_seq.train.schedules import Budget, learning_rate_factor
from pyro_seq.train.settings import PRECISIONS, TrainingSettings
from pyro_seq.train.svi import Batches, Carried, SVIUpdates

ADVICE = "a lower training.learning_rate or training.clip_norm may help"


@dataclass
class Hooks:
    """What a program adds to training: validation, samples, units.

    Args:
        validate: figures on held-out data by name, `loss` (lower is better, nats per step) among
            them; called in evaluation mode.
        samples: texts, pictures and sounds by tag for TensorBoard; called in evaluation mode.
        units: what one step of a sequence is, in the plural (`characters`), and `bits`: the name of
            bits per such step.
        at_start: whether to validate before the first step too, of a pair that may be good then.
        callbacks: called on the way, the first ones that are; of several ranks on each.
    """

    validate: Callable[[], dict[str, float]] | None = None
    samples: Callable[[], Mapping[str, Sample]] | None = None
    units: str = "steps"
    bits: str = "bits/step"
    at_start: bool = False
    callbacks: Sequence[Callback] = ()


class NonFinite(UserError):
    """An error for a value that is infinite or NaN in training.

    The message says where, and which checkpoint is the last good one.
    """


class Trainer(Loop):
    """Train a pair on a stream of batches.

    A step maximises the ELBO per step of a sequence, (1/n) sum (E_q[log p(x | z)] - beta KL), over
    the n observations of the batch. A step works through `pyro.infer.SVI` with the objective of the
    settings, or any Pyro `ELBO` given. What it writes to `run` lets a killed training go on. On a
    CPU the resumed run ends with the very weights of one that was never interrupted (unless
    minutes, which no two runs share, decide its length).

    In a `torch.distributed` group of R processes each batch is dealt out, rows r, r + R, … to rank
    r, and a step is that of the whole batch. All ranks make the trainer alike; rank 0 alone
    validates, writes and speaks. Each has noise of its own.

    `fit` raises, besides what any `Loop` does, `NonFinite` when a value is not finite, and
    `UserError` for a pair that cannot be trained.

    Args:
        pair: model and guide; `fit` leaves the trained (if asked for, averaged) weights in them,
            the best ones if there is validation.
        batches: the training data.
        settings: hyper-parameters.
        run: where to keep checkpoints and metrics; `None` for nowhere.
        hooks: validation and samples.
        elbo: the objective, in place of the settings'; an object of its own for every trainer.
        quiet: no progress on stderr.
    """

    def __init__(
        self,
        pair: Pair,
        batches: Batches,
        settings: TrainingSettings,
        *,
        run: RunFolder | None = None,
        hooks: Hooks | None = None,
        elbo: ELBO | None = None,
        quiet: bool = False,
    ) -> None:
        s, self.hooks = settings, hooks or Hooks()
        super().__init__(
            {"svi": Stage(self._step)},
            Budget("training", s.num_steps, s.max_minutes, s.patience),
            run=run,
            log=TrainingLog(units=self.hooks.units, bits=self.hooks.bits, quiet=quiet),
            scope=pair.scope,
            # the first batch has been checked in full, the others are not: it costs a quarter of
            # each step
            training=partial(pyro.validation_enabled, False),
        )
        self.pair, self.batches, self.settings = pair, batches, settings
        self._dealt: RowsOfRank | None = None  # this rank's rows of them, of several
        self.updates = SVIUpdates(pair, settings, elbo)
        self.validation = Validate(
            s.valid_every,
            self._measure,
            self._keep_best,
            evaluating=self._evaluating,
            at_start=self.hooks.at_start,
        )
        self.carried: Any = None  # the states that the next batch starts from, if it goes on
        self.precision = "float32"
        self._in_use = LatentsInUse(pair)
        self._best: Any = None  # the best weights, where there is no run to keep them

    @property
    def optimiser(self) -> JointOptimiser:
        """The optimiser; it exists once training has begun."""
        return self.updates.optimiser

    @property
    def best_loss(self) -> float:
        """The lowest validation loss so far."""
        return math.inf if self.validation.best is None else self.validation.best

    def prepare(self) -> None:
        """Look at the first batch, make the optimiser, and say what is saved and called for."""
        self._check_finite(self.pair.parameters())
        without = self.updates.prepare(self.batches)
        self._dealt = RowsOfRank(self.batches) if ranks.size() > 1 else None
        self.updates.wishes = self.wishes
        if without:
            more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
            self.log.progress.say(
                f"parameter {without[0]!r}{more} has no gradient on the first batch: is it in use?"
            )
        self.precision = self._choose_precision()
        self._run_in_precision()
        self.states = self._states()
        s = self.settings
        self.callbacks = [
            *self.hooks.callbacks,
            EveryNSteps(s.log_every, self._log_means),
            EveryNSteps(s.sample_every, self._show),
        ]
        if self.hooks.validate is not None:
            self.callbacks.append(self.validation)
        if self.run is not None:
            self.callbacks.append(Checkpoint(s.checkpoint_seconds))

    def rehearse(self) -> None:
        """See `Loop`."""
        self.updates.rehearse(self.batches)

    def join(self) -> None:
        """See `Loop`."""
        parameters = self.optimiser.parameters
        assert self._dealt is not None
        known = {
            "training settings": (self.settings, self.precision),
            "parameters": [(name, tuple(p.shape)) for name, p in parameters.items()],
            "data (a first batch)": self._dealt.fingerprint,
        }
        ranks.check_same(known)
        kept = tree_leaves((self.pair.weights(), self.optimiser.averages))
        ranks.take_from_first([tensor for tensor in kept if isinstance(tensor, Tensor)])
        seed_noise()

    def hangs(self) -> bool:
        """See `Loop`."""
        return self.updates.pace.hangs()

    def _run_in_precision(self) -> None:
        self._sides = tuple(
            Carried(side, self.precision) for side in (self.pair.model, self.pair.guide)
        )
        self.updates.run_as(*self._sides)

    def _choose_precision(self) -> str:
        """The settings' precision; `auto` is for models that keep their densities in full
        precision, and for matrices worth it; a particle filter has full precision alone.
        """
        if isinstance(self.updates.elbo, FIVO_ELBO):
            if self.settings.precision == "bfloat16":
                raise UserError(
                    "fivo compares weights of particles, in full precision: training.precision "
                    "must be auto or float32"
                )
            return "float32"
        if self.settings.precision != "auto":
            return self.settings.precision
        if declared(self.pair.model) is None:
            return "float32"
        modules = [part for module in self.pair.modules().values() for part in module.modules()]
        looked_up = {id(part.weight) for part in modules if isinstance(part, nn.Embedding)}
        multiplied = [p for p in self.optimiser.parameters.values() if id(p) not in looked_up]
        largest = max(multiplied, key=Tensor.numel, default=torch.zeros(0))
        return str(fast_precision(largest.device, largest.numel())).removeprefix("torch.")

    # one step

    def _step(self) -> None:
        """One update, and its figures."""
        self.updates.pace.begin()
        batch, follows = (self._dealt or self.batches).draw()
        refuse_gaps(batch)
        self.updates.idle = self._dealt is not None and self._dealt.idle
        batch = self._in_use.latest = batch.with_state(self.carried if follows else None)
        s = self.settings
        rate = learning_rate_factor(
            self.budget.fraction(self.step + 1, self.minutes),
            schedule=s.schedule,
            final_lr_fraction=s.final_lr_fraction,
            warmup=s.warmup,
        )
        try:
            figures = self.updates.update(batch, self.step, rate)
        except NonFiniteValue as error:
            self._stop(str(error))
        model, guide = self._sides
        self.carried = self.updates.carried({"model": model.state, "guide": guide.state})
        self.step, self.heard = self.step + 1, self.updates.heard
        self.log.add(figures, max(1, round(self.updates.observations)))
        if self.log.progress.due():
            self.log.show(self.step, s.num_steps, figures, self.left())

    def _stop(self, where: str, *, after: bool = False) -> NoReturn:
        """End a training that met a value that is not finite, in this step or `after` it."""
        step = self.step + (not after)
        raise NonFinite(f"step {step}: {where} is not finite{self.kept()}; {ADVICE}")

    # what is seen of it

    def _log_means(self) -> None:
        rates = {
            "kl_strength": self.updates.kl_strength(self.step - 1),
            "learning_rate": self.optimiser.current_learning_rate,
        }
        self.report("train", self.log.take_means() | rates)

    def _show(self) -> None:
        """The parameters' distributions, and samples."""
        self.log.histograms(self.step, self.optimiser.parameters)
        if self.hooks.samples:
            with self._evaluating():
                self.log.events.samples(self.step, self.hooks.samples())

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode with the averaged weights; the random state comes out as it went in,
        whatever is drawn inside.
        """
        with self.optimiser.averaged(), fork_rng(self.step), torch.no_grad():
            self.pair.train(False)
            try:
                yield
            finally:
                self.pair.train()

    def _measure(self) -> Measured:
        """The figures of a validation, in evaluation mode."""
        assert self.hooks.validate is not None
        figures, first = self.hooks.validate(), self.updates.first_loss
        loss = figures["loss"]
        if not math.isfinite(loss):
            self._check_finite(self.optimiser.parameters)
            self._stop("the validation loss", after=True)
        if lost := diverged(loss, first):
            what = f"step {self.step}: the validation loss"
            self.log.progress.say(diverged_words(what, loss, first))
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        in_use, warning = self._in_use.figures(self.updates.kl_strength(self.step))
        if warning is not None:
            self.log.progress.say(f"step {self.step}: {warning}")
        figures = figures | in_use
        return Measured(figures, shown, loss, loss < self.best_loss and not lost)

    def conclude(self) -> None:
        """Leave the best weights in the pair, as `Loop` says.

        Raises `UserError` for a training that has diverged.
        """
        self._check_diverged()
        if self.hooks.validate is None:
            with self.optimiser.averaged():
                self._keep_best()
        if self.run is not None and self.run.best.exists():
            self.pair.load_weights(weights_in(self.run.best), self.run.best)
        elif self._best is not None:
            self.pair.load_weights(self._best, "the best weights")
        self.pair.train(False)

    def _check_diverged(self) -> None:
        """Raise `UserError` at the end of a training that has diverged, unless a validation before
        has found better weights.
        """
        first, recent = self.updates.first_loss, self.updates.recent_loss
        if self.hooks.validate is None and self.updates.diverged():
            raise UserError(f"{diverged_words('its loss', recent, first)}; {ADVICE}")
        if self.hooks.validate is not None and self.validation.best is None:
            began = "" if first is None else f" ({first:.4g} nats per step)"
            raise UserError(
                "the training has diverged: every validation's loss is far beyond where it "
                f"began{began}; {ADVICE}"
            )

    def _keep_best(self) -> None:
        """Keep the weights that stand in the pair as the best ones."""
        self._check_finite(self.optimiser.parameters)
        if self.run is not None:
            self.run.save(self.run.best, {"step": self.step, "weights": self.pair.weights()})
        else:
            self._best = tree_map(torch.clone, self.pair.weights())

    # checkpoints

    def _check_finite(self, parameters: dict[str, Tensor]) -> None:
        """Stop before weights that are not finite take the place of good ones."""
        for name, parameter in parameters.items():
            if not parameter.isfinite().all():
                self._stop(f"parameter {name!r}", after=True)

    def save(self) -> None:
        """See `Loop`; raises `NonFinite` for weights that no training could go on from."""
        self._check_finite(self.optimiser.parameters)
        super().save()

    def _states(self) -> States:
        """What a checkpoint holds; whether the states carried over fit is tried as they are
        read.
        """
        where, counter = "" if self.run is None else self.run.last, Whole()
        return States(
            {
                **attributes(self, step=counter, minutes=Number(0, MOST)),
                "best_loss": attributes(self.validation, best=Optional(Number()))["best"],
                **attributes(self, validations_since_best=counter),
                **attributes(self.validation, validated=Whole(-self.hooks.at_start)),
                **self.updates.states(),
                "weights": weights_of(self.pair, where),
                "optimiser": self.optimiser,
                "batches": position_of(self.batches),
                # as the run was begun, also where another would be chosen now
                **attributes(self, precision=Word(*PRECISIONS[1:])),
                **({"carried": self._of_carried()} if ranks.size() == 1 else {}),
                **self.log.states(),
                **({"random": RANDOM} if ranks.size() == 1 else {"ranks": self._of_ranks()}),
            },
            may=("first_loss", "threads"),
        )

    def _of_carried(self) -> Entry:
        return Entry(lambda: self.carried, self._carry_on, Anything)

    def _of_ranks(self) -> Entry:
        """What each rank has of its own: states carried over, and noise."""
        own = States({"carried": self._of_carried(), "random": RANDOM})
        return Entry(
            lambda: ranks.gathered(own.state_dict()),
            lambda states: own.load_state_dict(states[ranks.rank()]),
            lambda: Items(own.describe_state(), least=ranks.size(), most=ranks.size()),
        )

    def check(self, saved: object, where: Path) -> None:
        """See `Loop`."""
        check_number(saved, where)
        super().check(saved, where)

    def _carry_on(self, carried: object) -> None:
        """Take over states, and try whether they fit the next batch."""
        device = next(iter(self.optimiser.parameters.values())).device
        self.carried = tree_map(lambda tensor: tensor.to(device), carried)
        self._run_in_precision()
        stream = self._dealt or self.batches
        with dry_run(self.pair, stream, self.carried) as batch, torch.no_grad():
            self.updates.elbo.loss(*self._sides, batch)
        self.updates.recorder.take()
