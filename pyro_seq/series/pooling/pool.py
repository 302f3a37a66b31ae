"""Pool a pair's draws with forecasts that need no model, each lead by weights of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_seq._schema import Each, Fields, Items, Number, Row, Whole, Word, check
from pyro_seq.distributions.numeric.student import PreciseStudentT
from pyro_seq.distributions.tails import quantile
from pyro_seq.errors import UserError
from pyro_seq.series.data.schema import Column, Schema, Series
from pyro_seq.series.pooling.baselines import (
    BASELINES,
    BOUNDS,
    OF_COUNTS,
    Baseline,
    baseline_paths,
)

Array = NDArray[np.float64]
MASSES: Mapping[str, tuple[float, ...]] = {"positive": (0.0,), "share": (0.0, 1.0)}  # by kind
FIRST_MEMBERS = 3  # of `BASELINES`, that the first pools had
WITHOUT_POOL = ("yes", "category")  # kinds without quantiles to be averaged
RECENT = 500  # origins whose errors a forecast without a model has


@dataclass(frozen=True, eq=False)
class ColumnPool:
    """Hold how the forecasts of one column are pooled, by lead h = 1 … H.

    Attributes:
        weights: `[1 + B, H]`, of the pair first, then of each of `BASELINES`; they sum to 1.
        spread: `[H]`, the factor of the distances from the median.
        freedom: degrees of freedom of Student's t, by which the tails are longer the fewer windows
            they were found on.
    """

    weights: Array
    spread: Array
    freedom: float = np.inf

    def pooled(self, members: Sequence[Array], kind: str, generator: np.random.Generator) -> Array:
        r"""Return draws `[N, P, H]` whose quantiles are those of the members, averaged.

            \bar Q_h(u) = \sum_k w_kh Q_kh(u),
            Q_h(u) = m_h + s_h (t_\nu^{-1}(u) / \Phi^{-1}(u)) (\bar Q_h(u) - m_h)

        Q_kh are the members' quantile functions, m the median of their weighted sum (averages of
        quantiles: Lichtendahl, Grushka-Cockayne and Winkler, 2013), \nu the degrees of freedom. A
        column within two bounds is stretched otherwise, see `stretched`. A draw keeps its rank at
        each step among the first member's, so that steps and columns depend on each other as there
        (ensemble copula coupling: Schefzik, Thorarinsdottir and Gneiting, 2013, arXiv:1302.7149).
        Counts are rounded, bounds are kept, and exact zeros and ones have at least the average of
        their probabilities. Leads beyond H are pooled as H is.

        Args:
            members: draws `[N, P, H']` of the pair and of each of `BASELINES`.
            kind: of the column.
            generator: breaks ties between ranks.
        """
        own = members[0]
        lead = np.minimum(np.arange(own.shape[2]), self.weights.shape[1] - 1)
        weights, spread = self.weights[:, lead], self.spread[lead]
        ordered = sum(
            weight * np.sort(member, 1) for weight, member in zip(weights, members, strict=True)
        )
        levels = levels_of(own.shape[1])[:, None]
        ordered = stretched(ordered, spread * longer_tails(levels, self.freedom), kind)
        if kind in OF_COUNTS:
            ordered = np.rint(ordered)
        for mass in MASSES.get(kind, ()):
            shares = [(member == mass).mean(1, keepdims=True) for member in members]
            share = sum(weight * one for weight, one in zip(weights, shares, strict=True))
            ordered = np.where(levels < share if mass == 0 else levels > 1 - share, mass, ordered)
        drawn = np.empty_like(own)
        order = np.lexsort((generator.random(own.shape), own), 1)
        np.put_along_axis(drawn, order, ordered, 1)
        return drawn


@dataclass(frozen=True, eq=False)
class Pool:
    """Hold how a run's forecasts are pooled, as its document says.

    Attributes:
        windows: how many held-out windows the weights were found on.
        columns: by the names of the targets that are numbers.
    """

    windows: int
    columns: Mapping[str, ColumnPool]

    def pooled(
        self,
        drawn: Mapping[str, Array],
        past: Sequence[Series],
        schema: Schema,
        generator: np.random.Generator,
    ) -> dict[str, Array]:
        """Return draws `[N, P, H]` by column, those of numbers pooled; see `ColumnPool.pooled`.

        Args:
            drawn: the pair's.
            past: the series' histories.
            schema: says which columns there are.
            generator: of the draws of forecasts without a model.
        """
        others = members_of(drawn, past, schema, generator)
        return dict(drawn) | {
            column.name: self.columns[column.name].pooled(
                [drawn[column.name], *(paths[column.name] for paths in others)],
                column.kind,
                generator,
            )
            for column in pooled_columns(schema)
        }

    def to_json(self) -> dict[str, Any]:
        """Return the pool as a document."""
        columns = {
            name: {
                "weights": own.weights.round(6).tolist(),
                "spread": own.spread.round(6).tolist(),
                **({"freedom": own.freedom} if np.isfinite(own.freedom) else {}),
            }
            for name, own in self.columns.items()
        }
        return {"windows": self.windows, "members": ["pair", *BASELINES], "columns": columns}

    @classmethod
    def from_json(cls, document: dict[str, Any], schema: Schema, path: Path) -> Pool:
        """Return the pool of a document; raises `UserError` for one that is damaged.

        In one with fewer members, as they were written first, the others have no weight; in one
        without degrees of freedom the tails are as they are.
        """
        kept_members = document.get("members")
        number = len(kept_members) - 1 if isinstance(kept_members, list) else len(BASELINES)
        members = BASELINES[: max(number, FIRST_MEMBERS)]
        kept_columns = document.get("columns")
        tails = isinstance(kept_columns, dict) and all(
            isinstance(kept, dict) and "freedom" in kept for kept in kept_columns.values()
        )
        check(document, _described(members, tails), path, otherwise="is damaged")
        names = [column.name for column in pooled_columns(schema)]
        found = {}
        for name, kept in document["columns"].items():
            lengths = {len(row) for row in (*kept["weights"], kept["spread"])}
            if len(lengths) != 1:
                raise UserError(f"{path} is damaged: column {name!r} has leads of several numbers")
            weights = np.array(kept["weights"], np.float64)
            weights = np.pad(weights, ((0, len(BASELINES) - len(members)), (0, 0)))
            if not np.allclose(weights.sum(0), 1, atol=1e-4):
                raise UserError(f"{path} is damaged: weights of column {name!r} do not sum to 1")
            found[name] = ColumnPool(
                weights, np.array(kept["spread"], np.float64), kept.get("freedom", np.inf)
            )
        if sorted(found) != sorted(names):
            raise UserError(f"{path} is damaged: it is about columns that the run has not")
        return cls(document["windows"], found)


def pooled_columns(schema: Schema) -> list[Column]:
    """Return the targets whose forecasts are pooled: all numbers."""
    return [column for column in schema.of_role("target") if column.kind not in WITHOUT_POOL]


def members_of(
    drawn: Mapping[str, Array],
    past: Sequence[Series],
    schema: Schema,
    generator: np.random.Generator,
) -> list[dict[str, Array]]:
    """Return draws like some others, of each of `BASELINES`, by column."""
    columns = pooled_columns(schema)
    if not columns:
        return [{} for _ in BASELINES]
    paths, horizon = drawn[columns[0].name].shape[1:]

    def of(name: Baseline, series: Series) -> Array:
        return baseline_paths(
            name,
            np.stack([series.values[column.name] for column in columns], -1),
            horizon,
            [column.kind for column in columns],
            schema.seasons,
            paths=paths,
            recent=RECENT,
            generator=generator,
        )

    found = [np.stack([of(name, series) for series in past]) for name in BASELINES]
    return [{column.name: one[..., c] for c, column in enumerate(columns)} for one in found]


def levels_of(number: int) -> Array:
    """Return the levels (i + 1/2) / P, i = 0 … P - 1, whose quantiles P draws in order are."""
    return (np.arange(number) + 0.5) / number


def stretched(ordered: Array, factor: Array, kind: str) -> Array:
    r"""Return draws in order `[N, P, H]`, further from their median m by factors `[P, H]`.

    A column within two bounds has Q'(u) = Q(\Phi(f \Phi^{-1}(u))), so that what is wider is not cut
    off at the bounds, and reaches no further than the outermost draws. Another one has
    Q'(u) = m + f (Q(u) - m).

    Args:
        ordered: sorted along the draws.
        factor: f of each draw and lead.
        kind: of the column, which has the bounds.
    """
    low, high = BOUNDS.get(kind, (0.0, np.inf))
    number = ordered.shape[1]
    if not np.isfinite(high - low):
        middle = (ordered[:, (number - 1) // 2] + ordered[:, number // 2])[:, None] / 2
        return np.clip(middle + factor * (ordered - middle), low, high)
    normal = torch.special.ndtri(torch.from_numpy(levels_of(number)))
    moved = torch.special.ndtr(torch.tensor(factor) * normal[:, None]).numpy()
    place = np.clip(moved * number - 0.5, 0, number - 1)
    below = np.floor(place).astype(int)
    near, far = (
        np.take_along_axis(ordered, np.broadcast_to(at, (len(ordered), *at.shape)), 1)
        for at in (below, np.minimum(below + 1, number - 1))
    )
    return near + (place - below) * (far - near)


def longer_tails(levels: Array, freedom: float) -> Array:
    """Return t_nu^{-1}(u) / Phi^{-1}(u) at levels u: the more, the further out."""
    if not np.isfinite(freedom):
        return np.ones_like(levels)
    law = PreciseStudentT(*torch.tensor([freedom, 0.0, 1.0], dtype=torch.double))
    u = torch.from_numpy(levels)
    normal = torch.special.ndtri(u)
    ratio = quantile(law, u) / normal
    return torch.where(normal == 0, 1.0, ratio).numpy()


def _described(baselines: Sequence[Baseline], tails: bool) -> Fields:
    """Return the kind of the document of a pool with some forecasts that need no model."""
    members = ("pair", *baselines)
    rows = Row(*(Items(Number(0, 1), least=1) for _ in members))
    column = Fields(
        {
            "weights": rows,
            "spread": Items(Number(1e-3, 1e3), least=1),
            **({"freedom": Number(1, 1e9)} if tails else {}),
        }
    )
    return Fields(
        {
            "windows": Whole(1),
            "members": Row(*(Word(name) for name in members)),
            "columns": Each(Word(), column),
        }
    )
