"""Markov paths: density, law of samples, divergence and gradients, against loops and a Gaussian
written out by hand.
"""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_seq.distributions.path import MarkovPath, step_kl
from pyro_seq.nn.gaussian import NormalNet

N, STEPS, SIZE = 3, 5, 2
LENGTHS = torch.tensor([5, 0, 3])
ACTIVE = torch.arange(STEPS) < LENGTHS.unsqueeze(-1)


@pytest.fixture(autouse=True)
def _float64(float64: None) -> None:
    pass


class Linear(nn.Module):
    """z_t ~ N(A z_{t-1} + b_t, diag(s_t)^2), z_0 given."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.a = nn.Parameter(0.6 * torch.randn(SIZE, SIZE))
        self.b = nn.Parameter(scale * torch.randn(N, STEPS, SIZE))
        self.s = nn.Parameter(0.5 + torch.rand(N, STEPS, SIZE))
        self.first = nn.Parameter(torch.randn(N, SIZE))

    def conditional(self, previous: Tensor, steps: slice) -> dist.Normal:
        return dist.Normal(previous @ self.a.t() + self.b[:, steps], self.s[:, steps])

    def path(self, **options: Any) -> MarkovPath:
        return MarkovPath(self.first, self.conditional, STEPS, **options)

    @torch.no_grad()
    def gaussian(self, n: int) -> dist.MultivariateNormal:
        """The law of the whole path of sequence n, flattened: z = M (b + s noise) + c, with M built
        block by block.
        """
        blocks = torch.zeros(STEPS, SIZE, STEPS, SIZE)
        for t in range(STEPS):
            for k in range(t + 1):
                blocks[t, :, k] = torch.linalg.matrix_power(self.a, t - k)
        matrix = blocks.view(STEPS * SIZE, STEPS * SIZE)
        start = torch.cat(
            [torch.linalg.matrix_power(self.a, t + 1) @ self.first[n] for t in range(STEPS)]
        )
        scaled = matrix * self.s[n].flatten()
        return dist.MultivariateNormal(start + matrix @ self.b[n].flatten(), scaled @ scaled.t())


def loop(net: NormalNet, features: Tensor, first: Tensor, path: Tensor) -> Tensor:
    """log p(z_t | z_{t-1}) `[*lead, T]`, step by step."""
    steps, previous = [], first
    for t in range(path.shape[-2]):
        steps.append(net(features[..., t, :], previous).log_prob(path[..., t, :]).sum(-1))
        previous = path[..., t, :]
    return torch.stack(steps, -1)


@pytest.fixture
def network() -> tuple[NormalNet, Tensor, Tensor, MarkovPath]:
    net, features, first = (
        NormalNet(3 + SIZE, (4,), SIZE),
        torch.randn(N, STEPS, 3),
        torch.randn(N, SIZE),
    )
    path = MarkovPath(
        first, lambda previous, steps: net(features[:, steps], previous), STEPS, active=ACTIVE
    )
    return net, features, first, path


class TestDensity:
    @pytest.mark.parametrize("sample_shape", [(), (4,), (2, 4)])
    def test_against_a_loop(self, network: Any, sample_shape: tuple[int, ...]) -> None:
        net, features, first, path = network
        z = torch.randn(*sample_shape, N, STEPS, SIZE)
        expected = loop(net, features, first.expand(*sample_shape, N, SIZE), z)
        torch.testing.assert_close(path.step_log_prob(z), expected * ACTIVE)
        torch.testing.assert_close(path.log_prob(z), (expected * ACTIVE).sum(-1))
        unmasked = MarkovPath(path.first, path.conditional, STEPS)
        torch.testing.assert_close(unmasked.log_prob(z), expected.sum(-1))

    def test_against_a_gaussian(self) -> None:
        linear = Linear()
        z = torch.randn(7, N, STEPS, SIZE)
        expected = torch.stack(
            [linear.gaussian(n).log_prob(z[:, n].flatten(1)) for n in range(N)], -1
        )
        torch.testing.assert_close(linear.path().log_prob(z), expected, rtol=1e-10, atol=1e-10)

    def test_padding_changes_nothing(self, network: Any) -> None:
        *_, path = network
        z = torch.randn(N, STEPS, SIZE)
        other = torch.where(ACTIVE.unsqueeze(-1), z, torch.randn(()) * 100)
        assert path.log_prob(z).equal(path.log_prob(other)) and path.log_prob(z)[1] == 0

    def test_no_steps(self) -> None:
        features, net = torch.zeros(N, 0, 1), NormalNet(1 + SIZE, (), SIZE)
        path = MarkovPath(
            torch.zeros(N, SIZE), lambda previous, steps: net(features[:, steps], previous), 0
        )
        assert path.rsample().shape == (N, 0, SIZE)
        assert path.log_prob(path.rsample()).tolist() == [0] * N


class TestWhatIsKept:
    """The conditionals of the latest path are shared by density and divergence, but never where
    they would be wrong.
    """

    def test_conditionals_are_computed_once(self) -> None:
        calls: list[slice] = []
        linear = Linear()

        def conditional(previous: Tensor, steps: slice) -> dist.Normal:
            calls.append(steps)
            return linear.conditional(previous, steps)

        path = MarkovPath(linear.first, conditional, STEPS)
        z = torch.randn(N, STEPS, SIZE)
        assert path.log_prob(z).equal(path.log_prob(z)) and calls == [slice(None)]
        path.log_prob(z.clone())
        assert len(calls) == 2

    def test_a_density_without_gradient_does_not_take_it_from_the_next(self) -> None:
        linear, z = Linear(), torch.randn(N, STEPS, SIZE)
        path = linear.path()
        with torch.no_grad():
            path.log_prob(z)
        path.log_prob(z).sum().backward()
        assert linear.a.grad is not None and linear.a.grad.any()

    def test_a_path_changed_in_place(self) -> None:
        path, z = Linear().path(), torch.randn(N, STEPS, SIZE)
        path.log_prob(z)
        z.add_(1)
        torch.testing.assert_close(path.log_prob(z), path.log_prob(z.clone()))

    def test_inference_mode(self) -> None:
        path = Linear().path()
        with torch.inference_mode():
            assert path.log_prob(path.sample()).isfinite().all()


class TestSamples:
    def test_law(self) -> None:
        linear, k = Linear(), 40_000
        z = linear.path().sample((k,))
        assert z.shape == (k, N, STEPS, SIZE) and not z.requires_grad
        for n in range(N):
            law, flat = linear.gaussian(n), z[:, n].flatten(1)
            deviation = (flat.mean(0) - law.mean) / (law.variance / k).sqrt()
            assert deviation.abs().max() < 4.5
            centred = flat - law.mean
            products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
            errors = (products.mean(0) - law.covariance_matrix) / (products.std(0) / math.sqrt(k))
            assert errors.abs().max() < 4.5

    def test_is_reparameterised(self) -> None:
        """z = f(noise): the same noise gives the same path, by the loop and by a sampler that
        claims to be its equal.
        """
        linear = Linear()
        by_loop = linear.path()

        def sampler(noise: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
            previous, steps = first, []
            for t in range(STEPS):
                previous = (
                    previous @ linear.a.t() + linear.b[:, t] + linear.s[:, t] * noise[..., t, :]
                )
                steps.append(previous)
            path = torch.stack(steps, -2)
            return path, linear.s.expand_as(path)

        by_sampler = linear.path(sampler=sampler)
        results = []
        for path in (by_loop, by_sampler, by_sampler.expand((4, N))):
            torch.manual_seed(5)
            z = path.rsample() if path.batch_shape != (N,) else path.rsample((4,))
            grads = torch.autograd.grad(z.square().sum(), list(linear.parameters()))
            results.append((z, *grads))
        for other in results[1:]:
            torch.testing.assert_close(other, results[0])

    def test_density_of_its_own_sample_needs_no_second_pass(self) -> None:
        """log q(z(noise)) from the noise alone equals the density of any equal path, in value and
        in every gradient.
        """
        net = NormalNet(SIZE, (4,), SIZE)
        path = MarkovPath(torch.randn(N, SIZE), lambda previous, steps: net(previous), STEPS)
        z = path.rsample()
        with mock.patch.object(path, "conditional", side_effect=AssertionError("computed again")):
            own = path.log_prob(z)
        other = path.log_prob(z.clone())
        torch.testing.assert_close(own, other)
        mine, its = (
            torch.autograd.grad(log_prob.sum(), list(net.parameters()), retain_graph=True)
            for log_prob in (own, other)
        )
        torch.testing.assert_close(mine, its)

    def test_latest_sample(self) -> None:
        path = Linear().path()
        with pytest.raises(NotImplementedError, match="sample it"):
            _ = path.latest_sample
        assert path.sample() is path.latest_sample and path.rsample((2,)) is path.latest_sample


class TestShapes:
    def test_of_the_distribution(self) -> None:
        path = Linear().path()
        assert path.batch_shape == (N,) and path.event_shape == (STEPS, SIZE) and path.has_rsample
        assert path.support.event_dim == 2

    def test_expand(self, network: Any) -> None:
        *_, path = network
        wide = path.expand((4, N))
        z = wide.rsample()
        assert wide.batch_shape == (4, N) and z.shape == (4, N, STEPS, SIZE)
        torch.testing.assert_close(wide.log_prob(z), path.log_prob(z))
        single = MarkovPath(
            torch.zeros(1, SIZE), lambda previous, steps: dist.Normal(previous, 1.0), STEPS
        ).expand((N,))
        assert single.rsample().shape == (N, STEPS, SIZE) and single.log_prob(
            single.rsample()
        ).shape == (N,)

    def test_as_a_site(self, network: Any) -> None:
        *_, path = network

        def model() -> Tensor:
            with pyro.plate("particles", 4, dim=-2), pyro.plate("sequences", N, dim=-1):
                return pyro.sample("z", path)

        trace = poutine.trace(model).get_trace()
        trace.compute_log_prob()
        assert trace.nodes["z"]["value"].shape == (4, N, STEPS, SIZE)
        torch.testing.assert_close(
            trace.nodes["z"]["log_prob"], path.log_prob(trace.nodes["z"]["value"])
        )


class TestDivergence:
    def test_of_independent_steps_is_the_closed_form(self) -> None:
        locs, scales = torch.randn(2, N, STEPS, SIZE), torch.rand(2, N, STEPS, SIZE) + 0.5
        q, p = (
            MarkovPath(
                torch.zeros(N, SIZE),
                lambda previous, steps, i=i: dist.Normal(
                    locs[i][:, steps] + 0 * previous, scales[i][:, steps]
                ),
                STEPS,
                active=ACTIVE,
            )
            for i in range(2)
        )
        q.rsample()
        closed = (
            (scales[1] / scales[0]).log()
            + (scales[0] ** 2 + (locs[0] - locs[1]) ** 2) / (2 * scales[1] ** 2)
            - 0.5
        )
        torch.testing.assert_close(step_kl(q, p), closed)
        torch.testing.assert_close(kl_divergence(q, p), (closed.sum(-1) * ACTIVE).sum(-1))

    def test_is_unbiased(self) -> None:
        """Its mean over samples is the divergence of the two Gaussians, and its spread below the
        plain estimate's.
        """
        k = 20_000
        q, p = Linear(), Linear(0.5)
        left, right = q.path(), p.path()
        with torch.no_grad():
            z = left.rsample((k,))
            estimates, plain = kl_divergence(left, right), left.log_prob(z) - right.log_prob(z)
        for n in range(N):
            exact = kl_divergence(q.gaussian(n), p.gaussian(n))
            assert (estimates[:, n].mean() - exact).abs() < 4 * estimates[:, n].std() / math.sqrt(k)
            assert (plain[:, n].mean() - exact).abs() < 4 * plain[:, n].std() / math.sqrt(k)
        assert (estimates.std(0) < plain.std(0)).all()

    def test_in_a_mean_field_elbo(self) -> None:
        q, p = Linear().path(active=ACTIVE), Linear(0.5).path(active=ACTIVE)

        def run(path: MarkovPath) -> None:
            with pyro.plate("sequences", N):
                pyro.sample("z", path)

        torch.manual_seed(1)
        loss = TraceMeanField_ELBO(max_plate_nesting=1).loss(lambda: run(p), lambda: run(q))
        torch.manual_seed(1)
        q.rsample()
        assert loss == pytest.approx(kl_divergence(q, p).sum().item(), rel=1e-12)

    def test_gradients(self) -> None:
        """Density and divergence, in everything that they are computed from, against finite
        differences.
        """
        linear, other = Linear(), Linear(0.5)
        noise = torch.randn(N, STEPS, SIZE)
        active = ACTIVE

        def figures(*parameters: Tensor) -> tuple[Tensor, Tensor]:
            a, b, s, first = parameters

            def conditional(previous: Tensor, steps: slice) -> dist.Normal:
                return dist.Normal(previous @ a.t() + b[:, steps], s[:, steps])

            q = MarkovPath(first, conditional, STEPS, active=active)
            torch.manual_seed(3)
            q.rsample()
            return q.log_prob(noise), kl_divergence(q, other.path(active=active))

        assert torch.autograd.gradcheck(figures, tuple(linear.parameters()))


def test_gradients_of_a_density_stop_at_padding(network: Any) -> None:
    net, *_, path = network
    z = torch.randn(N, STEPS, SIZE, requires_grad=True)
    path.log_prob(z).sum().backward()
    assert z.grad is not None and not z.grad[~ACTIVE].any() and z.grad[ACTIVE].all()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
