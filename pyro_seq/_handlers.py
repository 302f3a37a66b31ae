"""Pyro's handlers around a pair and around a step: masks, plates that subsample, given paths."""

from __future__ import annotations

from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.mask_messenger import MaskMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor

from pyro_seq.errors import UserError

STEP_MARK = "time"  # the key of a site's `infer` that says which step it is of (see `time_sites`)


class StepMask(MaskMessenger):
    """Mask sequences that have ended before a step, and mark the sites inside with the step.

    Args:
        mask: the sequences that have not ended, `[N]`.
        step: t.
        seen: the sequences of which any cell was observed; observed sites leave the others out.
        in_part: whether some sequence has cells that were observed beside cells that are missing.
    """

    def __init__(
        self, mask: object, step: int, seen: Tensor | None = None, in_part: bool = False
    ) -> None:
        super().__init__(cast("torch.BoolTensor", mask))
        self.step, self.seen, self.in_part = step, seen, in_part

    def _process_message(self, msg: Any) -> None:
        super()._process_message(msg)
        if msg["type"] != "sample":
            return
        msg["infer"].setdefault(STEP_MARK, self.step)
        # the density of a latent of a step counts, whatever was observed at the step
        if self.seen is None or not msg["is_observed"]:
            return
        msg["mask"] = msg["mask"] & self.seen
        if self.in_part and not leaves_cells_out(msg["fn"]):
            raise UserError(
                f"site {msg['name']!r} would count cells that are missing: its distribution must "
                f"be mask_cells(distribution, batch.seen_at({self.step}))"
            )


def leaves_cells_out(distribution: object) -> bool:
    """Tell whether a distribution leaves cells out, or is that of no observation (a factor)."""
    while not isinstance(distribution, (dist.MaskedDistribution, dist.Unit)):
        if getattr(distribution, "seen", None) is not None:
            return True
        # each component of a mixture leaves out the same cells
        inner = "base_dist" if hasattr(distribution, "base_dist") else "component_distribution"
        distribution = getattr(distribution, inner, None)
        if distribution is None:
            return False
    return True


def refuse_subsampling() -> None:
    """Raise `UserError` inside a plate that subsamples, which would copy the batch's sequences."""
    for handler in _PYRO_STACK:
        if isinstance(handler, SubsampleMessenger) and handler.subsample_size not in (
            None,
            -1,
            handler.size,
        ):
            raise UserError(
                f"plate {handler.name!r} takes {handler.subsample_size} of {handler.size}, which "
                "would make copies of a batch's sequences, "
                "and no minibatch of them: call the pair on batch.select(index) instead, under "
                f"poutine.scale(scale={handler.size}/{handler.subsample_size})"
            )


class GivenPath(Messenger):
    """Give the latents `z_0, z_1, …` the values of a path `z` that a handler sets.

    A model in layout `path` has its latents in one site `z`; without observations it runs in steps,
    and draws from a posterior of `z`
    (`Predictive(model, posterior_samples={"z": …})`) would be passed over.

    Args:
        num_steps: T, which the path `[*lead, N, T, Z]` must have; `UserError` is raised otherwise.
    """

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.path, self.is_observed = _path_around("z")
        if self.path is not None and self.path.shape[-2] != num_steps:
            got = self.path.shape[-2]
            raise UserError(
                f"the values given for the path 'z' have {got} steps, and the batch has {num_steps}"
            )

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if self.path is not None and name.startswith("z_") and name[2:].isdigit():
            msg["value"] = self.path[..., int(name[2:]), :]
            msg["is_observed"], msg["done"] = self.is_observed, True


def _path_around(name: str) -> tuple[Tensor | None, bool]:
    """Return (the value that handlers give a site, whether it is an observation)."""
    found: tuple[Tensor | None, bool] = None, False
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, BlockMessenger) and handler.hide_fn(
            {"name": name, "type": "sample", "is_observed": False}
        ):
            break
        if isinstance(handler, ConditionMessenger) and name in handler.data:
            given: Any = handler.data
            found = (given[name] if isinstance(given, dict) else given.nodes[name]["value"]), True
        elif (
            isinstance(handler, ReplayMessenger)
            and handler.trace is not None
            and name in handler.trace
        ):
            found = handler.trace.nodes[name]["value"], False
    return found
