"""The autoregressive emission: its density against the product of conditionals written out, its
samples against its density.
"""

from __future__ import annotations

import itertools
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.nade import NADE, AutoregressiveBernoulli
from pyro_seq.encoders import Flatten
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.infer.sampling import sample, tempered
from pyro_seq.models import RNN
from pyro_seq.pairs.pair import Pair
from pyro_seq.testing import check_pair


@pytest.fixture(autouse=True)
def _float64(float64: None) -> None:
    pass


def made(size: int = 5, hidden: int = 4, **options: Any) -> NADE:
    emission = NADE(size, hidden, **options)
    emission.activation = torch.nn.Tanh()  # smooth, for gradients by differences
    torch.nn.init.normal_(emission.outward)
    return emission


def by_definition(emission: NADE, features: Tensor, x: Tensor) -> Tensor:
    """log p(x | f) of one vector, key after key."""
    total = torch.zeros(())
    for k in range(emission.size):
        below = sum(
            (emission.inward[j] for j in range(k) if x[j]), torch.zeros(emission.hidden_size)
        )
        unit = (features[emission.size :] + below).tanh()
        p = torch.sigmoid(features[k] + emission.outward[k] @ unit)
        total = total + (p if x[k] else 1 - p).log()
    return total


def all_vectors(size: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)))


def test_the_density_is_the_product_of_its_conditionals_and_sums_to_one() -> None:
    emission, features, vectors = made(), torch.randn(9), all_vectors(5)
    found = emission(features).log_prob(vectors)
    torch.testing.assert_close(
        found, torch.stack([by_definition(emission, features, x) for x in vectors])
    )
    torch.testing.assert_close(found.exp().sum(), torch.tensor(1.0))


def test_gradients_are_those_of_the_definition() -> None:
    emission, features, x = (
        made(),
        torch.randn(6, 9, requires_grad=True),
        torch.randint(2, (6, 5)).double(),
    )
    wanted = torch.stack(
        [by_definition(emission, f, row) for f, row in zip(features, x, strict=True)]
    ).sum()
    inputs = (features, emission.inward, emission.outward)
    for found, expected in zip(
        torch.autograd.grad(emission(features).log_prob(x).sum(), inputs),
        torch.autograd.grad(wanted, inputs),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_observations_broadcast_over_what_stands_left_of_them(lead: tuple[int, ...]) -> None:
    emission = made()
    features, x = torch.randn(*lead, 4, 9), torch.randint(2, (4, 5)).double()
    found = emission(features).log_prob(x)
    assert found.shape == (*lead, 4)
    rows = features.view(-1, 4, 9)
    wanted = torch.stack(
        [by_definition(emission, f, row) for each in rows for f, row in zip(each, x, strict=True)]
    )
    torch.testing.assert_close(found.flatten(), wanted)
    distribution = emission(features)
    wider = distribution.expand((7, *lead, 4))
    assert wider.batch_shape == (7, *lead, 4) and torch.equal(wider.log_prob(x)[3], found)
    assert distribution.sample((2,)).shape == (2, *lead, 4, 5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_have_the_law_of_the_density(temperature: float) -> None:
    """The 32 vectors' counts against their probabilities: chi-square with 31 degrees of freedom, 1
    in 10,000 beyond 68.
    """
    torch.manual_seed(0)
    distribution = tempered(made()(torch.randn(9)), temperature=temperature)
    drawn, n = distribution.sample((20_000,)), 20_000
    p = distribution.log_prob(all_vectors(5)).detach().exp()
    torch.testing.assert_close(p.sum(), torch.tensor(1.0))
    counts = torch.bincount((drawn.long() * (2 ** torch.arange(4, -1, -1))).sum(-1), minlength=32)
    assert float(((counts - n * p) ** 2 / (n * p)).sum()) < 68


def test_tempering_divides_each_conditional_logit() -> None:
    emission, features = made(2), torch.randn(6)
    hot, cold = emission(features), tempered(emission(features), temperature=0.25)
    assert isinstance(cold, AutoregressiveBernoulli)
    p = hot.log_prob(all_vectors(2)).exp()
    first = (p[2:].sum() / p[:2].sum()).log() * 4  # logit of the first key
    torch.testing.assert_close(cold.log_prob(all_vectors(2)).exp()[2:].sum(), first.sigmoid())
    with pytest.raises(UserError, match="top-k does not apply"):
        tempered(hot, top_k=2)


def test_values_that_are_no_zeros_and_ones_are_refused() -> None:
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="support"):
        made()(torch.randn(9)).log_prob(torch.full((5,), 0.5))


def test_new_keys_are_all_but_independent() -> None:
    emission, features = NADE(4, 3), torch.randn(7)
    wanted = torch.distributions.Bernoulli(logits=features[:4]).log_prob(all_vectors(4)).sum(-1)
    torch.testing.assert_close(
        emission(features).log_prob(all_vectors(4)).detach(), wanted, atol=0.2, rtol=0
    )


def test_dropout_is_of_training_alone_and_one_mask_a_vector() -> None:
    emission, features = made(hidden=64, dropout=0.5), torch.randn(3, 69)
    kept = emission(features).keep
    assert kept is not None and kept.shape == (3, 64) and set(kept.unique().tolist()) == {0.0, 2.0}
    assert emission.eval()(features).keep is None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [((0,), "size"), ((3, 0), "hidden_size"), ((3, 3, 1.0), "dropout")],
)
def test_sizes_that_make_no_sense(arguments: tuple[Any, ...], match: str) -> None:
    names = ("size", "hidden_size", "dropout")
    with pytest.raises(ValueError, match=match):
        NADE(**dict(zip(names, arguments, strict=False)))


def test_a_pair_over_it_is_sound_and_learns_a_chord() -> None:
    """Keys 0 and 2 sound together or not at all, by a fair coin: ln 2 nats a step, which
    independent keys cannot reach (2 ln 2).
    """
    torch.manual_seed(1)
    model = RNN(NADE(3, 8), PreviousObservation(Flatten(3)), hidden_size=8)
    torch.nn.init.normal_(model.emission.outward)
    pair = Pair(model)
    batch = SequenceBatch(torch.rand(32, 20, 1).lt(0.5).double() * torch.tensor([1.0, 0.0, 1.0]))
    check_pair(model, pair.guide, SequenceBatch(batch.values, lengths=[20, 3, 7, 1] * 8))
    svi = SVI(model, pair.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(150):
        svi.step(batch)
    with torch.no_grad():
        nats = -float(score(pair, batch).total.sum()) / batch.num_observations
    assert nats < 0.75
    drawn = sample(pair, 50, 20)
    assert float((drawn[..., 0] != drawn[..., 2]).double().mean()) < 0.05
