"""Contexts of several contexts: side by side, or one of them for the emission alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyro_seq._batch_checks import Values
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts.base import Context, NoContext
from pyro_seq.nn.feedforward import concatenate


class Chain(Context):
    """Several contexts side by side, and after their features all that they pass on.

    Raises `ValueError` without any context.
    """

    def __init__(self, *contexts: Context) -> None:
        super().__init__()
        if not contexts:
            raise ValueError(
                "Chain takes at least one context; NoContext() is the one without features"
            )
        self.contexts: Any = nn.ModuleList(contexts)
        self.num_features = sum(context.num_features for context in contexts)
        self.emission_context_size = sum(context.emission_context_size for context in contexts)

    def emission_only(self) -> Context:
        """Return a context of the features that the members pass on, and no others."""
        passing = [
            context.emission_only() for context in self.contexts if context.emission_context_size
        ]
        return Chain(*passing) if passing else NoContext()

    def initial(self, *lead: int) -> tuple[Any, ...]:
        """Return the states of all members before the first step."""
        return tuple(context.initial(*lead) for context in self.contexts)

    def features(self, state: Any, inputs: Tensor | None) -> Tensor:
        """Compute the members' features of one step, in order."""
        return self._arranged(
            [
                context.features(part, inputs)
                for context, part in zip(self.contexts, state, strict=True)
            ]
        )

    def observe(
        self, state: Any, observation: Values, seen: Values | None = None
    ) -> tuple[Any, ...]:
        """Return the members' states after observing x_t."""
        told = () if seen is None else (seen,)
        return tuple(
            context.observe(part, observation, *told)
            for context, part in zip(self.contexts, state, strict=True)
        )

    def over(self, batch: SequenceBatch, state: Any) -> tuple[Tensor, Any]:
        """Compute the members' features over all steps, side by side."""
        parts = [
            context.over(batch, part) for context, part in zip(self.contexts, state, strict=True)
        ]
        return self._arranged([features for features, _ in parts]), tuple(
            after for _, after in parts
        )

    def _arranged(self, parts: list[Tensor]) -> Tensor:
        """Order the members' features: first all for networks, then all that are passed on."""
        sizes = [context.num_features for context in self.contexts]
        seen = [part[..., :size] for part, size in zip(parts, sizes, strict=True)]
        return concatenate(
            *seen, *(part[..., size:] for part, size in zip(parts, sizes, strict=True))
        )


class SplitContext(Chain):
    """Two contexts: one feeds the model's networks, the other goes directly to the emission.

    The emission says how many such features it wants (`Emission.emission_context_size`).

    Features that `recurrent` passes on to the emission come before the features of `emission`.
    Raises `ValueError` for an `emission` that passes on features itself, since their order would be
    undefined.
    """

    def __init__(self, recurrent: Context, emission: Context) -> None:
        super().__init__(recurrent, emission)
        if emission.emission_context_size:
            raise ValueError(
                "what SplitContext passes on goes to the emission as a whole: put a Chain of "
                "contexts there, and no SplitContext"
            )
        self.num_features = recurrent.num_features
        self.emission_context_size = recurrent.emission_context_size + emission.num_features

    def emission_only(self) -> Context:
        """Return a context of the features that are passed on, and no others."""
        return SplitContext(self.contexts[0].emission_only(), self.contexts[1])

    def _arranged(self, parts: list[Tensor]) -> Tensor:
        return concatenate(*parts)


class PassedOn(Context):
    """What another context passes on to the emission, and no features for networks."""

    num_features = 0

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self.emission_context_size = context.emission_context_size

    def emission_only(self) -> Context:
        """Return the context itself."""
        return self

    def initial(self, *lead: int) -> Any:
        """Return the other context's state before the first step."""
        return self.context.initial(*lead)

    def features(self, state: object, inputs: Tensor | None) -> Tensor:
        """Return what is passed on at one step."""
        return self.context.features(state, inputs)[..., self.context.num_features :]

    def observe(self, state: object, observation: Values, seen: Values | None = None) -> Any:
        """Return the other context's state after observing x_t."""
        return self.context.observe(state, observation, *(() if seen is None else (seen,)))

    def over(self, batch: SequenceBatch, state: object) -> tuple[Tensor, Any]:
        """Return what is passed on at all steps."""
        features, after = self.context.over(batch, state)
        return features[..., self.context.num_features :], after
