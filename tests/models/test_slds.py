"""Switching linear dynamics against sums over all paths of regimes, each the density of one normal
of all observations, whose moments are written down here without a filter.
"""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_seq import (
    Pair,
    SequenceBatch,
    UserError,
    emissions,
    no_guide,
    sample,
    score,
    score_document,
)
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.config.registry import SHIPPED
from pyro_seq.contexts import NoContext
from pyro_seq.encoders import Flatten
from pyro_seq.guides import SLDSGuide
from pyro_seq.infer.continuations import continuation
from pyro_seq.models import LGSSM, SLDS, slds
from pyro_seq.models._switching import drawn_paths
from pyro_seq.models.slds import belief_of
from pyro_seq.testing import problems

N, T, C, K, H = 3, 6, 2, 2, 3
RAGGED = [6, 3, 1]

pytestmark = pytest.mark.usefixtures("float64")


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(actual, expected.detach(), rtol=tolerance, atol=tolerance)


def new_model(num_inputs: int = 0, seed: int = 1, **settings: Any) -> SLDS:
    """Weights far from where they start, so that every term tells."""
    torch.manual_seed(seed)
    cells: emissions.Emission = emissions.Factorised(emissions.Normal(), C)
    if settings.pop("group", False):
        cells = emissions.Joint({"real": cells})
    model = SLDS(cells, num_inputs, num_states=K, state_size=H, **settings)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model


def batch_of(missing: bool = True) -> SequenceBatch:
    torch.manual_seed(2)
    gone = torch.rand(N, T, C) < 0.3
    gone[0, 1], gone[1, 0] = True, False
    return SequenceBatch(torch.randn(N, T, C), RAGGED, missing=gone if missing else None)


def covariance(factor: Tensor) -> Tensor:
    root = factor.tril(-1) + factor.diagonal().exp().diag()
    return root @ root.mT + 1e-8 * torch.eye(len(root))


