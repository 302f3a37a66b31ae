"""Training a pair by stochastic variational inference: `pyro.infer.SVI` with `Trace_ELBO`, and all that a long run needs around it."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI

from pyro_seq.annealing import ScaleLatents, kl_strength
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.monitoring import Events, MetricsFile, Progress, count, duration
from pyro_seq.networks import fast_precision
from pyro_seq.objectives import Recorder, make_elbo
from pyro_seq.optimisation import JointOptimiser, NonFiniteGradient, learning_rate_factor
from pyro_seq.pair import Pair
from pyro_seq.runs import RunFolder, load_tree, save_tree
from pyro_seq.training_settings import TrainingSettings
from pyro_seq.trees import detach, map_tensors


class Batches(Protocol):
    """An endless stream of training batches that can be left and gone on with."""

    def draw(self) -> tuple[SequenceBatch, bool]:
        """The next batch, and whether it goes on where the one before ended, so that states are carried over."""

    def state(self) -> Any:
        """Where the stream stands, as a tree of tensors and plain values."""

    def load_state(self, state: Any) -> None:
        """Go on from `state()`."""


@dataclass
class Hooks:
    """What the domain adds to training.

    Args:
        validate: figures on held-out data by name, `loss` (lower is better, nats per step) among them; called in evaluation mode.
        samples: texts by tag for TensorBoard; called in evaluation mode.
        units: what one step of a sequence is, in the plural (`characters`), and `bits`: the name of bits per such step.
    """

    validate: Callable[[], dict[str, float]] | None = None
    samples: Callable[[], dict[str, str]] | None = None
    units: str = "steps"
    bits: str = "bits/step"


class NonFinite(UserError):
    """Training met a value that is infinite or NaN; the message says where, and which checkpoint is the last good one."""


class Trainer:
    """Trains a pair on a stream of batches.

    A step maximises the ELBO per step of a sequence, (1/n) sum (E_q[log p(x | z)] - beta KL), over the n observations of the batch,
    through `pyro.infer.SVI` with the objective of the settings, or any Pyro `ELBO` given. What it writes to `run` lets a killed
    training go on; on a CPU the resumed run ends with the very weights of one that was never interrupted (unless minutes, which no
    two runs share, decide its length).

    Args:
        pair: model and guide; `fit` leaves the trained (if asked for, averaged) weights in them.
        batches: the training data.
        settings: hyper-parameters.
        run: where to keep checkpoints and metrics; `None` for nowhere.
        hooks: validation and samples.
        elbo: the objective, in place of the settings'.
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
        self.elbo: Any = elbo or make_elbo(settings.objective, num_particles=settings.num_particles, free_bits=settings.free_bits)
        self.recorder = Recorder(self.elbo)
        self.progress = Progress(quiet=quiet)
        self.step = 0
        self.minutes = 0.0  # of training, over all resumptions
        self.best_loss = math.inf
        self.validations_since_best = 0
        self.validated = 0  # the step of the last validation
        self.carried: Any = None  # the states that the next batch starts from, if it goes on
        self._sums: dict[str, float] = {}  # since the last line of metrics
        self._optimiser: JointOptimiser | None = None
        self._interrupted = False

    @property
    def optimiser(self) -> JointOptimiser:
        """The optimiser; exists once training has begun."""
        assert self._optimiser is not None
        return self._optimiser

    def fit(self, *, resume: bool = False) -> None:
        """Train until the settings say so, early stopping does, or Ctrl-C is pressed (then a checkpoint is saved first).

        With `resume` it goes on from the run's last checkpoint. Raises `NonFinite` when a value is not finite, and
        `KeyboardInterrupt` after Ctrl-C.
        """
        with ExitStack() as stack:
            stack.enter_context(self.pair.scope())
            if self.run is not None:
                stack.enter_context(self.run.locked())
            self._prepare(resume)
            self.metrics = MetricsFile(self.run.metrics, self._metrics_size) if self.run else None
            self.events = Events(self.run.tensorboard if self.run else None, self.step)
            if self.metrics:
                stack.callback(self.metrics.close)
            stack.callback(self.events.close)
            stack.enter_context(self._interruptible())
            self._loop()
            self._finish()
        if self._interrupted:
            raise KeyboardInterrupt

    def _prepare(self, resume: bool) -> None:
        """Find the parameters on a first batch, make the optimiser, and go back to the last checkpoint if there is one."""
        state = self.batches.state()
        random = torch.get_rng_state()
        batch, _ = self.batches.draw()
        self.pair.train()
        # the first batch is checked in full, the others not: Pyro's validation costs a quarter of each step
        with pyro.validation_enabled(), torch.no_grad(), poutine.trace(param_only=True) as capture:
            self.elbo.loss(self.pair.model, self.pair.guide, batch)
        self.recorder.take()
        sites: Any = capture.trace.nodes
        parameters = {name: site["value"].unconstrained() for name, site in sites.items()}
        if not parameters:
            raise UserError("this pair has no parameters to train")
        self.batches.load_state(state)
        torch.set_rng_state(random)
        s = self.settings
        self._optimiser = JointOptimiser(
            parameters,
            learning_rate=s.learning_rate,
            betas=(s.beta1, s.beta2),
            weight_decay=s.weight_decay,
            clip_norm=s.clip_norm,
            l1=s.l1,
            l2=s.l2,
            average=s.average,
        )
        self._metrics_size = 0
        if resume and self.run is not None and self.run.last.exists():
            self._load(load_tree(self.run.last))
        elif self.run is not None:
            self._save()  # so that a run killed before its first checkpoint starts from the same weights

    # one step

    def _loop(self) -> None:
        device = next(iter(self.optimiser.parameters.values())).device
        precision = fast_precision(device) if self.settings.precision == "auto" else getattr(torch, self.settings.precision)
        recorded_model, recorded_guide = _Recorded(self.pair.model, precision), _Recorded(self.pair.guide, precision)
        svi = SVI(recorded_model, recorded_guide, self.optimiser, loss=self.elbo.loss, loss_and_grads=self._loss_and_grads)
        started = saved = self._shown_at = time.monotonic()
        minutes_before = self.minutes
        self._shown_units = 0
        with pyro.validation_enabled(False):
            while not self._done():
                batch, follows = self.batches.draw()
                batch = batch.with_state(self.carried if follows else None).remembering()
                self.optimiser.scale_learning_rate(self._learning_rate_factor())
                try:
                    loss = svi.step(batch)
                except NonFiniteGradient as error:
                    self._stop(str(error))
                self.carried = {"model": recorded_model.state, "guide": recorded_guide.state}
                self.step += 1
                self.minutes = minutes_before + (time.monotonic() - started) / 60
                self._account(batch, loss)
                if self.step % self.settings.valid_every == 0:
                    self._validate()
                if self.run is not None and time.monotonic() - saved >= self.settings.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()

    def _loss_and_grads(self, model: Any, guide: Any, batch: SequenceBatch) -> float:
        """The objective per observation, and its gradient; stops before the optimiser does if it is not finite."""
        with poutine.scale(scale=1.0 / max(1, batch.num_observations)), ScaleLatents(self._kl_strength()):
            loss = self.elbo.loss_and_grads(model, guide, batch)
        if not math.isfinite(loss):
            self._stop(self.recorder.first_non_finite() or "the loss")
        return loss

    def _stop(self, where: str) -> NoReturn:
        kept = f"; the last good checkpoint is {self.run.last}" if self.run else ""
        advice = "a lower training.learning_rate or training.clip_norm may help"
        raise NonFinite(f"step {self.step + 1}: {where} is not finite{kept}; {advice}")

    def _kl_strength(self) -> float:
        s = self.settings
        return kl_strength(self.step, schedule=s.kl_schedule, start=s.kl_start, steps=s.kl_steps)

    def _learning_rate_factor(self) -> float:
        s = self.settings
        return learning_rate_factor(self._fraction(self.step + 1), schedule=s.schedule, floor=s.floor, warmup=s.warmup)

    def _fraction(self, step: int) -> float:
        """How much of the run is over at a step: by steps or minutes, whichever is further."""
        by_minutes = self.minutes / self.settings.max_minutes if self.settings.max_minutes else 0.0
        return min(1.0, max(step / self.settings.num_steps, by_minutes))

    def _done(self) -> bool:
        early = 0 < self.settings.patience <= self.validations_since_best
        return self._interrupted or early or self._fraction(self.step) >= 1.0

    # what is seen of it

    def _account(self, batch: SequenceBatch, loss: float) -> None:
        """Add a step to the running figures, and report them when it is time."""
        parts, n = self.recorder.take(), max(1, batch.num_observations)
        figures = {
            "loss": loss,
            "log_likelihood": parts.log_likelihood / n,
            "kl": parts.kl / n,
            "elbo": (parts.log_likelihood - parts.kl) / n,
            "gradient_norm": self.optimiser.gradient_norm,
        }
        for name, value in (figures | {"steps": 1.0, "units": float(n)}).items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._shown_units += n
        if self.progress.due():
            self._show(figures)
        s = self.settings
        if self.step % s.log_every == 0:
            steps = self._sums["steps"]
            means = {name: self._sums[name] / steps for name in figures}
            means["kl_strength"] = self._kl_strength()
            means["learning_rate"] = s.learning_rate * self._learning_rate_factor()
            self._sums = {}
            self._report("train", means)
        if s.sample_every and self.step % s.sample_every == 0:
            self.events.histograms(self.step, {f"parameters/{n.replace('$$$', '.')}": p for n, p in self.optimiser.parameters.items()})
            if self.hooks.samples:
                with self._evaluating():
                    self.events.text(self.step, self.hooks.samples())

    def _report(self, split: str, figures: dict[str, float]) -> None:
        if self.metrics:
            self.metrics.write(step=self.step, split=split, **figures)
        self.events.scalars(self.step, {f"{split}/{name}": value for name, value in figures.items()})

    def _show(self, figures: dict[str, float]) -> None:
        elapsed = time.monotonic() - self._shown_at
        speed = self._shown_units / max(elapsed, 1e-9)
        self._shown_at, self._shown_units = time.monotonic(), 0
        fraction = self._fraction(self.step)
        left = duration(self.minutes * 60 * (1 - fraction) / fraction) if fraction > 0 else "?"
        bits = -figures["elbo"] / math.log(2)
        self.progress.show(
            f"step {self.step}/{self.settings.num_steps}  loss {figures['loss']:.3f}  {bits:.3f} {self.hooks.bits}  "
            f"{count(speed)} {self.hooks.units}/s  {left} left"
        )
        self.events.scalars(self.step, {f"speed/{self.hooks.units}_per_second": speed})

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode with the averaged weights; the random state comes out as it went in, whatever is drawn inside."""
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
        with self.optimiser.averaged(), torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(self.step)
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
            self._report("valid", figures)
            self.validations_since_best += 1
            better = figures["loss"] < self.best_loss
            if better:
                self.best_loss, self.validations_since_best = figures["loss"], 0
                if self.run is not None:
                    save_tree(self.run.best, {"step": self.step, "weights": self.pair.weights()})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self.progress.say(f"step {self.step}  validation {shown}{'  (best so far)' if better else ''}")

    def _finish(self) -> None:
        """Validate what has not been, keep the last checkpoint, and leave the best weights in the pair."""
        if self._interrupted:
            self._save()
            return
        if self.step != self.validated:
            self._validate()
        self._save()
        if self.run is not None and self.hooks.validate is None:
            with self.optimiser.averaged():
                save_tree(self.run.best, {"step": self.step, "weights": self.pair.weights()})
        if self.run is not None and self.run.best.exists():
            self.pair.load_weights(load_tree(self.run.best)["weights"], self.run.best)
        elif self.optimiser.averages:
            self.optimiser.keep_averages()
        self.pair.train(False)

    # checkpoints

    def _save(self) -> None:
        if self.run is None:
            return
        metrics = getattr(self, "metrics", None)
        save_tree(
            self.run.last,
            {
                "step": self.step,
                "minutes": self.minutes,
                "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
                "validations_since_best": self.validations_since_best,
                "validated": self.validated,
                "weights": self.pair.weights(),
                "optimiser": self.optimiser.state(),
                "batches": self.batches.state(),
                "carried": detach(self.carried),
                "sums": self._sums,
                "metrics_size": metrics.flush() if metrics else 0,
                "random": {"cpu": torch.get_rng_state()} | self._cuda_random(),
            },
        )

    def _cuda_random(self) -> dict[str, Any]:
        return {"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {}

    def _load(self, saved: Any) -> None:
        assert self.run is not None
        try:
            self.pair.load_weights(saved["weights"], self.run.last)
            self.optimiser.load_state(saved["optimiser"])
            self.batches.load_state(saved["batches"])
            device = next(iter(self.optimiser.parameters.values())).device
            self.carried = map_tensors(lambda tensor: tensor.to(device), saved["carried"])
            self.step, self.minutes = int(saved["step"]), float(saved["minutes"])
            self.best_loss = math.inf if saved["best_loss"] is None else float(saved["best_loss"])
            self.validations_since_best, self.validated = int(saved["validations_since_best"]), int(saved["validated"])
            self._sums, self._metrics_size = dict(saved["sums"]), int(saved["metrics_size"])
            torch.set_rng_state(saved["random"]["cpu"])
            if torch.cuda.is_available() and "cuda" in saved["random"]:
                torch.cuda.set_rng_state_all(saved["random"]["cuda"])
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(f"{self.run.last} is not a checkpoint of this run: {type(error).__name__} {error}") from None

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the loop after the step under way; a second Ctrl-C ends it at once."""

        def note(number: int, frame: object) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        previous = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, note)
        except ValueError:  # not in the main thread, which alone receives signals
            pass
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class _Recorded:
    """A model or guide run in a precision, that keeps the (detached) state it returned last, for the window that follows."""

    def __init__(self, inner: Any, precision: torch.dtype) -> None:
        self.inner, self.precision, self.state = inner, precision, None

    def __call__(self, batch: SequenceBatch) -> Any:
        mixed = self.precision != torch.float32
        with torch.autocast(batch.device.type, dtype=self.precision) if mixed else nullcontext():
            outcome = self.inner(batch)
        self.state = detach(getattr(outcome, "state", None))
        return outcome
