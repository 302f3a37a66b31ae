"""Emissions: densities against closed forms written out by hand, laws of samples, padding, and
mistakes.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_seq.emissions.base import Emission, observe, over_time
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.elementary import Bernoulli, Beta, Binomial, Categorical, Normal
from pyro_seq.errors import UserError

MASK = torch.tensor([[True, True, False]])


def softplus(x: Tensor) -> Tensor:
    return (1 + x.exp()).log()


def categorical(x: Tensor, f: Tensor) -> Tensor:
    return (f.gather(-1, x.unsqueeze(-1)).squeeze(-1).exp() / f.exp().sum(-1)).log()


def bernoulli(x: Tensor, f: Tensor) -> Tensor:
    p = 1 / (1 + (-f[..., 0]).exp())
    return (x * p + (1 - x) * (1 - p)).log()


def binomial(x: Tensor, f: Tensor) -> Tensor:
    p = 1 / (1 + (-f[..., 0]).exp())
    ways = torch.tensor([math.comb(7, int(k)) for k in x.flatten()]).view(x.shape)
    return ways.log() + x * p.log() + (7 - x) * (1 - p).log()


def normal(x: Tensor, f: Tensor) -> Tensor:
    scale = softplus(f[..., 1]) + 1e-3
    return -0.5 * ((x - f[..., 0]) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


def beta(x: Tensor, f: Tensor) -> Tensor:
    a, b = softplus(f[..., 0]) + 1e-3, softplus(f[..., 1]) + 1e-3
    return (a + b).lgamma() - a.lgamma() - b.lgamma() + (a - 1) * x.log() + (b - 1) * (1 - x).log()


# emission, how to draw an observation of it, closed form
CASES: dict[str, tuple[Any, Any, Any]] = {
    "categorical": (lambda: Categorical(5), lambda *s: torch.randint(5, s), categorical),
    "bernoulli": (Bernoulli, lambda *s: torch.randint(2, s).double(), bernoulli),
    "binomial": (lambda: Binomial(7), lambda *s: torch.randint(8, s).double(), binomial),
    "normal": (Normal, lambda *s: torch.randn(s), normal),
    "beta": (Beta, lambda *s: torch.rand(s), beta),
}


@pytest.fixture(autouse=True)
def _float64(float64: None) -> None:
    pass


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Emission, Any, Any]:
    make, draw, closed = CASES[request.param]
    return make(), draw, closed


class TestDensities:
    @pytest.mark.parametrize("lead", [(), (3,), (2, 3, 4)])
    def test_of_one_event(self, case: Any, lead: tuple[int, ...]) -> None:
        emission, draw, closed = case
        features, x = torch.randn(*lead, emission.num_features), draw(*lead)
        distribution = emission(features)
        assert (
            distribution.batch_shape == lead
            and distribution.event_shape == emission.event_shape == ()
        )
        torch.testing.assert_close(distribution.log_prob(x), closed(x, features))

    @pytest.mark.parametrize("shape", [4, (4,), (3, 2)])
    def test_of_independent_events(self, case: Any, shape: Any) -> None:
        event, draw, closed = case
        emission = Factorised(event, shape)
        sizes = (shape,) if isinstance(shape, int) else shape
        assert (
            emission.event_shape == sizes
            and emission.num_features == math.prod(sizes) * event.num_features
        )
        features, x = torch.randn(2, 3, emission.num_features), draw(2, 3, *sizes)
        expected = torch.zeros(2, 3)
        # each entry has features of its own, one after the other
        for i, entry in enumerate(x.flatten(2).unbind(-1)):
            expected += closed(
                entry, features[..., i * event.num_features : (i + 1) * event.num_features]
            )
        distribution = emission(features)
        assert distribution.event_shape == sizes
        torch.testing.assert_close(distribution.log_prob(x), expected)

    def test_of_nested_events(self) -> None:
        nested, flat = Factorised(Factorised(Normal(), 2), 3), Factorised(Normal(), (3, 2))
        features, x = torch.randn(4, 12), torch.randn(4, 3, 2)
        assert nested.event_shape == (3, 2)
        torch.testing.assert_close(nested(features).log_prob(x), flat(features).log_prob(x))

    def test_of_a_group(self) -> None:
        joint = Joint({"note": Factorised(Beta(), 3), "count": Binomial(7), "end": Bernoulli()})
        assert joint.num_features == 6 + 1 + 1
        features = torch.randn(2, 8)
        x = {
            "note": torch.rand(2, 3),
            "count": torch.tensor([3.0, 7.0]),
            "end": torch.tensor([0.0, 1.0]),
        }
        parts = joint(features)
        torch.testing.assert_close(
            parts["note"].log_prob(x["note"]),
            beta(x["note"], features[:, :6].view(2, 3, 2)).sum(-1),
        )
        torch.testing.assert_close(
            parts["count"].log_prob(x["count"]), binomial(x["count"], features[:, 6:7])
        )
        torch.testing.assert_close(
            parts["end"].log_prob(x["end"]), bernoulli(x["end"], features[:, 7:])
        )

    def test_of_a_masked_sequence(self, case: Any) -> None:
        event, draw, closed = case
        for emission, shape in ((event, ()), (Factorised(event, 4), (4,))):
            features, x = torch.randn(2, 1, 3, emission.num_features), draw(2, 1, 3, *shape)
            steps = (
                closed(x, features.view(2, 1, 3, *shape, event.num_features))
                .view(2, 1, 3, -1)
                .sum(-1)
            )
            for mask in (None, MASK):
                expected = steps.sum(-1) if mask is None else (steps * mask).sum(-1)
                torch.testing.assert_close(
                    over_time(emission(features), mask).log_prob(x), expected
                )
                torch.testing.assert_close(
                    over_time({"a": emission(features)}, mask)["a"].log_prob(x), expected
                )

    @pytest.mark.parametrize("kind", ["exp", "softplus"])
    def test_positive_projections(self, kind: str) -> None:
        raw = torch.tensor([0.3, -1.2])
        project = {"exp": torch.exp, "softplus": softplus}[kind]
        torch.testing.assert_close(
            Normal(positive=kind, epsilon=0.5)(raw).scale, project(raw[1]) + 0.5
        )
        torch.testing.assert_close(
            Beta(positive=kind, epsilon=0.5)(raw).concentration1, project(raw[0]) + 0.5
        )
        torch.testing.assert_close(
            Beta(positive=kind, epsilon=0.5)(raw).concentration0, project(raw[1]) + 0.5
        )


class TestSamples:
    def test_moments(self, case: Any) -> None:
        emission, _, _ = case
        n = 20_000
        for seed in range(3):
            torch.manual_seed(seed)
            distribution = emission(torch.randn(emission.num_features))
            x = distribution.sample((n,)).double()
            if isinstance(emission, Categorical):
                counts = torch.bincount(x.long(), minlength=5)
                chi_square = (
                    (counts - n * distribution.probs) ** 2 / (n * distribution.probs)
                ).sum()
                assert chi_square < 23.5  # the 1 - 1e-4 quantile with 4 degrees of freedom
                continue
            assert (x.mean() - distribution.mean).abs() < 4 * (distribution.variance / n).sqrt()
            squares = (x - distribution.mean) ** 2
            assert (squares.mean() - distribution.variance).abs() < 4 * squares.std() / math.sqrt(n)

    def test_observe_samples_or_conditions(self) -> None:
        joint = Joint({"a": Bernoulli(), "b": Factorised(Normal(), 2)})
        features = torch.randn(3, 5)
        trace = poutine.trace(lambda: observe("x_0", joint(features))).get_trace()
        drawn = trace.nodes["_RETURN"]["value"]
        assert (
            set(drawn) == {"a", "b"}
            and drawn["b"].shape == (3, 2)
            and trace.stochastic_nodes == ["x_0_a", "x_0_b"]
        )
        with pyro.plate("sequences", 3):
            again = poutine.trace(lambda: observe("x_0", joint(features), obs=drawn)).get_trace()
        assert (
            again.observation_nodes == ["x_0_a", "x_0_b"]
            and again.nodes["x_0_a"]["value"] is drawn["a"]
        )
        single = poutine.trace(
            lambda: observe("x", Bernoulli()(features[:, :1]), obs=drawn["a"])
        ).get_trace()
        assert single.observation_nodes == ["x"]


class TestObservations:
    def test_beta_padding_gives_no_nan_gradient(self) -> None:
        emission = Factorised(Beta(), 4)
        for filler in (0.0, 1.0):  # where the density of a Beta may be infinite
            features = torch.randn(1, 3, 8, requires_grad=True)
            raw = torch.where(MASK.unsqueeze(-1), torch.rand(1, 3, 4), torch.tensor(filler))
            x = emission.prepare(raw, MASK)
            assert x[MASK].equal(raw[MASK]) and (x[~MASK] == 0.5).all(), (
                "padding has a finite density"
            )
            loss = over_time(emission(features), MASK).log_prob(x).sum()
            loss.backward()
            assert (
                loss.isfinite()
                and features.grad.isfinite().all()
                and not features.grad[~MASK].any()
            )

    def test_types(self) -> None:
        ones = torch.ones(1, 3, dtype=torch.uint8)
        assert Categorical(2).prepare(ones, MASK).dtype == torch.long
        for emission in (Bernoulli(), Binomial(1), Normal(), Beta()):
            assert emission.prepare(ones, MASK).dtype == torch.float64
            assert emission.prepare(ones.float(), MASK).dtype == torch.float64, (
                "densities are those of the module's type"
            )
            assert emission.float().prepare(ones.double(), MASK).dtype == torch.float64, (
                "what is real stays as precise as it is"
            )
        assert Factorised(Categorical(2), 1).prepare(ones.unsqueeze(-1), MASK).dtype == torch.long

    def test_stack(self) -> None:
        joint = Joint({"a": Factorised(Normal(), (2, 5)), "b": Categorical(3)})
        steps = [{"a": torch.randn(7, 1, 2, 5), "b": torch.randint(1, 3, (7, 1))} for _ in range(3)]
        stacked = joint.stack(steps)
        assert stacked["a"].shape == (7, 1, 3, 2, 5) and stacked["b"].shape == (7, 1, 3)
        assert stacked["a"][:, :, 1].equal(steps[1]["a"])
        masked = joint.stack(steps, MASK)
        assert (
            masked["a"][:, :, :2].equal(stacked["a"][:, :, :2]) and not masked["a"][:, :, 2].any()
        )
        assert not masked["b"][..., 2].any() and masked["b"].dtype == torch.long

    @pytest.mark.parametrize(
        ("emission", "values", "message"),
        [
            (
                Categorical(3),
                torch.zeros(1, 3, 2).long(),
                r"Categorical observations must have event shape \[\], got \[2\]",
            ),
            (
                Factorised(Bernoulli(), 4),
                torch.zeros(1, 3, 3),
                r"must have event shape \[4\], got \[3\]",
            ),
            (
                Categorical(3),
                torch.zeros(1, 3),
                "Categorical observations must be whole numbers, got torch.float32",
            ),
            (
                Normal(),
                {"a": torch.zeros(1, 3)},
                r"Normal observations must be one tensor, got a group of \['a'\]",
            ),
            (
                Joint({"a": Normal()}),
                torch.zeros(1, 3),
                r"this Joint emission observes \['a'\], got one tensor",
            ),
            (
                Joint({"a": Normal(), "b": Normal()}),
                {"a": torch.zeros(1, 3)},
                r"observes \['a', 'b'\], got \['a'\]",
            ),
            (
                Joint({"a": Normal()}),
                {"a": torch.zeros(1, 3, 1)},
                "Normal observations must have event shape",
            ),
        ],
    )
    def test_that_do_not_fit(self, emission: Emission, values: Any, message: str) -> None:
        with pytest.raises(UserError, match=message):
            emission.prepare(values, MASK)

    def test_outside_the_support(self) -> None:
        features = torch.zeros(1, 3, 3)
        for emission, wrong in (
            (Categorical(3), 3),
            (Categorical(3), -1),
            (Bernoulli(), 0.5),
            (Binomial(4), 5.0),
            (Beta(), 1.5),
        ):
            x = emission.prepare(torch.full((1, 3), wrong), MASK)
            with pytest.raises(ValueError, match="within the support"):
                over_time(emission(features[..., : emission.num_features]), MASK).log_prob(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Categorical(0), "num_categories must be at least 1, got 0"),
        (lambda: Binomial(-1), "total_count must be at least 1, got -1"),
        (lambda: Factorised(Normal(), 0), "shape must be at least 1, got 0"),
        (lambda: Factorised(Normal(), (2, 0)), "shape must be at least 1, got 0"),
        (lambda: Factorised(Joint({"a": Normal()}), 2), "not a Joint"),
        (lambda: Joint({}), "at least one emission by name"),
        (lambda: Joint({"a": Joint({"b": Normal()})}), "none of them a Joint"),
        (lambda: Normal(positive="sofplus"), "did you mean 'softplus'"),
        (lambda: Normal(epsilon=-1.0), "at least 0, got -1.0"),
        (lambda: Beta(epsilon=math.nan), "at least 0, got nan"),
    ],
)
def test_definitions_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_base_has_no_density() -> None:
    with pytest.raises(TypeError, match="Emission must define forward"):
        Emission()(torch.zeros(1))