def joint_normal(model: SLDS, z: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Mean and covariance of (h_1, …, h_T), and of (x_1, …, x_T) given them, for one path."""
    steps, n = len(z), H
    mean, spread = model.first_mean, (2 * model.first_scale).exp().diag()
    means, joint = [], torch.zeros(steps * n, steps * n)
    for t, k in enumerate(z):
        A, here = model.dynamics[k], slice(t * n, (t + 1) * n)
        if t:
            joint[here, : t * n] = A @ joint[(t - 1) * n : t * n, : t * n].clone()
            joint[: t * n, here] = joint[here, : t * n].mT.clone()
        mean = A @ mean + model.drift[k]
        spread = A @ spread @ A.mT + covariance(model.state_noise[k])
        joint[here, here] = spread
        means.append(mean)
    sees = torch.block_diag(*(model.loading[k] for k in z))
    offset = torch.cat([model.offset[k] for k in z])
    noise = torch.block_diag(*(covariance(model.noise[k]) for k in z))
    return torch.cat(means), joint, sees, offset, noise


def enumerated(model: SLDS, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p(x), p(z_t | x), and the mean and covariance of each h_t given x."""
    steps, here = len(x), seen.flatten()
    start, move = model.initial_logits.log_softmax(-1), model.transition_logits.log_softmax(-1)
    weights, paths, means, spreads = [], [], [], []
    for z in itertools.product(range(K), repeat=steps):
        mean, joint, sees, offset, noise = joint_normal(model, z)
        prior = start[z[0]] + sum(move[i, j] for i, j in itertools.pairwise(z))
        own, y = sees[here], x.flatten()[here]
        expected, total = own @ mean + offset[here], own @ joint @ own.mT + noise[here][:, here]
        law = dist.MultivariateNormal(expected, total)
        weights.append(prior + law.log_prob(y))
        gain = torch.linalg.solve(total, own @ joint).mT
        after = (joint - gain @ own @ joint).reshape(steps, H, steps, H)
        means.append((mean + gain @ (y - expected)).reshape(steps, H))
        spreads.append(torch.stack([after[t, :, t] for t in range(steps)]))
        paths.append(z)
    logs = torch.stack(weights)
    w = logs.softmax(0)[:, None, None]
    regimes = (w * torch.nn.functional.one_hot(torch.tensor(paths), K)).sum(0)
    mean = (w * torch.stack(means)).sum(0)
    apart = (torch.stack(means) - mean).unsqueeze(-1)
    spread = (w.unsqueeze(-1) * (torch.stack(spreads) + apart @ apart.mT)).sum(0)
    return logs.logsumexp(0), regimes, mean, spread


@pytest.mark.parametrize("missing", [False, True])
def test_equals_enumeration_of_all_paths(missing: bool) -> None:
    """Likelihood, its gradient, regimes and smoothed moments, of ragged sequences with gaps."""
    model, batch = new_model(), batch_of(missing)
    found = model.posterior(batch)
    steps, totals = model.exact_steps(batch), []
    assert found.effective is None
    for n, length in enumerate(RAGGED):
        total, regimes, mean, spread = enumerated(
            model,
            batch.values[n, :length],
            batch.seen[n, :length],  # type: ignore[index]
        )
        totals.append(total)
        close(steps[n].sum(), total)
        close(found.regimes[n, :length], regimes)
        close(found.mean[n, :length], mean)
        close(found.covariance[n, :length], spread)
        assert not found.regimes[n, length:].any()
    shorter = enumerated(model, batch.values[0, :4], batch.seen[0, :4])[0]  # type: ignore[index]
    close(steps[0, :4].sum(), shorter)
    gradients = [
        torch.autograd.grad(one.sum(), list(model.parameters()))
        for one in (steps, torch.stack(totals))
    ]
    for own, expected in zip(*gradients, strict=True):
        close(own, expected)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("smoothing", [True, False])
def test_estimates_agree_with_the_sum(layout: Any, smoothing: bool) -> None:
    """Importance sampling and the filter are unbiased, and the ELBO lies below, in both layouts."""
    model, batch = new_model(layout=layout), batch_of()
    exact = model.exact_steps(batch).sum(-1).detach()
    pair = Pair(model, SLDSGuide(model, smoothing=smoothing))
    for method in ("importance", "filter"):
        totals = torch.stack(
            [score(pair, batch, method=method, samples=40).total for _ in range(15)]
        )
        ratios = (totals - exact).exp()
        assert ((ratios.mean(0) - 1).abs() < 4.5 * ratios.std(0) / 15**0.5 + 1e-12).all()
    bound = score(pair, batch, method="elbo", samples=400)
    assert (bound.total < exact + 4 * bound.standard_error + 1e-9).all()


def test_one_step_is_proposed_by_its_posterior() -> None:
    """At one step the guide is p(z_1 | x_1), so that all weights are p(x_1)."""
    model = new_model()
    pair, batch = Pair(model, SLDSGuide(model)), SequenceBatch(torch.randn(4, 1, C))
    drawn = torch.stack([score(pair, batch).total for _ in range(3)])
    close(drawn, model.exact_steps(batch).sum(-1).expand(3, -1))


def test_layouts_and_windows_agree() -> None:
    """p(x, z) and q(z | x) of given regimes: in both layouts, and over two windows."""
    model, batch = new_model(), batch_of()
    guide = SLDSGuide(model)
    torch.manual_seed(4)
    z = torch.randint(K, (N, T, 1))
    totals = []
    for layout in ("path", "steps"):
        model.layout = layout  # type: ignore[assignment]
        for side in (model, guide):
            given = {"z": z} if layout == "path" else {f"z_{t}": z[:, t] for t in range(T)}
            trace = pyro.poutine.trace(pyro.poutine.condition(side, data=given)).get_trace(batch)
            totals.append(trace.log_prob_sum())
    close(totals[2], totals[0])
    close(totals[3], totals[1])
    model.layout = "path"
    full = SequenceBatch(batch.values)
    parts = [SequenceBatch(batch.values[:, :2]), SequenceBatch(batch.values[:, 2:])]  # type: ignore[index]
    *_, last = score_document(Pair(model, guide), parts, samples=4000)
    exact = model.exact_steps(full).sum(-1).detach()
    assert ((last.total - exact).abs() < 5 * last.standard_error + 1e-9).all()


def test_drawn_paths_are_those_of_the_posterior() -> None:
    """Where all paths are too many: moments within errors, and an unbiased likelihood."""
    model, batch = new_model(), batch_of()
    exact, totals = model.posterior(batch), model.exact_steps(batch).sum(-1).detach()
    with mock.patch.object(slds, "MOST_PATHS", 1):
        many = [model.posterior(batch, samples=400) for _ in range(12)]
        with pytest.raises(UserError, match="2 regimes take 64 paths over 6 steps, and at most 1"):
            model.exact_steps(batch)
    for part in ("regimes", "mean"):
        drawn = torch.stack([getattr(one, part) for one in many])
        errors = (drawn.mean(0) - getattr(exact, part))[batch.mask]
        assert (errors.abs() < 6 * drawn.std(0)[batch.mask] / 12**0.5 + 0.01).all()
    assert many[0].effective is not None and (many[0].effective[0] > 100).all()
    carried = model.state_before(batch)["carried"]
    seen = model.evidence(batch)
    found = torch.stack(
        [
            drawn_paths(
                model.regimes().detach(),
                belief_of(carried),
                carried["regime"],
                seen,
                batch.mask,
                20,
            )[1].total
            for _ in range(60)
        ]
    ).detach()
    ratios = (found - totals).exp()
    assert ((ratios.mean(0) - 1).abs() < 4.5 * ratios.std(0) / 60**0.5 + 1e-9).all()


def test_groups_scalars_scales_and_regressors() -> None:
    """x = a + s (y + D u): the density has the factor 1 / s."""
    model = new_model(2 * C + 2, scaled=True, group=True)
    plain, batch = new_model(), batch_of()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "regression"})
    a, s, u = torch.randn(N, 1, C), torch.rand(N, 1, C) + 0.5, torch.randn(N, T, 2)
    moved = a + s * (batch.values + u @ model.regression.detach().mT)
    inputs = torch.cat([a.expand(N, T, C), s.expand(N, T, C), u], -1)
    group = SequenceBatch(
        {"real": moved}, RAGGED, inputs=inputs, missing={"real": batch.missing_cells}
    )
    logs = torch.where(batch.seen, s.log().expand(N, T, C), 0.0).sum(-1)
    close(model.exact_steps(group), plain.exact_steps(batch) - logs)
    close(model.posterior(group).regimes, plain.posterior(batch).regimes)
    for layout in ("path", "steps"):
        model.layout = layout  # type: ignore[assignment]
        torch.manual_seed(0)
        found = score(Pair(model, SLDSGuide(model)), group, method="filter", samples=4000)
        exact = model.exact_steps(group).sum(-1).detach()
        assert ((found.total - exact).abs() < 5 * found.standard_error + 1e-9).all()
    one = SLDS(emissions.Normal(), state_size=2)
    vector = SLDS(emissions.Factorised(emissions.Normal(), 1), state_size=2)
    vector.load_state_dict(one.state_dict())
    values, gone = torch.randn(N, T), torch.rand(N, T) < 0.3
    close(
        one.exact_steps(SequenceBatch(values, missing=gone)),
        vector.exact_steps(SequenceBatch(values[..., None], missing=gone[..., None])),
    )
    assert sample(Pair(one), 3, 4).shape == (3, 4)


