"""Objectives of weighted draws: gradients against quadrature, bounds in order, both ways to run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.nn.functional import dropout

from pyro_seq._pytree import tree_leaves
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.errors import UserError
from pyro_seq.guides import SRNNGuide
from pyro_seq.infer.elbo import Recorder
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.infer.multi_sample import (
    IWAE_ELBO,
    STL_ELBO,
    DReG_ELBO,
    ReweightedWakeSleep,
    SequenceRenyiELBO,
    WeightedELBO,
)
from pyro_seq.models import RNN, SRNN
from pyro_seq.pairs.pair import Pair
from pyro_seq.train.settings import TrainingSettings
from pyro_seq.train.trainer import Trainer

K, X = 2, 1.3
KINDS: dict[str, Callable[[], WeightedELBO]] = {
    "iwae": lambda: IWAE_ELBO(K),
    "renyi": lambda: SequenceRenyiELBO(K, 0.5),
    "dreg": lambda: DReG_ELBO(K),
    "stl": lambda: STL_ELBO(K),
    "rws": lambda: ReweightedWakeSleep(K),
}


@pytest.fixture(autouse=True)
def _float64(float64: None) -> Iterator[None]:
    with pyro.validation_enabled(True):
        yield


class Scalar:
    """z ~ N(theta, 1), x ~ N(z, 1/2); q(z) = N(mean, exp(log_scale))."""

    def __init__(self, theta: float = 0.3, mean: float = 0.2, log_scale: float = -0.2) -> None:
        self.theta, self.mean, self.log_scale = (
            torch.tensor(value, requires_grad=True) for value in (theta, mean, log_scale)
        )

    @property
    def parameters(self) -> list[Tensor]:
        return [self.theta, self.mean, self.log_scale]

    def model(self, batch: SequenceBatch) -> None:
        with batch.plate():
            z = pyro.sample("z_0", dist.Normal(self.theta.expand(len(batch)), 1.0))
            pyro.sample("x_0", dist.Normal(z, 0.5), obs=batch.at(0))

    def guide(self, batch: SequenceBatch) -> None:
        with batch.plate():
            loc = self.mean.expand(len(batch))
            pyro.sample("z_0", dist.Normal(loc, self.log_scale.exp()))

    def log_weights(self, z: Tensor) -> tuple[Tensor, Tensor]:
        joint = dist.Normal(self.theta, 1.0).log_prob(z) + dist.Normal(z, 0.5).log_prob(
            torch.tensor(X)
        )
        return joint, dist.Normal(self.mean, self.log_scale.exp()).log_prob(z)

    def expected(self, kind: str) -> list[float]:
        """The expected gradient of the loss, by Gauss-Hermite quadrature over both draws."""
        nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(80))
        weights = weights / weights.sum()
        noise = torch.stack(torch.meshgrid(nodes, nodes, indexing="ij"))
        mass = weights.unsqueeze(-1) * weights
        z = self.mean + self.log_scale.exp() * noise
        if kind == "rws":
            z = z.detach()
        p, q = self.log_weights(z)
        bound = (p - q).logsumexp(0) - math.log(K)
        if kind == "stl":
            bound = (p - q).mean(0)
        elif kind == "renyi":
            bound = 2 * ((0.5 * (p - q)).logsumexp(0) - math.log(K))
        elif kind == "rws":
            bound = ((p - q).detach().softmax(0) * (p + q)).sum(0)
        return [float(g) for g in torch.autograd.grad(-(mass * bound).sum(), self.parameters)]


def gradients(pair: Scalar, elbo: Any, n: int) -> Tensor:
    for parameter in pair.parameters:
        parameter.grad = None
    elbo.loss_and_grads(pair.model, pair.guide, SequenceBatch(torch.full((n, 1), X)))
    return torch.stack(
        [torch.as_tensor(p.grad if p.grad is not None else 0.0) for p in pair.parameters]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_expected_gradients(kind: str) -> None:
    """Those of 20,000 sequences, in forty batches, are quadrature's within four errors."""
    torch.manual_seed(1)
    pair = Scalar()
    found = torch.stack([gradients(pair, KINDS[kind](), 500) / 500 for _ in range(40)])
    error = found.std(0) / math.sqrt(len(found))
    wrong = (found.mean(0) - torch.tensor(pair.expected(kind))).abs()
    assert (wrong <= 4 * error + 1e-12).all(), (found.mean(0), pair.expected(kind), error)


