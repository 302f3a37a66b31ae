"""The linear-Gaussian pair against a Kalman filter written here, by all tools that score, filter,
fill and continue.
"""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_seq import (
    Pair,
    SequenceBatch,
    UserError,
    emissions,
    infill,
    no_guide,
    sample,
    score,
    score_document,
)
from pyro_seq._pytree import tree_map
from pyro_seq.encoders import Encoder
from pyro_seq.infer.continuations import continuation
from pyro_seq.infer.smc.particle_filter import particle_filter
from pyro_seq.infer.stepping.declared import stepper_of
from pyro_seq.models import LGSSM, lgssm

N, T, C, U = 3, 6, 2, 2
RAGGED = [6, 3, 1]

pytestmark = pytest.mark.usefixtures("float64")


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def new_model(*, group: bool = False, scaled: bool = False, **settings: Any) -> LGSSM:
    """Weights far from where they start, so that every term tells."""
    cells: emissions.Emission = emissions.Factorised(emissions.Normal(), C)
    cells = emissions.Joint({"real": cells}) if group else cells
    known: dict[str, Any] = {"seasons": (4, 30), "harmonics": 2, "latent_size": 2}
    model = LGSSM(cells, U + 2 * C * scaled, scaled=scaled, **(known | settings))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model


def matrices(model: LGSSM, trend: str = "damped") -> tuple[Tensor, ...]:
    """F, Q, H, R, and the moments of z_1 as the model's page has them, state after state.

    Of each column a level, a slope, a season of 4 steps (one pair, and one that changes its sign)
    and two harmonics of one of 30.
    """
    kinds = [("level", 0.0), ("slope", 0.0)][: 1 + (trend != "none")]
    kinds += [("pair", math.pi / 2), ("second", 0.0), ("sign", math.pi)]
    kinds += [x for j in (1, 2) for x in (("pair", 2 * math.pi * j / 30), ("second", 0.0))]
    n, z = C * len(kinds), 2
    F, Q, H = torch.zeros(n + z, n + z), torch.zeros(n + z), torch.zeros(C, n + z)
    for c in range(C):
        for i, (kind, angle) in enumerate(kinds):
            at, after = i * C + c, (i + 1) * C + c
            season = 0 if i < 4 + (trend != "none") else 1
            if kind == "level":
                F[at, at], H[c, at], Q[at] = 1.0, 1.0, (2 * model.level_scale[0, c]).exp()
                if trend != "none":
                    F[at, after] = 1.0
            elif kind == "slope":
                F[at, at] = 1.0 if trend == "linear" else model.damping[c].sigmoid()
                Q[at] = (2 * model.slope_scale[0, c]).exp()
            else:
                Q[at] = (2 * model.season_scale[season, c]).exp()
            if kind == "pair":
                F[at, at] = F[after, after] = math.cos(angle)
                F[at, after], F[after, at], H[c, at] = math.sin(angle), -math.sin(angle), 1.0
            elif kind == "sign":
                F[at, at], H[c, at] = -1.0, 1.0
    turns = model.factor_turns - model.factor_turns.mT
    A = torch.linalg.matrix_exp(turns - torch.diag(model.factor_rates.exp() + 1e-4))
    F[n:, n:], H[:, n:] = A, model.factor_loading
    spread = torch.diag(Q)
    spread[n:, n:] = torch.eye(z) - A @ A.mT
    W = model.noise_factors
    R = W @ W.mT + torch.diag((2 * model.noise_scale[0]).exp() + 1e-8)
    first = torch.cat([(2 * model.first_scale).exp().flatten(), torch.ones(z)])
    return F, spread, H, R, model.first_mean, torch.diag(first)


