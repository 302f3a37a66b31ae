"""Contexts of the last observations as an encoder sees them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts.base import Context
from pyro_seq.encoders import Encoder


class LastObservations(Context):
    """The encodings of the last `count` observations, the most recent one last.

    c_t = combiner([enc(x_{t-n}), …, enc(x_{t-1})]); before a sequence's beginning an encoding is
    zero, or that of `before`.

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

        Observations `[*lead, n, *event]` given by `before` are known, blank ones are not.
        """
        observations = self.encoder.blank(*lead, self.count, device=self.device)
        if self.before is not None:
            observations = tree_map(
                lambda blank, x: blank.copy_(torch.as_tensor(x)), observations, self.before
            )
        known = torch.full((*lead, self.count), self.before is not None, device=self.device)
        return {"observations": observations, "known": known}

    def features(self, state: Any, inputs: Tensor | None) -> Tensor:
        """Compute c_t from the last n observations."""
        encoded = self.encoder(state["observations"]) * state["known"].unsqueeze(-1)
        return self._combine(encoded.flatten(-2))

    def observe(self, state: Any, observation: Any) -> Any:
        """Move the window of the last n observations on by one."""
        lead = state["known"].dim() - 1
        # by far the most frequent case, and generation is made of such small steps
        if self.count == 1:
            latest = tree_map(
                lambda before, x: x.to(before.dtype).unsqueeze(lead),
                state["observations"],
                observation,
            )
            return {"observations": latest, "known": torch.ones_like(state["known"])}

        def move(window: Tensor, latest: Tensor) -> Tensor:
            return torch.cat(
                [window.narrow(lead, 1, self.count - 1), latest.to(window.dtype).unsqueeze(lead)],
                lead,
            )

        known = move(state["known"], torch.ones_like(state["known"][..., 0]))
        return {
            "observations": tree_map(move, state["observations"], observation),
            "known": known,
        }

    def over(self, batch: SequenceBatch, state: Any) -> tuple[Tensor, Any]:
        """Compute c_{1:T} from the observations shifted by 1 … n steps."""
        history = tree_map(
            lambda before, x: torch.cat([before, x.to(before.dtype)], 1),
            state["observations"],
            batch.values,
        )
        known = torch.cat([state["known"], batch.mask], 1)
        steps = batch.num_steps
        last = batch.lengths.unsqueeze(-1) + torch.arange(self.count, device=batch.device)
        after = {
            "observations": tree_map(
                lambda x: x[torch.arange(len(batch), device=batch.device).unsqueeze(-1), last],
                history,
            ),
            "known": known.gather(1, last),
        }
        length = self.count + steps - 1
        encoded = self.encoder(tree_map(lambda x: x[:, :length], history)) * known[
            :, :length
        ].unsqueeze(-1)
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
