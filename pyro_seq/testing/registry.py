"""Check a pair by the name or spec that programs use, on small parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyro

from pyro_seq import emissions
from pyro_seq.config.build import PairComponents, make_pair
from pyro_seq.config.fields import Setting
from pyro_seq.config.model_settings import KIND, Layer, model_settings, resolve
from pyro_seq.config.shipped import ModelSettings
from pyro_seq.contexts import PreviousObservation
from pyro_seq.encoders import Embedding, Flatten
from pyro_seq.errors import UserError, said
from pyro_seq.testing import objective_needed, problems

SMALL: dict[str, Setting] = {
    "hidden_size": 8,
    "latent_size": 2,
    "latent_sizes": (8,),
    "feature_sizes": (8,),
    "transition_sizes": (8,),
    "emission_sizes": (8,),
}
LENGTHS = (6, 4, 1, 5)  # of the sequences that a pair is checked on


@dataclass(frozen=True)
class _Settings:
    model: ModelSettings = field(default_factory=lambda: model_settings("rnn"))


def settings_of(name: str, changes: Mapping[str, Setting]) -> ModelSettings:
    """Return the settings of a small pair by its name or spec, some of `model.*` changed.

    Raises `UserError` for an unknown name or setting.
    """
    if KIND in changes:
        raise UserError(f"--set: {KIND} is what is checked; give it in place of NAME")
    return resolve(
        _Settings, [Layer({KIND: name}, "pairs check"), Layer(changes, "--set")], SMALL
    ).model


def checked(
    settings: ModelSettings, emission: str, *, seed: int = 0
) -> tuple[list[str], str | None]:
    """Return what is wrong with the pair of these settings, and the objective that it needs.

    The faults are `testing.problems`', the objective `testing.objective_needed`'s. The emission is
    `categorical`, `bernoulli` or `normal`.
    """
    pyro.set_rng_seed(seed)
    parts = example_parts(emission)
    try:
        pair = make_pair(settings, parts)
        batch = parts.example(LENGTHS)
        with pair.scope():
            found = problems(pair.model, pair.guide, batch)
            return found, None if found else objective_needed(pair.model, pair.guide, batch)
    except UserError as error:
        return [said(error)], None


def example_parts(emission: str) -> PairComponents:
    """Return small parts for an emission, as a program would give them to a pair."""
    if emission == "categorical":
        return PairComponents(
            emissions.Categorical(5), lambda: Embedding(5, 4), PreviousObservation
        )
    event = emissions.Bernoulli() if emission == "bernoulli" else emissions.Normal()
    return PairComponents(emissions.Factorised(event, 3), lambda: Flatten(3), PreviousObservation)
