"""Scoring any pair: modes, layouts, sites of their own; what lies outside of supports."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from linear_chain import (
    Result,
    X,
    copies,
    model,
    prior_guide,
)
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.distributions.path import MarkovPath
from pyro_seq.emissions.composite import Joint
from pyro_seq.emissions.elementary import Bernoulli, Beta, Binomial, Categorical, Normal
from pyro_seq.encoders import Flatten, OneHot
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.errors import UserError
from pyro_seq.guides import SRNNGuide
from pyro_seq.infer.likelihood.document import filtered_state, score_document
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.models import RNN, SRNN
from pyro_seq.pairs.pair import Pair


@pytest.fixture(autouse=True)
def _float64(float64: None) -> None:
    pass


class TestModes:
    """What a pair is scored with."""

    def test_dropout_is_off_and_each_module_s_mode_comes_back(self) -> None:
        rnn = RNN(
            Categorical(4),
            PreviousObservation(OneHot(4)),
            hidden_size=5,
            input_dropout=0.5,
            output_dropout=0.5,
        )
        rnn.decoder.eval()
        modes = {name: part.training for name, part in rnn.named_modules()}
        batch, pair = SequenceBatch(torch.randint(4, (5, 7))), Pair(rnn)
        in_training = score(pair, batch).steps
        assert {name: part.training for name, part in rnn.named_modules()} == modes and rnn.training
        torch.testing.assert_close(
            in_training, score(Pair(rnn.eval()), batch).steps, rtol=0, atol=0
        )
        with pytest.raises(UserError):
            score(Pair(rnn.train(), prior_guide), batch)
        assert rnn.training and rnn.decoder.training

    def test_the_pairs_own_parameters(self) -> None:
        def located(batch: SequenceBatch) -> Result:
            loc = pyro.param("loc", torch.tensor(0.0))
            with batch.plate():
                for t in batch.steps():
                    pyro.sample(f"x_{t}", dist.Normal(loc, 1.0), obs=batch.at(t))
            return Result(loc.detach().expand(len(batch)))

        pair, batch = Pair(located), copies(X, 2)
        with pair.scope():
            pyro.param("loc", torch.tensor(3.0))
        torch.testing.assert_close(
            score(pair, batch).steps, dist.Normal(3.0, 1.0).log_prob(batch.values)
        )
        assert filtered_state(pair, [batch])["model"].tolist() == [3.0, 3.0]
        assert not pyro.get_param_store().keys()

    def test_no_parameters_at_all(self, linear_gaussian: Callable[..., Pair]) -> None:
        """Types and device are the defaults' then; with the exact posterior the bound is the
        likelihood.
        """
        pair: Any = linear_gaussian()
        scale = pair.model.scale.detach()
        del pair.model.scale, pair.guide.place
        pair.model.scale = scale
        assert not [*pair.model.parameters(), *pair.guide.parameters()]
        x = torch.randn(3, 5)
        scored = score(pair, pair.model.batch(x), method="elbo")
        torch.testing.assert_close(
            scored.log_likelihood, pair.model.log_likelihood(x), rtol=0, atol=1e-9
        )

    def test_a_guide_without_parameters_has_types_and_device_of_its_model(
        self, linear_gaussian: Callable[..., Pair]
    ) -> None:
        pair: Any = linear_gaussian()
        del pair.guide.place
        pair.model.to("meta", torch.bfloat16)
        latent = pair.guide.initial_latent(3)
        assert (latent.shape, latent.device.type, latent.dtype) == ((3, 1), "meta", torch.bfloat16)

    def test_functions_trained_by_hand(self) -> None:
        """Stock SVI in Pyro's own store, then a score of the functions: it is that of what was
        learnt.
        """

        def located(batch: SequenceBatch) -> None:
            loc = pyro.param("loc", torch.tensor(0.0))
            scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
            with batch.plate():
                for t in batch.steps():
                    pyro.sample(f"x_{t}", dist.Normal(loc, scale), obs=batch.at(t))

        def nothing(batch: SequenceBatch) -> None:
            """A guide without sites."""

        batch = copies(X, 2)
        svi = SVI(located, nothing, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        for _ in range(10):
            svi.step(batch)
        loc, scale = (pyro.param(name).detach() for name in ("loc", "scale"))
        assert loc > 0.1 and scale != 1
        torch.testing.assert_close(
            score(Pair.from_param_store(located, nothing, batch), batch).steps,
            dist.Normal(loc, scale).log_prob(batch.values),
        )
        assert pyro.param("loc").detach() == loc, "outside, nothing has changed"


class TestLayouts:
    """A path's site and the steps' sites are shares of the same steps."""

    @pytest.mark.parametrize("batch", [SequenceBatch(torch.tensor([[0, 1, 2], [2, 0, 0]]), [3, 2])])
    def test_agree_step_by_step(self, batch: SequenceBatch) -> None:
        model = SRNN(
            Categorical(3),
            PreviousObservation(OneHot(3)),
            latent_size=3,
            latent_sizes=(3,),
            hidden_size=3,
        )
        guide = SRNNGuide(model, OneHot(3), hidden_size=3, latent_sizes=(3,))
        path_trace = poutine.trace(guide).get_trace(batch)
        path = score(Pair(model, poutine.replay(guide, trace=path_trace)), batch)
        model.layout = "steps"
        steps_trace = poutine.trace(guide).get_trace(batch)
        for t in range(3):
            steps_trace.nodes[f"z_{t}"]["value"] = path_trace.nodes["z"]["value"][:, t]
        steps = score(Pair(model, poutine.replay(guide, trace=steps_trace)), batch)
        torch.testing.assert_close(path.steps, steps.steps, rtol=1e-10, atol=1e-12)
        assert not path.exact and path.steps[0].all()

    @pytest.mark.parametrize(
        "names", [("a", "b"), ("track_0", "track_1"), ("note_2", "b"), ("a_2_b", "track_0")]
    )
    @pytest.mark.parametrize("layout", ["path", "steps"])
    def test_groups_whose_names_hold_numbers(self, names: tuple[str, str], layout: Any) -> None:
        values = [torch.randint(3, (2, 4)), torch.randn(2, 4)]
        batch = SequenceBatch(dict(zip(names, values, strict=True)), [4, 3])
        torch.manual_seed(3)
        emission = Joint(dict(zip(names, (Categorical(3), Normal()), strict=True)))
        encoder = JointEncoder(dict(zip(names, (OneHot(3), Flatten(())), strict=True)))
        rnn = RNN(emission, PreviousObservation(encoder), hidden_size=3, layout=layout)
        trace = poutine.trace(rnn).get_trace(batch)
        total = trace.log_prob_sum()
        steps = score(Pair(rnn), batch).steps
        torch.testing.assert_close(steps.sum(), total.detach())
        assert steps[batch.mask].all() and not steps[~batch.mask].any(), "every step has its share"


class TestCustomPairs:
    @staticmethod
    def nothing(batch: SequenceBatch) -> None:
        """A guide without sites."""

    def test_masks_plates_and_deterministic_sites(self) -> None:
        batch = SequenceBatch(torch.randn(2, 3, 5), [3, 1])
        keep = torch.tensor([True, False])

        def by_steps(batch: SequenceBatch) -> None:
            with pyro.plate("features", 5, dim=-2), batch.plate(), poutine.mask(mask=keep):
                for t in batch.steps():
                    with batch.active(t):
                        rate = pyro.deterministic(f"rate_{t}", torch.zeros(5, 2))
                        pyro.sample(f"x_{t}", dist.Normal(rate, 1.0), obs=batch.at(t).t())

        def by_path(batch: SequenceBatch) -> None:
            with batch.plate(), poutine.mask(mask=keep):
                pyro.deterministic("rate", torch.zeros(2))
                steps = dist.Normal(torch.zeros(2, 3, 5), 1.0).to_event(1).mask(batch.mask)
                pyro.sample("x", steps.to_event(1), obs=batch.values)

        expected = (
            dist.Normal(0.0, 1.0).log_prob(batch.values).sum(-1) * batch.mask
        ) * keep.unsqueeze(-1)
        torch.testing.assert_close(score(Pair(by_steps), batch).steps, expected)
        torch.testing.assert_close(score(Pair(by_path), batch).steps, expected)

    def test_a_path_with_a_mask(self) -> None:
        keep = torch.tensor([True, False])

        def latent() -> None:
            with poutine.mask(mask=keep):
                pyro.sample(
                    "z",
                    MarkovPath(
                        torch.zeros(2, 1), lambda previous, steps: dist.Normal(previous, 1.0), 3
                    ),
                )

        def guide(batch: SequenceBatch) -> None:
            with batch.plate(), poutine.scale(scale=2.0):
                latent()

        def both(batch: SequenceBatch) -> None:
            with batch.plate():
                latent()
                pyro.sample("x", dist.Normal(torch.zeros(2, 3), 1.0).to_event(1), obs=batch.values)

        batch = SequenceBatch(torch.randn(2, 3))
        torch.testing.assert_close(
            score(Pair(both, guide), batch).steps, dist.Normal(0.0, 1.0).log_prob(batch.values)
        )

    def test_auxiliary_variables_of_the_guide(self) -> None:
        """x ~ N(0, 1) and a latent that is no more than a copy of the guide's own noise."""

        def pair_model(batch: SequenceBatch) -> None:
            with batch.plate():
                pyro.sample("z_0", dist.Normal(torch.zeros(2), 1.0))
                pyro.sample("x_0", dist.Normal(torch.zeros(2), 1.0), obs=batch.at(0))

        def guide(batch: SequenceBatch) -> None:
            with batch.plate():
                u = pyro.sample(
                    "u_0", dist.Normal(torch.zeros(2), 1.0), infer={"is_auxiliary": True}
                )
                pyro.sample("z_0", dist.Delta(u))

        batch = SequenceBatch(torch.randn(2, 1))
        scored = score(Pair(pair_model, guide), batch)
        torch.testing.assert_close(
            scored.log_likelihood, dist.Normal(0.0, 1.0).log_prob(batch.values[:, 0])
        )

    @pytest.mark.parametrize("name", ["z", "z_9", "sentence"])
    def test_a_latent_of_a_whole_sequence(self, name: str) -> None:
        """A sentence VAE, z ~ N(0, 1), x_t ~ N(z, 1), with its exact posterior as guide."""
        lengths = torch.tensor([4, 2, 1])
        batch = SequenceBatch(torch.randn(3, 4), lengths)

        def sentences(batch: SequenceBatch) -> None:
            with batch.plate():
                z = pyro.sample(name, dist.Normal(torch.zeros(2), 1.0).to_event(1))[..., 0]
                for t in batch.steps():
                    with batch.active(t):
                        pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=batch.at(t))

        def guide(batch: SequenceBatch) -> None:
            precision = batch.lengths + 1.0
            loc = torch.stack([batch.values.sum(-1) / precision, torch.zeros(len(batch))], -1)
            scale = torch.stack([precision.rsqrt(), torch.ones(len(batch))], -1)
            with batch.plate():
                pyro.sample(name, dist.Normal(loc, scale).to_event(1))

        laws = [dist.MultivariateNormal(torch.zeros(n), torch.eye(n) + 1) for n in lengths.tolist()]
        expected = torch.stack(
            [law.log_prob(x[:n]) for law, x, n in zip(laws, batch.values, lengths, strict=True)]
        )
        scored = score(Pair(sentences, guide), batch, samples=3)
        torch.testing.assert_close(scored.log_likelihood, expected, rtol=0, atol=1e-9)
        assert not scored.exact and not scored.steps[~batch.mask].any()

    def test_observations_that_all_sequences_share_are_refused(self) -> None:
        """One density for all of them is no share of each."""

        def path(batch: SequenceBatch) -> None:
            pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1), obs=X.float())

        with pytest.raises(
            UserError, match=r"^site 'x' has batch shape \[\], not one entry for each sequence"
        ):
            score(Pair(path), copies(X, 3))

    def test_sites_of_one_side(self) -> None:
        batch = copies(X, 2)
        with pytest.raises(
            UserError, match=r"^the guide has no site 'z_0', which the model samples$"
        ):
            score(Pair(model, self.nothing), batch)

        def observed(batch: SequenceBatch) -> None:
            with batch.plate():
                for t in batch.steps():
                    pyro.sample(f"x_{t}", dist.Normal(torch.zeros(2), 1.0), obs=batch.at(t))

        with pytest.raises(
            UserError, match=r"^the model has no site 'z_0', which the guide samples$"
        ):
            score(Pair(observed, prior_guide), batch)

    @pytest.mark.parametrize("name", ["x", "x_4", "x_", "x4", "x_1a"])
    def test_sites_of_no_step(self, name: str) -> None:
        def outside(batch: SequenceBatch) -> None:
            with batch.plate():
                pyro.sample(name, dist.Normal(torch.zeros(2), 1.0), obs=batch.at(0))

        with pytest.raises(
            UserError, match=f"^site '{name}' belongs to no step: name it for its step"
        ):
            score(Pair(outside), copies(X, 2))

    def test_nothing_to_score(self) -> None:
        pair = Pair(model, prior_guide)
        for batch in (
            SequenceBatch(None, [3]),
            SequenceBatch(torch.zeros(2, 0)),
            SequenceBatch(torch.zeros(0, 3)),
        ):
            with pytest.raises(UserError, match="there is nothing to score"):
                score(pair, batch)
        with pytest.raises(UserError, match="at least 1, got 0"):
            score(pair, copies(X, 2), samples=0)
        assert list(score_document(pair, [])) == []
        with pytest.raises(UserError, match="no window was given"):
            filtered_state(pair, [])
        with pytest.raises(
            UserError, match=r"must be of equal length, got \[4, 3\] steps of a window of 4"
        ):
            filtered_state(pair, [SequenceBatch(torch.zeros(2, 4), [4, 3])])


