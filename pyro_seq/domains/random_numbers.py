"""The state of a NumPy generator as a tree that a checkpoint can hold."""

from __future__ import annotations

from typing import Any

import numpy as np


def generator(seed: int) -> np.random.Generator:
    """A generator whose state `generator_state` knows how to keep."""
    return np.random.Generator(np.random.PCG64(seed))


def generator_state(random: np.random.Generator) -> dict[str, Any]:
    """The generator's state, in words and whole numbers."""
    state = random.bit_generator.state
    words = {key: str(value) for key, value in state["state"].items()}  # 128-bit numbers, as JSON has none
    return {"words": words, "has_uint32": state["has_uint32"], "uinteger": state["uinteger"]}


def load_generator_state(random: np.random.Generator, state: dict[str, Any]) -> None:
    """Go on from `generator_state()`; raises `ValueError` for anything else."""
    try:
        words = {key: int(state["words"][key]) for key in ("state", "inc")}
        spare = {"has_uint32": int(state["has_uint32"]), "uinteger": int(state["uinteger"])}
        random.bit_generator.state = {"bit_generator": "PCG64", "state": words, **spare}
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"it is no state of a random generator: {type(error).__name__} {error}") from None
