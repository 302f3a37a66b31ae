"""A pair's weights, wherever they are kept: in modules, in PyroModules, in Pyro's store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from pyro.optim import Adam
from torch import Tensor, nn

from pyro_seq import Pair, SequenceBatch, UserError
from pyro_seq.pairs._modules_used import modules_used_by
from pyro_seq.runs.checkpoint import load_tree, save_tree

BATCH = SequenceBatch(torch.zeros(2, 3), [3, 1])


def model(batch: SequenceBatch) -> None:
    loc = pyro.param("loc", lambda: torch.randn(()))
    scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
    with batch.plate():
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        for t in batch.steps():
            with batch.active(t):
                pyro.sample(f"x_{t}", dist.Normal(z, scale), obs=batch.at(t))


def guide(batch: SequenceBatch) -> None:
    loc = pyro.param("posterior", torch.zeros(2))
    with batch.plate():
        pyro.sample("z", dist.Normal(loc.mean(), 1.0))


class Module(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.linear = name, nn.Linear(1, 1)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, batch: SequenceBatch) -> Tensor:
        pyro.module(self.name, self)
        with batch.plate():
            z = pyro.sample("z", dist.Normal(self.linear(torch.ones(1)), 1.0).expand([2]))
            if self.name == "model":
                pyro.sample(
                    "x",
                    dist.Normal(z.unsqueeze(-1), 1.0).expand([2, 3]).to_event(1),
                    obs=batch.values,
                )
        return z


class Probabilistic(PyroModule):
    def __init__(self, observes: bool) -> None:
        super().__init__()
        self.observes = observes
        self.linear = PyroModule[nn.Linear](1, 1)
        # the store knows no modules, so constrained parameters need names of their own
        self.name = "scale" if observes else "width"
        setattr(self, self.name, PyroParam(torch.tensor(0.5), constraint=dist.constraints.positive))

    def forward(self, batch: SequenceBatch) -> None:
        scale = getattr(self, self.name)
        with batch.plate():
            z = pyro.sample("z", dist.Normal(self.linear(torch.ones(1)), scale).expand([2]))
            if self.observes:
                pyro.sample(
                    "x",
                    dist.Normal(z.unsqueeze(-1), 1.0).expand([2, 3]).to_event(1),
                    obs=batch.values,
                )


KINDS: dict[str, Any] = {
    "functions": lambda: Pair(model, guide),
    "modules": lambda: Pair(Module("model"), Module("guide")),
    "pyro modules": lambda: Pair(Probabilistic(True), Probabilistic(False)),
    "a module and a function": lambda: Pair(Module("model"), guide),
}


def called(pair: Pair) -> Pair:
    with pair.scope():
        Trace_ELBO().loss(pair.model, pair.guide, BATCH)
    return pair


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back(kind: str, tmp_path: Path) -> None:
    """Written to a file and read into a new pair, all weights are equal, and so is the loss."""
    pair = called(KINDS[kind]())
    with pair.scope(), torch.no_grad():
        for parameter in pair.parameters().values():
            parameter.add_(torch.rand_like(parameter))
        save_tree(tmp_path / "weights", pair.weights())
        pyro.set_rng_seed(1)
        loss = Trace_ELBO().loss(pair.model, pair.guide, BATCH)
    other = called(KINDS[kind]())
    with other.scope():
        other.load_weights(load_tree(tmp_path / "weights"), tmp_path / "weights")
        pyro.set_rng_seed(1)
        assert Trace_ELBO().loss(other.model, other.guide, BATCH) == loss
        assert all(
            torch.equal(p, q)
            for p, q in zip(pair.parameters().values(), other.parameters().values(), strict=False)
        )


def test_parameters_by_name() -> None:
    names = {
        "functions": ["loc", "posterior", "scale"],
        "modules": [
            "guide.linear.bias",
            "guide.linear.weight",
            "model.linear.bias",
            "model.linear.weight",
        ],
        "a module and a function": ["model.linear.bias", "model.linear.weight", "posterior"],
    }
    for kind, expected in names.items():
        pair = called(KINDS[kind]())
        with pair.scope():
            assert sorted(pair.parameters()) == expected
            assert all(p.is_leaf and p.requires_grad for p in pair.parameters().values())
    pair = called(KINDS["functions"]())
    with pair.scope():
        # unconstrained
        assert float(pair.parameters()["scale"].detach().exp()) == pytest.approx(2.0)


def test_frozen_and_shared_parameters() -> None:
    pair = KINDS["modules"]()
    pair.guide.linear = pair.model.linear
    pair.model.linear.bias.requires_grad_(False)
    assert list(pair.parameters()) == ["model.linear.weight"]


def test_scope_is_the_pairs_own_store() -> None:
    pyro.param("loc", torch.tensor(5.0))
    pairs = [KINDS["functions"]() for _ in range(2)]
    for pair in pairs:
        with pytest.warns(UserWarning, match="begun loc anew, though .*from_param_store"):
            called(pair)
        called(pair)  # says it once
    with pairs[0].scope():
        pyro.param("loc").unconstrained().data.fill_(1.0)
    with pairs[1].scope():
        assert set(pyro.get_param_store().keys()) == {"loc", "scale", "posterior"}
        assert float(pyro.param("loc").detach()) != 1.0
    assert float(pyro.param("loc").detach()) == 5.0 and list(pyro.get_param_store().keys()) == [
        "loc"
    ]


def test_scope_keeps_what_was_learnt_before_an_error() -> None:
    pair = KINDS["functions"]()
    with pytest.raises(KeyError), pair.scope():
        Trace_ELBO().loss(pair.model, pair.guide, BATCH)
        pyro.param("loc").unconstrained().data.fill_(7.0)
        raise KeyError
    with pair.scope():
        assert float(pyro.param("loc").detach()) == 7.0
    assert not pyro.get_param_store().keys()


def test_scopes_nest() -> None:
    """A tool that enters the scope by itself may be used inside of it; nothing that it registers is
    lost.
    """
    pair = KINDS["functions"]()
    with pair.scope():
        called(pair)
        assert set(pair.weights()["store"]) == {"loc", "scale", "posterior"}
    with pair.scope():
        assert set(pair.weights()["store"]) == {"loc", "scale", "posterior"}


def test_scopes_of_other_pairs_nest() -> None:
    """One pair inside another inside the first: each time its own parameters, with all that they
    were registered or changed to.
    """

    def loc() -> float:
        return float(pyro.param("loc").detach())

    first, second = Pair(model, guide), Pair(model, guide)
    with first.scope():
        pyro.param("loc", torch.tensor(1.0))
        with second.scope():
            assert not pyro.get_param_store().keys()
            pyro.param("loc", torch.tensor(2.0))
            with first.scope():
                assert loc() == 1.0
                pyro.param("more", torch.tensor(3.0))
            assert loc() == 2.0 and set(pyro.get_param_store().keys()) == {"loc"}
        assert loc() == 1.0 and set(pyro.get_param_store().keys()) == {"loc", "more"}
    with second.scope():
        assert loc() == 2.0 and set(pyro.get_param_store().keys()) == {"loc"}
    with first.scope():
        assert set(pyro.get_param_store().keys()) == {"loc", "more"}
    assert not pyro.get_param_store().keys()


def test_a_pair_from_the_param_store_is_what_was_trained_by_hand(tmp_path: Path) -> None:
    """What they ask for, and no other name; copies, with their constraints; saved and loaded as any
    other parameters.
    """
    pyro.param("unrelated", torch.zeros(3))
    pyro.param("loc", torch.tensor(5.0))
    pyro.param("scale", torch.tensor(0.25), constraint=dist.constraints.positive)
    before = torch.get_rng_state()
    pair = Pair.from_param_store(model, guide, BATCH)
    assert torch.equal(torch.get_rng_state(), before) and "posterior" not in pyro.get_param_store()
    called(pair)
    with pair.scope():
        assert (
            set(pair.weights()["store"]) == set(pair.parameters()) == {"loc", "scale", "posterior"}
        )
        assert (
            float(pyro.param("loc").detach()) == 5.0 and float(pyro.param("scale").detach()) == 0.25
        )
        assert all(p.is_leaf and p.requires_grad for p in pair.parameters().values())
        for parameter in pair.parameters().values():
            parameter.data.add_(1.0)
        save_tree(tmp_path / "weights", pair.weights())
    assert float(pyro.param("loc").detach()) == 5.0, "what stands outside is left alone"
    with pair.scope():
        assert float(pyro.param("loc").detach()) == 6.0, "copied once"
    pyro.clear_param_store()
    other = called(Pair(model, guide))
    with other.scope():
        other.load_weights(load_tree(tmp_path / "weights"), tmp_path / "weights")
        assert float(pyro.param("loc").detach()) == 6.0


def closures() -> Pair:
    """Functions with modules in their closures, and a parameter of their own."""
    inner, outer = nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 2), nn.Dropout(0.5))

    def model(batch: SequenceBatch) -> None:
        pyro.module("inner", inner)
        with batch.plate():
            z = pyro.sample(
                "z",
                dist.Normal(inner(torch.ones(1)), pyro.param("width", torch.tensor(1.0))).expand(
                    [2]
                ),
            )
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        pyro.module("outer", outer)
        with batch.plate():
            pyro.sample("z", dist.Normal(outer(torch.ones(2, 1)).sum(-1), 1.0))

    return Pair(model, guide)


def test_modules_of_functions_trained_by_hand_stay_their_own() -> None:
    """What a loop of one's own has trained is what the pair's tools see, train on and load."""
    pair = closures()
    svi = SVI(pair.model, pair.guide, Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(BATCH)
    width = float(pyro.param("width").detach())
    assert width != 1.0
    pair = Pair.from_param_store(pair.model, pair.guide, BATCH)
    with pair.scope():
        Trace_ELBO().loss_and_grads(pair.model, pair.guide, BATCH)
        assert float(pyro.param("width").detach()) == width
        parameters = pair.parameters()
        assert set(parameters) == {
            "width",
            "inner$$$weight",
            "inner$$$bias",
            "outer$$$0.weight",
            "outer$$$0.bias",
        }
        assert all(p.grad is not None for p in parameters.values())
        weights = pair.weights()
        before = weights["store"]["inner$$$bias"].clone()
        pair.load_weights({"store": {name: w + 1 for name, w in weights["store"].items()}}, "here")
        assert torch.equal(modules_used_by(pair.model)[0].bias, before + 1)


def test_a_function_beside_a_module_from_the_param_store() -> None:
    pyro.param("posterior", torch.tensor([3.0, 5.0]))
    pair = called(Pair.from_param_store(Module("model"), guide, BATCH))
    with pair.scope():
        assert pyro.param("posterior").tolist() == [3.0, 5.0]


def test_modules_of_functions_have_the_pairs_mode() -> None:
    pair = closures()
    (outer,) = modules_used_by(pair.guide)
    with pair.evaluating():
        assert not outer.training and not outer[1].training
    assert outer.training and outer[1].training
    pair.train(False)
    assert not outer[1].training


@pytest.mark.parametrize("kind", ["modules", "pyro modules"])
def test_names_of_modules_in_the_store_are_never_copied(kind: str) -> None:
    called_outside = KINDS[kind]()
    # names of the same modules, in Pyro's own store
    Trace_ELBO().loss(called_outside.model, called_outside.guide, BATCH)
    with pyro.get_param_store().scope():
        expected = called(KINDS[kind]())
        with expected.scope():
            names = {side: set(part) for side, part in expected.weights().items()}
    pair = KINDS[kind]()
    pair = called(Pair.from_param_store(pair.model, pair.guide, BATCH))
    outside = {id(p) for _, p in pyro.get_param_store().named_parameters()}
    with pair.scope():
        assert {side: set(part) for side, part in pair.weights().items()} == names
        assert not outside & {id(p) for p in pair.parameters().values()}


def test_evaluating_gives_each_module_its_mode_back() -> None:
    pair = KINDS["modules"]()
    pair.model.linear.eval()
    with pytest.raises(KeyError), pair.evaluating():
        assert not pair.model.training and not pair.guide.linear.training
        raise KeyError
    assert pair.model.training and not pair.model.linear.training and pair.guide.linear.training


def test_mode_and_device() -> None:
    pair = KINDS["modules"]()
    pair.train(False)
    assert not pair.model.training and not pair.guide.linear.training
    pair.train()
    assert pair.model.training and pair.guide.training
    assert pair.to("cpu") is pair
    assert Pair(model).modules() == {}


BROKEN: dict[str, Any] = {
    "holds no weights": lambda w: [1, 2],
    "holds \\['model'\\]": lambda w: {"model": w["model"]},
    "'guide.linear.bias' is missing": lambda w: (
        w | {"guide": {k: v for k, v in w["guide"].items() if k != "linear.bias"}}
    ),
    "'guide.more' is unknown": lambda w: w | {"guide": w["guide"] | {"more": torch.zeros(1)}},
    "'guide.linear.bias' has shape \\[2\\], not \\[1\\]": lambda w: (
        w | {"guide": w["guide"] | {"linear.bias": torch.zeros(2)}}
    ),
    "'guide.linear.bias' is not finite": lambda w: (
        w | {"guide": w["guide"] | {"linear.bias": torch.tensor([torch.nan])}}
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_wrong_weights_are_refused_whole(message: str) -> None:
    """The error says what is wrong, and neither side has changed."""
    pair, other = called(KINDS["modules"]()), called(KINDS["modules"]())
    before = {name: p.detach().clone() for name, p in pair.parameters().items()}
    with other.scope():
        wrong = BROKEN[message](other.weights())
    with pair.scope(), pytest.raises(UserError, match=message):
        pair.load_weights(wrong, "there")
    assert all(torch.equal(p, before[name]) for name, p in pair.parameters().items())
