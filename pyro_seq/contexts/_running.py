"""Running means and last values over time, all steps at once, with cells that were not seen."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64  # steps that are weighted by one matrix
RECENT = 16  # entries of a ring that are copied at a step, where there are more


def running_means(x: Tensor, before: Tensor, decays: Tensor) -> Tensor:
    """Compute y_t = d y_{t-1} + (1 - d) x_t for several decays d.

    The recurrence is linear, so that a chunk of steps is one product with a triangular matrix.

    Args:
        x: `[N, T, F]`.
        before: y_0 `[N, J, F]`.
        decays: `[J]`, each in [0, 1).

    Returns y_1 … y_T `[N, T, J, F]`.
    """
    n, steps, size = x.shape
    count = len(decays)
    place = torch.arange(min(CHUNK, max(1, steps)), device=x.device)
    lag = place.unsqueeze(-1) - place
    # [chunk, J, chunk]: the weight of step b in y_a
    weights = (1 - decays).unsqueeze(-1) * decays.unsqueeze(-1) ** lag.clamp(min=0).unsqueeze(1)
    weights = weights * (lag >= 0).unsqueeze(1)
    reach = (decays ** (place + 1).unsqueeze(-1)).unsqueeze(-1)  # [chunk, J, 1]
    found = [x.new_zeros(n, 0, count, size)]
    for part in x.split(len(place), 1):
        length = part.shape[1]
        matrix = weights[:length, :, :length].reshape(length * count, length)
        mean = (matrix @ part).view(n, length, count, size) + reach[:length] * before.unsqueeze(1)
        found.append(mean)
        before = mean[:, -1]
    return torch.cat(found, 1)


def last_seen(x: Tensor, seen: Tensor, before: Tensor) -> Tensor:
    """Return at each step the last value that was seen up to the step, else `before`.

    Args:
        x: `[N, T, *event]`.
        seen: `[N, T, *event]`, whether each was.
        before: `[N, *event]`.
    """
    steps = torch.arange(1, x.shape[1] + 1, device=x.device).view(-1, *(1,) * (x.dim() - 2))
    if not x.shape[1]:
        return x
    source = torch.where(seen, steps, 0).cummax(1).values
    return torch.cat([before.unsqueeze(1), x], 1).gather(1, source)


class Ring:
    """The last `length` entries `[*event]` of each of many sequences, moved on step by step.

    A state is `old` `[*lead, length, *event]`, the first `count` `[*lead]` of which are out of
    date, and `recent` `[*lead, 16, *event]`, the first `count` of which have come since: so that a
    step copies a few entries, and all of them only now and then.
    """

    def __init__(self, length: int) -> None:
        self.length, self.recent = length, min(RECENT, length)

    def state(self, entries: Tensor, lead: int) -> dict[str, Tensor]:
        """Return a state with the entries `[*lead, length, *event]`, `lead` dimensions first."""
        recent = entries.new_zeros(*entries.shape[:lead], self.recent, *entries.shape[lead + 1 :])
        count = torch.zeros(entries.shape[:lead], dtype=torch.long, device=entries.device)
        return {"old": entries, "recent": recent, "count": count}

    def oldest(self, state: dict[str, Tensor]) -> Tensor:
        """Return the entry of `length` steps ago, `[*lead, *event]`."""
        return _entry(state["old"], state["count"])

    def entries(self, state: dict[str, Tensor]) -> Tensor:
        """Return all entries, the oldest one first."""
        lead = state["count"].dim()
        both = torch.cat([state["old"], state["recent"]], lead)
        places = state["count"].unsqueeze(-1) + torch.arange(self.length, device=both.device)
        places = places.view(*places.shape, *(1,) * (both.dim() - places.dim()))
        return torch.take_along_dim(both, places, lead)

    def moved(self, state: dict[str, Tensor], entry: Tensor) -> dict[str, Tensor]:
        """Return the state after one more entry `[*lead, *event]`."""
        count, lead = state["count"], state["count"].dim()
        place = torch.arange(self.recent, device=entry.device) == count.unsqueeze(-1)
        place = place.view(*place.shape, *(1,) * (entry.dim() - lead))
        recent = torch.where(place, entry.unsqueeze(lead), state["recent"])
        after = {"old": state["old"], "recent": recent, "count": count + 1}
        if bool((after["count"] == self.recent).any()):
            return self.state(self.entries(after), lead)
        return after


def _entry(entries: Tensor, place: Tensor) -> Tensor:
    """Return the entry `[*lead, *event]` at a place `[*lead]` of entries `[*lead, n, *event]`."""
    lead = place.dim()
    index = place.view(*place.shape, *(1,) * (entries.dim() - lead))
    return torch.take_along_dim(entries, index, lead).squeeze(lead)
