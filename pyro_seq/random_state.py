"""The state of torch's random number generators, on all devices, as a tree of tensors."""

from __future__ import annotations

from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """What `set_random_state` goes back to."""
    cuda = {"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state()} | cuda


def set_random_state(state: dict[str, Any]) -> None:
    """Go on from `random_state()`."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