def plain(model: LGSSM, x: Tensor, u: Tensor, seen: Tensor, trend: str = "damped") -> Tensor:
    """log p(x_t | x_{<t}) of one sequence `[T, C]`, cells that were not seen deleted."""
    F, Q, H, R, m, P = matrices(model, trend)
    figures = []
    for t in range(len(x)):
        here = seen[t]
        h, mean = H[here], (H @ m + model.regression @ u[t])[here]
        spread = h @ P @ h.mT + R[here][:, here]
        law = dist.MultivariateNormal(mean, spread)
        figures.append(law.log_prob(x[t, here]) if here.any() else torch.zeros(()))
        gain = P @ h.mT @ spread.inverse()
        m, P = m + gain @ (x[t, here] - mean), P - gain @ h @ P
        m, P = F @ m, F @ P @ F.mT + Q
    return torch.stack(figures) if figures else torch.zeros(0)


def batch_of(lengths: list[int], missing: bool, seed: int = 1) -> SequenceBatch:
    torch.manual_seed(seed)
    x, u = torch.randn(N, T, C), torch.randn(N, T, U)
    gone = torch.rand(N, T, C) < 0.4
    gone[0, 1], gone[1, 0] = True, False
    return SequenceBatch(x, lengths, inputs=u, missing=gone if missing else None)


@pytest.mark.parametrize("trend", ["none", "damped", "linear"])
@pytest.mark.parametrize("missing", [False, True])
def test_scores_are_those_of_a_plain_filter(trend: Any, missing: bool) -> None:
    """In both layouts, and by a particle filter, which has nothing to draw."""
    model, batch = new_model(trend=trend), batch_of(RAGGED, missing)
    expected = torch.zeros(N, T)
    for n, length in enumerate(RAGGED):
        parts = batch.values[n, :length], batch.inputs[n], batch.seen[n]  # type: ignore[index]
        expected[n, :length] = plain(model, *parts, trend)
    for layout in ("path", "steps"):
        model.layout = layout  # type: ignore[assignment]
        found = score(Pair(model), batch)
        assert found.exact
        close(found.steps, expected)
        loss = Trace_ELBO().differentiable_loss(model, no_guide, batch)
        close(loss, -expected.sum())
    close(particle_filter(Pair(model), batch, samples=1).steps.double(), expected)


def test_groups_scalars_and_scales() -> None:
    """One member of a group; x = a + s y, whose density has the factor 1 / s."""
    model, plain_batch = new_model(group=True, scaled=True), batch_of(RAGGED, True)
    x, u, gone = plain_batch.values, plain_batch.inputs, plain_batch.missing_cells
    assert u is not None
    a, s = torch.randn(N, 1, C).expand(N, T, C), torch.rand(N, 1, C).expand(N, T, C) + 0.5
    batch = SequenceBatch(
        {"real": a + s * x}, RAGGED, inputs=torch.cat([a, s, u], -1), missing={"real": gone}
    )
    expected = [
        plain(model, x[n, :length], u[n], plain_batch.seen[n]).sum()
        - (s[n].log() * plain_batch.seen[n]).sum()
        for n, length in enumerate(RAGGED)
    ]
    for layout in ("path", "steps"):
        model.layout = layout  # type: ignore[assignment]
        close(score(Pair(model), batch).log_likelihood, torch.stack(expected))
    one = LGSSM(emissions.Normal(), seasons=(4,))
    vector = LGSSM(emissions.Factorised(emissions.Normal(), 1), seasons=(4,))
    vector.load_state_dict(one.state_dict())
    values = torch.randn(N, T)
    for gaps in (None, torch.rand(N, T) < 0.3):
        found = score(Pair(one), SequenceBatch(values, missing=gaps))
        more = None if gaps is None else gaps.unsqueeze(-1)
        same = score(Pair(vector), SequenceBatch(values.unsqueeze(-1), missing=more))
        close(found.steps, same.steps)


