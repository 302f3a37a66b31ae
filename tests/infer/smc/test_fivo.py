"""FIVO: against quadrature, a filter written here, the ELBO, IWAE and the likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor

from pyro_seq._pytree import tree_leaves
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation, SideInputs
from pyro_seq.emissions.composite import Factorised
from pyro_seq.emissions.elementary import Categorical, Normal
from pyro_seq.encoders import Flatten, OneHot
from pyro_seq.errors import UserError
from pyro_seq.guides import DMMGuide, ISEQGuide, SRNNGuide, VRNNGuide
from pyro_seq.infer import FIVO_ELBO
from pyro_seq.infer.elbo import make_elbo
from pyro_seq.infer.multi_sample import IWAE_ELBO
from pyro_seq.models import DMM, ISEQ, RNN, SRNN, VRNN
from pyro_seq.pairs.guide import SequenceGuide
from pyro_seq.pairs.model import SequenceModel
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.scale_latents import ScaleLatents
from pyro_seq.train.settings import TrainingSettings
from pyro_seq.train.trainer import Trainer


@pytest.fixture(autouse=True)
def _float64(float64: None) -> Iterator[None]:
    with pyro.validation_enabled(True):
        yield


class Walk(SequenceModel):
    """z_t ~ N(a z_{t-1}, 0.6^2), z_0 = 0; x_t ~ N(z_t, r^2)."""

    latent_size = 1

    def __init__(self) -> None:
        super().__init__(Normal(positive="exp", epsilon=0.0), SideInputs(0))
        self.rate, self.log_r = (torch.nn.Parameter(torch.tensor(v)) for v in (0.8, -0.3))

    def transition(self, h: Tensor, previous: Tensor) -> dist.Normal:
        return dist.Normal(self.rate * previous, torch.full_like(previous, 0.6))

    def decode(self, h: Tensor, latents: Tensor | None, rnn_state: Any) -> tuple[Tensor, Any]:
        assert latents is not None
        return torch.cat([latents, self.log_r.expand_as(latents)], -1), rnn_state


class Filtering(SequenceGuide):
    """q(z_t) = N(0.3 z_{t-1} + b x_t, s^2)."""

    def __init__(self, model: Walk) -> None:
        super().__init__(model)
        self.slope, self.log_s = (torch.nn.Parameter(torch.tensor(v)) for v in (0.3, -0.4))

    def encode(self, batch: SequenceBatch, rnn_state: Any) -> tuple[tuple[Tensor, ...], Any]:
        assert isinstance(batch.values, Tensor)
        return (batch.values.unsqueeze(-1),), rnn_state

    def posterior(self, evidence: tuple[Tensor, ...], previous: Tensor) -> dist.Normal:
        loc = 0.3 * previous + self.slope * evidence[0]
        return dist.Normal(loc, self.log_s.exp().expand_as(loc))


def walk() -> tuple[Walk, Filtering, list[Tensor]]:
    model = Walk()
    guide = Filtering(model)
    return model, guide, [model.rate, model.log_r, guide.slope, guide.log_s]


def log_weight(model: Walk, guide: Filtering, x: Any, before: Tensor, noise: Tensor) -> Any:
    """(z, log w) of one step."""
    loc, scale = 0.3 * before + guide.slope * x, guide.log_s.exp()
    z = loc + scale * noise
    p = dist.Normal(model.rate * before, 0.6).log_prob(z)
    seen = dist.Normal(z, model.log_r.exp()).log_prob(torch.as_tensor(x))
    return z, p + seen - dist.Normal(loc, scale).log_prob(z)


X = (1.5, -0.8)


def expected_gradient(*, resampling: bool) -> list[float]:
    """Of K = 2 particles over two steps, resampled between: by quadrature over all four draws and
    the sum over their ancestors.
    """
    model, guide, parameters = walk()
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(22))
    weights = weights / weights.sum()
    e1, e2, e3, e4 = torch.meshgrid(
        nodes,
        nodes,
        nodes,
        nodes,
        indexing="ij",
    )
    mass = torch.einsum("a,b,c,d->abcd", weights, weights, weights, weights)
    first = [log_weight(model, guide, X[0], torch.zeros(()), e) for e in (e1, e2)]
    logs = torch.stack([w for _, w in first])
    chance = (logs if resampling else logs.detach()).softmax(0)
    total: Any = 0.0
    for i in (0, 1):
        for j in (0, 1):
            second = torch.stack(
                [log_weight(model, guide, X[1], first[a][0], e)[1] for a, e in ((i, e3), (j, e4))]
            )
            bound = logs.logsumexp(0) + second.logsumexp(0) - 2 * math.log(2)
            total = total + (mass * chance[i] * chance[j] * bound).sum()
    return [float(g) for g in torch.autograd.grad(-total, parameters)]


@pytest.mark.parametrize("resampling", [False, True])
def test_expected_gradient(resampling: bool) -> None:
    """Of 40,000 sequences in forty batches, within four errors; the term of the resampling is what
    makes it unbiased, and both can be told apart.
    """
    torch.manual_seed(0)
    model, guide, parameters = walk()
    batch = SequenceBatch(torch.tensor([X]).expand(1_000, 2), inputs=torch.zeros(1_000, 2, 0))
    elbo, found = FIVO_ELBO(2, resample_below=1.0, score_function=resampling), []
    for _ in range(40):
        for p in parameters:
            p.grad = None
        elbo.loss_and_grads(model, guide, batch)
        found.append(torch.stack([p.grad for p in parameters if p.grad is not None]) / 1_000)
    stacked = torch.stack(found)
    error = stacked.std(0) / math.sqrt(len(found))
    expected, other = (
        torch.tensor(expected_gradient(resampling=r)) for r in (resampling, not resampling)
    )
    assert ((stacked.mean(0) - expected).abs() < 4 * error).all(), (stacked.mean(0), expected)
    assert ((stacked.mean(0) - other).abs() > 4 * error).any()


def test_value_is_that_of_a_filter_written_here() -> None:
    """On the same noise, ragged sequences, adaptive resampling: to 1e-12."""
    model, guide, _ = walk()
    n, k, lengths = 6, 5, [7, 4, 7, 2, 1, 6]
    x = 2.5 * torch.randn(n, 7)
    elbo = FIVO_ELBO(k)
    torch.manual_seed(3)
    found = -elbo.loss(model, guide, SequenceBatch(x, lengths, inputs=torch.zeros(n, 7, 0)))
    torch.manual_seed(3)
    z, log_weights, total = torch.zeros(k, n), torch.zeros(n, k) - math.log(k), torch.zeros(())
    resampled = 0
    for t in range(7):
        there = torch.tensor(lengths) > t
        w = log_weights.exp()
        poor = there & (1 / (w**2).sum(1) < k / 2)
        if t and poor.any():
            u = torch.rand(n, k)
            for i in poor.nonzero().flatten().tolist():
                chosen = [int((w[i].cumsum(0) < v).sum().clamp(max=k - 1)) for v in u[i]]
                z[:, i], log_weights[i] = z[chosen, i], -math.log(k)
                resampled += 1
        noise = torch.normal(torch.zeros(k, n, 1), torch.ones(k, n, 1)).squeeze(-1)
        z, grown = log_weight(model, guide, x[:, t], z, noise)
        joint = log_weights + torch.where(there, grown, 0.0).t()
        total = total + joint.logsumexp(1).sum()
        log_weights = (joint - joint.logsumexp(1, keepdim=True)).detach()
    assert resampled > 5
    assert found == pytest.approx(total.item(), abs=1e-10)


PAIRS: dict[str, Callable[..., Pair]] = {
    "srnn": lambda p, c, e: _pair(SRNN, SRNNGuide, p, c, e, hidden_size=3),
    "srnn, no residual": lambda p, c, e: _pair(
        SRNN, SRNNGuide, p, c, e, hidden_size=3, of_guide={"residual": False}
    ),
    "vrnn": lambda p, c, e: _pair(VRNN, VRNNGuide, p, c, e, hidden_size=3),
    "vrnn, filtering": lambda p, c, e: _pair(
        VRNN, VRNNGuide, p, c, e, hidden_size=3, of_guide={"smoothing": False}
    ),
    "dmm": lambda p, c, e: _pair(DMM, DMMGuide, p, c, e, conditional=True),
    "dmm, flows": lambda p, c, e: _pair(
        DMM, DMMGuide, p, c, e, of_guide={"num_flows": 1, "flow_sizes": (5,)}
    ),
    "iseq": lambda p, c, e: _pair(ISEQ, ISEQGuide, p, c, e, hidden_size=3),
}


def _pair(
    model: Any, guide: Any, emission: Any, context: Any, encoder: Any, **settings: Any
) -> Pair:
    torch.manual_seed(0)
    options = {"hidden_size": 3} | settings.pop("of_guide", {})
    made = model(emission, context, latent_size=2, layout="steps", **settings)
    return Pair(made, guide(made, encoder, **options))


def symbols(kind: str) -> Pair:
    return PAIRS[kind](Categorical(3), PreviousObservation(OneHot(3)), OneHot(3))


def gradients(elbo: Any, pair: Pair, batch: SequenceBatch, beta: float = 1.0) -> Any:
    """(loss, gradients by name), from one seed."""
    with pair.scope():
        torch.manual_seed(1)
        for p in pair.parameters().values():
            p.grad = None
        with ScaleLatents(beta) as scaled:
            loss = elbo.loss_and_grads(pair.model, scaled.noting(pair.guide), batch)
        of = pair.parameters().items()
        return loss, {name: p.grad.clone() for name, p in of if p.grad is not None}


def assert_equal(found: Any, expected: Any) -> None:
    assert found[0] == pytest.approx(expected[0], abs=1e-10)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", PAIRS)
def test_one_particle_is_the_elbo(kind: str) -> None:
    """Values and gradients on the same noise: ragged, from states, annealed, cells missing."""
    pair, x = symbols(kind), torch.randint(3, (4, 5))
    batch, trace = SequenceBatch(x, [5, 2, 1, 4]), Trace_ELBO(max_plate_nesting=1)
    assert_equal(gradients(FIVO_ELBO(1), pair, batch), gradients(trace, pair, batch))
    annealed = (gradients(elbo, pair, batch, 0.3) for elbo in (FIVO_ELBO(1), trace))
    assert_equal(*annealed)
    with torch.no_grad(), pair.scope():
        model, guide = (side(SequenceBatch(x)).state for side in (pair.model, pair.guide))
        state = {"model": model, "guide": guide | {"latent": model["latent"]}}
    following = batch.with_state(state).with_missing(x == 1)
    assert_equal(gradients(FIVO_ELBO(1), pair, following), gradients(trace, pair, following))


@pytest.mark.parametrize("kind", PAIRS)
def test_without_resampling_it_is_iwae(kind: str) -> None:
    pair, batch = symbols(kind), SequenceBatch(torch.randint(3, (4, 5)), [5, 2, 1, 4])
    found = gradients(FIVO_ELBO(4, resample_below=0.0), pair, batch)
    assert_equal(found, gradients(IWAE_ELBO(4), pair, batch))


def test_cells_missing_in_part_count_as_in_the_elbo() -> None:
    pair = PAIRS["vrnn"](Factorised(Normal(), 2), PreviousObservation(Flatten(2)), Flatten(2))
    x = torch.randn(3, 4, 2)
    batch = SequenceBatch(x, [4, 3, 4], missing=x > 0.8)
    assert_equal(
        gradients(FIVO_ELBO(1), pair, batch),
        gradients(Trace_ELBO(max_plate_nesting=1), pair, batch),
    )
    assert math.isfinite(FIVO_ELBO(3).loss(pair.model, pair.guide, batch))


@pytest.mark.parametrize("kind", ["vrnn", "srnn", "dmm"])
def test_what_is_shared_moves_with_the_particles(kind: str) -> None:
    """A guide that says nothing of what it shares with the model has the same bound."""
    pair = symbols(kind)

    class Apart(type(pair.guide)):  # type: ignore[misc]
        def proposal(self, *arguments: Any) -> Any:
            return super().proposal(*arguments)

    batch, elbo = SequenceBatch(torch.randint(3, (4, 6))), FIVO_ELBO(5, resample_below=1.0)
    found = gradients(elbo, pair, batch)
    pair.guide.__class__ = Apart
    other = gradients(elbo, pair, batch)
    assert found[0] == pytest.approx(other[0], abs=1e-10)
    torch.testing.assert_close(list(found[1].values()), list(other[1].values()))


def test_bounds_are_in_order(linear_gaussian: Callable[..., Pair]) -> None:
    """ELBO < IWAE < FIVO < log p over 40 steps, 8 particles, each apart by five errors."""
    pair, n, k = linear_gaussian(shift=0.5, widen=1.6), 60, 8
    model: Any = pair.model
    x = model.covariance(40) @ torch.randn(40)
    batch, truth = model.batch(x.expand(n, -1)), float(model.log_likelihood(x))
    of: list[tuple[float, float]] = []
    for elbo in (FIVO_ELBO(1), IWAE_ELBO(k), FIVO_ELBO(k), FIVO_ELBO(4 * k)):
        values = torch.tensor([-elbo.loss(model, pair.guide, batch) / n for _ in range(6)])
        of.append((float(values.mean()), float(values.std()) / math.sqrt(6)))
    for (low, low_error), (high, high_error) in zip(of, [*of[1:], (truth, 0.0)], strict=True):
        assert high - low > 5 * math.hypot(low_error, high_error), (of, truth)


@pytest.mark.slow
def test_stock_svi_trains() -> None:
    pair, batch = symbols("vrnn, filtering"), SequenceBatch(torch.arange(20).view(4, 5) % 3)
    svi = SVI(pair.model, pair.guide, Adam({"lr": 0.03}), FIVO_ELBO(4))
    losses = [svi.step(batch) for _ in range(30)]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])


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


@pytest.mark.parametrize("kind", ["srnn", "vrnn, filtering", "dmm"])
def test_trainer_carries_one_particles_states(kind: str) -> None:
    pair, batch = symbols(kind), SequenceBatch(torch.arange(20).view(4, 5) % 3)
    settings = TrainingSettings(
        num_steps=12, objective="fivo", num_particles=3, learning_rate=0.03, warmup=0.0
    )
    trainer = Trainer(pair, Going(batch), settings, quiet=True)
    trainer.fit()
    assert {tuple(x.shape[:1]) for x in tree_leaves(trainer.carried)} == {(4,)}
    assert trainer.updates.first_loss is not None
    assert trainer.updates.recent_loss < trainer.updates.first_loss
    assert settings.validation() == ("filter", 3)


def test_carried_particle_is_drawn_by_weight() -> None:
    model, guide, _ = walk()
    n = 4_000
    elbo = FIVO_ELBO(3, resample_below=0.0)
    batch = SequenceBatch(torch.full((n, 1), 2.0), inputs=torch.zeros(n, 1, 0))
    elbo.loss(model, guide, batch)
    states = elbo.chosen_states(None, model, guide)
    z = elbo._after["model"]["latent"].view(n, 3)
    weights = elbo.log_weights.t().exp()
    mean, square = (weights * z).sum(1), (weights * z**2).sum(1)
    wrong = (states["model"]["latent"].squeeze(-1) - mean).mean()
    assert wrong.abs() < 4 * ((square - mean**2).mean() / n).sqrt()
    assert (weights.max(1).values > 0.5).any()


def test_particles_of_a_sequence_miss_the_same_features() -> None:
    """With the prior as the posterior and no use of z, weights are equal under dropout."""
    model = VRNN(
        Categorical(3),
        PreviousObservation(OneHot(3)),
        latent_size=2,
        hidden_size=8,
        input_dropout=0.5,
        output_dropout=0.5,
        feature_sizes=(4,),
    )
    guide = VRNNGuide(model, OneHot(3), hidden_size=3)
    for linear in (module for module in model.features if hasattr(module, "weight")):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.ones_(linear.bias)
    for net in (guide.network, model.prior):
        torch.nn.init.zeros_(net.mlp[-1].weight)
        torch.nn.init.zeros_(net.mlp[-1].bias)
    elbo = FIVO_ELBO(6)
    elbo.loss(model, guide, SequenceBatch(torch.randint(3, (4, 5))))
    torch.testing.assert_close(elbo.log_weights, torch.full((6, 4), -math.log(6)))


class TestRefused:
    batch = SequenceBatch(torch.zeros(2, 3, dtype=torch.long))

    def test_settings(self) -> None:
        with pytest.raises(UserError, match=r"num_particles=1 is the ELBO: training\.num_part"):
            make_elbo("fivo")
        with pytest.raises(UserError, match="free bits are of a divergence, and fivo has no"):
            make_elbo("fivo", num_particles=4, free_bits=0.1)
        with pytest.raises(UserError, match=r"resample_below must lie in \[0, 1\], got 2"):
            FIVO_ELBO(4, resample_below=2)
        settings = TrainingSettings(
            num_steps=1, objective="fivo", num_particles=2, precision="bfloat16"
        )
        with pytest.raises(UserError, match=r"full precision: training\.precision must be auto"):
            Trainer(symbols("srnn"), Going(self.batch), settings, quiet=True).fit()

    def test_pairs(self, written: Pair) -> None:
        model = RNN(Categorical(3), PreviousObservation(OneHot(3)), hidden_size=3)
        with pytest.raises(UserError, match=r"no latents, and FIVO_ELBO weighs .*likelihood"):
            FIVO_ELBO(2).loss(model, lambda batch: None, self.batch)
        settings = TrainingSettings(num_steps=1, objective="fivo", num_particles=2)
        with pytest.raises(UserError, match=r"first batch: this pair has no latents"):
            Trainer(Pair(model), Going(self.batch), settings, quiet=True).fit()
        with pytest.raises(UserError, match=r"needs a SequenceModel with a SequenceGuide: IWAE"):
            FIVO_ELBO(2).loss(written.model, written.guide, SequenceBatch(torch.zeros(2, 3)))
        pair = symbols("srnn")
        pair.guide.of_one_step = lambda normal: dist.Poisson(normal.scale.squeeze(-2)).to_event(1)  # type: ignore[attr-defined]
        with pytest.raises(UserError, match="SRNNGuide are not reparameterised"):
            FIVO_ELBO(2).loss(pair.model, pair.guide, self.batch)

    def test_handlers_and_batches(self) -> None:
        pair = symbols("srnn")
        around: Any = poutine.condition(data={"z_0": torch.zeros(2, 2)})
        with pytest.raises(UserError, match="ConditionMessenger gives them values"), around:
            FIVO_ELBO(2).loss(pair.model, pair.guide, self.batch)
        with pytest.raises(UserError, match="FIVO_ELBO needs observations"):
            FIVO_ELBO(2).loss(pair.model, pair.guide, self.batch.without_values())


def test_scales_around_the_pair_scale_densities() -> None:
    pair = symbols("vrnn")
    batch = SequenceBatch(torch.randint(3, (4, 5)), [5, 2, 1, 4])
    scale = torch.tensor([0.5, 1.0, 2.0, 3.0])
    with poutine.scale(scale=scale):
        found = gradients(FIVO_ELBO(1), pair, batch)
        expected = gradients(Trace_ELBO(max_plate_nesting=1), pair, batch)
    assert_equal(found, expected)
