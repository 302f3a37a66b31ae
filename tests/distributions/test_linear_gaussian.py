"""The Kalman filter, smoother and simulation smoother against plain ones written here, and against
the joint normal of all observations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from unittest import mock

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_seq.distributions import LinearGaussian, kalman
from pyro_seq.distributions.kalman import Belief, StateSpace, Transition
from pyro_seq.distributions.linear_gaussian import CellNormal

N, T, C, S = 3, 7, 3, 4
METHODS = (kalman.by_steps, kalman.by_scan)

pytestmark = pytest.mark.usefixtures("float64")


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def transition(matrix: Tensor) -> Transition:
    """One without pairs."""
    none = torch.zeros(0)
    return Transition(none, none, none.long(), matrix)


def covariance(size: int) -> Tensor:
    root = torch.randn(size, size + 1)
    return root @ root.mT / size


def system() -> StateSpace:
    """One that is neither stable nor of full rank."""
    noise = covariance(S)
    noise[0] = noise[:, 0] = 0.0
    return StateSpace(transition(0.6 * torch.randn(S, S)), noise, torch.randn(C, S), covariance(C))


def dense(space: StateSpace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    eye = torch.eye(space.loading.shape[-1])
    return space.transition @ eye, space.state_noise, space.loading, space.noise


def plain_filter(
    matrices: tuple[Tensor, ...], m: Tensor, P: Tensor, y: Tensor, seen: Tensor
) -> tuple[Tensor, list[tuple[Tensor, ...]], tuple[Tensor, Tensor]]:
    """Kalman's filter of one sequence `[T, C]`, cells that were not seen deleted."""
    F, Q, H, R = matrices
    figures, kept = [], []
    for x, here in zip(y, seen, strict=True):
        h, r, v = H[here], R[here][:, here], x[here] - H[here] @ m
        innovation = h @ P @ h.mT + r
        gain = torch.linalg.solve(innovation, h @ P).mT
        figures.append(
            -0.5 * (v @ torch.linalg.solve(innovation, v) + torch.logdet(2 * math.pi * innovation))
            if len(v)
            else torch.zeros(())
        )
        filtered_m, filtered_P = m + gain @ v, P - gain @ innovation @ gain.mT
        kept.append((m, P, filtered_m, filtered_P))
        m, P = F @ filtered_m, F @ filtered_P @ F.mT + Q
    return torch.stack(figures), kept, (m, P)


def plain_smoother(
    matrices: tuple[Tensor, ...], m: Tensor, P: Tensor, y: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor]:
    """Rauch, Tung & Striebel's smoother of one sequence."""
    _, kept, _ = plain_filter(matrices, m, P, y, seen)
    means, spreads = [kept[-1][2]], [kept[-1][3]]
    for (_, _, mean, spread), (after_m, after_P, _, _) in zip(
        kept[-2::-1], kept[:0:-1], strict=True
    ):
        gain = torch.linalg.solve(after_P, matrices[0] @ spread).mT
        means.append(mean + gain @ (means[-1] - after_m))
        spreads.append(spread + gain @ (spreads[-1] - after_P) @ gain.mT)
    return torch.stack(means[::-1]), torch.stack(spreads[::-1])


