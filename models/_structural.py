"""The states of a structural time series: level, slope, and harmonics of each season."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_seq.emissions.base import Emission
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.elementary import Normal
from pyro_seq.encoders import Encoder
from pyro_seq.errors import UserError

Trend = Literal["none", "damped", "linear"]
SHORT = 12  # steps of a season up to which all of its harmonics are used
HARMONICS = 4  # of a longer one, by default
# of all columns together, which harmonics are left out for by default: a filter's time and memory
# grow with their square, for each sequence whose gaps are its own
STATES = 100


class Structure(NamedTuple):
    """The kinds of states that each column has, in order.

    Attributes:
        kinds: `level`, `slope`, `cosine` and `sine`.
        partner: the other one of its pair for each kind: level and slope, cosine and sine; itself
            if it has none.
        angles: by how much each cosine and sine turns at a step.
        seasons: which season each of these is of.
    """

    kinds: list[str]
    partner: list[int]
    angles: list[float]
    seasons: list[int]

    @classmethod
    def of(cls, seasons: Sequence[int], harmonics: int, trend: Trend) -> Structure:
        """Lay out the states of a trend and of seasons of so many steps.

        No angle stands twice: the 7th harmonic of a week is the day's first. A turn by half a
        circle has no sine. Raises `UserError` for a season of less than 2 steps.
        """
        sloping = trend != "none"
        laid = cls(["level", "slope"][: 1 + sloping], [1, 0] if sloping else [0], [], [])
        known: set[float] = set()
        for season, period in enumerate(seasons):
            if period < 2:
                raise UserError(f"a season of an lgssm must have at least 2 steps, got {period}")
            count = period // 2 if period <= SHORT else min(period // 2, harmonics)
            for j in range(1, count + 1):
                angle, pair = 2 * math.pi * j / period, 2 * j < period
                if round(angle, 9) in known:
                    continue
                known.add(round(angle, 9))
                first = len(laid.kinds)
                laid.kinds.extend(["cosine", "sine"][: 1 + pair])
                laid.partner.extend([first + 1, first] if pair else [first])
                laid.angles.extend([angle, -angle] if pair else [angle])
                laid.seasons.extend([season] * (1 + pair))
        return laid

    @classmethod
    def within(cls, seasons: Sequence[int], trend: Trend, columns: int, others: int) -> Structure:
        """Lay out states as `of` does, with as many harmonics as C columns have room for.

        These are at most `HARMONICS` and at least one; the room is `STATES`, `others` among them.
        """
        for harmonics in range(HARMONICS, 1, -1):
            laid = cls.of(seasons, harmonics, trend)
            if len(laid.kinds) * columns + others <= STATES:
                return laid
        return cls.of(seasons, 1, trend)

    def partners(self, columns: int) -> Tensor:
        """Return the number of each state's partner `[k C]`, C columns of each of k kinds."""
        return (
            torch.tensor(self.partner).unsqueeze(-1) * columns + torch.arange(columns)
        ).flatten()

    def loading(self, like: Tensor) -> Tensor:
        """Return what each column sees of the states, `[C, k C]`, from the identity `[C, C]`."""
        seen = [kind in ("level", "cosine") for kind in self.kinds]
        return torch.cat([like * one for one in seen], -1)

    def transition(self, damping: Tensor | None, one: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each state takes of itself and of its partner, `[k C]`.

        Args:
            damping: phi of the slopes `[C]`; `None` for 1.
            one: ones `[C]`.
        """
        sloping = "slope" in self.kinds
        own, other = [one], [one * sloping]
        if sloping:
            own.append(one if damping is None else damping)
            other.append(0 * one)
        for angle in self.angles:
            alone = self.partner[len(own)] == len(own)
            own.append(math.cos(angle) * one)
            other.append((0.0 if alone else math.sin(angle)) * one)
        return torch.cat(own), torch.cat(other)


def real_cells(emission: Emission, name: str = "lgssm") -> tuple[Emission, str | None, int | None]:
    """Return normals of an emission's form, the name of a group's only member, and C.

    C is `None` for scalars. Raises `UserError` for what is no vector of real numbers, naming the
    model.
    """
    own, member = emission, None
    if isinstance(emission, Joint):
        if len(emission.emissions) != 1:
            raise UserError(
                f"an {name} observes real numbers as one tensor or one member of a group, got a "
                f"group of {sorted(emission.emissions)}"
            )
        ((member, own),) = emission.emissions.items()
    support: Any = own.blank(1).support
    while hasattr(support, "base_constraint"):  # of vectors and mixtures
        support = support.base_constraint
    shape = own.event_shape
    if not isinstance(support, type(constraints.real)) or len(shape) > 1:
        what = f"{type(own).__name__} of event shape {list(shape)}"
        raise UserError(f"an {name} observes real numbers, [] or [C], got the emission {what}")
    cells = Factorised(Normal(), shape[0]) if shape else Normal()
    return (
        cells if member is None else Joint({member: cells}),
        member,
        shape[0] if shape else None,
    )


def units(
    inputs: Tensor | None,
    size: int,
    regression: Tensor,
    regressors: Encoder | None,
    *,
    scaled: bool,
    name: str,
) -> tuple[Tensor | None, Tensor | None]:
    """Return a_t + s_t D u_t and s_t `[*lead, C]` from side inputs `[*lead, size]`; none for 0, 1.

    Of a `scaled` model the first 2 C side inputs are a_t and s_t. Raises `UserError` for side
    inputs of another size, naming the model.
    """
    given = 0 if inputs is None else inputs.shape[-1]
    if given != size:
        raise UserError(
            f"this {name} wants side inputs of size {size}, the batch has {given or 'none'}"
        )
    if inputs is None:
        return None, None
    first = 2 * len(regression) if scaled else 0
    known = inputs[..., first:] if regressors is None else regressors(inputs)
    effect = known.double() @ regression.double().mT
    if not scaled:
        return effect, None
    location, scale = inputs[..., :first].double().chunk(2, -1)
    return location + scale * effect, scale


def moments(cells: Tensor, seen: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (means, standard deviations, root mean square moves), each `[C]`, of cells seen.

    A move is between two steps that follow each other, both of them seen.

    Args:
        cells: `[N, T, C]`.
        seen: the same, true where a cell was seen.
        least: the smallest move; no standard deviation is below the moves.
    """
    mean = _mean(cells, seen)
    spread = _mean((cells - mean) ** 2, seen).sqrt()
    squares = (cells[:, 1:] - cells[:, :-1]) ** 2
    moves = _mean(squares, seen[:, 1:] & seen[:, :-1]).sqrt().clamp(min=least)
    return mean, torch.maximum(spread, moves), moves


def _mean(cells: Tensor, seen: Tensor) -> Tensor:
    total = torch.where(seen, cells, torch.zeros_like(cells)).sum((0, 1))
    return total / seen.sum((0, 1)).clamp(min=1)


def check_scale(scale: Tensor, name: str = "lgssm") -> None:
    """Raise `UserError` for scales of columns that are not positive, naming the model."""
    if not bool((scale > 0).all()):
        raise UserError(
            f"the side inputs C to 2 C of a scaled {name} are the columns' scales and must be "
            f"positive, got {float(scale.min()):g}"
        )
