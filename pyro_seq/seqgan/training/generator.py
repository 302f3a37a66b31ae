"""Train the generator by REINFORCE on the discriminator's answers, and by likelihood."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_seq._schema import Nothing
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.encoders import Embedding
from pyro_seq.errors import UserError
from pyro_seq.pairs.pair import Pair, no_guide
from pyro_seq.reinforce.baselines import Baseline, Critic, LeaveOneOut, MovingAverage
from pyro_seq.reinforce.objective import Reinforce, Reward, forget_baseline
from pyro_seq.reinforce.rollouts import Rollouts
from pyro_seq.runs.stateful import Entry, States, position_of, weights_of, weights_of_module
from pyro_seq.seqgan.lengths import SampledToTheEnd, lengths_of
from pyro_seq.seqgan.settings import AdversarialSettings, SeqGANSettings
from pyro_seq.train.minibatches import PieceBatches
from pyro_seq.train.optimizer import JointOptimiser


class Collapse(UserError):
    """An error for a generator, or a discriminator, that gives one and the same answer."""


def make_baseline(settings: SeqGANSettings, num_symbols: int) -> Baseline | None:
    """Make the baseline that the settings name."""
    kind, task = settings.adversarial.baseline, settings.task
    if kind == "none":
        return None
    if kind == "leave_one_out":
        return LeaveOneOut()
    if kind == "critic":
        return Critic(PreviousObservation(Embedding(num_symbols, task.embedding_size)))
    return MovingAverage(num_steps=settings.length if kind == "per_step" else None)


class GeneratorTraining:
    """Updates of a generator, `SVI` with `Reinforce` and with `Trace_ELBO`.

    Args:
        pair: the generator; all is done inside its scope.
        reward: of complete sequences, `[N]`.
        real: real sequences `[M, T]`, for the updates by maximum likelihood.
        num_symbols: V.
        settings: of the run.
        seed: of the order of real sequences.
        end: the symbol that ends a sequence, if there is one.
    """

    def __init__(
        self,
        pair: Pair,
        reward: Reward,
        real: Tensor,
        num_symbols: int,
        settings: SeqGANSettings,
        *,
        seed: int,
        end: int | None = None,
    ) -> None:
        s: AdversarialSettings = settings.adversarial
        self.pair, self.length = pair, settings.length
        self.batch_size, self.device = s.batch_size, real.device
        self.baseline = make_baseline(settings, num_symbols)
        if self.baseline is not None:
            self.baseline.to(real.device)
        self.rollouts = None
        if s.rollouts:
            at_once: dict[str, Any] = {"num_rollouts": s.rollouts, "max_rows": s.rollout_batch}
            self.rollouts = Rollouts(
                pair, reward, rollout_policy_decay=s.rollout_policy_decay, end=end, **at_once
            )
        earned: dict[str, Any] = (
            {"reward": reward} if self.rollouts is None else {"action_values": self.rollouts}
        )
        if end is not None:
            earned["sample"] = SampledToTheEnd(end)
        self.objective = Reinforce(
            **earned, baseline=self.baseline, entropy_bonus=s.entropy_bonus, normalise=s.normalise
        )
        parameters = pair.parameters()
        if self.baseline is not None:
            parameters |= {f"baseline.{name}": p for name, p in self.baseline.named_parameters()}
        self.optimiser = JointOptimiser(
            parameters, learning_rate=s.learning_rate, clip_norm=s.clip_norm
        )
        self.optimiser.gradient_scale = 1 / self.batch_size  # means over sequences
        self._adversarial = SVI(pair.model, no_guide, self.optimiser, loss=self.objective)
        self._likelihood = SVI(
            pair.model, no_guide, self.optimiser, loss=Trace_ELBO(max_plate_nesting=1)
        )
        pieces = [
            row[:length] for row, length in zip(real, lengths_of(real, end).tolist(), strict=True)
        ]
        self.real = PieceBatches(pieces, batch_size=self.batch_size, seed=seed, device=real.device)

    def step(self) -> dict[str, float]:
        """Make an update by policy gradient; return loss, mean reward and gradient norm.

        Raises `UserError` if the reward says nothing, since all sequences have the same, and for
        what is not finite.
        """
        self.pair.train()
        loss = self._adversarial.step(
            SequenceBatch(None, [self.length] * self.batch_size).to(self.device)
        )
        forget_baseline()  # a pair's weights are the generator's alone
        seen = self.objective.latest
        assert seen is not None
        if not math.isfinite(loss):
            raise UserError(
                "the generator's loss is not finite: a lower adversarial.learning_rate may help"
            )
        self._check_spread(seen.returns, seen.sequences)
        reward = float(seen.sequences.last(seen.returns.unsqueeze(-1), seen.returns[:, :1]).mean())
        return {
            "loss": loss / self.batch_size,
            "reward": reward,
            "gradient_norm": self.optimiser.gradient_norm,
        }

    def _check_spread(self, returns: Tensor, sequences: SequenceBatch) -> None:
        """Refuse to go on where there is nothing to learn from."""
        symbols = sequences.values
        assert isinstance(symbols, Tensor)
        returns = returns[sequences.mask]
        if len(symbols) > 1 and len(torch.unique(symbols, dim=0)) == 1:
            raise Collapse("the generator has collapsed: all sequences of a minibatch are the same")
        if float(returns.max() - returns.min()) <= 1e-9:
            answer = (
                f"the reward is {float(returns.mean()):.3g} for every sequence and prefix, so the "
                "generator has nothing to learn from"
            )
            raise Collapse(
                f"the discriminator has collapsed: {answer}; a lower discriminator.learning_rate "
                "or another reward may help"
            )

    @property
    def returns_by_step(self) -> list[float]:
        """The mean action value, or return, of each step of the latest minibatch."""
        seen = self.objective.latest
        return (
            []
            if seen is None
            else (seen.returns.sum(0) / seen.sequences.mask.sum(0).clamp(min=1)).tolist()
        )

    def likelihood_step(self) -> float:
        """Make an update by likelihood on real sequences; return their NLL in nats a symbol."""
        self.pair.train()
        batch, _ = self.real.draw()
        return float(self._likelihood.step(batch)) / batch.num_observations

    def follow(self) -> None:
        """Update the policy of the rollouts: a moving average of the generator's weights."""
        if self.rollouts is not None:
            self.rollouts.follow(self.pair)

    def states(self, where: str | Path) -> States:
        """Return all that a resumed run needs besides the generator's weights.

        `where` it is read from is for messages.
        """
        nothing = Entry(lambda: None, lambda state: None, Nothing)
        rollouts, baseline = self.rollouts, self.baseline
        return States(
            {
                "optimiser": self.optimiser,
                "real": position_of(self.real),
                "policy": weights_of(rollouts.policy, where) if rollouts else nothing,
                "baseline": weights_of_module(baseline, where) if baseline else nothing,
            }
        )
