"""The columns of a schema as groups of one kind: what a pair observes and what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.series.data.schema import Column, Schema, Series

NUMERIC = ("real", "count", "poisson", "zero_inflated", "positive", "share")


@dataclass(frozen=True)
class Group:
    """Columns that are observed as one member of the group of observations.

    Attributes:
        name: the member's name: the columns' kind; `category0`, … of a category.
        columns: those of a kind, or one category.
    """

    name: str
    columns: tuple[Column, ...]

    @property
    def kind(self) -> str:
        """The kind of all columns."""
        return self.columns[0].kind

    @property
    def is_category(self) -> bool:
        """Whether the observation is one symbol, and no vector."""
        return self.kind == "category"

    @property
    def num_categories(self) -> int:
        """The number of a category's words, and one for words that are not known."""
        return len(self.columns[0].words) + 1


def groups_of(schema: Schema) -> tuple[Group, ...]:
    """Return what a pair observes: targets and past inputs, by kind; numbers come first.

    Raises `UserError` for a schema without targets.
    """
    observed = schema.of_role("target", "past")
    if not schema.of_role("target"):
        raise UserError("no column is a target, so there is nothing to learn")
    groups = []
    for kind in (*NUMERIC, "yes"):
        if columns := tuple(column for column in observed if column.kind == kind):
            groups.append(Group(kind, columns))
    categories = [column for column in observed if column.kind == "category"]
    groups += [Group(f"category{i}", (column,)) for i, column in enumerate(categories)]
    return tuple(groups)


def numeric_columns(schema: Schema) -> tuple[Column, ...]:
    """Return the columns that have a location and a scale, in the order of their groups."""
    return tuple(
        column for group in groups_of(schema) if group.kind in NUMERIC for column in group.columns
    )


def cells_of(group: Group, series: Series, start: int, stop: int) -> NDArray[np.float64]:
    """Return a group's cells at some steps `[T, C]`, NaN where one is missing.

    A category's are `[T]`.
    """
    cells = np.stack([series.values[column.name][start:stop] for column in group.columns], 1)
    return cells[:, 0] if group.is_category else cells


def columns_of(schema: Schema, values: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return the observations of a pair by column, in the data's own units and codes.

    Args:
        schema: says which columns there are.
        values: by group, `[…, C]`, a category's `[…]`; tensors or arrays.
    """
    found: dict[str, NDArray[Any]] = {}
    for group in groups_of(schema):
        array = np.asarray(values[group.name])
        for i, column in enumerate(group.columns):
            found[column.name] = array if group.is_category else array[..., i]
    return {column.name: found[column.name] for column in schema.of_role("target", "past")}
