"""Sampling: the law of whole sequences against enumeration, and how temperature and top-k change a
distribution.
"""

from __future__ import annotations

import itertools
import math
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import Chain, PreviousObservation, SideInputs
from pyro_seq.distributions.categorical import LazyCategorical
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.elementary import Bernoulli, Beta, Binomial, Categorical, Normal
from pyro_seq.encoders import Flatten, OneHot
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.infer.sampling import (
    draw,
    sample,
    sample_sequences,
    sample_steps,
    tempered,
    without,
)
from pyro_seq.infer.stepping import declared
from pyro_seq.models import RNN, SRNN
from pyro_seq.pairs.pair import Pair

STRINGS = torch.tensor(list(itertools.product(range(3), repeat=3)))
MANY = 20_000
# 1 - 1e-4 quantiles of chi-square
CHI_SQUARE_26 = 61.7


def make_rnn() -> RNN:
    """A tiny model of strings over three symbols, far from uniform."""
    torch.manual_seed(4)
    rnn = RNN(Categorical(3), PreviousObservation(OneHot(3)), hidden_size=4).eval()
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.mul_(2.0)
    return rnn


def make_srnn() -> SRNN:
    torch.manual_seed(4)
    return SRNN(
        Categorical(3),
        PreviousObservation(OneHot(3)),
        latent_size=2,
        latent_sizes=(3,),
        hidden_size=3,
    ).eval()


def frequencies(values: Tensor) -> Tensor:
    """How often each of the 27 strings occurs in `[N, 3]`."""
    return torch.bincount((values * torch.tensor([9, 3, 1])).sum(-1), minlength=27).double()


def probabilities(rnn: RNN) -> Tensor:
    """The exact probability of each of the 27 strings."""
    p = score(Pair(rnn), SequenceBatch(STRINGS)).log_likelihood.double().exp()
    assert p.sum() == pytest.approx(1.0, abs=1e-5) and p.max() > 3 * p.min()
    return p / p.sum()


def chi_square(counts: Tensor, expected: Tensor) -> float:
    return ((counts - expected) ** 2 / expected).sum().item()


