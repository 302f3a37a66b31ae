"""Make a pair of a program's parts and of the pair's settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pyro
import torch
from pyro import poutine

from pyro_seq._rng import random_state, set_random_state
from pyro_seq.batch import SequenceBatch
from pyro_seq.config.model_settings import model_settings, parameters_of, recipe_of
from pyro_seq.config.registry import PairEntry, find_pair
from pyro_seq.config.shipped import ModelSettings
from pyro_seq.contexts import Context
from pyro_seq.emissions.base import Emission
from pyro_seq.encoders import Encoder
from pyro_seq.errors import UserError
from pyro_seq.infer.sampling import draw
from pyro_seq.pairs.model import declared
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.shared import shared_latents

__all__ = [
    "PairComponents",
    "PairEntry",
    "carries_state",
    "find_pair",
    "make_pair",
    "model_settings",
]


@dataclass(frozen=True)
class PairComponents:
    """The emission, encoder, context and side inputs that a program gives to a pair.

    Args:
        emission: p(x_t | features).
        encoder: makes an encoder of observations; called once for the model's context and once for
            the guide.
        context: makes the model's context from its encoder.
        num_inputs: size of the side inputs, 0 if there are none.
        regressors: makes an encoder of the side inputs; `None` where they stand as they are.
        seasons: lengths of the seasons of the data, in steps.
    """

    emission: Emission
    encoder: Callable[[], Encoder]
    context: Callable[[Encoder], Context]
    num_inputs: int = 0
    regressors: Callable[[], Encoder | None] = field(default_factory=lambda: _as_they_stand)
    seasons: tuple[int, ...] = ()

    def example(self, lengths: Sequence[int] = (3, 3)) -> SequenceBatch:
        """Return sequences as the emission draws them given zero features and side inputs."""
        n, steps = len(lengths), max(lengths)
        with torch.no_grad():
            values = draw(self.emission.blank(n, steps))
        return SequenceBatch(
            values,
            list(lengths),
            inputs=torch.zeros(n, steps, self.num_inputs) if self.num_inputs else None,
        )


def _as_they_stand() -> None:
    """Make no encoder."""


def make_pair(settings: ModelSettings, parts: PairComponents) -> Pair:
    """Make the pair that `model_settings` describes, with new weights.

    What makes it is called with those of the parts that it names as parameters (`emission`,
    `encoder`, `context`, `num_inputs`, `regressors`) and with its settings; a setting `seasons`
    that is `None` is the data's. It returns a model, or a model and a guide. A model that comes
    alone is given no guide if it has no latents, and an
    `AutoSequenceGuide` if it has, in a `GlobalGuide` where all sequences share some. Pairs that are
    not shipped are run once, on an example, so that parameters which are made by a first call
    exist.

    Raises `UserError` where code that is not ours fails, or returns something else.
    """
    entry = recipe_of(settings)
    values = {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if field.name != "name"
    }
    with entry.explained("could not be made"):
        made = _call(entry, entry.maker, values, parts)
    if entry.guide is not None:
        return Pair(made, _call(entry, entry.guide, values | {"model": made}, parts))
    if entry.shipped:
        return Pair(made)
    sides = made if isinstance(made, tuple) else (made,)
    if len(sides) not in (1, 2) or not all(callable(side) for side in sides):
        what = (
            f"({', '.join(type(side).__name__ for side in made)})"
            if isinstance(made, tuple)
            else type(made).__name__
        )
        wanted = "a model, or a model and a guide, callables on a SequenceBatch"
        raise UserError(
            f"the pair {entry.kind!r}: what makes it must return {wanted}, and returned {what}"
        )
    # without validation, which would speak of a distribution: what is not finite is said of a site
    # before anything is trained
    with entry.explained("fails on a first batch"), pyro.validation_enabled(False):
        return _run_once(Pair(*sides), parts.example(), alone=len(sides) == 1)


def _call(
    entry: PairEntry, function: Callable[..., Any], values: Mapping[str, Any], parts: PairComponents
) -> Any:
    """A maker called with what it names of settings and parts; encoder and context are made for
    it.
    """
    makers: dict[str, Callable[[], Any]] = {
        "emission": lambda: parts.emission,
        "context": lambda: parts.context(parts.encoder()),
        "encoder": parts.encoder,
        "num_inputs": lambda: parts.num_inputs,
        "regressors": parts.regressors,
        "seasons": lambda: parts.seasons,
    }
    named = parameters_of(function, entry)
    given = {
        name: values[name]
        for name in named
        if name in values and not (name in makers and values[name] is None)
    }
    return function(
        **given,
        **{name: make() for name, make in makers.items() if name in named and name not in given},
    )


def _run_once(pair: Pair, batch: SequenceBatch, *, alone: bool) -> Pair:
    """The pair after a first run, with a guide made for its model if that came alone and has
    latents.
    """
    with pair.scope(), pair.evaluating(), torch.no_grad():
        guided = poutine.trace(pair.guide).get_trace(batch)
        trace = poutine.trace(poutine.replay(pair.model, trace=guided)).get_trace(batch)
    if not alone or not any(_is_latent(site) for site in trace.nodes.values()):
        return pair
    from pyro_seq.guides.auto import AutoSequenceGuide
    from pyro_seq.infer.global_latents import GlobalGuide

    local = AutoSequenceGuide(pair.model)
    shared = shared_latents(pair, batch)
    pair.guide = GlobalGuide(pair.model, local) if shared else local
    with pair.scope(), pair.evaluating(), torch.no_grad():
        pair.guide(batch) if shared else local.prepare(batch)
    return pair


def _is_latent(site: Mapping[str, Any]) -> bool:
    """Whether a site of a model's trace is something to infer."""
    sampled = (
        site["type"] == "sample"
        and not site["is_observed"]
        and type(site["fn"]).__name__ != "_Subsample"
    )
    return sampled and not site["infer"].get("_deterministic")


def carries_state(pair: Pair, parts: PairComponents, device: torch.device | str = "cpu") -> bool:
    """Tell whether a window can start from the state in which the one before ended.

    The `SequenceOutput` of the model on an example decides.

    Leaves the random state as it is.
    """
    if declared(pair.model) is not None:
        return True
    random = random_state()
    try:
        with pair.scope(), pair.evaluating(), torch.no_grad(), pyro.validation_enabled(False):
            batch = parts.example().to(device)
            guided = poutine.trace(pair.guide).get_trace(batch)
            outcome = poutine.replay(pair.model, trace=guided)(batch)
    finally:
        set_random_state(random)
    return getattr(outcome, "state", None) is not None
