"""Restoring a run: the shapes that its weights are compared with are found without numbers."""

from __future__ import annotations

import subprocess
import sys

import pyro
import pytest

from pyro_seq import emissions
from pyro_seq.models import LGSSM, SLDS
from pyro_seq.programs.restore import shapes_only

SHAPES = """
import sys
from pyro_seq.config.registry import SHIPPED
from pyro_seq.music.model.model import music_settings, new_pair
from pyro_seq.programs.restore import shapes_only

def shapes(pair):
    states = {name: module.state_dict() for name, module in pair.modules().items()}
    return {(name, key): weight.shape for name in states for key, weight in states[name].items()}

for emission in ("nade", "autoregressive_convolution"):
    for kind in SHIPPED:
        if kind in ("lgssm", "slds") or (kind, emission) == ("hmm", "autoregressive_convolution"):
            continue
        settings = music_settings({"model.name": kind, "frames.emission": emission})
        with shapes_only():
            expected = new_pair(settings)
        assert shapes(expected) == shapes(new_pair(settings)) != {}
assert not {"sympy", "torch._dynamo"} & set(sys.modules)
"""


def test_shapes_are_those_of_the_weights_and_load_no_compiler() -> None:
    ran = subprocess.run([sys.executable, "-P", "-c", SHAPES], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("make", [LGSSM, SLDS])
def test_models_that_look_at_their_emission_have_shapes_too(make: type[LGSSM | SLDS]) -> None:
    """Distributions check their parameters, which have no values there."""
    with pyro.validation_enabled(), shapes_only():
        model = make(emissions.Normal())
    assert all(weight.is_meta for weight in model.parameters())
