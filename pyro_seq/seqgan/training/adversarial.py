"""Adversarial training: rounds of the discriminator, steps of the generator."""

from __future__ import annotations

import math
import time
import warnings
from contextlib import ExitStack
from typing import Any

import pyro
import torch

from pyro_seq._progress import duration
from pyro_seq._rng import aside, describe_random_state, random_state, set_random_state
from pyro_seq._schema import MOST, Checked, Fields, Kind, Number, Optional, Whole, check, like_all
from pyro_seq._weights import load_weights
from pyro_seq.errors import UserError
from pyro_seq.pairs.pair import Pair
from pyro_seq.runs.checkpoint import going_on_from, load_tree, weights_in
from pyro_seq.runs.folder import RunFolder
from pyro_seq.seqgan.adversary.rewards import DiscriminatorReward
from pyro_seq.seqgan.adversary.training import DiscriminatorTraining
from pyro_seq.seqgan.metrics.quality import generated, quality
from pyro_seq.seqgan.settings import SeqGANSettings
from pyro_seq.seqgan.tasks.base import Figure, Task, side_by_side
from pyro_seq.seqgan.training.generator import Collapse, GeneratorTraining
from pyro_seq.train.divergence import diverged, diverged_words
from pyro_seq.train.interruption import Interruption
from pyro_seq.train.log import TrainingLog
from pyro_seq.train.optimizer import NonFiniteGradient
from pyro_seq.train.schedules import learning_rate_factor
from pyro_seq.train.stopping import fraction, stopped_by

FLOOR = 0.02  # where a schedule ends, as a fraction of the learning rate
COMPARED = 64  # real sequences that a rank is taken among, and generated ones that a ratio is
SHOWN = 16  # generated sequences in TensorBoard and in the run folder


