"""Map, join and serialise nested tuples, lists and dicts of tensors.

A carried state, a named group of observations and a checkpoint are such trees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
DEEPEST = 100  # a tree in a file is nested no deeper


def tree_map(function: Callable[..., Tensor], tree: object, *others: Any) -> Any:
    """Replace each tensor of a tree by `function(tensor, *others)`.

    The others are the leaves at equal places in `others`. What is no tensor stays.
    """
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, dict):
        return {
            key: tree_map(function, value, *(other[key] for other in others))
            for key, value in tree.items()
        }
    if isinstance(tree, (tuple, list)):
        mapped = [
            tree_map(function, value, *(other[i] for other in others))
            for i, value in enumerate(tree)
        ]
        # a named tuple takes them one by one
        return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)
    return tree


def tree_leaves(tree: object) -> list[Tensor]:
    """Return all tensors of a tree; other leaves are ignored."""
    found = []

    def keep(x: Tensor) -> Tensor:
        found.append(x)
        return x

    tree_map(keep, tree)
    return found


def tree_cat(trees: Sequence[T]) -> T:
    """Join trees of one form along the first dimension of their tensors."""
    return trees[0] if len(trees) == 1 else tree_map(lambda *parts: torch.cat(parts), *trees)


def tree_detach(tree: T) -> T:
    """Detach all tensors of a tree from the graph, as truncated back-propagation needs it."""
    return tree_map(Tensor.detach, tree)


def to_json_tree(tree: object) -> tuple[Any, dict[str, Tensor]]:
    """Split a tree into (its form as JSON can hold it, its tensors by dotted path).

    `from_json_tree` is the inverse.

    Dicts may have numbers as keys, and tuples stay tuples; leaves are tensors, numbers, strings,
    booleans and `None`. Raises `TypeError` for anything else, also for named tuples, which would
    lose their names.
    """
    tensors: dict[str, Tensor] = {}

    def form(node: object, path: str) -> Any:
        if isinstance(node, Tensor):
            while path in tensors:  # {"a.b": x, "a": {"b": y}}
                path += "'"
            tensors[path] = node
            return {"tensor": path}
        if isinstance(node, dict):
            if wrong := [key for key in node if not isinstance(key, (str, int, float))]:
                raise TypeError(
                    f"{path or 'the tree'} has the key {wrong[0]!r}, which is neither a word nor a "
                    "number"
                )
            return {
                "dict": [
                    [key, form(value, f"{path}.{key}" if path else str(key))]
                    for key, value in node.items()
                ]
            }
        if isinstance(node, (tuple, list)) and not hasattr(node, "_fields"):
            kind = "tuple" if isinstance(node, tuple) else "list"
            return {
                kind: [
                    form(value, f"{path}.{i}" if path else str(i)) for i, value in enumerate(node)
                ]
            }
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        raise TypeError(
            f"{path or 'the tree'} is a {type(node).__name__}, which a tree of tensors cannot hold"
        )

    return form(tree, ""), tensors


def from_json_tree(form: object, tensors: dict[str, Tensor]) -> Any:
    """Rebuild the tree of a form and tensors that `to_json_tree` returned.

    Raises `KeyError`, `TypeError` or `ValueError` if they do not fit each other: each tensor has
    one place, each key of a dict one value.
    """
    left = dict(tensors)
    tree = _of_form(form, left, DEEPEST)
    if left:
        raise ValueError(f"the tensor {min(left)!r} has no place in the tree")
    return tree


def _of_form(form: object, left: dict[str, Tensor], depth: int) -> Any:
    """Build the tree of a form, and take its tensors out of `left`."""
    if not isinstance(form, dict):
        if isinstance(form, list):
            raise TypeError("a list stands where a form should")
        return form
    if len(form) != 1 or not depth:
        raise ValueError(
            "it is nested too deeply" if not depth else f"not the form of a tree: {sorted(form)}"
        )
    ((kind, held),) = form.items()
    if kind == "tensor":
        return left.pop(held)
    if kind == "dict":
        tree: dict[Any, Any] = {}
        for key, value in held:
            if not isinstance(key, (str, int, float)) or key in tree:
                raise ValueError(f"{key!r} is no key, or one that is there twice")
            tree[key] = _of_form(value, left, depth - 1)
        return tree
    if kind not in ("tuple", "list"):
        raise ValueError(f"not the form of a tree: {kind!r}")
    items = (_of_form(value, left, depth - 1) for value in held)
    return tuple(items) if kind == "tuple" else list(items)