def test_scales_of_ragged_sequences_step_after_step() -> None:
    """Padded side inputs are zeros, which are no scales: layouts, filters and samplers agree."""
    model, plain_batch = new_model(scaled=True), batch_of(RAGGED, True)
    units = torch.rand(N, T, 2 * C) + 0.5
    batch = SequenceBatch(
        plain_batch.values,
        RAGGED,
        inputs=torch.cat([units, plain_batch.inputs], -1),  # type: ignore[list-item]
        missing=plain_batch.missing,
    )
    expected = score(Pair(model), batch)
    model.layout = "steps"
    close(Trace_ELBO().differentiable_loss(model, no_guide, batch), -expected.total.sum())
    close(particle_filter(Pair(model), batch, samples=2).steps.double(), expected.steps)
    drawn = model(batch.without_values()).values
    assert drawn.shape == (N, T, C) and drawn.isfinite().all()


@pytest.mark.parametrize("missing", [False, True])
def test_windows_carry_the_belief(missing: bool) -> None:
    model, batch = new_model(), batch_of([T, T, T], missing)
    whole = score(Pair(model), batch).steps

    def window(start: int, stop: int) -> SequenceBatch:
        cells = None if batch.missing_cells is None else batch.missing_cells[:, start:stop]
        return SequenceBatch(
            batch.values[:, start:stop],  # type: ignore[index]
            inputs=batch.inputs[:, start:stop],  # type: ignore[index]
            missing=cells,
        )

    scores = score_document(Pair(model), [window(0, 1), window(1, 4), window(4, 6)])
    close(torch.cat([part.steps for part in scores], 1), whole)


def test_posterior_is_that_of_the_joint_normal() -> None:
    """p(z_t | x) by conditioning the joint normal of all states and observations."""
    model, batch = new_model(), batch_of(RAGGED, True)
    F, Q, H, R, m, P = (part.detach() for part in matrices(model))
    n = len(m)
    powers = [torch.matrix_power(F, t) for t in range(T)]
    mean = torch.cat([power @ m for power in powers])
    spread = torch.zeros(T, n, T, n)
    for t in range(T):
        ahead = P
        for later in range(t, T):
            spread[later, :, t], spread[t, :, later] = ahead, ahead.mT.clone()
            ahead = F @ ahead
        P = F @ P @ F.mT + Q
    spread, sees = spread.reshape(T * n, T * n), torch.block_diag(*[H] * T)
    means, spreads = model.posterior(batch)
    for row in range(2):
        here = batch.seen[row].flatten()
        sees_here = sees[here]
        noise = torch.block_diag(*[R] * T)[here][:, here]
        gain = torch.linalg.solve(sees_here @ spread @ sees_here.mT + noise, sees_here @ spread).mT
        x = (batch.values[row] - batch.inputs[row] @ model.regression.mT).flatten()[here]  # type: ignore[index]
        close(means[row].flatten(), mean + gain @ (x - sees_here @ mean))
        after = (spread - gain @ sees_here @ spread).reshape(T, n, T, n)
        close(spreads[row], torch.stack([after[t, :, t] for t in range(T)]))


def test_exact_fills_keep_what_was_observed() -> None:
    model, batch = new_model(group=True), batch_of(RAGGED, True)
    group = SequenceBatch(
        {"real": batch.values}, RAGGED, inputs=batch.inputs, missing={"real": batch.missing_cells}
    )
    filled = infill(Pair(model), group, draws=4000)["real"]
    draws = filled.reshape(N, 4000, T, C)
    assert (draws == batch.values.unsqueeze(1))[
        ~batch.missing_cells.unsqueeze(1).expand_as(draws)
    ].all()  # type: ignore[union-attr]
    means, _ = model.posterior(group)
    _, _, H, R, *_ = matrices(model)
    expected = (means @ H.mT + batch.inputs @ model.regression.mT).detach()  # type: ignore[operator]
    # where a whole step is missing, the noise beside it tells nothing
    errors = draws[0, :, 1].mean(0) - expected[0, 1]
    assert (errors.abs() < 4.5 * draws[0, :, 1].std(0) / 4000**0.5).all()
    assert R.shape == (C, C)