@pytest.mark.parametrize("kind", ["stl", "dreg"])
def test_no_noise_is_left_at_the_posterior(kind: str) -> None:
    """N(theta, 1) and N(x; z, 1/4) have the posterior N((theta + 4 x) / 5, 1/5)."""
    pair = Scalar(0.3, (0.3 + 4 * X) / 5, -0.5 * math.log(5))
    for seed in range(3):
        torch.manual_seed(seed)
        assert gradients(pair, KINDS[kind](), 4)[1:].abs().max() < 1e-12
    batch = SequenceBatch(torch.full((4, 1), X))
    pyros = Trace_ELBO(max_plate_nesting=1).differentiable_loss(pair.model, pair.guide, batch)
    assert torch.stack(torch.autograd.grad(pyros, pair.parameters[1:])).abs().max() > 1e-3


def srnn(layout: Any) -> Pair:
    torch.manual_seed(0)
    model = SRNN(
        Categorical(3),
        PreviousObservation(OneHot(3)),
        latent_size=2,
        latent_sizes=(3,),
        hidden_size=3,
        layout=layout,
    )
    return Pair(model, SRNNGuide(model, OneHot(3), hidden_size=3, latent_sizes=(3,)))


class ByItself:
    """A model or guide as a function of its own, which takes no plate to the left."""

    def __init__(self, side: Any) -> None:
        self.side = side

    def __call__(self, batch: SequenceBatch) -> Any:
        return self.side(batch)


@pytest.mark.parametrize("layout", ["path", "steps"])
def test_bounds_rise(layout: str) -> None:
    """ELBO <= Renyi <= IWAE <= log p(x), ragged sequences, run in a plate and as copies."""
    pair = srnn(layout)
    batch = SequenceBatch(torch.randint(3, (4, 5)), [5, 2, 1, 4]).repeat(10)
    truth = float(score(pair, batch, method="filter", samples=400).total.sum())
    with pair.scope():
        for around in (lambda side: side, ByItself):
            sides = around(pair.model), around(pair.guide)
            torch.manual_seed(2)
            elbo = -np.mean([STL_ELBO().loss(*sides, batch) for _ in range(30)])
            renyi, iwae = (
                -np.mean([made.loss(*sides, batch) for _ in range(8)])
                for made in (SequenceRenyiELBO(8, 0.5), IWAE_ELBO(8))
            )
            assert elbo < renyi < iwae < truth + 0.5, (elbo, renyi, iwae, truth)
            assert iwae > truth - 0.6 * (truth - elbo)


@pytest.mark.parametrize("kind", KINDS)
def test_both_layouts_train_the_same(kind: str) -> None:
    """Gradients reach the same parameters, what model and guide share among them."""
    batch = SequenceBatch(torch.randint(3, (3, 4)), [4, 2, 3])
    found = []
    for layout in ("path", "steps"):
        pair = srnn(layout)
        with pair.scope():
            torch.manual_seed(3)
            elbo = STL_ELBO(1) if kind == "stl" else KINDS[kind]()
            loss = elbo.loss_and_grads(pair.model, pair.guide, batch.with_cache())
            assert math.isfinite(loss)
            of = pair.parameters().items()
            found.append({name for name, p in of if p.grad is not None})
    assert found[0] == found[1] and len(found[0]) > 10


def test_stl_is_the_elbo_in_expectation_for_a_declared_pair() -> None:
    """Gradients of all parameters, those that both sides share among them."""
    pair, batch = srnn("path"), SequenceBatch(torch.randint(3, (2, 3)), [3, 2]).repeat(300)
    means, errors = [], []
    with pair.scope():
        for elbo in (STL_ELBO(), Trace_ELBO(max_plate_nesting=1)):
            draws = []
            for seed in range(24):
                torch.manual_seed(seed)
                for p in pair.parameters().values():
                    p.grad = None
                elbo.loss_and_grads(pair.model, pair.guide, batch.with_cache())
                draws.append(
                    torch.cat([p.grad.flatten() for _, p in sorted(pair.parameters().items())])
                )
            stacked = torch.stack(draws) / len(batch)
            means.append(stacked.mean(0))
            errors.append(stacked.std(0) / math.sqrt(len(draws)))
    z = (means[0] - means[1]) / (errors[0] ** 2 + errors[1] ** 2).sqrt().clamp(min=1e-12)
    assert z.abs().max() < 5 and float((z**2).mean()) < 1.5


def test_terms_are_recorded_and_stock_svi_trains() -> None:
    pair, batch = srnn("path"), SequenceBatch(torch.randint(3, (4, 5)))
    elbo = IWAE_ELBO(4)
    recorder = Recorder(elbo)
    with pair.scope():
        svi = SVI(pair.model, pair.guide, Adam({"lr": 1e-2}), elbo)
        losses = [svi.step(batch) for _ in range(30)]
        terms = recorder.take()
    assert terms is not None and np.mean(losses[-5:]) < np.mean(losses[:5])
    assert -np.mean(losses) >= terms.log_likelihood - terms.kl - 1e-9


