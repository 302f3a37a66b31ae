"""Save and restore the states of random number generators, torch's and NumPy's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pyro_seq._schema import Checked, Fields, Items, Kind, TensorOf, Whole, Word

MOST_DEVICES = 64
A_WORD = r"[0-9]{1,39}"  # of 128 bits


def random_state() -> dict[str, Any]:
    """Return torch's random state on all devices, as `set_random_state` takes it."""
    cuda = {"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state()} | cuda


def describe_random_state() -> Kind:
    """Return the kind of a `random_state()`."""
    size = torch.get_rng_state().numel()
    cpu = Checked(
        lambda state: torch.Generator().set_state(state), first=TensorOf(size, dtype=torch.uint8)
    )
    cuda = Items(TensorOf(None, dtype=torch.uint8, most=size), most=MOST_DEVICES)
    return Fields({"cpu": cpu}, may={"cuda": cuda})


def set_random_state(state: dict[str, Any]) -> None:
    """Restore a random state that `random_state()` returned."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restore torch's random state (CPU and all GPUs) on exit."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield


@contextmanager
def fork_rng(seed: int) -> Iterator[None]:
    """Seed torch inside, and restore its random state (CPU and all GPUs) on exit."""
    with preserve_rng_state():
        torch.manual_seed(seed)
        yield


def seed_of(*parts: bytes | str | int) -> int:
    """Return a seed that follows from these parts alone, in their order, by SHA-256."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def generator(seed: int, *branch: int) -> np.random.Generator:
    """Return a NumPy generator whose state `generator_state` can save.

    With a `branch` it is one of many of this seed, each known by its own numbers.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=branch)))


def generator_state(random: np.random.Generator) -> dict[str, Any]:
    """Return the generator's state, in words and whole numbers."""
    state = random.bit_generator.state
    # 128-bit numbers, as JSON has none
    words = {key: str(value) for key, value in state["state"].items()}
    return {"words": words, "has_uint32": state["has_uint32"], "uinteger": state["uinteger"]}


def describe_generator_state(**others: Kind) -> Kind:
    """Return the kind of a `generator_state()`, with `others` beside it."""
    words = Fields({"state": Word(pattern=A_WORD), "inc": Word(pattern=A_WORD)})
    spare = {"has_uint32": Whole(0, 1), "uinteger": Whole(0, 2**32 - 1)}
    taken = Fields({"words": words, **spare, **others})
    return Checked(lambda state: load_generator_state(generator(0), state), first=taken)


def load_generator_state(random: np.random.Generator, state: dict[str, Any]) -> None:
    """Restore a `generator_state()`; raises `ValueError` for anything else."""
    try:
        words = {key: int(state["words"][key]) for key in ("state", "inc")}
        if not all(0 <= word < 2**128 for word in words.values()) or not words["inc"] % 2:
            raise ValueError("no generator can have these words")
        spare = {"has_uint32": int(state["has_uint32"]), "uinteger": int(state["uinteger"])}
        random.bit_generator.state = {"bit_generator": "PCG64", "state": words, **spare}
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(
            f"it is no state of a random generator: {type(error).__name__} {error}"
        ) from None