class TestLaw:
    def test_ancestral_samples(self) -> None:
        rnn = make_rnn()
        expected = MANY * probabilities(rnn)
        samples = sample_sequences(rnn, 3, state=rnn.initial(MANY))
        assert samples.shape == (MANY, 3) and samples.dtype == torch.long
        assert chi_square(frequencies(samples), expected) < CHI_SQUARE_26
        reshaped = sample_sequences(rnn, 3, state=rnn.initial(4, MANY // 4))
        assert reshaped.shape == (4, MANY // 4, 3)
        assert chi_square(frequencies(reshaped.flatten(0, 1)), expected) < CHI_SQUARE_26

    def test_the_model_itself(self) -> None:
        rnn = make_rnn()
        with torch.no_grad():
            values = rnn(SequenceBatch(None, [3] * MANY)).values
        assert chi_square(frequencies(values), MANY * probabilities(rnn)) < CHI_SQUARE_26

    def test_continuations(self) -> None:
        """After a prefix: p(x_2, x_3 | x_1)."""
        rnn = make_rnn()
        with torch.no_grad():
            state = rnn(SequenceBatch(torch.full((MANY, 1), 2))).state
        rest = sample_sequences(rnn, 2, state=state)
        p = probabilities(rnn)[18:]
        counts = frequencies(torch.cat([torch.full((MANY, 1), 2), rest], 1))[18:]
        assert chi_square(counts, MANY * p / p.sum()) < 31.9  # 8 degrees of freedom

    def test_with_latents_equals_the_model_s(self) -> None:
        srnn = make_srnn()
        with torch.no_grad():
            left = frequencies(srnn(SequenceBatch(None, [3] * MANY)).values)
        right = frequencies(sample_sequences(srnn, 3, state=srnn.initial(MANY)))
        assert ((left - right) ** 2 / (left + right).clamp_min(1)).sum() < CHI_SQUARE_26

    def test_sharpened_samples(self) -> None:
        """Step by step the distribution is the sharpened one: x_1 ~ p^(1/T), among the two most
        probable.
        """
        rnn = make_rnn()
        first = probabilities(rnn).view(3, 9).sum(1)
        kept = torch.where(first >= first.topk(2).values[-1], first, 0.0) ** 2
        samples = sample_sequences(
            rnn,
            1,
            state=rnn.initial(MANY),
            transform_distribution=lambda d: tempered(d, temperature=0.5, top_k=2),
        )
        counts = torch.bincount(samples[:, 0], minlength=3).double()
        assert counts[kept == 0].sum() == 0
        # 1 degree of freedom
        assert chi_square(counts[kept > 0], (MANY * kept / kept.sum())[kept > 0]) < 15.2


class TestShapes:
    @pytest.mark.parametrize("make", [make_rnn, make_srnn])
    def test_ragged_samples_are_zero_at_padding(self, make: Any) -> None:
        batch = SequenceBatch(None, [5, 0, 2, 4])
        outcome = make()(batch)
        assert (
            outcome.values.shape == (4, 5)
            and not outcome.values[~batch.mask].any()
            and outcome.values.any()
        )

    def test_groups(self) -> None:
        emission = Joint({"pixels": Factorised(Beta(), (2, 2)), "end": Bernoulli()})
        context = PreviousObservation(JointEncoder({"pixels": Flatten((2, 2)), "end": Flatten(())}))
        rnn = RNN(emission, context, hidden_size=3).eval()
        samples = sample_sequences(rnn, 4, state=rnn.initial(3))
        assert samples["pixels"].shape == (3, 4, 2, 2) and samples["end"].shape == (3, 4)
        assert ((samples["pixels"] > 0) & (samples["pixels"] < 1)).all() and set(
            samples["end"].unique().tolist()
        ) <= {0.0, 1.0}
        batch = SequenceBatch(None, [4, 1, 0])
        values = rnn(batch).values
        assert not values["pixels"][~batch.mask].any() and values["pixels"][batch.mask].all()

    def test_side_inputs(self) -> None:
        torch.manual_seed(0)
        rnn = RNN(
            Normal(epsilon=1e-6, positive="exp"),
            Chain(PreviousObservation(Flatten(())), SideInputs(2)),
            hidden_size=3,
        ).eval()
        u = torch.randn(2, 4, 2)
        seen: list[Tensor] = []
        original = rnn.context.contexts[1].features

        def features(state: Any, inputs: Tensor) -> Tensor:
            seen.append(inputs)
            return original(state, inputs)

        rnn.context.contexts[1].features = features
        sample_sequences(rnn, 3, state=rnn.initial(2), inputs=u)
        assert torch.stack(seen, 1).equal(u[:, :3])
        with pytest.raises(UserError, match="5 steps to sample need as many side inputs, got 4"):
            sample_sequences(rnn, 5, state=rnn.initial(2), inputs=u)
        with pytest.raises(UserError, match="the batch has none"):
            sample_sequences(rnn, 5, state=rnn.initial(2))

    def test_steps_come_one_by_one_without_gradient(self) -> None:
        rnn = make_rnn()
        steps = sample_steps(rnn, 3, state=rnn.initial(2))
        first = next(steps)
        assert first.shape == (2,) and torch.is_grad_enabled(), (
            "a generator at rest leaves the outside alone"
        )
        assert len(list(steps)) == 2
        assert len(list(sample_steps(rnn, 200, state=rnn.initial(2)))) == 200
        for wrong in (0, -1):
            with pytest.raises(UserError, match=f"at least 1, got {wrong}"):
                sample_sequences(rnn, wrong, state=rnn.initial(2))

    def test_same_seed_same_sample(self) -> None:
        rnn = make_rnn()
        samples = []
        for seed in (1, 1, 2):
            pyro.set_rng_seed(seed)
            samples.append(sample_sequences(rnn, 20, state=rnn.initial(5)))
        assert samples[0].equal(samples[1]) and not samples[0].equal(samples[2])


class TestSharpened:
    P = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.7, 0.1, 0.1, 0.1]])

    @pytest.mark.parametrize("temperature", [0.25, 0.9, 1.0, 3.0])
    @pytest.mark.parametrize("top_k", [None, 1, 2, 4, 100])
    def test_categorical(self, temperature: float, top_k: int | None) -> None:
        sharp = tempered(dist.Categorical(self.P), temperature=temperature, top_k=top_k)
        for row, p in enumerate(self.P):
            threshold = sorted(p.tolist(), reverse=True)[min(top_k or 4, 4) - 1]
            weights = torch.where(p >= threshold, p ** (1 / temperature), torch.zeros(()))
            torch.testing.assert_close(sharp.probs[row], weights / weights.sum())

    def test_ties_stay(self) -> None:
        sharp = tempered(dist.Categorical(self.P[1]), top_k=2)
        torch.testing.assert_close(sharp.probs, self.P[1])

    def test_symbols_without_probability_stay_without(self) -> None:
        never = -math.inf
        for temperature in (0.3, 5.0):
            p = dist.Categorical(logits=torch.tensor([never, 0.0, 0.0, never]), validate_args=False)
            assert tempered(p, temperature=temperature).probs.tolist() == pytest.approx(
                [0, 0.5, 0.5, 0]
            )

    @pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-40, 1e-320])
    def test_low_temperatures_leave_the_most_probable(self, temperature: float) -> None:
        assert tempered(dist.Categorical(self.P), temperature=temperature).probs.tolist() == [
            [0, 1, 0, 0],
            [1, 0, 0, 0],
        ]
        logits = torch.tensor([-40.0, -0.1, 0.0, 0.1, 40.0])
        expected = pytest.approx([0, 0, 0.5, 1, 1], abs=1e-6)
        assert (
            tempered(dist.Bernoulli(logits=logits), temperature=temperature).probs.tolist()
            == expected
        )
        confident = dist.Categorical(logits=torch.tensor([-1e4, 0.0, 3e4]))
        assert tempered(confident, temperature=temperature).sample((5,)).tolist() == [2] * 5

    def test_at_temperature_0_sampling_is_greedy(self) -> None:
        """Of equal values the first one is taken, so that nothing is left to chance."""
        tied = torch.tensor([[0.1, 0.4, 0.4, 0.1], [1.0, 0.0, 0.0, 0.0]])
        for top_k in (None, 3):
            assert (
                tempered(dist.Categorical(tied), temperature=0.0, top_k=top_k).sample((9,)).tolist()
                == [[1, 0]] * 9
            )
        assert (
            tempered(dist.Bernoulli(torch.tensor([0.2, 0.5, 0.6])), temperature=0.0)
            .sample((9,))
            .tolist()
            == [[0, 0, 1]] * 9
        )
        keys = Factorised(Bernoulli(), (4,))(torch.tensor([[3.0, -1.0, 0.1, -0.1]]))
        assert tempered({"a": keys}, temperature=0.0)["a"].sample().tolist() == [[1, 0, 1, 0]]

    def test_values_that_are_never_drawn(self) -> None:
        """What is left has the probabilities that it had, given that it is none of those; of a
        mixture, too.
        """
        p = self.P[0]
        left = torch.where(torch.tensor([False, True, False, True]), 0.0, p)
        never = torch.tensor([1, 3])
        torch.testing.assert_close(without(dist.Categorical(p), never).probs, left / left.sum())
        torch.testing.assert_close(
            without(LazyCategorical(p.log() + 3), never).probs, left / left.sum()
        )
        parts, shares = (
            torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]]),
            torch.tensor([0.3, 0.7]),
        )
        mixture = without(
            dist.MixtureSameFamily(dist.Categorical(shares), dist.Categorical(parts)), never
        )
        joint = shares @ parts
        kept = torch.tensor([joint[0], joint[2]]) / (joint[0] + joint[2])
        torch.testing.assert_close(mixture.log_prob(torch.tensor([0, 2])).exp(), kept)
        assert set(mixture.sample((200,)).tolist()) == {0, 2}
        assert tempered(without(dist.Categorical(p), never), top_k=1).sample().item() == int(
            left.argmax()
        )
        with pytest.raises(UserError, match="values of a Normal emission cannot be left out"):
            without(dist.Normal(0.0, 1.0), never)

    def test_bernoulli(self) -> None:
        p = torch.tensor([0.2, 0.5, 0.9])
        sharp = tempered(dist.Bernoulli(p), temperature=0.5)
        torch.testing.assert_close(sharp.probs, p**2 / (p**2 + (1 - p) ** 2))

    def test_vectors_and_groups(self) -> None:
        vector = Factorised(Bernoulli(), (2, 3))(torch.randn(5, 6))
        sharp = tempered(vector, temperature=0.5)
        assert (sharp.batch_shape, sharp.event_shape) == (vector.batch_shape, vector.event_shape)
        torch.testing.assert_close(sharp.base_dist.logits, vector.base_dist.logits * 2)
        group = tempered({"a": vector, "b": dist.Categorical(self.P)}, temperature=0.5)
        torch.testing.assert_close(group["b"].probs, self.P**2 / (self.P**2).sum(-1, keepdim=True))
        drawn = draw(group)
        assert drawn["a"].shape == (5, 2, 3) and drawn["b"].shape == (2,)

    def test_nothing_to_do(self) -> None:
        normal = dist.Normal(0.0, 1.0)
        assert tempered(normal) is normal

    @pytest.mark.parametrize(
        ("distribution", "options", "message"),
        [
            (
                dist.Categorical(P),
                {"temperature": -1.0},
                "temperature must be a number, at least 0",
            ),
            (dist.Categorical(P), {"temperature": math.nan}, "at least 0 .*, got nan"),
            (dist.Categorical(P), {"top_k": 0}, "top-k must be at least 1, got 0"),
            (dist.Normal(0.0, 1.0), {"temperature": 0.5}, "temperature does not apply to a Normal"),
            (
                Binomial(3)(torch.zeros(1)),
                {"temperature": 0.5},
                "temperature does not apply to a Binomial",
            ),
            (dist.Bernoulli(0.5), {"top_k": 3}, "top-k does not apply to a Bernoulli"),
            (
                Factorised(Normal(), 2)(torch.zeros(4)),
                {"temperature": 0.5},
                "temperature does not apply to a Normal",
            ),
            (
                {"a": dist.Categorical(P), "b": dist.Normal(0.0, 1.0)},
                {"top_k": 3},
                "top-k does not apply to a Normal",
            ),
        ],
    )
    def test_refusals(self, distribution: Any, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            tempered(distribution, **options)


class TestAncestral:
    """Any pair's sequences: declared by equations, functions with sites of their own, functions
    that return values.
    """

    def test_declared_models_follow_their_law_in_chunks(self) -> None:
        rnn = make_rnn().train()
        with mock.patch.object(declared, "STATES", 777):
            samples = sample(Pair(rnn), MANY, 3)
        assert chi_square(frequencies(samples), MANY * probabilities(rnn)) < CHI_SQUARE_26
        assert rnn.training

    def test_functions(self) -> None:
        rnn = make_rnn()

        def by_sites(batch: SequenceBatch) -> None:
            rnn(batch)

        drawn = sample(Pair(by_sites), MANY, 3)
        assert chi_square(frequencies(drawn), MANY * probabilities(rnn)) < CHI_SQUARE_26
        drawn = sample(Pair(lambda batch: rnn(batch)), MANY, 3)
        assert chi_square(frequencies(drawn), MANY * probabilities(rnn)) < CHI_SQUARE_26

    def test_functions_of_groups_and_adjusted(self) -> None:
        p = torch.tensor([0.6, 0.3, 0.1])

        def model(batch: SequenceBatch) -> None:
            with batch.plate():
                for t in batch.steps():
                    z = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
                    pyro.sample(f"x_{t}_tone", dist.Categorical(p))
                    pyro.sample(f"x_{t}_on", dist.Bernoulli(logits=z + batch.inputs_at(t)[:, 0]))  # type: ignore[index]

        u = torch.cat([torch.full((MANY, 2, 1), 20.0), torch.full((MANY, 2, 1), -20.0)], 1)
        drawn = sample(
            Pair(model),
            MANY,
            4,
            inputs=u,
            transform_distribution=lambda law: tempered(law, temperature=0.5),
        )
        assert drawn["on"][:, :2].all() and not drawn["on"][:, 2:].any()
        # 2 degrees
        assert (
            chi_square(
                torch.bincount(drawn["tone"][:, 0], minlength=3).double(),
                MANY * p**2 / (p**2).sum(),
            )
            < 18.4
        )

    def test_refusals(self) -> None:
        rnn = make_rnn()
        with pytest.raises(UserError, match="sequences to sample must be at least 1, got 0"):
            sample(Pair(rnn), 0, 3)
        with pytest.raises(UserError, match="steps to sample must be at least 1, got 0"):
            sample(Pair(rnn), 2, 0)
        with pytest.raises(UserError, match=r"need as many side inputs, got \[2, 4\]"):
            sample(Pair(rnn), 2, 3, inputs=torch.zeros(2, 4, 1))

        def unnamed(batch: SequenceBatch) -> None:
            with batch.plate():
                pyro.sample("y", dist.Normal(0.0, 1.0))

        with pytest.raises(UserError, match="has no sites x_0, x_1"):
            sample(Pair(unnamed), 2, 3)
