"""A context that sees observations through noise as a pair is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_seq._batch_checks import Values
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts.base import Context


class NoisyObservations(Context):
    """Show another context each observation with noise, in training only.

    A model that is trained on real pasts alone goes on from its own draws as soon as it draws by
    itself. An error in a draw is a past that the model has never seen, and further errors follow. A
    model that has learnt p(x_t | what noise made of x_{<t}) finds its way back. The noise is drawn
    anew at each evaluation, and is the same for all that sees a context in it: a model's networks,
    its emission, its guide. Nothing is changed where a pair is scored or drawn from.

    Args:
        context: the other context.
        noise: a module on observations `[..., *event]`, such as `nn.pictures.PixelNoise`; those
            that were not seen stay as they are.
    """

    def __init__(self, context: Context, noise: nn.Module) -> None:
        super().__init__()
        self.context, self.noise = context, noise
        self.num_features = context.num_features
        self.emission_context_size = context.emission_context_size

    def emission_only(self) -> Context:
        """Return a context of the features that are passed on, through the same noise."""
        return NoisyObservations(self.context.emission_only(), self.noise)

    def initial(self, *lead: int) -> Any:
        """Return the other context's state before the first step."""
        return self.context.initial(*lead)

    def features(self, state: Any, inputs: Tensor | None) -> Tensor:
        """Compute the other context's features of one step."""
        return self.context.features(state, inputs)

    def observe(self, state: Any, observation: Values, seen: Values | None = None) -> Any:
        """Return the other context's state after observing x_t through noise."""
        if self.training:
            assert isinstance(observation, Tensor) and not isinstance(seen, dict)
            noisy = self.noise(observation)
            observation = noisy if seen is None else torch.where(seen, noisy, observation)
        return self.context.observe(state, observation, *(() if seen is None else (seen,)))

    def over(self, batch: SequenceBatch, state: Any) -> tuple[Tensor, Any]:
        """Compute the other context's features of all steps, of observations through noise."""
        if self.training and batch.values is not None:
            assert isinstance(batch.values, Tensor)
            noisy = torch.where(batch.seen, self.noise(batch.values), batch.values)
            batch = batch.with_values(noisy, batch.missing_cells)
        return self.context.over(batch, state)
