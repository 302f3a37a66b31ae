"""Feed-forward parts: values against their definition, and names that are not known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pyro_seq.nn.dropout import SequenceDropout, same_features
from pyro_seq.nn.feedforward import ACTIVATIONS, MLP, Positive, activation, concatenate
from pyro_seq.nn.gaussian import NormalNet
from pyro_seq.nn.precision import full_precision


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(name: str) -> None:
    made = activation(name)
    assert isinstance(made, ACTIVATIONS[name]) and made is not activation(name)
    assert made(torch.zeros(2, 3)).shape == (2, 3)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"unknown activation 'rellu'; did you mean 'relu'\?"):
        activation("rellu")
    with pytest.raises(
        ValueError, match="unknown positive projection 'qqqq'; known are exp, softplus"
    ):
        Positive("qqqq")
    for epsilon in (-1e-9, math.nan):
        with pytest.raises(ValueError, match="must be at least 0"):
            Positive(epsilon=epsilon)


def test_positive() -> None:
    x = torch.tensor([-200.0, -1.0, 0.0, 3.0])
    torch.testing.assert_close(Positive("exp", 0.1)(x), x.exp() + 0.1)
    torch.testing.assert_close(Positive("softplus", 0.1)(x), x.exp().log1p() + 0.1)
    assert (Positive()(x) >= 1e-4).all()
    assert repr(Positive("exp", 0.5)) == "Positive(exp, epsilon=0.5)"


class TestMLP:
    def test_layers(self) -> None:
        mlp = MLP(3, (5, 4), 2, activation="tanh")
        x = torch.randn(2, 7, 3)
        expected = x
        for layer in (mlp[0], mlp[2]):
            expected = torch.tanh(expected @ layer.weight.t() + layer.bias)
        torch.testing.assert_close(mlp(x), expected @ mlp[4].weight.t() + mlp[4].bias)
        assert (mlp.input_size, mlp.output_size) == (3, 2)

    @pytest.mark.parametrize(
        ("hidden", "output", "layers", "size"),
        [((), None, 0, 3), ((), 2, 1, 2), ((4,), None, 2, 4), ((4,), 2, 3, 2)],
    )
    def test_ends(
        self, hidden: tuple[int, ...], output: int | None, layers: int, size: int
    ) -> None:
        mlp = MLP(3, hidden, output)
        assert len(mlp) == layers and mlp.output_size == size == mlp(torch.zeros(5, 3)).shape[-1]


class TestNormalNet:
    def test_location_and_scale(self) -> None:
        net = NormalNet(5, (4,), 2, positive="exp", epsilon=0.25)
        a, b, shift = torch.randn(7, 3), torch.randn(6, 7, 2), torch.randn(6, 7, 2)
        raw = net.mlp(torch.cat([a.expand(6, 7, 3), b], -1))
        normal, shifted = net(a, b), net(a, b, shift=shift)
        torch.testing.assert_close(normal.loc, raw[..., :2])
        torch.testing.assert_close(normal.scale, raw[..., 2:].exp() + 0.25)
        torch.testing.assert_close(shifted.loc, raw[..., :2] + shift)
        torch.testing.assert_close(shifted.scale, normal.scale)
        assert normal.batch_shape == (6, 7, 2) and normal.event_shape == ()

    def test_densities_are_at_least_float32(self) -> None:
        net = NormalNet(3, (), 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            normal = net(torch.randn(4, 3))
        assert normal.loc.dtype == normal.scale.dtype == torch.float32
        assert full_precision(torch.zeros(1, dtype=torch.float16)).dtype == torch.float32
        assert full_precision(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


def test_hidden_units_are_dropped_in_training_only() -> None:
    net, plain = MLP(3, (400,), 2, dropout=0.25), MLP(3, (400,), 2)
    plain.load_state_dict(
        {name.replace("3.", "2."): weight for name, weight in net.state_dict().items()}
    )
    x = torch.randn(5, 3)
    hidden = []
    net[3].register_forward_pre_hook(lambda module, arguments: hidden.append(arguments[0]))
    net(x)
    whole = plain[1](plain[0](x))
    dropped = (hidden[0] == 0) & (whole > 0)
    assert 0.15 < float(dropped.sum() / (whole > 0).sum()) < 0.35
    assert not dropped.equal(dropped[:1].expand_as(dropped))  # each row by itself
    torch.testing.assert_close(hidden[0], torch.where(dropped, 0, whole / 0.75))
    assert net.eval()(x).equal(plain(x)) and net(x[:, :1], x[:, 1:]).equal(
        plain(x[:, :1], x[:, 1:])
    )


class TestSequenceDropout:
    def test_one_mask_for_all_steps(self) -> None:
        dropout = SequenceDropout(0.25)
        kept = dropout(torch.ones(200, 5, 40))
        assert kept.equal(kept[:, :1].expand_as(kept))
        rate = (kept[:, 0] == 0).float().mean()
        assert abs(rate - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 8000)
        torch.testing.assert_close(kept[kept != 0].unique(), torch.tensor([4 / 3]))
        assert dropout.eval()(torch.ones(2, 3, 4)).equal(torch.ones(2, 3, 4))

    @pytest.mark.parametrize("p", [-0.1, 1.0, math.nan])
    def test_probabilities(self, p: float) -> None:
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
            SequenceDropout(p)


def test_concatenate() -> None:
    a, b, nothing = torch.randn(4, 2), torch.randn(3, 1, 5), torch.zeros(4, 0)
    assert concatenate(a, nothing, b).equal(torch.cat([a.expand(3, 4, 2), b.expand(3, 4, 5)], -1))
    assert concatenate(nothing, a) is a and concatenate(nothing) is nothing


def test_gradients_reach_every_parameter() -> None:
    net = NormalNet(3, (4,), 2)
    normal = net(torch.randn(5, 3))
    (normal.loc.sum() + normal.scale.sum()).backward()
    assert all(
        isinstance(p, nn.Parameter) and p.grad is not None and p.grad.abs().sum() > 0
        for p in net.parameters()
    )


def test_same_features_are_dropped_at_all_steps() -> None:
    """One mask for a whole sequence, whether its steps come at once or, inside `same_features`, one
    after the other.
    """
    drop = SequenceDropout(0.5)
    at_once = drop(torch.ones(6, 5, 8))
    assert (at_once == at_once[:, :1]).all()
    with same_features(nn.Sequential(drop)):
        steps = [drop(torch.ones(6, 1, 8)) for _ in range(5)]
    assert all(torch.equal(step, steps[0]) for step in steps)
    assert {0.0, 2.0} == set(steps[0].unique().tolist())
    assert not torch.equal(drop(torch.ones(6, 1, 8)), steps[0])
    with same_features(drop, for_all=True):
        of_particles, once = drop(torch.ones(3, 6, 1, 8)), drop(torch.ones(6, 1, 8))
    assert torch.equal(of_particles, once.expand(3, 6, 1, 8))
