"""What each step was predicted, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import linear_chain
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.elementary import Categorical, Normal
from pyro_seq.emissions.numeric import Poisson
from pyro_seq.encoders import Flatten, OneHot, WithIndicators
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.errors import UserError
from pyro_seq.models import LGSSM, RNN
from pyro_seq.pairs.pair import Pair
from pyro_seq.series.judging.surprise import predictive
from pyro_seq.series.judging.surprise.predictive import predictions

LEVELS = (0.025, 0.5, 0.975)


def nothing(batch: SequenceBatch) -> None:
    """The guide of a pair without latents."""


def test_a_chain_of_latents_is_predicted_by_a_mixture(float64: None) -> None:
    x = torch.tensor([[0.4, -1.1, 1.3, 4.0, 0.1], [0.0, 0.3, -0.2, -0.5, 3.0]])
    pair = Pair(linear_chain.model, linear_chain.prior_guide)
    torch.manual_seed(0)
    found = predictions(pair, SequenceBatch(x), LEVELS, samples=8_000)[""]
    # z_t given x_{<t} is one step on from z_{t-1} given x_{<t}
    for t in range(5):
        mean, spread = np.zeros(2), np.full(2, linear_chain.STATIONARY)
        if t:
            moments = [linear_chain.posterior(row, t) for row in x]
            mean = np.array([linear_chain.A * float(m[t - 1]) for m, _ in moments])
            spread = np.array(
                [
                    np.sqrt(linear_chain.A**2 * float(s[t - 1, t - 1]) + linear_chain.Q**2)
                    for _, s in moments
                ]
            )
        scale = np.hypot(spread, linear_chain.R)
        p = 2 * stats.norm.sf(np.abs(x[:, t].numpy() - mean) / scale)
        assert found.p[:, t].numpy() == pytest.approx(p, rel=0.15, abs=1e-4)
        ends = mean + scale * stats.norm.ppf(LEVELS)[:, None]
        assert found.quantiles[:, :, t].numpy() == pytest.approx(ends, abs=0.15)


def mixed_pair() -> Pair:
    torch.manual_seed(1)
    emission = Joint({"count": Factorised(Poisson(), 2), "word": Categorical(4)})
    encoder = JointEncoder({"count": WithIndicators(Flatten(2)), "word": WithIndicators(OneHot(4))})
    return Pair(RNN(emission, PreviousObservation(encoder), hidden_size=8), nothing)


def mixed_batch(**options: object) -> SequenceBatch:
    values = {
        "count": torch.tensor([[[0.0, 3], [1, 0], [7, 2], [0, 1]]]).expand(2, -1, -1),
        "word": torch.tensor([[0, 3, 1, 1], [2, 2, 2, 0]]),
    }
    return SequenceBatch(values, **options)  # type: ignore[arg-type]


def test_discrete_cells_by_their_probabilities(float64: None) -> None:
    pair, batch = mixed_pair(), mixed_batch()
    found = predictions(pair, batch, LEVELS)
    model = pair.model
    assert isinstance(model, RNN)
    state = model.state_before(batch)
    for t in range(4):
        laws = {}

        def observe(law: dict[str, torch.distributions.Distribution], t: int = t) -> object:
            laws.update(law)  # noqa: B023
            return batch.at(t)

        state = model.advance(state, None, lambda prior: prior.sample(), observe)[2]
        rate = laws["count"].base_dist.rate.detach().numpy()
        k = batch.values["count"][:, t].numpy()
        both = np.minimum(stats.poisson.cdf(k - 1, rate), stats.poisson.sf(k, rate))
        p = 2 * both + stats.poisson.pmf(k, rate)
        assert found["count"].p[:, t].numpy() == pytest.approx(p, rel=1e-9)
        ends = stats.poisson.ppf(np.array(LEVELS)[:, None, None], rate)
        assert (found["count"].quantiles[:, :, t].numpy() == ends).all()
        probs = laws["word"].probs.detach().numpy()
        for row, code in enumerate(batch.values["word"][:, t].tolist()):
            own = probs[row][probs[row] <= probs[row, code]].sum()
            assert float(found["word"].p[row, t]) == pytest.approx(own)
            assert (found["word"].quantiles[:, row, t] == probs[row].argmax()).all()


def test_all_steps_at_once_as_step_by_step(float64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = mixed_pair()
    missing = {"count": torch.rand(2, 4, 2) < 0.4, "word": torch.rand(2, 4) < 0.4}
    for batch in (mixed_batch(), mixed_batch(missing=missing)):
        at_once = predictions(pair, batch, LEVELS)
        with pair.scope(), pair.evaluating(), torch.no_grad():
            stepwise = list(predictive._filtered(pair, batch, LEVELS, 1))
        for name, part in at_once.items():
            p = torch.cat([one[name].p for one in stepwise], 1)
            seen = batch.seen[name]
            assert torch.allclose(part.p[seen], p[seen], rtol=1e-9)
    monkeypatch.setattr(predictive, "CHUNK", 3)
    chunked = predictions(pair, mixed_batch(), LEVELS)
    whole = predictions(pair, mixed_batch(), LEVELS)
    assert all(torch.equal(chunked[name].p, whole[name].p) for name in whole)


def test_a_linear_gaussian_model_by_its_kalman_filter(float64: None) -> None:
    torch.manual_seed(2)
    model = LGSSM(Factorised(Normal(), 2))
    x = torch.randn(3, 20, 2).cumsum(1)
    gap = torch.rand(3, 20, 2) < 0.2
    batch = SequenceBatch(x, missing=gap)
    found = predictions(Pair(model, nothing), batch, LEVELS)[""]
    assert found.p.shape == (3, 20, 2) and found.quantiles.shape == (3, 3, 20, 2)
    # the density of a step with one cell seen is that of the marginal normal
    nats = -model.distribution(batch).step_log_prob(batch.values)
    low, median, high = found.quantiles
    scale = (high - low) / (2 * stats.norm.ppf(0.975))
    z = (x - median) / scale
    assert torch.allclose(found.p[~gap], torch.erfc(z.abs() / 2**0.5)[~gap], rtol=1e-6)
    for c in range(2):
        one = ~gap[..., c] & gap[..., 1 - c]
        density = 0.5 * z[..., c] ** 2 + scale[..., c].log() + 0.5 * np.log(2 * np.pi)
        assert torch.allclose(density[one], nats[one], atol=1e-6)


def test_functions_with_missing_cells_are_refused() -> None:
    batch = SequenceBatch(torch.zeros(1, 4)).with_missing([2])
    with pytest.raises(UserError, match="SequenceModel"):
        predictions(Pair(linear_chain.model, linear_chain.prior_guide), batch, LEVELS)
