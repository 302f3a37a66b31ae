"""Guides made from a model alone: exact evidences that importance sampling with them must find, and
what they refuse.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.optim import ClippedAdam
from torch import Tensor

from pyro_seq import AutoSequenceGuide, Pair, SequenceBatch, UserError, score, score_document
from pyro_seq.contexts import PreviousObservation, SideInputs
from pyro_seq.distributions.path import MarkovPath
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.elementary import Categorical, Normal
from pyro_seq.encoders import Embedding, Flatten
from pyro_seq.guides._encoder import Symbols
from pyro_seq.models import ISEQ, RNN, SRNN

A, Q, R = 0.8, 0.6, 1.0  # z_t = A z_{t-1} + Q noise, x_t = z_t + R noise
STATIONARY = Q / (1 - A**2) ** 0.5
LENGTHS = [5, 3, 1, 0]

pytestmark = pytest.mark.usefixtures("float64")


class Result(NamedTuple):
    state: Any


# models whose evidence is known


def real_chain(batch: SequenceBatch) -> Result:
    z = None if batch.state is None else batch.state["model"]
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                prior = (
                    dist.Normal(torch.zeros(len(batch)), STATIONARY)
                    if z is None
                    else dist.Normal(A * z, Q)
                )
                z = pyro.sample(f"z_{t}", prior)
                pyro.sample(f"x_{t}", dist.Normal(z, R), obs=batch.at(t))
    return Result(z)


def positive_chain(batch: SequenceBatch) -> None:
    """exp of the real chain, as vectors of one entry."""
    log = torch.zeros(len(batch), 1)
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                prior = dist.LogNormal(A * log, Q) if t else dist.LogNormal(log, STATIONARY)
                log = pyro.sample(f"volatility_{t}_vector", prior.to_event(1)).log()
                pyro.sample(f"x_{t}", dist.Normal(log.squeeze(-1), R), obs=batch.at(t))


def independent_path(batch: SequenceBatch) -> None:
    """exp of independent normals, all steps in one site."""
    with batch.plate():
        mask = batch.mask
        z = pyro.sample(
            "z", dist.LogNormal(torch.zeros(len(batch), batch.num_steps), Q).mask(mask).to_event(1)
        )
        pyro.sample("x", dist.Normal(z.log(), R).mask(mask).to_event(1), obs=batch.values)


def markov_path(batch: SequenceBatch) -> None:
    def conditional(previous: Tensor, steps: slice) -> dist.Normal:
        return dist.Normal(A * previous, Q)

    with batch.plate():
        z = pyro.sample(
            "z",
            MarkovPath(torch.zeros(len(batch), 1), conditional, batch.num_steps, active=batch.mask),
        )
        pyro.sample(
            "x", dist.Normal(z.squeeze(-1), R).mask(batch.mask).to_event(1), obs=batch.values
        )


def shared_level(batch: SequenceBatch) -> None:
    """A latent of a whole sequence."""
    with batch.plate():
        level = pyro.sample("level", dist.Normal(torch.zeros(len(batch)), STATIONARY))
        for t in batch.steps():
            with batch.active(t):
                pyro.sample(f"x_{t}", dist.Normal(level, R), obs=batch.at(t))


def level_and_chain(batch: SequenceBatch) -> None:
    """A latent of a sequence, two at each step, one of them in several dimensions."""
    with batch.plate():
        level = pyro.sample("level", dist.Normal(torch.zeros(len(batch)), 1.0))
        for t in batch.steps():
            with batch.active(t):
                one = pyro.sample(f"one_{t}", dist.Normal(torch.zeros(len(batch)), 0.5))
                two = pyro.sample(
                    f"two_{t}", dist.Normal(torch.zeros(len(batch), 2, 2), 0.25).to_event(2)
                )
                pyro.sample(
                    f"x_{t}", dist.Normal(level + one + two.sum((-1, -2)), R), obs=batch.at(t)
                )


def rates(batch: SequenceBatch) -> None:
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                rate = pyro.sample(f"rate_{t}", dist.Gamma(torch.full((len(batch),), 3.0), 2.0))
                pyro.sample(f"x_{t}", dist.Poisson(rate), obs=batch.at(t))


def chances(batch: SequenceBatch) -> None:
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                p = pyro.sample(f"p_{t}", dist.Beta(torch.full((len(batch),), 2.0), 3.0))
                pyro.sample(f"x_{t}", dist.Binomial(4, p), obs=batch.at(t))


def uniform(batch: SequenceBatch) -> None:
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                p = pyro.sample(
                    f"p_{t}", dist.Uniform(torch.zeros(len(batch)), torch.ones(len(batch)))
                )
                pyro.sample(f"x_{t}", dist.Binomial(4, p), obs=batch.at(t))


def mixtures(batch: SequenceBatch) -> None:
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                weights = pyro.sample(
                    f"weights_{t}",
                    dist.Dirichlet(torch.tensor([2.0, 1.0, 3.0]).expand(len(batch), 3)),
                )
                pyro.sample(f"x_{t}", dist.Categorical(weights), obs=batch.at(t))


def gaussian(covariance: Callable[[int], Tensor]) -> Callable[[Tensor, int], Tensor]:
    def evidence(x: Tensor, n: int) -> Tensor:
        return dist.MultivariateNormal(
            torch.zeros(n), covariance(n) + R**2 * torch.eye(n)
        ).log_prob(x[:n])

    return evidence


def stationary(n: int) -> Tensor:
    steps = torch.arange(n)
    return STATIONARY**2 * A ** (steps[:, None] - steps).abs()


def from_zero(n: int) -> Tensor:
    """Of z_t = A z_{t-1} + Q noise from z_0 = 0."""
    blocks = torch.tensor([[A ** (t - k) if k <= t else 0.0 for k in range(n)] for t in range(n)])
    return Q**2 * blocks @ blocks.t()


def by_step(marginal: Any) -> Callable[[Tensor, int], Tensor]:
    return lambda x, n: marginal.log_prob(x[:n]).sum()


REALS = torch.tensor(
    [[0.4, -1.1, 1.3, 0.7, 2.0], [-0.6, 0.2, 0.9, 0.0, 0.0], [1.5, 0.0, 0.0, 0.0, 0.0], [0.0] * 5],
    dtype=torch.float64,
)
COUNTS = torch.tensor([[1, 4, 0, 2, 3], [0, 0, 2, 0, 0], [3, 0, 0, 0, 0], [0] * 5])
SYMBOLS = torch.tensor([[1, 2, 0, 2, 2], [0, 1, 2, 0, 0], [1, 0, 0, 0, 0], [0] * 5])

EXACT: dict[str, tuple[Any, Tensor, Callable[[Tensor, int], Tensor]]] = {
    "real chain": (real_chain, REALS, gaussian(stationary)),
    "positive chain": (positive_chain, REALS, gaussian(stationary)),
    "independent path": (independent_path, REALS, gaussian(lambda n: Q**2 * torch.eye(n))),
    "markov path": (markov_path, REALS, gaussian(from_zero)),
    "shared level": (shared_level, REALS, gaussian(lambda n: STATIONARY**2 * torch.ones(n, n))),
    "level and chain": (
        level_and_chain,
        REALS,
        gaussian(lambda n: torch.ones(n, n) + 0.5 * torch.eye(n)),
    ),
    "rates": (rates, COUNTS.double(), by_step(dist.GammaPoisson(3.0, 2.0))),
    "chances": (chances, COUNTS.double(), by_step(dist.BetaBinomial(2.0, 3.0, 4))),
    "uniform": (uniform, COUNTS.double(), by_step(dist.BetaBinomial(1.0, 1.0, 4))),
    "mixtures": (mixtures, SYMBOLS, by_step(dist.Categorical(torch.tensor([2.0, 1.0, 3.0])))),
}


def new_guide(model: Any, **options: Any) -> AutoSequenceGuide:
    return AutoSequenceGuide(model, **({"hidden_size": 4, "latent_sizes": (5,)} | options))


def train(
    model: Any, guide: Any, batch: SequenceBatch, steps: int = 60, elbo: Any = None
) -> list[float]:
    svi = SVI(model, guide, ClippedAdam({"lr": 0.03}), elbo or Trace_ELBO())
    return [svi.step(batch) for _ in range(steps)]


@pytest.mark.parametrize("name", EXACT)
def test_the_evidence_by_importance_sampling(name: str) -> None:
    """The figure is unbiased for the evidence if and only if the guide's densities are those of its
    samples, on all of the support.
    """
    model, x, evidence = EXACT[name]
    batch = SequenceBatch(x, LENGTHS)
    guide = new_guide(model)
    train(model, guide, batch, steps=30)
    # the last has no step to score
    scored = score(Pair(model, guide), batch.select(slice(3)), samples=4000)
    expected = torch.stack([evidence(row, n) for row, n in zip(x[:3], LENGTHS, strict=False)])
    error = (scored.log_likelihood - expected).abs()
    assert (error <= 4.5 * scored.standard_error + 1e-9).all()
    assert (scored.standard_error < 0.2).all()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", EXACT)
def test_all_parameters_move_and_padding_does_not_count(name: str) -> None:
    model, x, _ = EXACT[name]
    batch, longer = SequenceBatch(x, LENGTHS), SequenceBatch(torch.cat([x, x], 1), LENGTHS)
    guide = new_guide(model).prepare(batch)
    before = copy.deepcopy(dict(guide.named_parameters()))
    losses = train(model, guide, batch, steps=40)
    assert sum(losses[-15:]) < sum(losses[:15])
    assert not [
        parameter
        for parameter, value in guide.named_parameters()
        if torch.equal(value, before[parameter])
    ]

    short = poutine.trace(guide).get_trace(batch)
    values = {
        name: site["value"]
        for name, site in short.nodes.items()
        if site["type"] == "sample" and name != "sequences"
    }
    for site in values:  # of the longer batch, paths need values at its padding
        if site == "z":
            tail = values[site].new_full((4, 5, *values[site].shape[2:]), 0.7)
            values[site] = torch.cat([values[site], tail], 1)
    lengthened = poutine.trace(poutine.condition(guide, data=values)).get_trace(longer)
    total = sum(
        lengthened.nodes[name]["fn"].log_prob(values[name])[LENGTHS.index(5)] for name in values
    )
    expected = sum(
        short.nodes[name]["fn"].log_prob(short.nodes[name]["value"])[LENGTHS.index(5)]
        for name in values
    )
    torch.testing.assert_close(total, expected)


@pytest.mark.slow
@pytest.mark.parametrize("latent_sizes", [(), (32,)])
def test_it_learns_the_exact_posterior(latent_sizes: tuple[int, ...]) -> None:
    """The family holds the posterior of a linear-Gaussian chain, so the bound must come close to
    the exact evidence.
    """
    steps, one = 10, torch.ones(1, 1)
    noise = [dist.Normal(0.0, scale).expand([1]).to_event(1) for scale in (STATIONARY, Q, R)]
    # stationary, as real_chain is
    chain = dist.GaussianHMM(noise[0], A * one, noise[1], one, noise[2], duration=steps)
    guide = new_guide(real_chain, hidden_size=16, latent_sizes=latent_sizes)
    svi = SVI(real_chain, guide, ClippedAdam({"lr": 0.02, "lrd": 0.01**0.001}), Trace_ELBO())
    for _ in range(1000):
        svi.step(SequenceBatch(chain.sample([64]).squeeze(-1)))
    x = chain.sample([2000])
    batch = SequenceBatch(x.squeeze(-1))
    gaps = chain.log_prob(x) - torch.stack(
        [score(Pair(real_chain, guide), batch).log_likelihood for _ in range(4)]
    ).mean(0)
    error = float(gaps.std()) / len(gaps) ** 0.5
    assert -4 * error < float(gaps.mean()) < 0.1  # of 16.7 nats; the prior as a guide is 3.5 away


@pytest.mark.parametrize("cut", [1, 3])
def test_windows_with_carried_state(cut: int) -> None:
    """The particles go on from window to window: together they estimate the evidence of the whole
    sequence.
    """
    x = REALS[:1].expand(2, -1)
    guide = new_guide(real_chain)
    parts = [SequenceBatch(x[:, :cut]), SequenceBatch(x[:, cut:])]
    scores = list(score_document(Pair(real_chain, guide), parts, samples=20_000))
    error = sum(part.variance for part in scores).sqrt()
    total = sum(part.log_likelihood for part in scores)
    assert ((total - gaussian(stationary)(REALS[0], 5)).abs() < 4.5 * error).all() and (
        error < 0.2
    ).all()


def test_a_latent_of_the_sequence_is_carried_over_windows() -> None:
    def model(batch: SequenceBatch) -> Result:
        with batch.plate():
            if batch.state is None:
                level = pyro.sample("level", dist.Normal(torch.zeros(len(batch)), STATIONARY))
            else:
                level = batch.state["model"]
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Normal(level, R), obs=batch.at(t))
        return Result(level)

    x, guide = REALS[:1], new_guide(model)
    scores = list(
        score_document(
            Pair(model, guide), [SequenceBatch(x[:, :2]), SequenceBatch(x[:, 2:])], samples=20_000
        )
    )
    expected = gaussian(lambda n: STATIONARY**2 * torch.ones(n, n))(x[0], 5)
    error = sum(part.variance for part in scores).sqrt()
    assert abs(sum(part.log_likelihood for part in scores) - expected) < 4.5 * error and error < 0.2


def shipped(kind: type[Any], layout: str) -> Any:
    options: dict[str, Any] = {"hidden_size": 4, "latent_size": 2, "layout": layout}
    return kind(Categorical(3), PreviousObservation(Embedding(3, 2)), **options)


OBJECTIVES: dict[str, Callable[[], Any]] = {
    "trace": Trace_ELBO,
    "mean field": TraceMeanField_ELBO,
    "vectorised": lambda: Trace_ELBO(
        num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
    "renyi": lambda: RenyiELBO(
        alpha=0, num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
}
MODELS: dict[str, tuple[Any, Tensor]] = {
    **{name: (model, x) for name, (model, x, _) in EXACT.items()},
    "srnn path": (lambda: shipped(SRNN, "path"), SYMBOLS),
    "srnn steps": (lambda: shipped(SRNN, "steps"), SYMBOLS),
    "iseq path": (lambda: shipped(ISEQ, "path"), SYMBOLS),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", MODELS)
def test_pyros_objectives(name: str, objective: str) -> None:
    model, x = MODELS[name]
    model = model if name in EXACT else model()
    guide, batch = new_guide(model), SequenceBatch(x, LENGTHS)
    losses = train(model, guide, batch, 2, OBJECTIVES[objective]())
    assert torch.tensor(losses).isfinite().all()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(
    "name", ["positive chain", "independent path", "level and chain", "srnn steps"]
)
def test_predictive(name: str, parallel: bool) -> None:
    model, x = MODELS[name]
    model = model if name in EXACT else model()
    guide, batch = new_guide(model), SequenceBatch(x, LENGTHS)
    drawn = Predictive(model, guide=guide, num_samples=6, parallel=parallel)(batch)
    latents = [site for site in drawn if not site.startswith("x")]
    assert latents and all(
        drawn[site].shape[0] == 6 and drawn[site].isfinite().all() for site in latents
    )
    assert all(drawn[site].std(0).max() > 0 for site in latents)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("layout", ["path", "steps"])
def test_it_learns_a_shipped_model_in_both_layouts(layout: str) -> None:
    model = shipped(SRNN, layout)
    guide, batch = new_guide(model), SequenceBatch(SYMBOLS, LENGTHS)
    losses = train(model, guide, batch, 150)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    batch = batch.select(slice(3))
    scored = score(Pair(model, guide), batch, samples=50)
    assert (scored.steps[~batch.mask] == 0).all() and not scored.exact
    assert (score(Pair(model, guide), batch, samples=1).steps[batch.mask] != 0).all()


def test_a_model_without_latents_needs_nothing() -> None:
    model = RNN(Categorical(3), PreviousObservation(Embedding(3, 2)), hidden_size=4)
    guide, batch = new_guide(model), SequenceBatch(SYMBOLS, LENGTHS)
    train(model, guide, batch, 2)
    assert score(Pair(model, guide), batch.select(slice(3))).exact and not list(guide.parameters())


def test_enumerated_latents_are_left_out() -> None:
    @config_enumerate
    def model(batch: SequenceBatch) -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with batch.plate():
            level = pyro.sample("level", dist.Normal(torch.zeros(len(batch)), 1.0))
            for t in batch.steps():
                with batch.active(t):
                    k = pyro.sample(f"k_{t}", dist.Bernoulli(0.3).expand([len(batch)]))
                    pyro.sample(f"x_{t}", dist.Normal(level + locs[k.long()], R), obs=batch.at(t))

    batch, guide = SequenceBatch(REALS, LENGTHS), new_guide(model)
    losses = train(model, guide, batch, 80, TraceEnum_ELBO(max_plate_nesting=1))
    assert sum(losses[-20:]) < sum(losses[:20])
    assert {
        name
        for name, site in poutine.trace(guide).get_trace(batch).nodes.items()
        if site["type"] == "sample"
    } == {
        "level",
        "sequences",
    }


def test_what_it_looks_at_by_default() -> None:
    emission = Joint(
        {
            "notes": Factorised(Normal(), 2),
            "count": Categorical(5),
            "pair": Factorised(Categorical(3), 2),
        }
    )
    model = SRNN(emission, SideInputs(2), hidden_size=4, latent_size=1)
    values = {
        "notes": torch.randn(2, 4, 2),
        "count": torch.randint(5, (2, 4)),
        "pair": torch.randint(3, (2, 4, 2)),
    }
    batch = SequenceBatch(values, [4, 2], inputs=torch.randn(2, 4, 2))
    guide = new_guide(model).prepare(batch)
    encoders: Any = guide.encoder
    assert (
        isinstance(encoders.encoders["notes"], Flatten)
        and encoders.encoders["notes"].num_features == 2
    )
    assert (
        isinstance(encoders.encoders["count"], Symbols)
        and encoders.encoders["count"].table.num_embeddings == 5
    )
    assert (
        encoders.encoders["pair"].table.num_embeddings == 3
        and encoders.encoders["pair"].num_features == 6
    )
    assert guide.forwards.input_size == 2 + 5 + 6 + 2
    # all of it reaches the posterior of the first step
    for change in ("notes", "count", "pair", "inputs"):
        other = {name: value.clone() for name, value in values.items()}
        inputs = batch.inputs if change != "inputs" else batch.inputs + 1
        if change != "inputs":
            other[change][0, 3] = (
                other[change][0, 3] + 1
                if change == "notes"
                else 2 - other[change][0, 3].clamp(0, 2)
            )
            other[change][0, 3] = (
                other[change][0, 3] if not torch.equal(other[change], values[change]) else 0
            )
        pyro.set_rng_seed(1)
        first = guide(batch).state["paths"][0]
        pyro.set_rng_seed(1)
        assert not torch.equal(
            first, guide(SequenceBatch(other, [4, 2], inputs=inputs)).state["paths"][0]
        )


def test_preparing_changes_nothing_else() -> None:
    """The model's statistics and mode, Pyro's store, the random state but for the weights; a second
    time does nothing.
    """
    model, batch = shipped(SRNN, "path"), SequenceBatch(SYMBOLS, LENGTHS)
    guide = new_guide(model)
    guide.prepare(batch)
    names = list(guide.state_dict())
    assert names and model.training and guide.training
    weights = copy.deepcopy(guide.state_dict())
    guide.prepare(SequenceBatch(torch.randint(3, (2, 9))))
    assert all(torch.equal(weights[name], guide.state_dict()[name]) for name in names)
    again = new_guide(model).prepare(batch)
    again.load_state_dict(weights)
    pyro.set_rng_seed(3)
    first = poutine.trace(guide).get_trace(batch).nodes["z"]["value"]
    pyro.set_rng_seed(3)
    assert torch.equal(first, poutine.trace(again).get_trace(batch).nodes["z"]["value"])


def site(
    name: str, distribution: Callable[[int], Any], plate: bool = True, steps: bool = True
) -> Any:
    def model(batch: SequenceBatch) -> None:
        if not plate:
            pyro.sample(name, distribution(len(batch)))
        with batch.plate():
            for t in batch.steps():
                if plate and (steps or t % 2):
                    pyro.sample(f"{name}_{t}", distribution(len(batch)))
                pyro.sample(f"x_{t}", dist.Normal(torch.zeros(len(batch)), 1.0), obs=batch.at(t))

    return model


def nested(batch: SequenceBatch) -> None:
    with batch.plate(), pyro.plate("tracks", 3, dim=-2):
        for t in batch.steps():
            pyro.sample(f"z_{t}", dist.Normal(torch.zeros(3, len(batch)), 1.0))


def growing(batch: SequenceBatch) -> None:
    with batch.plate():
        for t in batch.steps():
            pyro.sample(f"z_{t}", dist.Normal(torch.zeros(len(batch), t + 1), 1.0).to_event(1))


REFUSED = {
    "discrete": (
        site("k", lambda n: dist.Bernoulli(0.5).expand([n])),
        "site 'k_0' is discrete, .* infer={'enumerate': 'parallel'}",
    ),
    "global": (
        site("w", lambda n: dist.Normal(0.0, 1.0), plate=False),
        "site 'w' is one for all sequences",
    ),
    "nested": (nested, r"site 'z_0' has batch shape \[3, 4\], in a plate inside of a sequence"),
    "some steps": (
        site("z", lambda n: dist.Normal(0.0, 1.0).expand([n]), steps=False),
        r"named for the steps 0 … 4, .* there are \[1, 3\]",
    ),
    "shapes": (growing, r"one shape and support, but 'z_1' has \[2\]"),
    "supports": (
        site("u", lambda n: dist.Uniform(0.0, torch.arange(1.0, n + 1))),
        "the support of site 'u_0' is not the same",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_it_refuses(fault: str) -> None:
    model, message = REFUSED[fault]
    with pytest.raises(UserError, match=message):
        new_guide(model)(SequenceBatch(REALS))


def test_batches_that_it_refuses() -> None:
    with pytest.raises(UserError, match="infers latents from observations, and the batch has none"):
        new_guide(real_chain)(SequenceBatch(REALS).without_values())
    with pytest.raises(UserError, match="is made from a batch with observations"):
        new_guide(real_chain).prepare(SequenceBatch(REALS[:, :0]))
    guide = new_guide(mixtures).prepare(SequenceBatch(SYMBOLS))
    with pytest.raises(UserError, match=r"must be symbols 0 … 2, and 4 is among them"):
        guide(SequenceBatch(COUNTS))
