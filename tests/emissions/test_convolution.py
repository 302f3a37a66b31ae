"""The emission by convolution over keys: its density against its definition written out, its
samples against its density.
"""

from __future__ import annotations

import itertools
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.config.build import PairComponents
from pyro_seq.contexts import LastObservations, PreviousObservation, SplitContext
from pyro_seq.emissions import convolution as key_convolution
from pyro_seq.emissions.convolution import KeyConvolution
from pyro_seq.encoders import Flatten
from pyro_seq.errors import UserError
from pyro_seq.guides import DMMGuide
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.infer.sampling import sample, tempered
from pyro_seq.models import DMM, HMM, RNN
from pyro_seq.pairs.pair import Pair
from pyro_seq.testing import check_pair

K, N, H = 5, 2, 3


@pytest.fixture(autouse=True)
def _float64(float64: None) -> None:
    pass


def made(**options: Any) -> KeyConvolution:
    sizes = {"reach": 2, "reach_below": 3, "autoregressive": True}
    emission = KeyConvolution(K, N, H, **sizes | options)
    emission.activation = torch.nn.Tanh()
    torch.nn.init.normal_(emission.outward)
    return emission


def some(*lead: int) -> tuple[Tensor, Tensor]:
    """Features and last frames."""
    return torch.randn(*lead, K + H), torch.randint(2, (*lead, N * K)).double()


def by_definition(emission: KeyConvolution, features: Tensor, last: Tensor, x: Tensor) -> Tensor:
    """log p(x | f) of one vector, key after key."""
    frames, total = last.view(N, K), torch.zeros(())
    for k in range(K):
        units = features[K : K + H] + emission.places[:, k] + emission.around.bias
        for i, d in itertools.product(range(N), range(-2, 3)):
            if 0 <= k + d < K:
                units = units + emission.around.weight[:, i, d + 2] * frames[i, k + d]
        for j in range(k if emission.below is not None else 0):
            units = units + x[j] * emission.inward[j]
            if k - j <= 3:
                units = units + x[j] * emission.below.weight[:, 0, j - k]
        units = units.tanh()
        for layer in emission.layers:
            units = (layer.weight.squeeze(-1) @ units + layer.bias).tanh()
        p = torch.sigmoid(features[k] + emission.outward @ units)
        total = total + (p if x[k] else 1 - p).log()
    return total


def all_vectors() -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=K)))


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("autoregressive", [False, True])
def test_the_density_is_the_product_of_its_conditionals_and_sums_to_one(
    num_layers: int, autoregressive: bool
) -> None:
    emission, features, vectors = (
        made(num_layers=num_layers, autoregressive=autoregressive),
        some(),
        all_vectors(),
    )
    found = emission(*features).log_prob(vectors)
    torch.testing.assert_close(
        found, torch.stack([by_definition(emission, *features, x) for x in vectors])
    )
    torch.testing.assert_close(found.exp().sum(), torch.tensor(1.0))


