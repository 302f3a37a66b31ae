"""Latent paths with a recurrence over the latents, and with flows: densities against loops over
plain distributions, in float64.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import affine_autoregressive
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_seq.distributions.path import FlowPath, MarkovPath, RecurrentPath
from pyro_seq.nn._latent_scan import scan_combined_latents
from pyro_seq.nn.gaussian import Combiner, GatedTransition, NormalNet
from pyro_seq.nn.recurrent import Recurrence

N, STEPS, SIZE, HIDDEN = 3, 5, 2, 4
ACTIVE = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [False] * 5])

pytestmark = pytest.mark.usefixtures("float64")


class Chain:
    """z_t ~ N(net(d_t, e_t)), d_t = GRU(d_{t-1}, z_{t-1})."""

    def __init__(self) -> None:
        self.recurrence = Recurrence(SIZE, HIDDEN, kind="gru")
        self.net = NormalNet(HIDDEN + 1, (3,), SIZE)
        self.evidence, self.first = torch.randn(N, STEPS, 1), torch.randn(N, SIZE)

    def conditional(self, previous: Tensor, steps: slice, running: Any) -> tuple[dist.Normal, Any]:
        d, running = self.recurrence(previous, running)
        return self.net(d, self.evidence[:, steps]), running

    def path(self, kind: Any = RecurrentPath, **options: Any) -> Any:
        return kind(self.first, self.conditional, self.recurrence.initial(N), STEPS, **options)

    def loop(self, path: Tensor, flows: Any = ()) -> Tensor:
        """log p(z_t | z_{<t}) `[N, T]`, each from the latents before alone."""
        steps, running, previous = [], self.recurrence.initial(N), self.first
        for t in range(STEPS):
            normal, running = self.conditional(previous.unsqueeze(1), slice(t, t + 1), running)
            step = dist.Normal(normal.loc[:, 0], normal.scale[:, 0]).to_event(1)
            previous = path[:, t]
            steps.append(
                (dist.TransformedDistribution(step, list(flows)) if flows else step).log_prob(
                    previous
                )
            )
        return torch.stack(steps, -1)


@pytest.mark.parametrize("flowing", [False, True])
def test_density_of_samples_and_of_given_paths(flowing: bool) -> None:
    chain = Chain()
    flows = [affine_autoregressive(SIZE, hidden_dims=[3]) for _ in range(2)] if flowing else []
    options = {"kind": FlowPath, "flows": flows} if flowing else {}
    path = chain.path(active=ACTIVE, **options)
    with torch.no_grad():
        sample = path.rsample()
        expected = torch.where(ACTIVE, chain.loop(sample, flows), 0.0)
        torch.testing.assert_close(path.step_log_prob(sample), expected)
        torch.testing.assert_close(path.step_log_prob(sample.clone()), expected)
        torch.testing.assert_close(
            chain.path(active=ACTIVE, **options).log_prob(sample), expected.sum(-1)
        )
        given = torch.randn(N, STEPS, SIZE)
        torch.testing.assert_close(
            path.step_log_prob(given), torch.where(ACTIVE, chain.loop(given, flows), 0.0)
        )
        again = path.expand((4, N))
        torch.testing.assert_close(
            again.log_prob(given.expand(4, N, STEPS, SIZE)), path.log_prob(given).expand(4, N)
        )
        assert again.rsample().shape == (4, N, STEPS, SIZE)
        assert chain.path(**options).rsample((2,)).shape == (2, N, STEPS, SIZE)


def test_gradients_of_a_flowing_sample_are_those_of_the_loop() -> None:
    chain, flow = Chain(), affine_autoregressive(SIZE, hidden_dims=[3])
    path = chain.path(FlowPath, flows=[flow])
    sample = path.rsample()
    parameters = [*chain.net.parameters(), *chain.recurrence.parameters(), *flow.parameters()]
    grads = torch.autograd.grad(path.log_prob(sample).sum(), parameters, retain_graph=True)
    expected = torch.autograd.grad(chain.loop(sample, [flow]).sum(), parameters)
    torch.testing.assert_close(grads, expected)


def test_a_flow_moves_the_law_as_it_says() -> None:
    """The evidence of a flowing path integrates to one, by importance weights of its samples under
    a broad normal.
    """
    torch.manual_seed(3)
    chain = Chain()
    path = chain.path(FlowPath, flows=[affine_autoregressive(SIZE, hidden_dims=[3])])
    with torch.no_grad():
        proposal = chain.path()
        draws = proposal.expand((20_000, N)).rsample()
        weights = (path.log_prob(draws) - proposal.log_prob(draws)).exp()
    error = weights.std(0) / len(draws) ** 0.5
    assert ((weights.mean(0) - 1).abs() < 4 * error).all() and (error < 0.1).all()


def test_no_analytic_divergence_from_a_flow() -> None:
    chain = Chain()
    flowing = chain.path(FlowPath, flows=[affine_autoregressive(SIZE, hidden_dims=[3])])
    flowing.rsample()
    with pytest.raises(NotImplementedError):
        kl_divergence(
            flowing,
            MarkovPath(chain.first, lambda previous, steps: dist.Normal(previous, 1.0), STEPS),
        )


@pytest.mark.parametrize("lead", [(N,), (2, N)])
def test_combined_path_is_its_loop(lead: tuple[int, ...]) -> None:
    """In value and in every gradient."""
    combiner = Combiner(SIZE, HIDDEN, epsilon=0.01)
    inputs = [
        torch.randn(*lead, STEPS, SIZE),
        torch.randn(*lead, SIZE),
        torch.randn(N, STEPS, HIDDEN),
    ]
    noise, first, evidence = (x.requires_grad_() for x in inputs)
    expected = MarkovPath(
        first, lambda previous, steps: combiner(evidence[:, steps], previous), STEPS
    ).path_of(noise, first)
    actual = scan_combined_latents(noise, first, combiner, evidence)
    torch.testing.assert_close(actual, expected)
    leaves = [noise, first, evidence, *combiner.parameters()]
    weight = torch.randn(2, *expected[0].shape)
    grads = [
        torch.autograd.grad((torch.stack(result) * weight).sum(), leaves)
        for result in (actual, expected)
    ]
    torch.testing.assert_close(*grads)
    empty = scan_combined_latents(noise[..., :0, :], first, combiner, evidence[:, :0])
    assert empty[0].shape == (*lead, 0, SIZE)


def test_a_new_gated_transition_stays_near_where_it_is() -> None:
    """With the gate shut it is linear, W = I; with it open, the proposal; the scale is the
    proposal's alone.
    """
    transition = GatedTransition(SIZE, (3,), 1, epsilon=0.1)
    z, features = torch.randn(N, SIZE), torch.randn(N, 1)
    with torch.no_grad():
        for bias, expected in ((-1e3, z), (1e3, transition.proposed(torch.cat([z, features], -1)))):
            transition.gate[-1].bias.fill_(bias)
            torch.testing.assert_close(transition(z, features).loc, expected)
        assert (transition(z, features).scale > 0.1).all()
        alone = GatedTransition(SIZE, (3,))
        torch.testing.assert_close(alone(z).loc, alone(z, features[:, :0]).loc)
