"""Check which parameters training would move.

These are known to Pyro, and get a finite gradient that is not zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine import Trace
from torch import Tensor

from pyro_seq._rng import fork_rng
from pyro_seq.batch import SequenceBatch
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.checks import latent_sites, plate_depth
from pyro_seq.poutine.step_densities import is_enumerated
from pyro_seq.testing.probe import one_line

# the first where the parameters stand, the others a little away, where no layer is exactly zero
EVALUATIONS = 3
AWAY = 0.02


def gradients(pair: Pair, batch: SequenceBatch, model_trace: Trace) -> Iterator[str]:
    """Yield faults of the ELBO's gradient.

    Parameters, statistics and modes are restored afterwards.
    """
    enumerates = any(is_enumerated(site) for site in latent_sites(model_trace).values())
    elbo: Any = (TraceEnum_ELBO if enumerates else Trace_ELBO)(
        max_plate_nesting=plate_depth(model_trace)
    )
    parameters = pair.parameters()
    kept = [(tensor, tensor.detach().clone()) for tensor in _tensors(pair, parameters)]
    largest = dict.fromkeys(parameters, 0.0)
    try:
        pair.train()
        for seed in range(EVALUATIONS):
            with fork_rng(seed), torch.enable_grad():
                _move(parameters, AWAY if seed else 0.0)
                loss = elbo.differentiable_loss(pair.model, pair.guide, batch)
                if not loss.requires_grad:
                    break
                found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                size = 0.0 if gradient is None else float(gradient.abs().max())
                if not size < float("inf"):
                    yield f"the gradient of parameter {name!r} is not finite"
                    return
                largest[name] = max(largest[name], size)
    except Exception as error:
        yield f"the pair's {type(elbo).__name__} cannot be differentiated: {one_line(error)}"
        return
    finally:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
    known = {id(p) for _, p in pyro.get_param_store().named_parameters()}
    for name, parameter in parameters.items():
        if id(parameter) not in known:
            yield (
                f"parameter {name!r} is not registered with Pyro, so SVI leaves it as it is: "
                "call pyro.module, or make it a PyroModule"
            )
        elif largest[name] == 0.0:
            yield (
                f"parameter {name!r} gets no gradient: neither the model's nor the guide's "
                "densities depend on it"
            )


def _tensors(pair: Pair, parameters: dict[str, Tensor]) -> list[Tensor]:
    return [*parameters.values(), *pair.buffers()]


def _move(parameters: dict[str, Tensor], away: float) -> None:
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(away * torch.randn_like(parameter))