@pytest.mark.parametrize("autoregressive", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_features_broadcast_over_frames_and_observations(
    lead: tuple[int, ...], own: bool, autoregressive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames and observations may lack the dimensions that particles have added, whose `own`
    observations they may be as well.
    """
    monkeypatch.setattr(key_convolution, "ROWS", 5)  # several parts, the last one smaller
    emission = made(autoregressive=autoregressive)
    features, (_, frames) = torch.randn(*lead, 7, K + H), some(7)
    x = torch.randint(2, (*(lead if own else ()), 7, K)).double()
    distribution = emission(features, frames)
    found = distribution.log_prob(x)
    assert found.shape == (*lead, 7)
    rows = zip(features.view(-1, 7, K + H), x.expand(*lead, 7, K).reshape(-1, 7, K), strict=True)
    wanted = [
        by_definition(emission, f, y, one)
        for fs, xs in rows
        for f, y, one in zip(fs, frames, xs, strict=True)
    ]
    torch.testing.assert_close(found.flatten(), torch.stack(wanted))
    wider = distribution.expand((7, *lead, 7))
    assert wider.batch_shape == (7, *lead, 7)
    torch.testing.assert_close(wider.log_prob(x)[3], found)
    assert distribution.sample((2,)).shape == (2, *lead, 7, K)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_have_the_law_of_the_density(temperature: float) -> None:
    """The 32 vectors' counts against their probabilities: chi-square with 31 degrees of freedom, 1
    in 10,000 beyond 68.
    """
    torch.manual_seed(0)
    distribution, n = tempered(made()(*some()), temperature=temperature), 20_000
    p = distribution.log_prob(all_vectors()).detach().exp()
    torch.testing.assert_close(p.sum(), torch.tensor(1.0))
    counts = torch.bincount(
        (distribution.sample((n,)).long() * (2 ** torch.arange(K - 1, -1, -1))).sum(-1),
        minlength=32,
    )
    assert float(((counts - n * p) ** 2 / (n * p)).sum()) < 68
    with pytest.raises(UserError, match="top-k does not apply"):
        tempered(distribution, top_k=2)


def test_a_motion_is_the_same_at_all_keys() -> None:
    """Without what is learnt of single keys, frames and keys moved up by one have the same logits
    there, away from the edges.
    """
    emission = made(reach=1, reach_below=1)
    assert emission.inward is not None
    torch.nn.init.zeros_(emission.places)
    torch.nn.init.zeros_(emission.inward)
    features, frames = torch.zeros(K + H), torch.zeros(N, K)
    frames[0, 1] = frames[1, 2] = 1
    x = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    low, high = (
        emission.logits(features, last.flatten(), value=at)
        for last, at in ((frames, x), (frames.roll(1, 1), x.roll(1)))
    )
    torch.testing.assert_close(low[1:-1], high[2:])


def test_dropout_is_of_training_alone_and_one_mask_a_vector() -> None:
    emission = KeyConvolution(K, N, 64, num_layers=2, autoregressive=True, dropout=0.5)
    features = torch.zeros(3, emission.num_features), torch.zeros(3, N * K)
    kept = emission(*features).keep
    assert kept.shape == (3, 128) and set(kept.unique().tolist()) == {0.0, 2.0}
    assert emission.eval()(*features).keep is None


@pytest.mark.parametrize(
    "name", ["size", "count", "hidden_size", "num_layers", "reach", "reach_below", "dropout"]
)
def test_sizes_that_make_no_sense(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        KeyConvolution(**{"size": 3, name: 1.0 if name == "dropout" else 0})


@pytest.mark.one_in(2)
@pytest.mark.parametrize("autoregressive", [False, True])
def test_a_pair_over_it_is_sound_and_learns_to_follow_a_motion(autoregressive: bool) -> None:
    """A key that moves up by one at every step, from anywhere: nothing to guess after the first."""
    torch.manual_seed(1)
    size = 8
    emission = KeyConvolution(size, 2, 8, reach=2, autoregressive=autoregressive)
    torch.nn.init.normal_(emission.outward)
    context = SplitContext(PreviousObservation(Flatten(size)), LastObservations(Flatten(size), 2))
    model = RNN(emission, context, hidden_size=4)
    pair = Pair(model)
    start, steps = torch.randint(4, (32, 1)), torch.arange(5)
    batch = SequenceBatch(torch.nn.functional.one_hot(start + steps, size).double())
    check_pair(model, pair.guide, SequenceBatch(batch.values, lengths=[5, 3, 2, 1] * 8))
    svi = SVI(model, pair.guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(150):
        svi.step(batch)
    with torch.no_grad():
        nats = -float(score(pair, batch).total.mean())
    assert nats < 4.5  # of the first step
    drawn = sample(pair, 50, 2)
    assert float((drawn[:, 1, 1:] != drawn[:, 0, :-1]).double().mean()) < 0.1


def test_what_is_passed_on_must_be_there() -> None:
    with pytest.raises(
        UserError,
        match="KeyConvolution wants 10 features of the context passed on, and the context brings 0",
    ):
        RNN(made(), PreviousObservation(Flatten(K)))
    with pytest.raises(
        UserError, match="looks at frames before, which its model's context must pass on"
    ):
        made()(torch.zeros(K + H))
    context = SplitContext(PreviousObservation(Flatten(K)), LastObservations(Flatten(K), N))
    with pytest.raises(UserError, match="an HMM evaluates its emission for all states at once"):
        HMM(made(), context, autoregressive=True)


def test_a_model_that_sees_no_context_passes_it_on() -> None:
    emission = KeyConvolution(K, N, H)
    model = DMM(
        emission,
        SplitContext(PreviousObservation(Flatten(K)), LastObservations(Flatten(K), N)),
        latent_size=2,
    )
    assert (model.context.num_features, model.context.emission_context_size) == (0, N * K)
    guide = DMMGuide(model, Flatten(K), hidden_size=4)
    check_pair(model, guide, SequenceBatch(torch.randint(2, (3, 4, K)).double(), [4, 2, 3]))


@pytest.mark.one_in(5)
@pytest.mark.parametrize("autoregressive", [False, True])
def test_every_pair_passes_it_on(shipped: Any, autoregressive: bool) -> None:
    """In both layouts and for particles side by side, the densities are the same."""
    emission = KeyConvolution(K, N, H, reach=2, autoregressive=autoregressive)
    torch.nn.init.normal_(emission.outward)
    parts = PairComponents(
        emission,
        lambda: Flatten(K),
        lambda encoder: SplitContext(PreviousObservation(encoder), LastObservations(Flatten(K), N)),
    )
    pair = shipped(parts, "path")
    batch = SequenceBatch(torch.randint(2, (3, 4, K)).double(), [4, 2, 3])
    check_pair(pair.model, pair.guide, batch)
    guided = poutine.trace(pair.guide).get_trace(batch)
    path = poutine.trace(poutine.replay(pair.model, trace=guided)).get_trace(batch)
    z = path.nodes["z"]["value"] if "z" in path.nodes else torch.zeros(3, 4, 0)
    pair.model.layout = "steps"
    steps = poutine.trace(
        poutine.condition(pair.model, data={f"z_{t}": z[:, t] for t in range(4)})
    ).get_trace(batch)
    torch.testing.assert_close(path.log_prob_sum(), steps.log_prob_sum())
    pair.model.layout = "path"
    torch.manual_seed(3)
    together = score(pair, batch, samples=6).total
    assert together.isfinite().all()