def test_forecasts_are_those_of_the_belief() -> None:
    """Continuations have the moments H F^h m, H F^h P F^h' H' + …: also after missing cells."""
    torch.manual_seed(0)
    model, batch = new_model(), batch_of([T, T, T], True)
    steps, draws = 3, 4000
    inputs = torch.randn(N, steps, U)
    x = continuation(Pair(model), batch, steps, inputs=inputs, draws=draws)
    x = x.reshape(N, draws, steps, C)
    F, Q, H, R, _, _ = (part.detach() for part in matrices(model))
    carried = tree_map(lambda part: part.detach(), model(batch).state["carried"])
    for n in range(N):
        m, P = carried["mean"][n], carried["covariance"][n]
        for h in range(steps):
            mean = H @ m + model.regression.detach() @ inputs[n, h]
            spread = H @ P @ H.mT + R
            deviation = spread.diagonal().sqrt()
            assert ((x[n, :, h].mean(0) - mean).abs() < 4.5 * deviation / draws**0.5).all()
            errors = (torch.cov(x[n, :, h].mT) - spread).abs()
            assert (errors < 4.5 * (2 / draws) ** 0.5 * deviation.unsqueeze(-1) * deviation).all()
            m, P = F @ m, F @ P @ F.mT + Q


@pytest.mark.parametrize("missing", [False, True])
def test_pads_and_missing_cells_change_no_loss_and_no_gradient(missing: bool) -> None:
    model, batch = new_model(), batch_of(RAGGED, missing)
    found = []
    for wrong in (0.0, 1e6, math.nan):
        there = batch.seen if missing else batch.mask.unsqueeze(-1).expand(N, T, C)
        values = torch.where(there, batch.values, wrong)  # type: ignore[call-overload]
        model.zero_grad()
        changed = SequenceBatch(values, RAGGED, inputs=batch.inputs, missing=batch.missing_cells)
        loss = Trace_ELBO().differentiable_loss(model, no_guide, changed)
        loss.backward()
        grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
        found.append([loss.detach(), *grads])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_gradients_are_those_of_finite_differences() -> None:
    model, batch = new_model(), batch_of(RAGGED, True)
    Trace_ELBO().differentiable_loss(model, no_guide, batch).backward()

    def loss() -> float:
        with torch.no_grad():
            return float(Trace_ELBO().differentiable_loss(model, no_guide, batch))

    for weight in model.parameters():
        assert weight.grad is not None
        direction = torch.randn_like(weight)
        with torch.no_grad():
            weight += 1e-5 * direction
            above = loss()
            weight -= 2e-5 * direction
            below = loss()
            weight += 1e-5 * direction
        slope = float((weight.grad * direction).sum())
        assert (above - below) / 2e-5 == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_draws_have_the_moments_of_the_first_steps() -> None:
    model, draws = new_model(), 4000
    model.regression.data.zero_()
    with torch.no_grad():
        model_of = LGSSM(emissions.Factorised(emissions.Normal(), C), seasons=(4, 30), harmonics=2)
        x = sample(Pair(model_of), draws, 1)[:, 0]
        state, system = model_of.initial(1)["carried"], model_of.system()
        spread = system.loading @ state["covariance"][0] @ system.loading.mT + system.noise
    deviation = spread.diagonal().sqrt()
    assert (x.mean(0).abs() < 4.5 * deviation / draws**0.5).all()
    errors = (torch.cov(x.mT) - spread).abs() / (deviation.unsqueeze(-1) * deviation)
    assert (errors < 4.5 * (2 / draws) ** 0.5).all()