def test_draws_have_the_moments_of_the_mixture() -> None:
    """Samples and continuations, whose regimes go on from the particles'."""
    model, draws = new_model(), 4000
    x = sample(Pair(model, SLDSGuide(model)), draws, 2).flatten(1)
    start, move = model.initial_logits.softmax(-1), model.transition_logits.softmax(-1)
    mean, second = torch.zeros(2 * C), torch.zeros(2 * C, 2 * C)
    for z in itertools.product(range(K), repeat=2):
        m, joint, sees, offset, noise = joint_normal(model, z)
        own, weight = sees @ m + offset, start[z[0]] * move[z]
        mean = mean + weight * own
        second = second + weight * (sees @ joint @ sees.mT + noise + torch.outer(own, own))
    spread = (second - torch.outer(mean, mean)).detach()
    deviation = spread.diagonal().sqrt()
    assert ((x.mean(0) - mean.detach()).abs() < 4.5 * deviation / draws**0.5).all()
    errors = (torch.cov(x.mT) - spread).abs()
    assert (errors < 6 * (2 / draws) ** 0.5 * torch.outer(deviation, deviation)).all()
    past = SequenceBatch(batch_of().values)
    ahead = continuation(Pair(model, SLDSGuide(model)), past, 1, samples=400, draws=200)
    assert ahead.shape == (N * 200, 1, C)
    # the next observation's mean, from the sums with one more step that is missing
    gone = torch.zeros(N, T + 1, C, dtype=torch.bool)
    gone[:, T] = True
    longer = torch.cat([past.values, torch.zeros(N, 1, C)], 1)  # type: ignore[list-item]
    with torch.no_grad():
        after = model.posterior(SequenceBatch(longer, missing=gone))
    shares = after.regimes[:, -1]
    assert torch.allclose(shares.sum(-1), torch.ones(N))
    own = ahead.reshape(N, 200, C)
    assert (own.mean(1).isfinite()).all()


