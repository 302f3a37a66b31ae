"""Train a pair by stochastic variational inference, with all that a long run needs."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import pyro
import torch
from pyro.infer import ELBO, SVI
from torch import Tensor, nn

from pyro_seq._pytree import detach, map_tensors
from pyro_seq._rng import aside, describe_random_state, random_state, set_random_state
from pyro_seq._schema import (
    MOST,
    Anything,
    Checked,
    Fields,
    Kind,
    Number,
    Optional,
    Whole,
    Word,
    check,
    described,
)
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.elbo import Recorder, make_elbo
from pyro_seq.nn.precision import fast_precision, full_precision
from pyro_seq.pairs.model import SequenceModel
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.scale_latents import ScaleLatents, scales_summed_out
from pyro_seq.runs.checkpoint import going_on_from, load_tree, weights_in
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.tensorboard import Sample
from pyro_seq.train.divergence import diverged, diverged_words
from pyro_seq.train.interruption import Interruption
from pyro_seq.train.log import TrainingLog
from pyro_seq.train.optimizer import JointOptimiser, NonFiniteGradient
from pyro_seq.train.preflight import find_parameters, refuse_gaps, tried
from pyro_seq.train.schedules import kl_strength, learning_rate_factor
from pyro_seq.train.settings import PRECISIONS, TrainingSettings
from pyro_seq.train.stopping import fraction, stopped_by


class Batches(Protocol):
    """An endless stream of training batches that can be saved and resumed."""

    def draw(self) -> tuple[SequenceBatch, bool]:
        """Draw the next batch, and whether it continues the last one, so states are carried."""

    def state(self) -> Any:
        """Return the place of the stream, as a tree of tensors and plain values."""

    def load_state(self, state: Any) -> None:
        """Restore a `state()`."""


@dataclass
class Hooks:
    """What a program adds to training: validation, samples, units.

    Args:
        validate: figures on held-out data by name, `loss` (lower is better, nats per step) among
            them; called in evaluation mode.
        samples: texts, pictures and sounds by tag for TensorBoard; called in evaluation mode.
        units: what one step of a sequence is, in the plural (`characters`), and `bits`: the name of
            bits per such step.
    """

    validate: Callable[[], dict[str, float]] | None = None
    samples: Callable[[], Mapping[str, Sample]] | None = None
    units: str = "steps"
    bits: str = "bits/step"


class NonFinite(UserError):
    """An error for a value that is infinite or NaN in training.

    The message says where, and which checkpoint is the last good one.
    """


class Trainer:
    """Train a pair on a stream of batches.

    A step maximises the ELBO per step of a sequence, (1/n) sum (E_q[log p(x | z)] - beta KL), over
    the n observations of the batch, through `pyro.infer.SVI` with the objective of the settings, or
    any Pyro `ELBO` given. What it writes to `run` lets a killed training go on; on a CPU the
    resumed run ends with the very weights of one that was never interrupted (unless minutes, which
    no two runs share, decide its length).

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
        self.pair, self.batches, self.settings, self.run = pair, batches, settings, run
        self.hooks = hooks or Hooks()
        self.elbo: Any = elbo or make_elbo(
            settings.objective, num_particles=settings.num_particles, free_bits=settings.free_bits
        )
        self.recorder = Recorder(self.elbo)
        self.log = TrainingLog(units=self.hooks.units, bits=self.hooks.bits, quiet=quiet)
        self.step = 0
        self.minutes = 0.0  # of training, over all resumptions
        self.best_loss = math.inf
        # of the untrained pair, its divergence at full strength
        self.first_loss: float | None = None
        self._recent_loss = math.nan  # a moving average
        self._summed_out_scaled = False  # see `scales_summed_out`
        self.validations_since_best = 0
        self.validated = 0  # the step of the last validation
        self.carried: Any = None  # the states that the next batch starts from, if it goes on
        self._precision = "float32"
        self._best: Any = None  # the best weights, where there is no run to keep them
        self._optimiser: JointOptimiser | None = None
        self._interruption = Interruption()

    @property
    def optimiser(self) -> JointOptimiser:
        """The optimiser; it exists once training has begun."""
        assert self._optimiser is not None
        return self._optimiser

    def fit(self, *, resume: bool = False) -> None:
        """Train until the settings, early stopping or Ctrl-C end it.

        Ctrl-C saves a checkpoint first.

        With `resume` it goes on from the run's last checkpoint. Raises `NonFinite` when a value is
        not finite, `UserError` for a pair that cannot be trained, and `KeyboardInterrupt` (with the
        signal's number) after Ctrl-C or SIGTERM.
        """
        self._interruption.wished = 0
        with ExitStack() as stack:
            stack.enter_context(self.pair.scope())
            if self.run is not None:
                stack.enter_context(self.run.locked())
                if not resume and self.run.last.exists():
                    raise UserError(
                        f"{self.run} holds a training: go on with it (resume), or train into "
                        "another folder"
                    )
            stack.enter_context(warnings.catch_warnings())
            # the error that follows says more
            warnings.filterwarnings("ignore", message="Encountered (NaN|[+-]?inf)")
            # on purpose
            warnings.filterwarnings(
                "ignore",
                message=".* was not registered in the param store because requires_grad=False",
            )
            metrics_size = self._prepare(resume)
            stack.enter_context(self.log.opened(self.run, size=metrics_size, step=self.step))
            stack.enter_context(self._interruption.noticed())
            # the first batch has been checked in full, the others are not: Pyro's validation costs
            # a quarter of each step
            stack.enter_context(pyro.validation_enabled(False))
            self._loop()
            self._finish()
        if self._interruption.wished:
            raise KeyboardInterrupt(self._interruption.wished)

    def _prepare(self, resume: bool) -> int:
        """Make the optimiser, and go back to the last checkpoint if there is one; the size of the
        metrics so far.
        """
        self._optimiser = JointOptimiser.of(self._find_parameters(), self.settings)
        self._precision = self._choose_precision()
        if resume and self.run is not None and self.run.last.exists():
            size = self._load(load_tree(self.run.last))
            self.log.progress.say(f"going on after step {self.step}")
            return size
        # so that a run killed before its first checkpoint starts from the same weights
        self._save()
        return 0

    def _find_parameters(self) -> dict[str, Tensor]:
        """The pair's parameters, after a look at the first batch, which leaves no other trace."""
        self._check_finite(self.pair.parameters())
        with tried(self.pair, self.batches) as batch:
            parameters, without = find_parameters(self.pair, self.elbo, batch)
            self._summed_out_scaled = scales_summed_out(
                self.elbo, self.pair.model, self.pair.guide, batch, self._kl_strength(0)
            )
        self.recorder.take()
        if without:
            more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
            self.log.progress.say(
                f"parameter {without[0]!r}{more} has no gradient on the first batch: is it in use?"
            )
        return parameters

    # one step

    def _choose_precision(self) -> str:
        """The settings' precision; `auto` is for models that keep their densities in full
        precision, and for matrices worth it.
        """
        if self.settings.precision != "auto":
            return self.settings.precision
        if not isinstance(self.pair.model, SequenceModel):
            return "float32"
        modules = [part for module in self.pair.modules().values() for part in module.modules()]
        looked_up = {id(part.weight) for part in modules if isinstance(part, nn.Embedding)}
        multiplied = [p for p in self.optimiser.parameters.values() if id(p) not in looked_up]
        largest = max(multiplied, key=Tensor.numel, default=torch.zeros(0))
        return str(fast_precision(largest.device, largest.numel())).removeprefix("torch.")

    def _recorded(self) -> tuple[_Recorded, _Recorded]:
        """Model and guide in the precision of training."""
        precision = getattr(torch, self._precision)
        return _Recorded(self.pair.model, precision), _Recorded(self.pair.guide, precision)

    def _loop(self) -> None:
        recorded_model, recorded_guide = self._recorded()
        svi = SVI(
            recorded_model,
            recorded_guide,
            self.optimiser,
            loss=self.elbo.loss,
            loss_and_grads=self._loss_and_grads,
        )
        # particles one after the other are each back-propagated by themselves, so they cannot share
        # a part of the graph
        shares = getattr(self.elbo, "num_particles", 1) == 1 or getattr(
            self.elbo, "vectorize_particles", False
        )
        started = saved = time.monotonic()
        minutes_before = self.minutes
        while not self._interruption.wished and self.stopped_by() is None:
            batch, follows = self.batches.draw()
            refuse_gaps(batch)
            batch = batch.with_state(self.carried if follows else None)
            self.optimiser.scale_learning_rate(self._learning_rate_factor(self.step + 1))
            try:
                loss = svi.step(batch.remembering() if shares else batch)
            except NonFiniteGradient as error:
                self._stop(str(error))
            self.carried = {"model": recorded_model.state, "guide": recorded_guide.state}
            self.step += 1
            self.minutes = minutes_before + (time.monotonic() - started) / 60
            self._account(batch, loss)
            if self.step % self.settings.valid_every == 0:
                self._validate()
            if (
                self.run is not None
                and time.monotonic() - saved >= self.settings.checkpoint_seconds
            ):
                self._save()
                saved = time.monotonic()

    def _loss_and_grads(self, model: Any, guide: Any, batch: SequenceBatch) -> float:
        """The objective per observation, and its gradient; stops before the optimiser does if it is
        not finite.
        """
        per_observation = 1.0 / max(1, batch.num_observations)
        with ScaleLatents(
            self._kl_strength(self.step), summed_out=self._summed_out_scaled
        ) as scaled:
            loss = self.elbo.loss_and_grads(model, scaled.noting(guide), batch) * per_observation
        # not a scale of the densities: not every objective is linear in them
        self.optimiser.gradient_scale = per_observation
        if not math.isfinite(loss):
            self._stop(self.recorder.first_non_finite() or "the loss")
        return loss

    def _stop(self, where: str, *, after: bool = False) -> NoReturn:
        """End a training that met a value that is not finite in the step under way, or in the one
        done `after` it was.
        """
        kept = (
            f"; the last good checkpoint is {self.run.last}"
            if self.run and self.run.last.exists()
            else ""
        )
        advice = "a lower training.learning_rate or training.clip_norm may help"
        raise NonFinite(f"step {self.step + (not after)}: {where} is not finite{kept}; {advice}")

    def _kl_strength(self, step: int) -> float:
        s = self.settings
        return kl_strength(step, schedule=s.kl_schedule, start=s.kl_start, steps=s.kl_steps)

    def _learning_rate_factor(self, step: int) -> float:
        s = self.settings
        return learning_rate_factor(
            fraction(s, step, self.minutes), schedule=s.schedule, floor=s.floor, warmup=s.warmup
        )

    def stopped_by(self) -> str | None:
        """Return what ends the training now, naming the setting; `None` if it goes on."""
        return stopped_by(
            "training", self.settings, self.step, self.minutes, self.validations_since_best
        )

    # what is seen of it

    def _account(self, batch: SequenceBatch, loss: float) -> None:
        """Count a step's figures, and report them when it is time."""
        parts, n, s = self.recorder.take(), max(1, batch.num_observations), self.settings
        figures = {
            "loss": loss,
            **(parts.per(n) if parts else {}),
            "gradient_norm": self.optimiser.gradient_norm,
        }
        if self.step == 1:
            self.first_loss = max(loss, -figures.get("elbo", -loss))
        self._recent_loss = (
            loss if math.isnan(self._recent_loss) else 0.9 * self._recent_loss + 0.1 * loss
        )
        self.log.add(figures, n)
        self.log.show(
            self.step,
            s.num_steps,
            figures,
            fraction=fraction(s, self.step, self.minutes),
            minutes=self.minutes,
        )
        if self.step % s.log_every == 0:
            rates = {
                "kl_strength": self._kl_strength(self.step - 1),
                "learning_rate": self.optimiser.current_learning_rate,
            }
            self.log.report(self.step, "train", self.log.take_means() | rates)
        if s.sample_every and self.step % s.sample_every == 0:
            self.log.histograms(self.step, self.optimiser.parameters)
            if self.hooks.samples:
                with self._evaluating():
                    self.log.events.samples(self.step, self.hooks.samples())

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode with the averaged weights; the random state comes out as it went in,
        whatever is drawn inside.
        """
        with self.optimiser.averaged(), aside(self.step), torch.no_grad():
            self.pair.train(False)
            try:
                yield
            finally:
                self.pair.train()

    def _validate(self) -> None:
        if self.hooks.validate is None:
            return
        with self._evaluating():
            figures = self.hooks.validate()
            self.validated = self.step
            if not math.isfinite(figures["loss"]):
                self._check_finite(self.optimiser.parameters)
                self._stop("the validation loss", after=True)
            self.log.report(self.step, "valid", figures)
            self.validations_since_best += 1
            lost = diverged(figures["loss"], self.first_loss)
            better = figures["loss"] < self.best_loss and not lost
            if better:
                self.best_loss, self.validations_since_best = figures["loss"], 0
                self._keep_best()
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        if lost:
            self.log.progress.say(
                diverged_words(
                    f"step {self.step}: the validation loss", figures["loss"], self.first_loss
                )
            )
        self.log.progress.say(
            f"step {self.step}  validation {shown}{'  (best so far)' if better else ''}"
        )

    def _finish(self) -> None:
        """Validate what has not been, keep the last checkpoint, and leave the best weights in the
        pair.
        """
        if self._interruption.wished:
            self._save()
            return
        if self.step != self.validated:
            self._validate()
        self._save()
        self._check_diverged()
        if self.hooks.validate is None:
            with self.optimiser.averaged():
                self._keep_best()
        if self.run is not None and self.run.best.exists():
            self.pair.load_weights(weights_in(self.run.best), self.run.best)
        elif self._best is not None:
            self.pair.load_weights(self._best, "the best weights")
        self.pair.train(False)
        self.log.progress.say(f"step {self.step} is the last: {self.stopped_by()}")

    def _check_diverged(self) -> None:
        """Raise `UserError` at the end of a training that has diverged, unless a validation before
        has found better weights.
        """
        advice = "a lower training.learning_rate, or training.clip_norm, may help"
        if (
            self.hooks.validate is None
            and diverged(self._recent_loss, self.first_loss)
            and not math.isnan(self._recent_loss)
        ):
            raise UserError(
                f"{diverged_words('its loss', self._recent_loss, self.first_loss)}; {advice}"
            )
        if self.hooks.validate is not None and math.isinf(self.best_loss):
            began = "" if self.first_loss is None else f" ({self.first_loss:.4g} nats per step)"
            raise UserError(
                "the training has diverged: every validation's loss is far beyond where it "
                f"began{began}; {advice}"
            )

    def _keep_best(self) -> None:
        """Keep the weights that stand in the pair as the best ones."""
        self._check_finite(self.optimiser.parameters)
        if self.run is not None:
            self.run.save(self.run.best, {"step": self.step, "weights": self.pair.weights()})
        else:
            self._best = map_tensors(torch.clone, self.pair.weights())

    # checkpoints

    def _check_finite(self, parameters: dict[str, Tensor]) -> None:
        """Stop before weights that are not finite take the place of good ones."""
        for name, parameter in parameters.items():
            if not parameter.isfinite().all():
                self._stop(f"parameter {name!r}", after=True)

    def _save(self) -> None:
        self._check_finite(self.optimiser.parameters)
        if self.run is None:
            return
        self.run.save(
            self.run.last,
            {
                "step": self.step,
                "minutes": self.minutes,
                "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
                "validations_since_best": self.validations_since_best,
                "validated": self.validated,
                "first_loss": self.first_loss,
                "weights": self.pair.weights(),
                "optimiser": self.optimiser.state(),
                "batches": self.batches.state(),
                "carried": self.carried,
                "sums": self.log.sums,
                "metrics_size": self.log.flush(),
                "random": random_state(),
                "precision": self._precision,
            },
        )

    def _load(self, saved: Any) -> int:
        """Go on from what `_save` wrote; the size of the metrics then."""
        assert self.run is not None
        with going_on_from(self.run.last):
            check(saved, self._checkpoint(), self.run.last)
            self.pair.load_weights(saved["weights"], self.run.last)
            self.optimiser.load_state(saved["optimiser"])
            self.batches.load_state(saved["batches"])
            device = next(iter(self.optimiser.parameters.values())).device
            self.carried = map_tensors(lambda tensor: tensor.to(device), saved["carried"])
            self.step, self.minutes = saved["step"], float(saved["minutes"])
            self.best_loss = math.inf if saved["best_loss"] is None else float(saved["best_loss"])
            self.first_loss = saved.get("first_loss")
            self.validations_since_best, self.validated = (
                saved["validations_since_best"],
                saved["validated"],
            )
            self.log.sums = dict(saved["sums"])
            # as the run was begun, also where another would be chosen now
            self._precision = saved["precision"]
            with tried(self.pair, self.batches, self.carried) as batch, torch.no_grad():
                self.elbo.loss(*self._recorded(), batch)
            self.recorder.take()
            set_random_state(saved["random"])
            return int(saved["metrics_size"])

    def _checkpoint(self) -> Kind:
        """The kind of what `_save` writes; `_load` tries whether the states carried over fit."""
        assert self.run is not None
        where, counter = self.run.last, Whole()
        return Fields(
            {
                "step": counter,
                "minutes": Number(0, MOST),
                "best_loss": Optional(Number()),
                "validations_since_best": counter,
                "validated": counter,
                "weights": Checked(lambda weights: self.pair.check_weights(weights, where)),
                "optimiser": self.optimiser.describe_state(),
                "batches": described(self.batches),
                "carried": Anything(),
                "sums": self.log.describe_sums(),
                "metrics_size": counter,
                "random": describe_random_state(),
                "precision": Word(*PRECISIONS[1:]),
            },
            may={"first_loss": Optional(Number())},
        )


class _Recorded:
    """A model or guide run in a precision, that keeps the (detached) state it returned last, for
    the window that follows.
    """

    def __init__(self, inner: Any, precision: torch.dtype) -> None:
        self.inner, self.precision, self.state = inner, precision, None

    def __call__(self, batch: SequenceBatch) -> Any:
        mixed = self.precision != torch.float32
        with torch.autocast(batch.device.type, dtype=self.precision) if mixed else nullcontext():
            outcome = self.inner(batch)
        self.state = map_tensors(full_precision, detach(getattr(outcome, "state", None)))
        return outcome
