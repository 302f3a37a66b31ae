"""The base of contexts, and those that remember nothing: none at all, the side inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_seq._batch_checks import Values
from pyro_seq.batch import SequenceBatch
from pyro_seq.encoders import Encoder
from pyro_seq.errors import UserError


class Context(nn.Module):
    """Base of all contexts: c_t has `num_features` features for a model's networks.

    After these come `emission_context_size` features for the emission alone.
    """

    num_features: int
    emission_context_size: int = 0
    _place: Tensor

    def __init__(self) -> None:
        super().__init__()
        # where the module lies, which may have no parameters
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the context's states."""
        return self._place.device

    def emission_only(self) -> Context:
        """Return a context of the features that are passed on to the emission, and no others."""
        return NoContext()

    def initial(self, *lead: int) -> Any:
        """Return the state before the first step of `lead` sequences."""
        return ()

    def features(self, state: object, inputs: Tensor | None) -> Tensor:
        """Compute c_t from the state before step t and the side inputs u_t `[*lead, C]`.

        c_t is `[*lead, num_features + emission_context_size]`.
        """
        raise TypeError(f"{type(self).__name__} must define features(state, inputs)")

    def observe(self, state: object, observation: Values, seen: Values | None = None) -> Any:
        """Return the state after observing x_t `[*lead, *event]`.

        Args:
            state: before x_t.
            observation: x_t, zero where it was not seen.
            seen: true where a cell was seen, a tree like x_t whose leading dimensions may lack
                those on the left; given where a batch has missing cells, and else all were seen.
        """
        return state

    def over(self, batch: SequenceBatch, state: object) -> tuple[Tensor, Any]:
        """Compute c_{1:T} of a batch at once, and the state after each sequence's last step.

        c_{1:T} is `[N, T, num_features + emission_context_size]`, equal to stepping through the
        batch. Where the batch has missing cells, `batch.seen` tells which were seen.
        """
        raise TypeError(f"{type(self).__name__} must define over(batch, state)")


class NoContext(Context):
    """No context: c_t has no features."""

    num_features = 0

    def initial(self, *lead: int) -> Tensor:
        """Return an empty vector for each of `lead` sequences."""
        return torch.zeros(*lead, 0, dtype=self._place.dtype, device=self.device)

    def features(self, state: Any, inputs: Tensor | None) -> Tensor:
        """Return c_t without features, `[*lead, 0]`."""
        return state

    def over(self, batch: SequenceBatch, state: Any) -> tuple[Tensor, Any]:
        """Return c_{1:T} without features, `[N, T, 0]`."""
        return state.unsqueeze(-2).expand(*state.shape[:-1], batch.num_steps, 0), state


class SideInputs(Context):
    """The side inputs: c_t = u_t, or enc(u_t) with an encoder of events of shape `[size]`."""

    def __init__(self, size: int, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.size, self.encoder = size, encoder
        self.num_features = size if encoder is None else encoder.num_features

    def features(self, state: object, inputs: Tensor | None) -> Tensor:
        """Return u_t; raises `UserError` if the batch has none, or has u_t of another size."""
        if inputs is None or inputs.shape[-1] != self.size:
            got = "none" if inputs is None else f"{inputs.shape[-1]}"
            raise UserError(
                f"this model's context wants side inputs of size {self.size}, the batch has {got}"
            )
        return inputs.to(self._place.dtype) if self.encoder is None else self.encoder(inputs)

    def over(self, batch: SequenceBatch, state: object) -> tuple[Tensor, Any]:
        """Return u_{1:T}; raises `UserError` as `features` does."""
        return self.features(state, batch.inputs), state
