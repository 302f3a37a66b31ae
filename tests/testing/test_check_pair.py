"""The contract check: silent on sound pairs, and each fault, put into a sound pair by itself, is
found and named.
"""

from __future__ import annotations

import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_seq import SequenceBatch
from pyro_seq.guides import no_guide
from pyro_seq.testing import PairProblems, check_pair, notes, problems


def reals(full: bool = False) -> SequenceBatch:
    return SequenceBatch(torch.randn(4, 5), None if full else [5, 3, 1, 4])


# a sound pair, in which faults can be put


class Model(nn.Module):
    """z_t ~ N(a z_{t-1} + b x_{t-1}, 1); x_t ~ N(z_t, s)."""

    def __init__(self, **faults: Any) -> None:
        super().__init__()
        self.faults = faults
        self.a, self.b = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(0.3))
        self.scale = nn.Parameter(torch.tensor(0.1))
        if "unused" in faults:
            self.unused = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, batch: SequenceBatch) -> None:
        f = self.faults
        if "unregistered" not in f:
            pyro.module("model", self)
        self.calls += 1
        if "raises" in f:
            raise IndexError("a hole\nin the model")
        n = len(batch)
        z = x = torch.zeros(n)
        plate = pyro.plate("sequences", n, dim=-1)
        with plate:
            for t in batch.steps():
                with batch.active(t):
                    loc = self.a * z + self.b * x
                    if "peeks" in f and batch.values is not None:
                        loc = loc + 0.5 * batch.at(t)
                    if "peeks ahead" in f and batch.values is not None and t + 1 < batch.num_steps:
                        loc = loc + 0.5 * batch.at(t + 1)
                    if "mixes" in f:
                        loc = loc - loc.mean()
                    if "place" in f:
                        loc = loc + 0.1 * torch.arange(n)
                    if "calls" in f:
                        loc = loc + 0.1 * self.calls
                    if "noise" in f:
                        loc = loc + torch.randn(n)
                    prior: Any = (
                        dist.LogNormal(loc, 1.0) if "support" in f else dist.Normal(loc, 1.0)
                    )
                    if "shape" in f:
                        prior = dist.Normal(loc.unsqueeze(-1).expand(n, 2), 1.0).to_event(1)
                    z = pyro.sample(f"z_{t}", prior)
                    if "latent" in f:
                        pyro.sample(f"w_{t}", dist.Normal(torch.zeros(n), 1.0))
                    if "shape" in f:
                        z = z.sum(-1)
                    if "sees length" in f:
                        z = z * (1 + 0.1 * batch.num_steps)
                    if "nan" in f and t == 2:
                        z = z * torch.nan
                    if "own mask" not in f:
                        x = self._observe(batch, t, z)
                if "own mask" in f:
                    x = self._observe(batch, t, z)

    def _observe(self, batch: SequenceBatch, t: int, z: Tensor) -> Tensor:
        scale = self.scale.exp()
        if "nan gradient" in self.faults:
            scale = scale + (0 * self.b).sqrt()
        name = "x" if "name" in self.faults and t == 0 else f"x_{t}"
        if "values" in self.faults:
            return pyro.sample(name, dist.Normal(z, scale), obs=batch.values[:, t])  # type: ignore[index]
        if "sampled support" in self.faults and batch.values is None:
            return pyro.sample(name, dist.LogNormal(z, scale))
        if "sampled form" in self.faults and batch.values is None:
            return pyro.sample(name, dist.Normal(z, scale).expand([2, len(batch)])).sum(0)
        return pyro.sample(name, dist.Normal(z, scale), obs=batch.at(t))


class Guide(nn.Module):
    def __init__(self, **faults: Any) -> None:
        super().__init__()
        self.faults = faults
        self.gru, self.out = nn.GRU(1, 3, batch_first=True), nn.Linear(4, 2)
        if "frozen" in faults:
            self.out.bias.requires_grad_(False)

    def forward(self, batch: SequenceBatch) -> None:
        pyro.module("guide", self)
        x, n = batch.values, len(batch)
        assert isinstance(x, Tensor)
        seen = x.unsqueeze(-1)
        h = (
            self.gru(seen.flip(1))[0].flip(1)
            if "reads padding" in self.faults
            else batch.reverse(self.gru(batch.reverse(seen))[0])
        )
        if "detached" in self.faults:
            h = h.detach()
        z = torch.zeros(n)
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    if "misses" in self.faults and t == 2:
                        continue
                    loc, raw = self.out(
                        torch.cat([h[:, t].expand(*z.shape, 3), z.unsqueeze(-1)], -1)
                    ).unbind(-1)
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, raw.exp()))
                    if "extra" in self.faults:
                        pyro.sample(f"y_{t}", dist.Normal(loc, raw.exp()))


FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "the model raises": (
        {"raises": 1},
        {},
        "the model fails before its first site: IndexError: a hole",
    ),
    "a latent that the guide lacks": (
        {"latent": 1},
        {},
        r"the guide has no site 'w_0' \(and 4 more\), which the model samples",
    ),
    "a latent of one step": (
        {},
        {"misses": 1},
        "the guide has no site 'z_2', which the model samples",
    ),
    "a latent that the model lacks": (
        {},
        {"extra": 1},
        r"the model has no site 'y_0' \(and 4 more\), which the guide samples",
    ),
    "event shapes": (
        {"shape": 1},
        {},
        r"site 'z_0' \(and 4 more\) has event shape \[\] in the guide and \[2\] in the model",
    ),
    "supports": (
        {"support": 1},
        {},
        (
            r"site 'z_0' .* is sampled from Real\(\) by the guide, which leads out of the model's "
            r"support Greater"
        ),
    ),
    "a parameter that nothing uses": (
        {"unused": 1},
        {},
        "parameter 'model.unused' gets no gradient",
    ),
    "weights cut off": ({}, {"detached": 1}, "parameter 'guide.gru.weight_ih_l0' gets no gradient"),
    "a module that Pyro does not know": (
        {"unregistered": 1},
        {},
        "parameter 'model.a' is not registered with Pyro.*pyro.module",
    ),
    "a gradient that is not finite": (
        {"nan gradient": 1},
        {},
        "the gradient of parameter 'model.b' is not finite",
    ),
    "a density that is not finite": (
        {"nan": 1},
        {},
        r"the log-density of site 'x_2' .* in the model is not finite \(sequence 0\)",
    ),
    "a batch that is averaged over": (
        {"mixes": 1},
        {},
        r"site 'z_\d' .*in the model changes by .* when the other sequences change",
    ),
    "a place in the batch": (
        {"place": 1},
        {},
        "site 'z_0' .*in the model changes .* when the batch's order changes",
    ),
    "something kept from call to call": (
        {"calls": 1},
        {},
        "site 'z_0' .* in the model changes .* evaluated again",
    ),
    "noise of its own": ({"noise": 1}, {}, "site 'z_0' .* in the model changes .* evaluated again"),
    "padding read backwards": (
        {},
        {"reads padding": 1},
        r"site 'z_0' .* in the guide changes by .* \(sequence \d\) when more padding",
    ),
    "padding counted": (
        {"sees length": 1},
        {},
        r"site '[xz]_\d' .* in the model changes by .* when more padding follows",
    ),
    "a site that is not masked": (
        {"own mask": 1},
        {},
        r"site 'x_\d' \(and \d more\) in the model is not masked: .*batch.active\(t\)",
    ),
    "a prior that peeks": (
        {"peeks": 1},
        {},
        r"the model looks ahead: what it says of site 'z_0' at step 0 \(sequence \d\)",
    ),
    "a prior that peeks ahead": (
        {"peeks ahead": 1},
        {},
        r"the model looks ahead: what it says of site 'z_0' at step 0",
    ),
    "an observation of no step": (
        {"name": 1, "own mask": 1},
        {},
        "site 'x' belongs to no step: name it for its step",
    ),
    "no sampling": (
        {"values": 1},
        {},
        (
            "on a batch without values, from which a model samples: the model fails after site "
            "'z_0': "
            "TypeError"
        ),
    ),
    "another support when sampled": (
        {"sampled support": 1},
        {},
        "site 'x_0' is sampled otherwise than it is scored: from GreaterThan",
    ),
    "another form when sampled": (
        {"sampled form": 1},
        {},
        r"site 'x_0' is sampled otherwise than it is scored: batch shape \[2, 4\]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("full", [False, True], ids=["padded", "full"])
def test_each_fault_is_named(fault: str, full: bool) -> None:
    of_model, of_guide, message = FAULTS[fault]
    found = problems(Model(**of_model), Guide(**of_guide), reals(full))
    assert any(re.search(message, line) for line in found), found
    assert all("\n" not in line for line in found)
    with pytest.raises(PairProblems, match=message):
        check_pair(Model(**of_model), Guide(**of_guide), reals(full))


@pytest.mark.parametrize("full", [False, True])
def test_without_faults_there_is_nothing_to_say(full: bool) -> None:
    assert problems(Model(), Guide(frozen=1), reals(full)) == []


# other kinds of faults


def no_plate(batch: SequenceBatch) -> None:
    for t in batch.steps():
        with batch.active(t):
            pyro.sample(f"x_{t}", dist.Normal(torch.zeros(len(batch)), 1.0), obs=batch.at(t))


def unmasked_path(batch: SequenceBatch) -> None:
    with batch.plate():
        pyro.sample(
            "x",
            dist.Normal(torch.zeros(len(batch), batch.num_steps), 1.0).to_event(1),
            obs=batch.values,
        )


def short_memory(batch: SequenceBatch) -> None:
    """Each step's mean is the mean of the sequence, in one site."""
    level = (
        torch.zeros(len(batch), 1)
        if batch.values is None
        else batch.values.sum(-1, keepdim=True) / 5
    )  # type: ignore[union-attr]
    with batch.plate():
        normal = dist.Normal(level.expand(len(batch), batch.num_steps), 1.0)
        pyro.sample("x", normal.mask(batch.mask).to_event(1), obs=batch.values)


def fixed_length(batch: SequenceBatch) -> None:
    loc = pyro.param("loc", torch.zeros(5))
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                pyro.sample(
                    f"x_{t}", dist.Normal(loc[t], 1.0).expand([len(batch)]), obs=batch.at(t)
                )


def wrong_scale(batch: SequenceBatch) -> None:
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                pyro.sample(
                    f"x_{t}", dist.Bernoulli(torch.full((len(batch),), 0.5)), obs=batch.at(t)
                )


def stateful(batch: SequenceBatch) -> Any:
    class Result:
        state = torch.zeros(1, len(batch))

    unmasked_but_for(batch)
    return Result()


def unmasked_but_for(batch: SequenceBatch) -> None:
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                pyro.sample(f"x_{t}", dist.Normal(torch.zeros(len(batch)), 1.0), obs=batch.at(t))


OTHERS: dict[str, tuple[Any, Any, str]] = {
    "no plate": (no_plate, no_guide, r"site 'x_0' \(and 4 more\) in the model is in no plate"),
    "a path that is not masked": (unmasked_path, no_guide, "site 'x' in the model is not masked"),
    "a path that looks ahead": (
        short_memory,
        no_guide,
        "the model looks ahead: what it says of site 'x' at step 0",
    ),
    "a fixed length": (
        fixed_length,
        no_guide,
        "with two more steps of padding: the model fails after site 'x_4': IndexError",
    ),
    "values out of support": (
        wrong_scale,
        no_guide,
        (
            "under Pyro's validation: ValueError: Error while computing log_prob at site 'x_0': "
            ".*within the support"
        ),
    ),
    "a state": (
        stateful,
        no_guide,
        (
            r"the model's state has a tensor of shape \[1, 4\]: its first dimension must be the "
            r"sequences \(4\)"
        ),
    ),
}


@pytest.mark.parametrize("fault", OTHERS)
def test_other_faults(fault: str) -> None:
    model, guide, message = OTHERS[fault]
    found = problems(model, guide, reals())
    assert any(re.search(message, line) for line in found), found


def test_in_double_precision(float64: None) -> None:
    assert problems(Model(), Guide(), reals()) == []


def test_vectorised_particles_are_a_note() -> None:
    class OneDimension(Guide):
        def forward(self, batch: SequenceBatch) -> None:
            def rows(z: Tensor) -> Tensor:
                assert z.dim() == 1, "one dimension only"
                return z

            pyro.module("guide", self)
            with batch.plate():
                for t in batch.steps():
                    with batch.active(t):
                        rows(
                            pyro.sample(
                                f"z_{t}", dist.Normal(self.out.bias[0].expand(len(batch)), 1.0)
                            )
                        )

    found = notes(Model(), OneDimension(), reals())
    assert (
        len(found) == 1
        and "does not run with vectorised particles" in found[0]
        and "one dimension only" in found[0]
    )


def test_missing_cells_that_count_are_named() -> None:
    """A pair that masks padding alone, on a batch that lacks whole steps."""

    def counts_all(batch: SequenceBatch) -> None:
        level = pyro.param("level", torch.zeros(()))
        with batch.plate():
            for t in batch.steps():
                with poutine.mask(mask=batch.mask[:, t]):
                    pyro.sample(
                        f"x_{t}", dist.Normal(level.expand(len(batch)), 1.0), obs=batch.at(t)
                    )

    def leaves_out(batch: SequenceBatch) -> None:
        level = pyro.param("level", torch.zeros(()))
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(
                        f"x_{t}", dist.Normal(level.expand(len(batch)), 1.0), obs=batch.at(t)
                    )

    batch = SequenceBatch(torch.randn(3, 4), missing=torch.rand(3, 4) < 0.5)
    assert problems(leaves_out, no_guide, batch) == []
    (wrong,) = problems(counts_all, no_guide, batch)
    assert "in the model counts cells that are missing: sample it under" in wrong