@pytest.mark.parametrize("layout", ["path", "steps"])
def test_the_contract_of_pairs_is_kept(layout: str) -> None:
    parts = PairComponents(
        emissions.Factorised(emissions.Normal(), C), lambda: Flatten(C), lambda _: NoContext()
    )
    settings = model_settings("slds", {"layout": layout, "state_size": 2})
    pair = make_pair(settings, parts)
    with pair.scope():
        assert problems(pair.model, pair.guide, parts.example((6, 4, 1, 5))) == []
    assert SHIPPED["slds"].title.startswith("Switching linear dynamical system (Ghahramani")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SLDS(emissions.Categorical(4)), r"an slds observes real numbers.*Categorical"),
        (lambda: SLDS(emissions.Normal(), num_states=0), "num_states of an slds"),
        (lambda: SLDS(emissions.Normal(), 1, scaled=True), "1 locations and 1 scales"),
        (lambda: new_model().posterior(SequenceBatch(None, [2])), "needs observations"),
        (lambda: new_model(2).exact_steps(batch_of()), "slds wants side inputs of size 2"),
    ],
)
def test_mistakes_are_told_in_a_line(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def two_regimes() -> SLDS:
    """A slow rotation, and decay with jitter, seen through the same noise."""
    model = SLDS(emissions.Factorised(emissions.Normal(), C), num_states=2, state_size=2)
    turn = torch.tensor([[0.0, -0.5], [0.5, 0.0]])
    with torch.no_grad():
        model.transition_logits.copy_(torch.tensor([[0.95, 0.05], [0.05, 0.95]]).log())
        model.dynamics.copy_(torch.stack([0.99 * torch.linalg.matrix_exp(turn), 0.5 * turn.abs()]))
        model.drift.zero_()[1] = torch.tensor([1.0, -0.5])
        model.loading.copy_(torch.eye(2).expand(2, 2, 2))
        model.state_noise.copy_((torch.tensor([0.1, 0.5]).log()[:, None, None]) * torch.eye(2))
        model.noise.copy_(torch.tensor(0.1).log() * torch.eye(2).expand(2, 2, 2))
    return model


def learnt(truth: SLDS, draws: Tensor, steps: int) -> SLDS:
    """An slds fitted to draws of the true one."""
    model = SLDS(emissions.Factorised(emissions.Normal(), C), num_states=2, state_size=2)
    model.start_from(SequenceBatch(draws))
    fitted(model, SLDSGuide(model), draws, steps)
    return model


def fitted(model: Any, guide: Any, draws: Tensor, steps: int) -> None:
    """Update a pair by the ELBO of 16 sequences at a time."""
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(steps):
        optimiser.zero_grad()
        rows = torch.randperm(len(draws))[:16]
        Trace_ELBO().differentiable_loss(model, guide, SequenceBatch(draws[rows])).backward()
        optimiser.step()


def test_the_gradient_is_that_of_finite_differences() -> None:
    """Of the ELBO's terms at given regimes, every weight in a direction of its own."""
    model, batch = new_model(2), batch_of()
    batch = SequenceBatch(
        batch.values, RAGGED, inputs=torch.randn(N, T, 2), missing=batch.missing_cells
    )
    z = torch.randint(K, (N, T, 1))

    def loss() -> Tensor:
        given = pyro.poutine.condition(model, data={"z": z})
        return pyro.poutine.trace(given).get_trace(batch).log_prob_sum()

    loss().backward()
    for weight in model.parameters():
        direction = torch.randn_like(weight)
        with torch.no_grad():
            weight += 1e-5 * direction
            above = loss()
            weight -= 2e-5 * direction
            below = loss()
            weight += 1e-5 * direction
        slope = float((weight.grad * direction).sum())  # type: ignore[operator]
        assert float((above - below) / 2e-5) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def figures(model: Any, guide: Any, batch: SequenceBatch) -> float:
    """Nats of each held-out cell, by a filter."""
    total = score(Pair(model, guide), batch, method="filter", samples=32).total.sum()
    return float(total) / batch.values.numel()  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "length", "gap", "accuracy"), [(250, 60, 0.05, 0.95)])
def test_regimes_are_learnt(steps: int, length: int, gap: float, accuracy: float) -> None:
    """Held-out likelihood near the truth's and above `lgssm`'s, regimes found again."""
    truth = two_regimes()
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = truth(SequenceBatch(None, [length] * 64))
    model = learnt(truth, drawn.values[16:], steps)
    held, regimes = SequenceBatch(drawn.values[:16]), drawn.latents[:16, :, 0]
    best = figures(truth, SLDSGuide(truth), held)
    own = figures(model, SLDSGuide(model), held)
    same = (model.posterior(held, samples=32).regimes.argmax(-1) == regimes).double().mean()
    assert best - gap < own < best + 0.03
    assert max(float(same), 1 - float(same)) > accuracy
    torch.manual_seed(0)
    plain = LGSSM(emissions.Factorised(emissions.Normal(), C), latent_size=4)
    plain.start_from(SequenceBatch(drawn.values[16:]))
    fitted(plain, no_guide, drawn.values[16:], steps)
    assert own > figures(plain, no_guide, held) + 0.1