def joint_normal(
    matrices: tuple[Tensor, ...], m: Tensor, P: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Mean `[T C]` and covariance `[T C, T C]` of all observations, state by state."""
    F, Q, H, R = matrices
    cells = len(H)
    means, spread = [], torch.zeros(steps, cells, steps, cells)
    for t in range(steps):
        means.append(H @ m)
        spread[t, :, t] = H @ P @ H.mT + R
        ahead = P
        for later in range(t + 1, steps):
            ahead = F @ ahead
            spread[later, :, t] = H @ ahead @ H.mT
            spread[t, :, later] = spread[later, :, t].mT.clone()
        m, P = F @ m, F @ P @ F.mT + Q
    return torch.cat(means), spread.reshape(steps * cells, steps * cells)


def given(mean: Tensor, spread: Tensor, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of the entries not seen given those seen."""
    gain = torch.linalg.solve(spread[seen][:, seen], spread[seen][:, ~seen]).mT
    return (
        mean[~seen] + gain @ (x[seen] - mean[seen]),
        spread[~seen][:, ~seen] - gain @ spread[seen][:, ~seen],
    )


def example(shared: bool) -> tuple[StateSpace, Tensor, Tensor, Tensor, Tensor]:
    """(a system, means, covariances, observations, cells seen: one step not at all)."""
    P = covariance(S).expand(N, S, S) if shared else torch.stack([covariance(S) for _ in range(N)])
    seen = torch.rand(N, T, C) > 0.3
    seen[0, 2], seen[1] = False, True
    return system(), torch.randn(N, S), P, torch.randn(N, T, C), seen


@pytest.mark.parametrize("method", METHODS, ids=["steps", "scan"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("cells", ["all", "some", "some of all", "some alike"])
def test_filter(method: Callable[..., object], shared: bool, cells: str) -> None:
    space, m, P, y, seen = example(shared)
    if cells == "some of all":
        seen = seen[:1].expand(N, T, C)
    if cells == "some alike":
        seen = seen[[*range(N - 1), 0]]
    mask = None if cells == "all" else seen
    with mock.patch.object(kalman, "filtered", method):
        law = LinearGaussian(space, m, P, (T, C), seen=mask)
        found = law.filtered(y)
    used = {"some": N, "some alike": N - 1}.get(cells, 1) if shared else N
    assert len(law.grouped(law.batch_shape)[0].first) == used
    assert found.steps is law.step_log_prob(y) or law.log_prob(y).shape == (N,)
    for n in range(N):
        here = torch.ones(T, C, dtype=torch.bool) if mask is None else seen[n]
        figures, _, (mean, spread) = plain_filter(dense(space), m[n], P[n], y[n], here)
        close(found.steps[n], figures)
        close(found.mean[n], mean)
        close(found.covariance[n], spread)
        all_mean, all_spread = joint_normal(dense(space), m[n], P[n], T)
        flat = here.flatten()
        exact = dist.MultivariateNormal(all_mean[flat], all_spread[flat][:, flat])
        close(law.log_prob(y)[n], exact.log_prob(y[n].flatten()[flat]))


@pytest.mark.parametrize("shared", [True, False])
def test_smoother(shared: bool) -> None:
    space, m, P, y, seen = example(shared)
    space = space._replace(state_noise=covariance(S))  # the plain one wants its inverse
    means, spreads = LinearGaussian(space, m, P, (T, C), seen=seen).smoothed(y)
    for n in range(N):
        expected = plain_smoother(dense(space), m[n], P[n], y[n], seen[n])
        close(means[n], expected[0])
        close(spreads[n], expected[1])


def test_scale_location_and_padding() -> None:
    """A sequence in units of its own, shorter than the others: the density of x, not of y."""
    space, m, P, y, seen = example(True)
    location, scale = torch.randn(N, T, C), torch.rand(N, T, C) + 0.5
    active = torch.arange(T) < torch.tensor([7, 4, 0]).unsqueeze(-1)
    laws = [
        LinearGaussian(
            space, m, P, (T, C), location=location, scale=scale, active=active, seen=mask
        )
        for mask in (None, seen & active.unsqueeze(-1))
    ]
    for law, cells in zip(laws, (torch.ones_like(seen), seen), strict=True):
        figures = law.step_log_prob(location + scale * y)
        for n, length in enumerate((7, 4, 0)):
            here = cells[n, :length]
            expected, _, _ = (
                plain_filter(dense(space), m[n], P[n], y[n, :length], here)
                if length
                else (torch.zeros(0), None, None)
            )
            close(figures[n, :length], expected - (scale[n, :length].log() * here).sum(-1))
            assert (figures[n, length:] == 0).all()


def test_paired_states_are_a_matrix() -> None:
    """F x and F' x, where levels have slopes, a pair turns, and two are dense."""
    own, other = torch.randn(5), torch.randn(5)
    partner = torch.tensor([1, 0, 2, 4, 3])
    other[2] = 0.0
    move = Transition(own, other, partner, torch.randn(2, 2))
    F = torch.zeros(7, 7)
    for i in range(5):
        F[i, partner[i]] += other[i]
        F[i, i] += own[i]
    F[5:, 5:] = move.dense
    x = torch.randn(7, 3)
    close(move @ x, F @ x)
    close(move.mT @ x, F.mT @ x)


@pytest.mark.parametrize("shared", [True, False])
def test_fills_have_the_moments_of_the_joint_normal(shared: bool) -> None:
    space, m, P, y, seen = example(shared)
    draws = 8_000
    if shared:
        seen = seen[:1].expand(N, T, C)
    filled = LinearGaussian(space, m, P, (T, C), seen=seen).fill(y, draws)
    assert (filled == y.unsqueeze(1))[seen.unsqueeze(1).expand_as(filled)].all()
    for n in range(N):
        flat = seen[n].flatten()
        if flat.all():
            continue
        mean, spread = given(*joint_normal(dense(space), m[n], P[n], T), y[n].flatten(), flat)
        cells = filled[n].reshape(draws, -1)[:, ~flat]
        deviation = spread.diagonal().sqrt()
        assert ((cells.mean(0) - mean).abs() < 4.5 * deviation / draws**0.5).all()
        errors = (torch.cov(cells.mT) - spread).abs() / (deviation.unsqueeze(-1) * deviation)
        assert (errors < 4.5 * (2 / draws) ** 0.5).all()


def test_mean_of_missing_cells_is_exact() -> None:
    space, m, P, y, seen = example(False)
    first = Belief(m.unsqueeze(-1), P)
    found = kalman.smoothed(space, first, y.unsqueeze(-1), seen, covariances=False)
    for n in range(N):
        flat = seen[n].flatten()
        mean, _ = given(*joint_normal(dense(space), m[n], P[n], T), y[n].flatten(), flat)
        close(found.observations[n].flatten()[~flat], mean)


def test_sequences_are_drawn_from_the_joint_normal() -> None:
    space, m, P, _, _ = example(True)
    draws = 40_000
    x = LinearGaussian(space, m[0], P[0], (3, C)).sample((draws,)).flatten(1)
    mean, spread = joint_normal(dense(space), m[0], P[0], 3)
    deviation = spread.diagonal().sqrt()
    assert ((x.mean(0) - mean).abs() < 4.5 * deviation / draws**0.5).all()
    errors = (torch.cov(x.mT) - spread).abs() / (deviation.unsqueeze(-1) * deviation)
    assert (errors < 4.5 * (2 / draws) ** 0.5).all()


@pytest.mark.parametrize("method", [*METHODS, "recomputed"])
def test_gradients_are_those_of_finite_differences(method: object) -> None:
    _, m, P, y, seen = example(True)
    weights = [0.6 * torch.randn(S, S), covariance(S), torch.randn(C, S), covariance(C), m, P[0]]
    entries = 0 if method == "recomputed" else kalman.KEPT_ENTRIES
    chosen = kalman.by_steps if method == "recomputed" else method

    def total(*parts: Tensor) -> Tensor:
        F, Q, H, R, mean, spread = parts
        law = LinearGaussian(
            StateSpace(transition(F), Q + Q.mT, H, R + R.mT),
            mean,
            (spread + spread.mT).expand(N, S, S),
            (T, C),
            seen=seen,
        )
        return law.log_prob(y).sum()

    inputs = tuple(weight.clone().requires_grad_() for weight in weights)
    with (
        mock.patch.object(kalman, "filtered", chosen),
        mock.patch.object(kalman, "KEPT_ENTRIES", entries),
        mock.patch.object(kalman, "SEGMENT", 3),
    ):
        assert torch.autograd.gradcheck(total, inputs, atol=1e-6, fast_mode=True)


def test_each_of_equal_covariances_has_its_own_gradient() -> None:
    """Equal by chance, they are still functions of different weights."""
    space, m, P, y, _ = example(True)
    apart = P.clone().requires_grad_()
    LinearGaussian(space, m, apart, (T, C)).log_prob(y)[1].backward()
    assert apart.grad is not None
    assert (apart.grad[0] == 0).all() and (apart.grad[1] != 0).any()


@pytest.mark.parametrize("method", METHODS, ids=["steps", "scan"])
def test_diffuse_beginnings_and_small_noise(method: Callable[..., object]) -> None:
    """A first variance 10^12 times the noise's loses digits, but no more than that ratio's."""
    F = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    space = StateSpace(
        transition(F), 1e-4 * torch.eye(2), torch.tensor([[1.0, 0.0]]), 1e-6 * torch.eye(1)
    )
    y = torch.randn(1, 300, 1).cumsum(1)
    with mock.patch.object(kalman, "filtered", method):
        law = LinearGaussian(space, torch.zeros(1, 2), 1e6 * torch.eye(2).unsqueeze(0), (300, 1))
        found = law.filtered(y)
    seen = torch.ones(300, 1, dtype=torch.bool)
    # in the covariance's Joseph form, which cannot lose positivity
    m, P, figures = torch.zeros(2), 1e6 * torch.eye(2), []
    for x, _ in zip(y[0], seen, strict=True):
        v, s = x - m[:1], P[:1, :1] + 1e-6
        gain = P[:, :1] / s
        left = torch.eye(2) - gain @ space.loading
        m, P = m + gain[:, 0] * v, left @ P @ left.mT + 1e-6 * gain @ gain.mT
        figures.append(-0.5 * (v * v / s + (2 * math.pi * s).log()).squeeze())
        m, P = F @ m, F @ P @ F.mT + space.state_noise
    torch.testing.assert_close(found.steps[0], torch.stack(figures), rtol=1e-4, atol=1e-4)


def test_cells_of_one_step() -> None:
    law, x = CellNormal(torch.randn(2, C), covariance(C)), torch.randn(2, C)
    seen = torch.tensor([[True, False, True], [False, False, True]])
    found = law.marginal(seen)
    other = x.masked_fill(~seen, 99.0)
    for n in range(2):
        here = seen[n]
        exact = dist.MultivariateNormal(
            law.loc[n, here], law.covariance_matrix[n][here][:, here]
        ).log_prob(x[n, here])
        close(found.log_prob(other)[n], exact)
        mean, spread = given(law.loc[n], law.covariance_matrix[n], x[n], here)
        draws = law.conditioned(other, seen).sample((40_000,))[:, n]
        assert (draws[:, here] == x[n, here]).all()
        deviation = spread.diagonal().sqrt()
        assert ((draws[:, ~here].mean(0) - mean).abs() < 4.5 * deviation / 200).all()
        close(torch.cov(draws[:, ~here].mT).reshape(spread.shape), spread, 0.05)
        rest = dist.MultivariateNormal(mean, spread).log_prob(x[n, ~here])
        close(law.conditioned(x, seen).log_prob(x)[n], rest)
    assert law.marginal(torch.zeros(2, C, dtype=torch.bool)).log_prob(x).tolist() == [0, 0]
