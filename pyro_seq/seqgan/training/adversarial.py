"""Play the adversarial game.

It is the loop with two stages, rounds of the discriminator alone and adversarial steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch

from pyro_seq._rng import fork_rng
from pyro_seq._schema import MOST, Number, Optional, Whole
from pyro_seq.errors import UserError
from pyro_seq.pairs.pair import Pair
from pyro_seq.runs.checkpoint import weights_in
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.stateful import RANDOM, States, attributes, weights_of, weights_of_module
from pyro_seq.seqgan.adversary.rewards import DiscriminatorReward
from pyro_seq.seqgan.adversary.training import DiscriminatorTraining
from pyro_seq.seqgan.metrics.quality import generated, quality
from pyro_seq.seqgan.settings import SeqGANSettings
from pyro_seq.seqgan.tasks.base import Measurement, Task, side_by_side
from pyro_seq.seqgan.training.generator import Collapse, GeneratorTraining
from pyro_seq.train.divergence import diverged, diverged_words
from pyro_seq.train.log import TrainingLog
from pyro_seq.train.loop import Checkpoint, EveryNSteps, Loop, Measured, Stage, Validate
from pyro_seq.train.optimizer import NonFiniteValue
from pyro_seq.train.schedules import Budget, learning_rate_factor

FLOOR = 0.02  # where a schedule ends, as a fraction of the learning rate
COMPARED = 64  # real sequences that a rank is taken among, and generated ones that a ratio is
SHOWN = 16  # generated sequences in TensorBoard and in the run folder


class AdversarialTraining(Loop):
    """Train a generator against a discriminator (arXiv 1609.05473, algorithm 1).

    Its pretraining comes before.

    First come the discriminator's own rounds, then adversarial steps: updates of the generator by
    policy gradient, the policy of the rollouts following it, and rounds of the discriminator, each
    with newly generated sequences. What is kept are the weights with the best figure of the task on
    validation sequences, those of the pretraining among them, as long as these sequences do not
    become less likely than the settings' margin allows. A killed run goes on from its last
    checkpoint, and on a CPU ends with the very weights of one that was never interrupted (unless
    minutes decide its length).

    `fit` raises, besides what any `Loop` does, `UserError` where a network has collapsed or a value
    is not finite, the last good checkpoint being kept.

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
        self.settings, self.s = settings, settings.adversarial
        s = self.s
        self.validation = Validate(s.valid_every, self._measure, self._keep_best, at_start=True)
        super().__init__(
            {
                "discriminator": Stage(self._pretrain_discriminator),
                "adversarial": Stage(self._adversarial_step),
            },
            Budget("adversarial", s.num_steps, s.max_minutes, s.patience),
            callbacks=[
                self.validation,
                EveryNSteps(s.sample_every, self._show),
                Checkpoint(s.checkpoint_seconds),
            ],
            run=run,
            log=TrainingLog(units=task.units, bits="", quiet=quiet),
            name="adversarial step",
            scope=pair.scope,
            training=self._explained,
        )
        self.pair, self.discriminator, self.task, self.folder = pair, discriminator, task, run
        self.real = task.sequences.train.to(device)
        self.end = task.rendering.end
        self.reward = DiscriminatorReward(
            discriminator, self.s.reward, self.real[:COMPARED], end=self.end
        )
        self.opponent = DiscriminatorTraining.of(discriminator, settings.discriminator, seed=seed)
        self.seed, self.rounds = seed, 0
        self.pretrained_nll = math.nan
        self._generator: GeneratorTraining | None = None

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

    @property
    def logged_step(self) -> int:
        """See `Loop`."""
        return self._at - (self.validation.validated < 0)

    def report(self, split: str, figures: dict[str, float]) -> None:
        """See `Loop`."""
        self.log.report(self.step, split, figures, at=self._at)

    def where(self) -> str:
        """See `Loop`."""
        rounds = f" and round {self.rounds} of the discriminator"
        return f"{super().where()}{rounds if self.rounds > 0 and self._pretrains() else ''}"

    def prepare(self) -> None:
        """See `Loop`: make the generator's side, and say what is saved."""
        self._generator = GeneratorTraining(
            self.pair,
            self.reward,
            self.real,
            self.task.rendering.num_symbols,
            self.settings,
            seed=self.seed,
            end=self.end,
        )
        self.states = self._states()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Inside, Pyro's validation is off, and errors say at which step."""
        try:
            with pyro.validation_enabled(False):
                yield
        except NonFiniteValue as error:
            raise self._stopped(
                f"{error} is not finite; a lower adversarial.learning_rate may help"
            ) from None
        except Collapse as error:  # the last checkpoint may have collapsed as well
            raise UserError(
                f"adversarial step {self.step + 1}: {error}; the best weights so far are in "
                f"{self.folder.best}"
            ) from None
        except UserError as error:
            raise self._stopped(str(error)) from None

    def _stopped(self, why: str) -> UserError:
        kept = "" if str(self.folder.last) in why else self.kept()
        return UserError(f"adversarial step {self.step + 1}: {why}{kept}")

    def _pretrains(self) -> bool:
        return self.rounds < self.settings.discriminator.pretrain_rounds

    def stage(self) -> Stage:
        """See `Loop`."""
        return self.stages["discriminator" if self._pretrains() else "adversarial"]

    # one round, one step

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
        with fork_rng(self.step):
            self.reward.refresh(generated(self.pair, COMPARED, self.settings.length, end=self.end))
        over = self.budget.fraction(self.step, self.minutes)
        self.generator.optimiser.scale_learning_rate(
            learning_rate_factor(over, schedule=self.s.schedule, final_lr_fraction=FLOOR)
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
            self.log.progress.show(f"{line}  {self.left()}")

    # what is seen of it

    def _measure(self) -> Measured:
        """The figures of a validation; with an entropy below the settings' it is the last."""
        valid, num = self.task.sequences.valid, self.s.valid_samples
        with fork_rng(self.step):
            found = quality(self.pair, self.task, valid[:num], num)
        nll = found["nll"].value
        if self.step == 0:
            self.pretrained_nll = nll
        if diverged(nll, self.pretrained_nll):
            what = f"adversarial step {self.step}: the generator's nll"
            self.log.progress.say(diverged_words(what, nll, self.pretrained_nll))
        figures = {name: figure.value for name, figure in found.items()}
        figures |= {
            f"{name}_error": figure.standard_error
            for name, figure in found.items()
            if figure.standard_error is not None
        }
        shown = "  ".join(f"{name} {figure.value:.3f}" for name, figure in found.items())
        value, better = found[self.task.criterion].value, self._is_better(found)
        return Measured(figures, shown, value, better, self._collapse(found["entropy"].value))

    def _collapse(self, entropy: float) -> Collapse | None:
        if not entropy < self.s.lowest_entropy:
            return None
        low = f"its entropy is {entropy:.3g} nats a symbol, below adversarial.lowest_entropy"
        return Collapse(f"the generator has collapsed: {low}")

    def _keep_best(self) -> None:
        self.folder.save(self.folder.best, {"step": self.step, "weights": self.pair.weights()})

    def _is_better(self, found: dict[str, Measurement]) -> bool:
        value = found[self.task.criterion].value
        if not math.isfinite(value):
            raise UserError(f"the validation's {self.task.criterion} is not finite")
        best = self.validation.best
        if not math.isfinite(found["nll"].value) and best is None:
            raise UserError("the validation's nll is not finite")
        if best is None:
            return True
        plausible = found["nll"].value <= self.pretrained_nll + self.s.valid_margin
        return plausible and (value > best if self.task.higher else value < best)

    def _show(self) -> None:
        """Generated sequences against real ones, in TensorBoard and as files."""
        with fork_rng(self.step):
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
        self.folder.check_own()
        rendering.write(new, self.folder.path / "samples" / f"step-{self.step:05}")

    def conclude(self) -> None:
        """See `Loop`: leave the best weights in the generator."""
        self.pair.load_weights(weights_in(self.folder.best), self.folder.best)
        self.pair.train(False)

    def _states(self) -> States:
        """What a checkpoint holds."""
        where, counter = self.folder.last, Whole()
        return States(
            {
                **attributes(self, step=counter, rounds=counter, minutes=Number(0, MOST)),
                **attributes(self.validation, best=Optional(Number()), validated=Whole(-1)),
                **attributes(self, validations_since_best=counter),
                # NaN as long as nothing was validated
                **attributes(self, pretrained_nll=Number(or_nan=True)),
                "weights": weights_of(self.pair, where),
                "discriminator": weights_of_module(self.discriminator, where),
                "generator_training": self.generator.states(where),
                "discriminator_training": self.opponent,
                "metrics_size": self.log.states()["metrics_size"],
                "random": RANDOM,
            }
        )


def _in_words(figures: dict[str, float]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())