class Going:
    """One window after another of the same sequences, each from the states of the one before."""

    def __init__(self, batch: SequenceBatch) -> None:
        self.batch, self.drawn = batch, 0

    def draw(self) -> tuple[SequenceBatch, bool]:
        self.drawn += 1
        return self.batch, self.drawn > 1

    def state(self) -> Any:
        return {"drawn": self.drawn}

    def load_state(self, state: Any) -> None:
        self.drawn = state["drawn"]


@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("kind", KINDS)
def test_trainer_carries_one_draws_states(kind: str, layout: str) -> None:
    """Windows go on from states of N sequences, whatever K is; losses fall."""
    pair = srnn(layout)
    settings = TrainingSettings(
        num_steps=12, objective=kind, num_particles=3, learning_rate=0.03, warmup=0.0
    )
    batches = Going(SequenceBatch(torch.arange(20).view(4, 5) % 3))
    trainer = Trainer(pair, batches, settings, quiet=True)
    trainer.fit()
    shapes = {tuple(x.shape[:1]) for x in tree_leaves(trainer.carried)}
    assert shapes == {(4,)}
    assert trainer.updates.first_loss is not None
    assert trainer.updates.recent_loss < trainer.updates.first_loss


def test_a_pair_without_latents_has_nothing_to_weigh() -> None:
    model = RNN(Categorical(3), PreviousObservation(OneHot(3)), hidden_size=3)
    batches = Going(SequenceBatch(torch.zeros(2, 3, dtype=torch.long)))
    settings = TrainingSettings(num_steps=2, objective="iwae", num_particles=3)
    with pytest.raises(UserError, match="no latents, and IWAE_ELBO weighs draws of latents"):
        Trainer(Pair(model), batches, settings, quiet=True).fit()


def test_refusals() -> None:
    batch = SequenceBatch(torch.zeros(3, 1))

    def shared(batch: SequenceBatch) -> None:
        pyro.sample("w", dist.Normal(0.0, 1.0))

    def discrete(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample("z_0", dist.Bernoulli(torch.full((len(batch),), 0.5)))

    for make in (IWAE_ELBO, DReG_ELBO, SequenceRenyiELBO, ReweightedWakeSleep):
        with pytest.raises(UserError, match="with num_particles=1 is the ELBO: at least 2"):
            make(1)
    with pytest.raises(UserError, match=r"site 'w' has batch shape .*not one entry for each"):
        IWAE_ELBO(2).loss(shared, shared, batch)
    for elbo in (IWAE_ELBO(2), DReG_ELBO(2), SequenceRenyiELBO(2), STL_ELBO()):
        with pytest.raises(UserError, match=f"reparameterised, which {type(elbo).__name__} needs"):
            elbo.loss_and_grads(discrete, discrete, batch)
    assert math.isfinite(ReweightedWakeSleep(2).loss(discrete, discrete, batch))
    with pytest.raises(UserError, match="a finite number other than 1"):
        SequenceRenyiELBO(2, 1.0)


class Dropping(Scalar):
    """A guide that leaves out half of the sequences' locations, which are far away."""

    def guide(self, batch: SequenceBatch) -> None:
        seen = batch.cached("features", lambda: dropout(self.mean.expand(len(batch)), 0.5))
        with batch.plate():
            z = pyro.sample("z_0", dist.Normal(1e6 * (seen + dropout(seen, 0.5)), 1.0))
            pyro.sample("z_1", dist.Normal(dropout(z, 0.5), 1.0))

    def model(self, batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample("z_0", dist.Normal(self.theta.expand(len(batch)), 1.0))
            pyro.sample("z_1", dist.Normal(torch.zeros(len(batch)), 1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_weighed_by_the_guide_that_made_them(kind: str) -> None:
    """Dropout is the same where draws are made and where they are weighed."""
    made, pair, batch = KINDS[kind](), Dropping(), SequenceBatch(torch.full((40, 1), X))
    torch.manual_seed(0)
    of = made._densities(made._get_trace(pair.model, pair.guide, (batch,), {}), (batch,)).guide
    # of z_0 and z_1: -1 - log(2 pi) on average, each draw a chi-square of 2
    assert float((of.detach().mean() + 1 + math.log(2 * math.pi)).abs()) < 4 / math.sqrt(80)
