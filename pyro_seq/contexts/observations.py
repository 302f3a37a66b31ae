"""Contexts of the last observations as an encoder sees them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_seq._batch_checks import Values
from pyro_seq._cells import any_cell
from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts.base import Context
from pyro_seq.encoders import Encoder, encode


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

    def observe(self, state: Any, observation: Values, seen: Values | None = None) -> Any:
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

    def _observe_cells(self, state: Any, observation: Values, seen: Values | None) -> Any:
        """`observe`, with the cells that were seen, or all where `seen` is `None`."""
        lead = state["known"].dim() - 1
        seen = tree_map(
            lambda x, *told: (
                told[0].expand(x.shape) if told else torch.ones_like(x, dtype=torch.bool)
            ),
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
        there = batch.mask if batch.missing_cells is None else any_cell(batch.seen)
        known = torch.cat([state["known"], there], 1)
        whole = {"observations": history, "known": known}
        if self.encoder.takes_seen:
            whole["seen"] = tree_map(lambda *parts: torch.cat(parts, 1), state["seen"], batch.seen)
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