def test_single_precision_over_2000_steps() -> None:
    torch.set_default_dtype(torch.float32)
    model = LGSSM(emissions.Normal(), seasons=(24,), latent_size=2)
    batch = SequenceBatch(torch.randn(1, 2000).cumsum(1) * 0.05)
    single = score(Pair(model), batch).log_likelihood
    torch.set_default_dtype(torch.float64)
    double = LGSSM(emissions.Normal(), seasons=(24,), latent_size=2)
    double.load_state_dict(model.state_dict())
    exact = score(Pair(double), SequenceBatch(batch.values.double())).log_likelihood  # type: ignore[union-attr]
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-3)


def test_stock_svi_learns() -> None:
    """What is noise about a mean, at five times the scale that training starts from."""
    model = LGSSM(emissions.Normal(), latent_size=0, trend="none")
    batch = SequenceBatch(2.0 + 1.5 * torch.randn(64, 8))
    svi = SVI(model, no_guide, pyro.optim.Adam({"lr": 0.2}), Trace_ELBO())
    losses = [svi.step(batch) for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0]
    assert model.system().noise.detach().sqrt().item() > 1.0


def test_an_untrained_model_is_sensible() -> None:
    """It follows a level and a season in standardised units, a day ahead."""
    x = math.sqrt(2) * torch.sin(2 * math.pi * torch.arange(96.0) / 24) + 0.1 * torch.randn(8, 96)
    model = LGSSM(emissions.Normal(), seasons=(24,))
    figures = score(Pair(model), SequenceBatch(x)).steps[:, 72:].mean()
    assert figures > dist.Normal(0, 1).log_prob(x[:, 72:]).mean() + 1.0
    ahead = continuation(Pair(model), SequenceBatch(x[:, :72]), 24, draws=100)
    mean = ahead.reshape(8, 100, 24).mean(1)
    assert (mean - x[:, 72:]).abs().mean() < 0.3


def test_no_harmonic_stands_twice() -> None:
    kinds = LGSSM(emissions.Normal(), seasons=(24, 168), harmonics=8).structure
    assert len(set(kinds.angles)) == len(kinds.angles) and kinds.kinds.count("cosine") == 15
    assert LGSSM(emissions.Normal(), seasons=(7,), harmonics=1).structure.kinds.count("cosine") == 3
    assert LGSSM(emissions.Normal(), seasons=(2,)).structure.kinds[2:] == ["cosine"]


def test_many_columns_take_fewer_harmonics_by_default() -> None:
    """At most 100 states, 4 harmonics of a long season for few columns, and at least one."""
    for columns, states in ((1, 22), (5, 94), (6, 88), (7, 74), (10, 64), (20, 124)):
        emission = emissions.Factorised(emissions.Normal(), columns)
        assert len(LGSSM(emission, seasons=(24, 168)).first_mean) == states
    told = LGSSM(emissions.Factorised(emissions.Normal(), 7), seasons=(24, 168), harmonics=4)
    assert len(told.first_mean) == 130


def test_rows_at_once_know_how_large_a_belief_is() -> None:
    model = LGSSM(emissions.Factorised(emissions.Normal(), 20), seasons=(24, 168))
    stepper = stepper_of(Pair(model))
    assert stepper.state_size == 124 * 125
    assert stepper.rows_at_once(10) == 2**24 // (124 * 125)


def test_beliefs_of_no_step_and_fills_a_few_sequences_at_a_time() -> None:
    model, batch = new_model(), batch_of(RAGGED, True)
    none = SequenceBatch(torch.zeros(N, 0, C), inputs=torch.zeros(N, 0, U), missing=[])
    assert model.exact_fill(none, 2).shape == (2 * N, 0, C)
    means, spreads = model.posterior(none)
    assert means.shape == (N, 0, len(model.first_mean)) and spreads.shape[:2] == (N, 0)
    with mock.patch.object(lgssm, "FILLED_ENTRIES", 1):
        filled = model.exact_fill(batch, 2).view(N, 2, T, C)
    seen = (batch.seen | ~batch.mask.unsqueeze(-1)).unsqueeze(1).expand_as(filled)
    assert torch.equal(filled[seen], batch.values.unsqueeze(1).expand_as(filled)[seen])  # type: ignore[union-attr]
    assert filled[~seen].unique().numel() == int((~seen).sum())


