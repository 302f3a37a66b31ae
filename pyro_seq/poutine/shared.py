"""Latents that all sequences share: which sites they are, and how they are given values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import pyro.distributions as dist
from pyro.nn import PyroModule
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_seq.batch import PLATE, STEP_MARK, SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.pairs.model import SequenceModel, declared
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.probe import trace_model
from pyro_seq.poutine.step_densities import is_enumerated
from pyro_seq.poutine.time_sites import Site, sample_sites

COPIES = 3  # of a sequence that a model is run on: a number that few other plates have
HOW_TO_GUIDE = "GlobalGuide(model, guide) adds them to the guide of the others"


def shared_sites(trace: Trace, size: int) -> dict[str, Site]:
    """Return the latents of a trace of `size` sequences that are one for all, by name.

    They stand outside of `batch.plate()`, and their last batch dimension does not count the
    sequences, unless it is another plate's in a model that enters `batch.plate()`. Latents marked
    to be enumerated are left out, and so are sites marked as those of a step, which are never
    shared.
    """
    sites = dict(sample_sites(trace))
    in_plate = {name for name, site in sites.items() if any(f.name == PLATE for f in _frames(site))}
    return {
        name: site
        for name, site in sites.items()
        if not site["is_observed"]
        and not is_enumerated(site)
        and name not in in_plate
        and (
            site["fn"].batch_shape[-1:] != (size,)
            or (bool(in_plate) and any(frame.dim == -1 for frame in _frames(site)))
        )
        and not isinstance((site["infer"] or {}).get(STEP_MARK), int)
    }


def _frames(site: Site) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def shared_latents(pair: Pair, batch: SequenceBatch) -> list[str]:
    """Return the names of the latents of a pair's model that all sequences share.

    Of a model that declares its equations they are its random weights (`PyroSample`). Any other is
    run once, on copies of the batch's first sequence, and what that run shows is kept with the
    pair.
    """
    model, weights = declared(pair.model), random_weights(pair.model)
    if model is not None and (weights or type(model).forward is SequenceModel.forward):
        return weights
    key = _key(pair.model)
    if key not in pair.longer_runs:
        if not len(batch) or not batch.num_steps:
            return []
        few = batch.select(slice(1)).repeat(COPIES)
        with pair.scope():
            try:
                trace = trace_model(pair.model, few)
            except Exception:  # the user's model's own fault, which the tool's run will show
                return []
        pair.longer_runs[key] = dict.fromkeys(shared_sites(trace, COPIES))
    return list(pair.longer_runs[key] or ())


def _key(model: object) -> tuple[str, int]:
    return "shared", id(model)


def random_weights(model: object) -> list[str]:
    """Return the names of the weights of a module that are drawn (`PyroSample`)."""
    if not isinstance(model, nn.Module):
        return []
    return [
        f"{path}.{name}".lstrip(".")
        for path, part in model.named_modules()
        if isinstance(part, PyroModule)
        for name in part._pyro_samples
    ]


class Fixed(Messenger):
    """Give sites values that are no longer random: neither draws nor densities are left of them."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] not in self.values:
            return
        value = self.values[msg["name"]]
        msg["fn"] = dist.Delta(value, event_dim=msg["fn"].event_dim).mask(False)
        msg["value"], msg["is_observed"], msg["done"] = value, True, True
        msg["infer"] = {**(msg["infer"] or {}), "_deterministic": True}


def sharing(batch: SequenceBatch, values: Mapping[str, Tensor]) -> SequenceBatch:
    """Return the same batch with values of shared latents, at which a guide may look."""
    batch = copy(batch)
    batch.globals = dict(values)
    return batch


class _Given:
    """A model or guide whose shared latents have values."""

    def __init__(self, inner: Callable[[SequenceBatch], Any], values: Mapping[str, Tensor]) -> None:
        self.inner, self.values = inner, values

    def __call__(self, batch: SequenceBatch) -> object:
        with Fixed(self.values):
            return self.inner(sharing(batch, self.values))

    @property
    def stops_at_gaps(self) -> bool:
        return bool(getattr(self.inner, "stops_at_gaps", False))


@contextmanager
def given(pair: Pair, values: Mapping[str, Tensor], guide: Any = None) -> Iterator[Pair]:
    """Yield the pair given its shared latents: a pair without any, of the same parameters.

    Random weights of a declared model hold their values inside, so that its equations run as those
    of any other; functions are run with the sites' values.

    Args:
        pair: a pair with shared latents.
        values: of the sites of the model, and of those of the guide, by name.
        guide: that of the other latents, where the pair's is made of several.
    """
    model, guide = pair.model, pair.guide if guide is None else guide
    weights = random_weights(model)
    if isinstance(model, nn.Module) and weights and not values.keys() - set(weights):
        with _weights_held(model, {name: values[name] for name in weights}):
            yield pair.with_sides(model, guide)
        return
    known = pair.with_sides(_Given(model, values), _Given(guide, values))
    known.longer_runs[_key(known.model)] = {}
    yield known


@contextmanager
def _weights_held(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Put values into the place of a module's random weights inside."""
    priors = []
    try:
        for name, value in values.items():
            path, _, last = name.rpartition(".")
            part: Any = model.get_submodule(path)
            priors.append((part, last, part._pyro_samples.pop(last)))
            part.register_buffer(last, value, persistent=False)
        for part in {id(part): part for part, _, _ in priors}.values():
            if isinstance(part, nn.RNNBase):  # which has a list of its weights besides
                part._flat_weights = [getattr(part, name) for name in part._flat_weights_names]
        yield
    finally:
        for part, last, prior in priors:
            if last in part._buffers:
                delattr(part, last)
            part._pyro_samples[last] = prior


def refuse_shared(pair: Pair, batch: SequenceBatch, what: str) -> None:
    """Raise `UserError` where a pair has latents that all sequences share."""
    if names := shared_latents(pair, batch):
        raise UserError(
            f"{what} runs given {names[0]!r}, which all sequences share: loop over draws, "
            "for values, given in global_draws(pair, batch, n)"
        )
