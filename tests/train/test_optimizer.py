"""The joint optimiser against torch's AdamW and its own formulas, step by step."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_seq.train.optimizer import JointOptimiser, NonFiniteValue
from pyro_seq.train.schedules import learning_rate_factor

pytestmark = pytest.mark.usefixtures("float64")


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def joint(module: nn.Module, **options: Any) -> JointOptimiser:
    return JointOptimiser(dict(module.named_parameters()), **({"learning_rate": 1e-2} | options))


def loss(module: nn.Module, step: int) -> Tensor:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
    return (module(x) - 3).square().sum()


def step(optimiser: JointOptimiser, module: nn.Module, number: int) -> None:
    loss(module, number).backward()
    optimiser(module.parameters())


@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
@pytest.mark.parametrize(
    ("clip_norm", "scale"), [(0.0, 1.0), (0.5, 1.0), (0.5, 0.01), (1e6, 0.1), (0.0, 0.1)]
)
def test_equals_adamw_by_hand(clip_norm: float, scale: float, l1: float, l2: float) -> None:
    module = network()
    other = copy.deepcopy(module)
    optimiser = joint(
        module, betas=(0.8, 0.95), weight_decay=0.1, clip_norm=clip_norm, l1=l1, l2=l2
    )
    matrices, vectors = (
        [p for p in other.parameters() if (p.dim() > 1) == wanted] for wanted in (True, False)
    )
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.95), eps=1e-8)
    for number in range(6):
        factor = 1.0 if number < 3 else 0.5
        optimiser.scale_learning_rate(factor)
        optimiser.gradient_scale = scale
        step(optimiser, module, number)
        for group in theirs.param_groups:
            group["lr"] = 1e-2 * factor
        penalty = sum(l1 * p.abs().sum() + l2 / 2 * p.square().sum() for p in matrices)
        theirs.zero_grad()
        (scale * loss(other, number) + penalty).backward()
        norm = torch.nn.utils.clip_grad_norm_(other.parameters(), clip_norm or math.inf)
        theirs.step()
        assert optimiser.gradient_norm == pytest.approx(float(norm), rel=1e-12)
        assert optimiser.current_learning_rate == 1e-2 * factor
        for p, q in zip(module.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=0)
    assert optimiser.steps == 6


def test_penalties_rise_to_their_strength() -> None:
    """At the n-th step (from 0) they count min(1, n / penalty_steps) times, in the gradient that a
    model without data gets.
    """
    module = network()
    weights = next(p for p in module.parameters() if p.dim() > 1)
    optimiser = joint(module, l1=0.3, l2=0.2, penalty_steps=4)
    for n in range(7):
        share = min(1.0, n / 4)
        matrices = [p.detach().clone() for p in module.parameters() if p.dim() > 1]
        expected = torch.cat([(share * (0.3 * p.sign() + 0.2 * p)).flatten() for p in matrices])
        (0.0 * sum(p.sum() for p in module.parameters())).backward()  # type: ignore[union-attr]
        before = weights.detach().clone()
        optimiser(module.parameters())
        assert optimiser.gradient_norm == pytest.approx(
            float(expected.norm()), rel=1e-12, abs=1e-15
        )
        assert torch.equal(weights, before) == (n == 0)


def test_averages() -> None:
    """a <- decay a + (1 - decay) w, with decay min(ema_decay, (1 + n) / (10 + n))."""
    module = network()
    optimiser = joint(module, ema_decay=0.3)
    expected = [p.detach().clone() for p in module.parameters()]
    for n in range(1, 7):
        step(optimiser, module, n)
        decay = min(0.3, (1 + n) / (10 + n))
        expected = [
            decay * a + (1 - decay) * p.detach()
            for a, p in zip(expected, module.parameters(), strict=True)
        ]
    torch.testing.assert_close(optimiser.averages, expected)
    latest = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(KeyError), optimiser.averaged():
        torch.testing.assert_close([p.detach() for p in module.parameters()], expected)
        raise KeyError
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), latest, strict=True))


def test_without_averages_nothing_changes_inside_averaged() -> None:
    module = network()
    optimiser = joint(module)
    before = [p.detach().clone() for p in module.parameters()]
    with optimiser.averaged():
        assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


def test_state_round_trip() -> None:
    """Going on from a state gives the weights, bit for bit, of not having stopped."""
    module = network()
    optimiser = joint(module, ema_decay=0.9, clip_norm=0.5)
    for number in range(3):
        step(optimiser, module, number)
    other = copy.deepcopy(module)
    state = copy.deepcopy(optimiser.state_dict())
    resumed = joint(other, ema_decay=0.9, clip_norm=0.5)
    resumed.load_state_dict(state)
    for number in range(3, 6):
        step(optimiser, module, number)
        step(resumed, other, number)
    assert all(
        torch.equal(p, q) for p, q in zip(module.parameters(), other.parameters(), strict=True)
    )
    assert all(torch.equal(p, q) for p, q in zip(optimiser.averages, resumed.averages, strict=True))
    assert resumed.steps == 6


def test_states_of_others_are_refused() -> None:
    module = network()
    optimiser = joint(module, ema_decay=0.9)
    step(optimiser, module, 0)
    with pytest.raises(ValueError, match=r"moments.1.exp_avg has shape \[2, 4\], not \[4\]"):
        joint(nn.Linear(3, 4), ema_decay=0.9).load_state_dict(optimiser.state_dict())
    with pytest.raises(ValueError, match="averages has 4 entries, not 0"):
        joint(network()).load_state_dict(optimiser.state_dict())


def spoil(state: dict[str, Any], how: str) -> None:
    moments = state["moments"][0]
    if how == "no step":
        del moments["step"]
    elif how == "more moments":
        moments["max_exp_avg_sq"] = moments["exp_avg_sq"]
    elif how == "step of many":
        moments["step"] = torch.ones(2)
    elif how == "plain step":
        moments["step"] = 1.0
    elif how == "step that is not finite":
        moments["step"].fill_(math.nan)
    elif how == "moment that is not finite":
        moments["exp_avg"][0, 0] = math.inf
    elif how == "negative square":
        moments["exp_avg_sq"][0, 0] = -1.0
    elif how == "average that is not finite":
        state["averages"][0][0, 0] = math.nan
    elif how == "key":
        state["moments"]["0"] = moments
    else:
        state["steps"] = {"steps in words": "3", "half a step": 0.5, "negative steps": -1}[how]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no step", r"moments.0.step is missing"),
        ("more moments", r"moments.0.max_exp_avg_sq is nothing that"),
        ("step of many", r"moments.0.step has shape \[2\], not \[\]"),
        ("plain step", r"moments.0.step is 1.0, not a tensor"),
        ("step that is not finite", r"moments.0.step is not finite"),
        ("moment that is not finite", r"moments.0.exp_avg is not finite"),
        ("negative square", r"exp_avg_sq has entries from -1 to .*, which must lie in \[0, inf\]"),
        ("average that is not finite", r"averages.0 is not finite"),
        ("key", r"moments.0 is nothing that"),
        ("steps in words", r"steps is '3', not a whole number"),
        ("half a step", r"steps is 0.5, not a whole number"),
        ("negative steps", r"steps is -1, not a whole number"),
    ],
)
def test_damaged_states_are_refused(how: str, says: str) -> None:
    module = network()
    optimiser = joint(module, ema_decay=0.9)
    step(optimiser, module, 0)
    state = copy.deepcopy(optimiser.state_dict())
    spoil(state, how)
    other = joint(network(), ema_decay=0.9)
    with pytest.raises(ValueError, match=says):
        other.load_state_dict(state)
    assert other.steps == 0 and not other.state_dict()["moments"]


def test_a_parameter_that_appears_later() -> None:
    module = network()
    optimiser = joint(module)
    with pytest.raises(RuntimeError, match="register all parameters on the first batch"):
        optimiser([*module.parameters(), nn.Parameter(torch.zeros(2))])


def test_old_gradients_are_not_used() -> None:
    """Gradients that stand on the parameters from before play no part, and none are left after a
    step.
    """
    module = network()
    other = copy.deepcopy(module)
    loss(module, 5).backward()
    for each in (module, other):
        step(joint(each), each, 0)
    assert all(
        torch.equal(p, q) for p, q in zip(module.parameters(), other.parameters(), strict=True)
    )
    assert all(p.grad is None for p in module.parameters())


def test_untouched_parameters_stay() -> None:
    module, idle = network(), nn.Parameter(torch.ones(2, 2))
    optimiser = JointOptimiser(
        {**dict(module.named_parameters()), "idle": idle},
        learning_rate=0.1,
        weight_decay=0.1,
        l1=0.1,
    )
    step(optimiser, module, 0)
    assert (idle == 1).all()
    optimiser([])  # no gradient at all
    assert optimiser.gradient_norm == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_not_finite(value: float) -> None:
    """The parameter is named, and none has changed."""
    module = network()
    optimiser, before = joint(module, clip_norm=1.0), copy.deepcopy(module.state_dict())
    loss(module, 0).backward()
    module[2].weight.grad[0, 0] = value
    with pytest.raises(NonFiniteValue, match=r"the gradient of parameter '2\.weight'"):
        optimiser(module.parameters())
    assert all(torch.equal(p, before[name]) for name, p in module.state_dict().items())


def test_learning_rate_schedules() -> None:
    def factors(schedule: str, warmup: float = 0.2) -> list[float]:
        return [
            learning_rate_factor(p, schedule=schedule, final_lr_fraction=0.1, warmup=warmup)
            for p in (0.0, 0.1, 0.2, 0.6, 1.0, 1.5)
        ]

    assert factors("constant") == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0, 1.0])
    assert factors("linear") == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1, 0.1])
    assert factors("cosine") == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1, 0.1])
    assert learning_rate_factor(
        0.4, schedule="cosine", final_lr_fraction=0.0, warmup=0.2
    ) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert factors("linear", warmup=0.0)[:2] == pytest.approx([1.0, 0.91])
    with pytest.raises(ValueError, match="schedule must be one of"):
        factors("steep", warmup=0.0)
