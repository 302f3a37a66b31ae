"""Contexts c_t: what a step may look at before its observation is known.

A context is a recurrence without parameters of its own over the observations:
`features(state, u_t)` before x_t is known, then `observe(state, x_t)`. `over` computes the features
of all steps at once where observations are known (teacher forcing). Where a batch has missing cells,
a context is told which ones were seen: `observe(state, x_t, seen)`, and `batch.seen` for `over`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_seq._cells import any_cell
from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.encoders import Encoder, encode
from pyro_seq.errors import UserError
from pyro_seq.nn.feedforward import concatenate


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

    def features(self, state: Any, inputs: Tensor | None) -> Tensor:
        """Compute c_t from the state before step t and the side inputs u_t `[*lead, C]`.

        c_t is `[*lead, num_features + emission_context_size]`.
        """
        raise TypeError(f"{type(self).__name__} must define features(state, inputs)")

    def observe(self, state: Any, observation: Any, seen: Any = None) -> Any:
        """Return the state after observing x_t `[*lead, *event]`.

        Args:
            state: before x_t.
            observation: x_t, zero where it was not seen.
            seen: true where a cell was seen, a tree like x_t whose leading dimensions may lack
                those on the left; given where a batch has missing cells, and else all were seen.
        """
        return state

    def over(self, batch: SequenceBatch, state: Any) -> tuple[Tensor, Any]:
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


class LastObservations(Context):
    """The encodings of the last `count` observations, the most recent one last.

    c_t = combiner([enc(x_{t-n}), …, enc(x_{t-1})]); before a sequence's beginning an encoding is
    zero, or that of `before`. So it is of an observation of which nothing was seen; of one that was
    seen in part, missing cells are zero, and an encoder that `takes_seen`
    (`encoders.WithIndicators`) is told which.

    Args:
        encoder: x_t → features.
        count: n, how far back a step looks.
        combiner: a module `[..., n * F]` → `[..., combiner.output_size]`, for instance
            `nn.feedforward.MLP`.
        before: the observation at every step before the first (such as a symbol that begins
            sentences), encoded like any other; a tensor `[*event]`, a number, or a dict of such
            for a named group.

    Raises `ValueError` for a `count` below 1, and for a `before` that is not what the encoder
    takes.
    """

    def __init__(
        self,
        encoder: Encoder,
        count: int = 1,
        combiner: nn.Module | None = None,
        *,
        before: Any = None,
    ) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"LastObservations must look back at least 1 step, got {count}")
        if before is not None:
            _check_observation(before, encoder.blank())
        self.encoder, self.count, self.combiner, self.before = encoder, count, combiner, before
        sizes = count * encoder.num_features
        self.num_features = sizes if combiner is None else int(combiner.output_size)  # type: ignore[arg-type]

    def initial(self, *lead: int) -> dict[str, Any]:
        """Return the observations before the first step, and whether each of them is known.

        Observations `[*lead, n, *event]` given by `before` are known, blank ones are not. For an
        encoder that `takes_seen` the state also holds which cells were seen.
        """
        observations = self.encoder.blank(*lead, self.count, device=self.device)
        if self.before is not None:
            observations = tree_map(
                lambda blank, x: blank.copy_(torch.as_tensor(x)), observations, self.before
            )
        known = torch.full((*lead, self.count), self.before is not None, device=self.device)
        state = {"observations": observations, "known": known}
        if self.encoder.takes_seen:
            state["seen"] = tree_map(
                lambda x: torch.full_like(x, self.before is not None, dtype=torch.bool),
                observations,
            )
        return state

    def features(self, state: Any, inputs: Tensor | None) -> Tensor:
        """Compute c_t from the last n observations."""
        encoded = encode(self.encoder, state["observations"], state.get("seen"))
        return self._combine((encoded * state["known"].unsqueeze(-1)).flatten(-2))

    def observe(self, state: Any, observation: Any, seen: Any = None) -> Any:
        """Move the window of the last n observations on by one."""
        lead = state["known"].dim() - 1
        if seen is not None or self.encoder.takes_seen:
            return self._observe_cells(state, observation, seen)
        # by far the most frequent case, and generation is made of such small steps
        if self.count == 1:
            latest = tree_map(
                lambda before, x: x.to(before.dtype).unsqueeze(lead),
                state["observations"],
                observation,
            )
            return {"observations": latest, "known": torch.ones_like(state["known"])}

        known = self._moved(state["known"], torch.ones_like(state["known"][..., 0]), lead)
        return {
            "observations": tree_map(
                lambda window, x: self._moved(window, x, lead), state["observations"], observation
            ),
            "known": known,
        }

    def _moved(self, window: Tensor, latest: Tensor, lead: int) -> Tensor:
        """A window `[*lead, n, …]` moved on to the latest entry `[*lead, …]`."""
        return torch.cat(
            [window.narrow(lead, 1, self.count - 1), latest.to(window.dtype).unsqueeze(lead)], lead
        )

    def _observe_cells(self, state: Any, observation: Any, seen: Any) -> Any:
        """`observe`, with the cells that were seen, or all where `seen` is `None`."""
        lead = state["known"].dim() - 1
        seen = tree_map(
            lambda x, *told: told[0].expand(x.shape) if told else torch.ones_like(x, dtype=torch.bool),
            observation,
            *([] if seen is None else [seen]),
        )
        latest = {"observations": observation, "known": any_cell(seen, lead), "seen": seen}
        return {
            name: tree_map(lambda window, x: self._moved(window, x, lead), window, latest[name])
            for name, window in state.items()
        }

    def over(self, batch: SequenceBatch, state: Any) -> tuple[Tensor, Any]:
        """Compute c_{1:T} from the observations shifted by 1 … n steps."""
        history = tree_map(
            lambda before, x: torch.cat([before, x.to(before.dtype)], 1),
            state["observations"],
            batch.values,
        )
        there = batch.mask if batch.missing is None else any_cell(batch.seen)
        known = torch.cat([state["known"], there], 1)
        whole = {"observations": history, "known": known}
        if self.encoder.takes_seen:
            whole["seen"] = tree_map(
                lambda *parts: torch.cat(parts, 1), state["seen"], batch.seen
            )
        steps, rows = batch.num_steps, torch.arange(len(batch), device=batch.device).unsqueeze(-1)
        last = batch.lengths.unsqueeze(-1) + torch.arange(self.count, device=batch.device)
        after = tree_map(lambda x: x[rows, last], whole)
        length = self.count + steps - 1
        before = tree_map(lambda x: x[:, :length], whole)
        encoded = encode(self.encoder, before["observations"], before.get("seen"))
        encoded = encoded * before["known"].unsqueeze(-1)
        return self._combine(
            torch.cat([encoded[:, i : i + steps] for i in range(self.count)], -1)
        ), after

    def _combine(self, encoded: Tensor) -> Tensor:
        return encoded if self.combiner is None else self.combiner(encoded)


class PreviousObservation(LastObservations):
    """The encoding of the previous observation: c_t = enc(x_{t-1}).

    At a sequence's beginning c_1 is zero, or the encoding of the observation `before`.
    """

    def __init__(self, encoder: Encoder, *, before: Any = None) -> None:
        super().__init__(encoder, count=1, before=before)


def _check_observation(given: Any, blank: Any) -> None:
    """Raise `ValueError` unless an observation has the form of a blank one."""
    if isinstance(blank, dict):
        if not isinstance(given, dict) or set(given) != set(blank):
            got = sorted(given) if isinstance(given, dict) else "no group"
            raise ValueError(
                f"the observation before the first one must be a group of {sorted(blank)}, got "
                f"{got}"
            )
        for name, member in blank.items():
            _check_observation(given[name], member)
        return
    if isinstance(given, dict):
        raise ValueError(
            f"the observation before the first one must be no group, got one of {sorted(given)}"
        )
    observation = torch.as_tensor(given)
    if observation.shape != blank.shape:
        shapes = f"{list(blank.shape)}, got {list(observation.shape)}"
        raise ValueError(f"the observation before the first one must have event shape {shapes}")
    if observation.is_floating_point() and not blank.is_floating_point():
        raise ValueError(
            "the observation before the first one must be made of whole numbers, got "
            f"{observation.dtype}"
        )


class SideInputs(Context):
    """The side inputs: c_t = u_t, or enc(u_t) with an encoder of events of shape `[size]`."""

    def __init__(self, size: int, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.size, self.encoder = size, encoder
        self.num_features = size if encoder is None else encoder.num_features

    def features(self, state: Any, inputs: Tensor | None) -> Tensor:
        """Return u_t; raises `UserError` if the batch has none, or has u_t of another size."""
        if inputs is None or inputs.shape[-1] != self.size:
            got = "none" if inputs is None else f"{inputs.shape[-1]}"
            raise UserError(
                f"this model's context wants side inputs of size {self.size}, the batch has {got}"
            )
        return inputs.to(self._place.dtype) if self.encoder is None else self.encoder(inputs)

    def over(self, batch: SequenceBatch, state: Any) -> tuple[Tensor, Any]:
        """Return u_{1:T}; raises `UserError` as `features` does."""
        return self.features(state, batch.inputs), state


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

    def observe(self, state: Any, observation: Any, seen: Any = None) -> tuple[Any, ...]:
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