class TestSurprise:
    def test_steps_are_ranked(self) -> None:
        rnn = RNN(Categorical(4), PreviousObservation(OneHot(4)), hidden_size=5).eval()
        scored = score(Pair(rnn), SequenceBatch(torch.randint(4, (3, 6)), [6, 2, 4]))
        torch.testing.assert_close(scored.surprise, -scored.steps)
        every = scored.most_surprising(100)
        assert (
            len(every) == 12
            and len(scored.most_surprising(5)) == 5
            and scored.most_surprising(5) == every[:5]
        )
        assert all(a.nats >= b.nats for a, b in itertools.pairwise(every))
        assert all(s.nats == pytest.approx(float(-scored.steps[s.sequence, s.step])) for s in every)
        assert {(s.sequence, s.step) for s in every} == {
            (n, t) for n, length in enumerate([6, 2, 4]) for t in range(length)
        }
        with pytest.raises(UserError, match="at least 1, got 0"):
            scored.most_surprising(0)


class TestOutsideTheSupport:
    """Said in words, never NaN or a silent zero."""

    @pytest.mark.parametrize(("emission", "encoder", "value", "says"), [
        (Categorical(3), OneHot(3), 3,
        "site 'x' observes 3, which must be a whole number from 0 to 2"),
        (Categorical(3), OneHot(3), -1,
        "site 'x' observes -1, which must be a whole number from 0 to 2"),
        (Beta(), Flatten(()), 0.0, "site 'x' observes 0.0, which must be strictly between 0 and 1"),
        (Beta(), Flatten(()), 1.0, "site 'x' observes 1.0, which must be strictly between"),
        (Bernoulli(), Flatten(()), 0.5, "site 'x' observes 0.5, which must be 0 or 1"),
        (Binomial(5), Flatten(()), 6.0,
        "site 'x' observes 6.0, which must be a whole number from 0 to 5"),
    ])  # fmt: skip
    @pytest.mark.parametrize("samples", [1, 3])
    def test_of_a_shipped_pair(
        self, emission: Any, encoder: Any, value: Any, says: str, samples: int
    ) -> None:
        srnn = SRNN(emission, PreviousObservation(encoder), latent_size=2, hidden_size=3)
        guide = SRNNGuide(srnn, encoder, hidden_size=3)
        good = 1 if isinstance(value, int) else 0.25 if isinstance(emission, Beta) else 1.0
        values = torch.full((2, 4), good)
        values[1, 2] = value
        values[0, 3] = value  # padding
        batch = SequenceBatch(values, [3, 4])
        for method in ("elbo", "importance", "filter"):
            with pytest.raises(UserError, match=f"^sequence 1, step 2: {says}"):
                score(Pair(srnn, guide), batch, method=method, samples=samples)  # type: ignore[arg-type]

    @pytest.mark.parametrize("method", ["auto", "filter"])
    def test_of_a_plain_function(self, method: Any) -> None:
        def counts(batch: SequenceBatch) -> None:
            with batch.plate():
                for t in batch.steps():
                    with batch.active(t):
                        z = pyro.sample(f"z_{t}", dist.Beta(torch.ones(len(batch)), 1.0))
                        pyro.sample(
                            f"x_{t}",
                            dist.Independent(dist.Bernoulli(z.unsqueeze(-1).expand(-1, 2)), 1),
                            obs=batch.at(t),
                        )

        values = torch.ones(3, 4, 2)
        values[2, 1, 1] = 2.0
        with pytest.raises(
            UserError, match=r"^sequence 2, step 1: site 'x_1' observes 2.0, which must be 0 or 1"
        ):
            score(
                Pair(counts),
                SequenceBatch(values, [4, 1, 3]),
                samples=5,
                proposal="prior",
                method=method,
            )
        scored = score(
            Pair(counts),
            SequenceBatch(values, [4, 1, 1]),
            samples=5,
            proposal="prior",
            method=method,
        )
        assert scored.total.isfinite().all()

    @pytest.mark.parametrize(
        ("law", "value", "words"),
        [
            (dist.Poisson(2.0), 2.5, "a whole number of at least 0"),
            (dist.Gamma(2.0, 1.0), -1.0, "at least 0"),
            (dist.Pareto(3.0, 1.0), 2.0, "at least 3"),
        ],
    )
    def test_bounds_in_words(self, law: Any, value: float, words: str) -> None:
        def model(batch: SequenceBatch) -> None:
            with batch.plate():
                pyro.sample("x_0", law.expand([len(batch)]), obs=batch.at(0))

        batch = SequenceBatch(torch.tensor([[value]]))
        with pytest.raises(
            UserError,
            match=f"^sequence 0, step 0: site 'x_0' observes {value}, which must be {words}$",
        ):
            score(Pair(model), batch)

    def test_a_group_names_its_member(self) -> None:
        emission = Joint({"count": Binomial(2), "level": Normal()})
        encoder = JointEncoder({"count": Flatten(()), "level": Flatten(())})
        rnn = RNN(emission, PreviousObservation(encoder), hidden_size=3)
        batch = SequenceBatch({"count": torch.tensor([[1.0, 3.0]]), "level": torch.zeros(1, 2)})
        with pytest.raises(
            UserError,
            match=(
                r"^sequence 0, step 1: site 'x_count' observes 3.0, which must be a whole "
                r"number "
                r"from 0 to 2$"
            ),
        ):
            score(Pair(rnn), batch)

    def test_weights_that_are_not_finite(self) -> None:
        rnn = RNN(Categorical(4), PreviousObservation(OneHot(4)), hidden_size=5)
        with torch.no_grad():
            rnn.get_parameter("decoder.0.bias")[0] = torch.nan
        with (
            pyro.validation_enabled(False),
            pytest.raises(
                UserError, match="log-density of site 'x' is not a number: the weights are not"
            ),
        ):
            score(Pair(rnn), SequenceBatch(torch.randint(4, (3, 6))))

    def test_sequences_without_a_step(self) -> None:
        batch = SequenceBatch(torch.zeros(4, 3), [3, 0, 2, 0])
        with pytest.raises(
            UserError,
            match=r"^sequence 1 \(and 1 more\) has no step: there is nothing to score in it$",
        ):
            score(Pair(model, prior_guide), batch)
        with pytest.raises(
            UserError, match="1 steps are to be sampled, and only observations can be scored"
        ):
            score(Pair(model, prior_guide), copies(X, 2).sampling([1]))
