"""Guides with corrections of each sequence: any guide, and one that declares its equations."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.noise import moved
from pyro_seq.pairs.guide import SequenceGuide
from pyro_seq.pairs.model import SequenceOutput
from pyro_seq.pairs.pair import Pair, Stochastic
from pyro_seq.poutine.move_noise import Correction, MoveNoise

Corrections = Mapping[str, Correction]


def numbered(batch: SequenceBatch) -> SequenceBatch:
    """Return the batch with its sequences numbered, by which a refined guide knows them again.

    Selections, repetitions and windows' beginnings of it keep the numbers.
    """
    batch = copy(batch)
    batch.origin = torch.arange(len(batch), device=batch.device)
    return batch


def with_corrections(pair: Pair, corrections: Corrections) -> Pair:
    """Return the pair, with the same weights, whose guide has corrections of numbered sequences."""
    refined, guide = copy(pair), pair.guide
    refined.guide = (
        RefinedSequenceGuide(guide, corrections)
        if isinstance(guide, SequenceGuide)
        else RefinedGuide(guide, corrections)
    )
    return refined


class RefinedGuide:
    """A guide with corrections of each sequence of a batch that was `numbered`.

    It answers for any other batch as the guide itself does. `draw` is as `MoveNoise` takes it.
    """

    def __init__(
        self, guide: Stochastic, corrections: Corrections, draw: int | None = None
    ) -> None:
        self.wrapped_side, self.corrections, self.draw = guide, corrections, draw
        self.stops_at_gaps = getattr(guide, "stops_at_gaps", False)

    def __call__(self, batch: SequenceBatch) -> Any:
        """Run the guide q(z | x) with the noise of its latents moved."""
        if batch.origin is None:
            return self.wrapped_side(batch)
        with MoveNoise(self.corrections, batch.origin, self.draw):
            return self.wrapped_side(batch)


class RefinedSequenceGuide(SequenceGuide):
    """A `SequenceGuide` with corrections of each sequence, which are part of its evidence.

    So what takes a guide's proposals step by step, as a particle filter does, is given the
    corrected ones.
    """

    def __init__(self, guide: SequenceGuide, corrections: Corrections) -> None:
        super().__init__(guide.model)
        # in a tuple, so that the guide's parameters are not registered a second time here
        self._guide, self.corrections = (guide,), corrections
        self.flows = guide.flows if isinstance(guide.flows, tuple) else ()
        self.eval()

    @property
    def wrapped_side(self) -> SequenceGuide:
        """The guide itself."""
        return self._guide[0]

    def forward(self, batch: SequenceBatch) -> SequenceOutput:
        """Run the Pyro guide with the noise of its latents moved."""
        output: SequenceOutput = RefinedGuide(self.wrapped_side, self.corrections)(batch)
        return output

    def initial_rnn_state(self, *lead: int) -> Any:
        """Return the guide's own."""
        return self.wrapped_side.initial_rnn_state(*lead)

    def initial_latent(self, *lead: int) -> Tensor:
        """Return the guide's own z_0."""
        return self.wrapped_side.initial_latent(*lead)

    def initial_guide_state(self, batch: SequenceBatch) -> Any:
        """Return the guide's own."""
        return self.wrapped_side.initial_guide_state(batch)

    def encode(self, batch: SequenceBatch, rnn_state: object) -> tuple[tuple[Tensor, ...], Any]:
        """Compute the guide's evidence, and beside it each step's shift and log-scale."""
        evidence, rnn_state = self.wrapped_side.encode(batch, rnn_state)
        return (*evidence, *self._by_step(batch)), rnn_state

    def _by_step(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Return the shifts and log-scales of all steps `[N, T, Z]`; zeros if not numbered."""
        if batch.origin is None:
            zeros = self.initial_latent(len(batch)).detach().unsqueeze(-2) * 0
            zeros = zeros.expand(-1, batch.num_steps, -1)
            return zeros, zeros
        if "z" in self.corrections:
            shift, log_scale, _ = self.corrections["z"].of_rows(batch.origin, batch.num_steps)
            return shift, log_scale
        steps = [self.corrections[f"z_{t}"].of_rows(batch.origin) for t in range(batch.num_steps)]
        return (
            torch.stack([step.shift for step in steps], -2),
            torch.stack([step.log_scale for step in steps], -2),
        )

    def proposal(
        self, evidence: tuple[Tensor, ...], previous: Tensor, guide_state: object
    ) -> tuple[Any, Any]:
        """Return the corrected q(z_t | …) of one step, running."""
        *own, shift, log_scale = evidence
        fn, guide_state = self.wrapped_side.proposal(tuple(own), previous, guide_state)
        return moved(fn, shift.squeeze(-2), log_scale.squeeze(-2)), guide_state