def test_factors_are_stationary() -> None:
    system = new_model(latent_size=5).system()
    A = system.transition.dense
    close(A @ A.mT + system.state_noise[-5:, -5:], torch.eye(5))
    assert torch.linalg.eigvalsh(system.state_noise[-5:, -5:]).min() > 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LGSSM(emissions.Categorical(4)), r"observes real numbers.*Categorical"),
        (
            lambda: LGSSM(emissions.Factorised(emissions.Normal(), (2, 3))),
            r"\[\] or \[C\], got the emission Factorised of event shape \[2, 3\]",
        ),
        (
            lambda: LGSSM(emissions.Joint({"a": emissions.Normal(), "b": emissions.Normal()})),
            r"one member of a group, got a group of \['a', 'b'\]",
        ),
        (lambda: LGSSM(emissions.Normal(), 1, scaled=True), "1 locations and 1 scales"),
        (lambda: LGSSM(emissions.Normal(), seasons=(1,)), "at least 2 steps, got 1"),
        (
            lambda: LGSSM(emissions.Normal(), 2)(SequenceBatch(torch.zeros(1, 2))),
            "side inputs of size 2, the batch has none",
        ),
        (
            lambda: LGSSM(emissions.Normal(), 2, scaled=True)(
                SequenceBatch(torch.zeros(1, 2), inputs=torch.zeros(1, 2, 2))
            ),
            "must be positive, got 0",
        ),
        (
            lambda: LGSSM(emissions.Normal()).posterior(SequenceBatch(None, [2])),
            "needs observations",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


class Doubled(Encoder):
    """Regressors that are the last side inputs, doubled."""

    event_shape = (2 * C + U,)
    num_features = U

    def forward(self, values: Tensor) -> Tensor:
        return 2 * values[..., 2 * C :]


def test_regressors_are_the_encoders_features() -> None:
    """The density is that of the same model whose inputs were encoded before."""
    torch.manual_seed(3)
    cells = emissions.Factorised(emissions.Normal(), C)
    encoded = LGSSM(cells, 2 * C + U, scaled=True, regressors=Doubled())
    plain = LGSSM(cells, 2 * C + U, scaled=True)
    with torch.no_grad():
        encoded.regression.normal_()
    plain.load_state_dict(encoded.state_dict(), strict=False)
    scales = torch.cat([torch.randn(N, T, C), torch.rand(N, T, C) + 0.5], -1)
    regressors, x = torch.randn(N, T, U), torch.randn(N, T, C)
    totals = [
        score(Pair(model), SequenceBatch(x, inputs=torch.cat([scales, factor * regressors], -1)))
        for model, factor in ((encoded, 1.0), (plain, 2.0))
    ]
    close(totals[0].total, totals[1].total)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_a_start_from_data_is_of_its_units(size: float) -> None:
    """Scaled data is as likely, but for the units, and nearly as likely as after learning."""
    torch.manual_seed(4)
    walk = torch.randn(8, 200, C).cumsum(1)
    missing = torch.rand(8, 200, C) < 0.1
    found = []
    for factor in (1.0, size):
        torch.manual_seed(5)
        model = LGSSM(emissions.Factorised(emissions.Normal(), C), seasons=(7,))
        batch = SequenceBatch(factor * walk + 3 * factor, missing=missing)
        model.start_from(batch)
        cells = float((~missing).sum())
        found.append(float(score(Pair(model), batch).total.sum()) / cells)
    # the floor of the noise's scale is in the data's units
    assert found[1] + math.log(size) == pytest.approx(found[0], abs=0.02)
    truth = -0.5 * math.log(2 * math.pi * math.e)  # of each cell given the last
    assert truth - 0.35 < found[0] < truth + 0.1