class AdversarialTraining:
    """Train a generator against a discriminator (arXiv 1609.05473, algorithm 1).

    Its pretraining comes before.

    First come the discriminator's own rounds, then adversarial steps: updates of the generator by
    policy gradient, the policy of the rollouts following it, and rounds of the discriminator, each
    with newly generated sequences. What is kept are the weights with the best figure of the task on
    validation sequences, those of the pretraining among them, as long as these sequences do not
    become less likely than the settings' margin allows. A killed run goes on from its last
    checkpoint, and on a CPU ends with the very weights of one that was never interrupted (unless
    minutes decide its length).

    Args:
        pair: the generator, pretrained; `fit` leaves the best weights in it.
        discriminator: symbols `[N, T]` → logit `[N]`.
        task: sequences and figures.
        settings: hyper-parameters.
        run: where checkpoints, metrics and samples are kept.
        seed: of the order of sequences.
        device: where to compute.
        quiet: no progress on stderr.
    """

    def __init__(
        self,
        pair: Pair,
        discriminator: Any,
        task: Task,
        settings: SeqGANSettings,
        *,
        run: RunFolder,
        seed: int,
        device: torch.device | str = "cpu",
        quiet: bool = False,
    ) -> None:
        self.pair, self.discriminator, self.task, self.run = pair, discriminator, task, run
        self.settings, self.s = settings, settings.adversarial
        self.real = task.sequences.train.to(device)
        self.end = task.rendering.end
        self.reward = DiscriminatorReward(
            discriminator, self.s.reward, self.real[:COMPARED], end=self.end
        )
        self.opponent = DiscriminatorTraining.of(discriminator, settings.discriminator, seed=seed)
        self.seed, self.log = seed, TrainingLog(units=task.units, bits="", quiet=quiet)
        self.step = self.rounds = self.validations_since_best = 0
        self.validated = -1  # the step of the last validation
        self.minutes = 0.0  # over all resumptions
        self.best: float | None = None
        self.pretrained_nll = math.nan
        self._generator: GeneratorTraining | None = None
        self._interruption = Interruption()

    @property
    def generator(self) -> GeneratorTraining:
        """The generator's side; it exists once training has begun."""
        assert self._generator is not None
        return self._generator

    @property
    def _at(self) -> int:
        """The step in TensorBoard, which must never stand still: the discriminator's own rounds
        come at 0 and below.
        """
        return self.step + self.rounds - self.settings.discriminator.pretrain_rounds

    def fit(self, *, resume: bool = False) -> None:
        """Train until the settings, early stopping or Ctrl-C end it.

        Ctrl-C saves a checkpoint first.

        Raises `UserError` where a network has collapsed or a value is not finite, the last good
        checkpoint being kept, and `KeyboardInterrupt` (with the signal's number) after Ctrl-C or
        SIGTERM.
        """
        self._interruption.wished = 0
        with ExitStack() as stack:
            stack.enter_context(self.pair.scope())
            stack.enter_context(self.run.locked())
            stack.enter_context(warnings.catch_warnings())
            # the error that follows says more
            warnings.filterwarnings("ignore", message="Encountered (NaN|[+-]?inf)")
            self._generator = GeneratorTraining(
                self.pair,
                self.reward,
                self.real,
                self.task.rendering.num_symbols,
                self.settings,
                seed=self.seed,
                end=self.end,
            )
            going_on = resume and self.run.last.exists()
            size = self._load(load_tree(self.run.last)) if going_on else 0
            stack.enter_context(
                self.log.opened(self.run, size=size, step=self._at - (self.validated < 0))
            )
            stack.enter_context(self._interruption.noticed())
            stack.enter_context(pyro.validation_enabled(False))
            try:
                self._begin(going_on)
                self._loop()
                self._finish()
            except NonFiniteGradient as error:
                raise self._stopped(
                    f"{error} is not finite; a lower adversarial.learning_rate may help"
                ) from None
            except Collapse as error:  # the last checkpoint may have collapsed as well
                raise UserError(
                    f"adversarial step {self.step + 1}: {error}; the best weights so far are in "
                    f"{self.run.best}"
                ) from None
            except UserError as error:
                raise self._stopped(str(error)) from None
        if self._interruption.wished:
            raise KeyboardInterrupt(self._interruption.wished)

    def _stopped(self, why: str) -> UserError:
        kept = (
            f"; the last good checkpoint is {self.run.last}"
            if self.run.last.exists() and str(self.run.last) not in why
            else ""
        )
        return UserError(f"adversarial step {self.step + 1}: {why}{kept}")

    def _begin(self, going_on: bool) -> None:
        if going_on:
            rounds = (
                f" and round {self.rounds} of the discriminator"
                if self.rounds < self.settings.discriminator.pretrain_rounds
                else ""
            )
            self.log.progress.say(f"going on after adversarial step {self.step}{rounds}")
        else:
            self._save()
        if self.validated < 0:
            self._validate()
            self._save()

    # one round, one step

    def _loop(self) -> None:
        started = saved = time.monotonic()
        before = self.minutes
        while not self._interruption.wished and self.stopped_by() is None:
            if self.rounds < self.settings.discriminator.pretrain_rounds:
                self._pretrain_discriminator()
            else:
                self._adversarial_step()
                if self.step % self.s.valid_every == 0:
                    self._validate()
                if self.s.sample_every and self.step % self.s.sample_every == 0:
                    self._show()
            self.minutes = before + (time.monotonic() - started) / 60
            if time.monotonic() - saved >= self.s.checkpoint_seconds:
                self._save()
                saved = time.monotonic()

    def stopped_by(self) -> str | None:
        """Return what ends the training now, naming the setting; `None` if it goes on."""
        return stopped_by(
            "adversarial", self.s, self.step, self.minutes, self.validations_since_best
        )

    def _pretrain_discriminator(self) -> None:
        figures = self._round(self.settings.discriminator.pretrain_epochs)
        self.rounds += 1
        self.log.report(self.rounds, "discriminator", figures, at=self._at)
        total = self.settings.discriminator.pretrain_rounds
        self._progress(f"discriminator round {self.rounds}/{total}  {_in_words(figures)}")

    def _round(self, epochs: int) -> dict[str, float]:
        """Epochs of the discriminator on new sequences and as many real ones; its figures in the
        last of them.
        """
        num = min(self.settings.discriminator.samples or len(self.real), len(self.real))
        new = generated(self.pair, num, self.settings.length, end=self.end)
        real = (
            self.real
            if num == len(self.real)
            else self.real[torch.randperm(len(self.real))[:num].to(self.real.device)]
        )
        figures: Any = {}
        for _ in range(epochs):
            figures = self.opponent.epoch(real, new)
        return {name: float(value) for name, value in figures._asdict().items()}

    def _adversarial_step(self) -> None:
        with aside(self.step):
            self.reward.refresh(generated(self.pair, COMPARED, self.settings.length, end=self.end))
        over = fraction(self.s, self.step, self.minutes)
        self.generator.optimiser.scale_learning_rate(
            learning_rate_factor(over, schedule=self.s.schedule, floor=FLOOR)
        )
        figures: dict[str, float] = {}
        for _ in range(self.s.generator_steps):
            figures = self.generator.step()
        for _ in range(self.s.likelihood_steps):
            figures["likelihood_nll"] = self.generator.likelihood_step()
        self.generator.follow()
        for _ in range(self.s.discriminator_rounds):
            figures |= {
                f"discriminator_{name}": value
                for name, value in self._round(self.s.discriminator_epochs).items()
            }
        self.step += 1
        self.log.report(self.step, "adversarial", figures)
        by_step = self.generator.returns_by_step
        self.log.events.scalars(
            self.step, {f"reward_by_step/{t + 1:03}": value for t, value in enumerate(by_step)}
        )
        self._progress(f"adversarial step {self.step}/{self.s.num_steps}  {_in_words(figures)}")

    def _progress(self, line: str) -> None:
        if self.log.progress.due():
            over = fraction(self.s, self.step, self.minutes)
            left = f"  {duration(self.minutes * 60 * (1 - over) / over)} left" if over > 0 else ""
            self.log.progress.show(line + left)

    # what is seen of it

    def _validate(self) -> None:
        """Measure the generator, and keep its weights if they are the best."""
        valid, num = self.task.sequences.valid, self.s.valid_samples
        with aside(self.step):
            found = quality(self.pair, self.task, valid[:num], num)
        self.validated, nll = self.step, found["nll"].value
        if self.step == 0:
            self.pretrained_nll = nll
        if diverged(nll, self.pretrained_nll):
            self.log.progress.say(
                diverged_words(
                    f"adversarial step {self.step}: the generator's nll", nll, self.pretrained_nll
                )
            )
        figures = {name: figure.value for name, figure in found.items()}
        figures |= {
            f"{name}_error": figure.standard_error
            for name, figure in found.items()
            if figure.standard_error is not None
        }
        self.log.report(self.step, "valid", figures, at=self._at)
        better = self._is_better(found)
        self.validations_since_best = 0 if better else self.validations_since_best + 1
        shown = "  ".join(f"{name} {figure.value:.3f}" for name, figure in found.items())
        self.log.progress.say(
            f"adversarial step {self.step}  validation {shown}{'  (best so far)' if better else ''}"
        )
        if better:
            self.best = found[self.task.criterion].value
            self.run.save(self.run.best, {"step": self.step, "weights": self.pair.weights()})
        if found["entropy"].value < self.s.lowest_entropy:
            low = (
                f"its entropy is {found['entropy'].value:.3g} nats a symbol, below "
                "adversarial.lowest_entropy"
            )
            raise Collapse(f"the generator has collapsed: {low}")

    def _is_better(self, found: dict[str, Figure]) -> bool:
        value = found[self.task.criterion].value
        if not math.isfinite(value):
            raise UserError(f"the validation's {self.task.criterion} is not finite")
        if not math.isfinite(found["nll"].value) and self.best is None:
            raise UserError("the validation's nll is not finite")
        if self.best is None:
            return True
        plausible = found["nll"].value <= self.pretrained_nll + self.s.valid_margin
        return plausible and (value > self.best if self.task.higher else value < self.best)

    def _show(self) -> None:
        """Generated sequences against real ones, in TensorBoard and as files."""
        with aside(self.step):
            new = generated(
                self.pair,
                SHOWN,
                self.settings.length,
                end=self.end,
                never=self.task.rendering.never,
            ).cpu()
        rendering = self.task.rendering
        self.log.events.samples(
            self._at, side_by_side(rendering, new, self.task.sequences.train[:SHOWN])
        )
        self.run.check_own()
        rendering.write(new, self.run.path / "samples" / f"step-{self.step:05}")

    def _finish(self) -> None:
        if not self._interruption.wished and self.step != self.validated:
            self._validate()
        self._save()
        if not self._interruption.wished:
            self.pair.load_weights(weights_in(self.run.best), self.run.best)
            self.pair.train(False)
            self.log.progress.say(f"adversarial step {self.step} is the last: {self.stopped_by()}")

    # checkpoints

    def _save(self) -> None:
        self.run.save(
            self.run.last,
            {
                "step": self.step,
                "rounds": self.rounds,
                "minutes": self.minutes,
                "best": self.best,
                "validations_since_best": self.validations_since_best,
                "validated": self.validated,
                "pretrained_nll": self.pretrained_nll,
                "weights": self.pair.weights(),
                "discriminator": dict(self.discriminator.state_dict()),
                "generator_training": self.generator.state(),
                "discriminator_training": self.opponent.state(),
                "metrics_size": self.log.flush(),
                "random": random_state(),
            },
        )

    def _load(self, saved: Any) -> int:
        """Go on from what `_save` wrote; the size of the metrics then."""
        where = self.run.last
        with going_on_from(where):
            check(saved, self._checkpoint(), where)
            self.pair.load_weights(saved["weights"], where)
            load_weights(dict(self.discriminator.state_dict()), saved["discriminator"], where)
            self.generator.load_state(saved["generator_training"], where)
            self.opponent.load_state(saved["discriminator_training"])
            self.step, self.rounds, self.minutes = (
                saved["step"],
                saved["rounds"],
                float(saved["minutes"]),
            )
            self.best = None if saved["best"] is None else float(saved["best"])
            self.validations_since_best, self.validated = (
                saved["validations_since_best"],
                saved["validated"],
            )
            self.pretrained_nll = float(saved["pretrained_nll"])
            set_random_state(saved["random"])
            return int(saved["metrics_size"])

    def _checkpoint(self) -> Kind:
        """The kind of what `_save` writes."""
        where, counter = self.run.last, Whole()
        return Fields(
            {
                "step": counter,
                "rounds": counter,
                "minutes": Number(0, MOST),
                "best": Optional(Number()),
                "validations_since_best": counter,
                "validated": Whole(-1),
                "pretrained_nll": Number(or_nan=True),  # as long as nothing was validated
                "weights": Checked(lambda weights: self.pair.check_weights(weights, where)),
                "discriminator": like_all(self.discriminator.state_dict()),
                "generator_training": self.generator.describe_state(where),
                "discriminator_training": self.opponent.describe_state(),
                "metrics_size": counter,
                "random": describe_random_state(),
            }
        )


def _in_words(figures: dict[str, float]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())
