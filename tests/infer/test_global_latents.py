"""Latents that all sequences share: minibatches, posteriors in closed form, tools around them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_seq import (
    AutoSequenceGuide,
    Pair,
    RunFolder,
    SequenceBatch,
    Trainer,
    TrainingSettings,
    UserError,
    continuation,
    infill,
    interpolate,
    particle_filter,
    posterior_predictive,
    sample,
    score,
    score_document,
)
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.composite import Factorised
from pyro_seq.emissions.elementary import Normal
from pyro_seq.encoders import Flatten
from pyro_seq.guides import GlobalGuide, SRNNGuide
from pyro_seq.infer import global_draws
from pyro_seq.models import LGSSM, SRNN
from pyro_seq.testing import problems
from pyro_seq.train.minibatches import PieceBatches

WIDE, BETWEEN, WITHIN = 2.0, 0.7, 1.0  # deviations of the panel's mean, of levels, of noise
LENGTHS = [6, 6, 5, 4, 3, 2, 2, 1, 4, 3]


def panel(batch: SequenceBatch) -> None:
    """mu ~ N(0, WIDE); a_n ~ N(mu, BETWEEN); x_nt ~ N(a_n, WITHIN)."""
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), WIDE))
    with batch.plate():
        level = pyro.sample("a", dist.Normal(mu, torch.full((len(batch),), BETWEEN)))
        for t in batch.steps():
            with batch.active(t):
                pyro.sample(f"x_{t}", dist.Normal(level, WITHIN), obs=batch.at(t))


def levels(batch: SequenceBatch) -> None:
    """q(a_n | x_n, mu), exact."""
    assert isinstance(batch.values, Tensor) and batch.globals is not None
    precision = BETWEEN**-2 + batch.lengths * WITHIN**-2
    mean = (batch.globals["mu"] * BETWEEN**-2 + batch.values.sum(1) * WITHIN**-2) / precision
    with batch.plate():
        pyro.sample("a", dist.Normal(mean, precision**-0.5))


def observed(seed: int = 0) -> SequenceBatch:
    generator = torch.Generator().manual_seed(seed)
    n, steps = len(LENGTHS), max(LENGTHS)
    rows = 1.3 + BETWEEN * torch.randn(n, 1, generator=generator)
    x = rows + WITHIN * torch.randn(n, steps, generator=generator)
    return SequenceBatch(x.to(torch.get_default_dtype()), LENGTHS)


def posterior_of_mean(batch: SequenceBatch) -> tuple[float, float]:
    """The exact posterior of mu: means of sequences are N(mu, BETWEEN^2 + WITHIN^2 / T)."""
    assert isinstance(batch.values, Tensor)
    precision = 1 / (BETWEEN**2 + WITHIN**2 / batch.lengths.double())
    means = batch.values.double().sum(1) / batch.lengths
    total = WIDE**-2 + precision.sum()
    return float((precision * means).sum() / total), float(total**-0.5)


def predictive(batch: SequenceBatch, mean: float, deviation: float) -> Tensor:
    """log p(x_n | data) of sequences, mu being normal: joint normals, one a row."""
    assert isinstance(batch.values, Tensor)
    found = []
    for x, n in zip(batch.values.double(), batch.lengths.tolist(), strict=True):
        covariance = (deviation**2 + BETWEEN**2) * torch.ones(n, n) + WITHIN**2 * torch.eye(n)
        normal = dist.MultivariateNormal(torch.full((n,), mean).double(), covariance.double())
        found.append(normal.log_prob(x[:n]))
    return torch.stack(found)


class Noise(Messenger):
    """Give each sequence's level the noise of its own, whichever minibatch it is in."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] == "a":
            msg["value"], msg["done"] = msg["fn"].loc + msg["fn"].scale * self.noise, True


@pytest.mark.usefixtures("float64")
def test_gradients_of_all_minibatches_average_to_that_of_the_whole() -> None:
    """Exactly: over all minibatches of 2 of 6 sequences, noise fixed."""
    batch, noise = observed().select(slice(6)), torch.randn(6)
    guide = GlobalGuide(panel, levels, over=AutoNormal).prepare(batch)
    weights = list(guide.parameters())

    def gradient(some: SequenceBatch, rows: Tensor) -> list[Tensor]:
        pyro.set_rng_seed(3)
        with Noise(noise[rows]):
            loss = Trace_ELBO().differentiable_loss(panel, guide, some)
        return [*torch.autograd.grad(loss, weights), loss.detach()]

    chosen = [torch.tensor(rows) for rows in itertools.combinations(range(6), 2)]
    parts = [gradient(batch.of_total(6).select(rows), rows) for rows in chosen]
    whole = gradient(batch, torch.arange(6))
    for mean, one in zip(zip(*parts, strict=True), whole, strict=True):
        torch.testing.assert_close(torch.stack(mean).mean(0), one, rtol=1e-10, atol=1e-10)


def test_what_a_minibatch_stands_for() -> None:
    batch = observed().of_total(30)
    trace = poutine.trace(panel).get_trace(batch)
    assert trace.nodes["x_0"]["scale"] == 3 and trace.nodes["mu"]["scale"] == 1
    assert batch.repeat(2).total == 60 and batch.select(slice(2)).total == 30
    assert batch.with_values(batch.values).total == 30
    assert batch.select(slice(2)).continued(1).total == 30
    whole = poutine.trace(panel).get_trace(observed().of_total(len(LENGTHS)))
    assert whole.nodes["x_0"]["scale"] == 1
    with pytest.raises(UserError, match="the number of sequences of a data set"):
        batch.of_total(0)


@pytest.fixture(scope="module")
def fitted() -> tuple[Pair, SequenceBatch]:
    """The panel, learnt from minibatches by the trainer, which sets their weight by itself."""
    pyro.set_rng_seed(0)
    batch = observed()
    assert isinstance(batch.values, Tensor)
    pieces = [x[:n] for x, n in zip(batch.values, LENGTHS, strict=True)]
    pair = Pair(panel, GlobalGuide(panel, levels))
    settings = TrainingSettings(
        num_steps=400, learning_rate=0.05, ema_decay=0.98, precision="float32"
    )
    Trainer(pair, PieceBatches(pieces, batch_size=5), settings, quiet=True).fit()
    return pair, batch


def test_posterior_of_a_conjugate_panel(fitted: tuple[Pair, SequenceBatch]) -> None:
    pair, batch = fitted
    mean, deviation = posterior_of_mean(batch)
    guide: Any = pair.guide
    with pair.scope(), torch.no_grad():
        low, middle, high = guide.over.quantiles([0.025, 0.5, 0.975])["mu"]
    assert abs(float(middle) - mean) < 0.1 * deviation
    assert float(high - low) == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_scores_are_posterior_predictive_densities(fitted: tuple[Pair, SequenceBatch]) -> None:
    """Against the closed form, with draws of the exact posterior in the automatic guide's place."""
    _, data = fitted
    mean, deviation = posterior_of_mean(data)
    draws = {"mu": mean + deviation * torch.randn(2_000)}
    pair, new = Pair(panel, GlobalGuide(panel, levels, over=draws)), observed(1)
    expected = predictive(new, mean, deviation)
    for method, samples in (("importance", 1), ("auto", 2), ("filter", 4)):
        found = score(pair, new, method=method, samples=samples, global_draws=80)  # type: ignore[arg-type]
        assert not found.exact and found.samples == 80
        assert (found.total - expected).abs().lt(5 * found.standard_error + 1e-3).all()
    bound = score(pair, new, method="elbo", global_draws=60)
    assert (bound.total < expected + 4 * bound.standard_error).all()
    with pytest.raises(UserError, match=r"all sequences share the latent 'mu'.*not to be had ex"):
        score(pair, new, method="exact")


@pytest.mark.slow
def test_errors_of_scores_cover(fitted: tuple[Pair, SequenceBatch]) -> None:
    mean, deviation = posterior_of_mean(fitted[1])
    draws = {"mu": mean + deviation * torch.randn(5_000)}
    pair, new = Pair(panel, GlobalGuide(panel, levels, over=draws)), observed(2).select(slice(8))
    expected = predictive(new, mean, deviation)
    found = [score(pair, new, global_draws=12) for _ in range(24)]
    z = torch.stack([(one.total - expected) / one.standard_error for one in found])
    assert 0.6 < float(z.std()) < 1.5 and abs(float(z.mean())) < 0.6


def test_tools_draw_both(fitted: tuple[Pair, SequenceBatch]) -> None:
    pair, batch = fitted
    full = batch.select(slice(2))
    mean, deviation = posterior_of_mean(batch)
    spread = math.sqrt(deviation**2 + BETWEEN**2 + WITHIN**2)
    new = sample(pair, 200, 1)
    assert abs(float(new.mean()) - mean) < 5 * spread / math.sqrt(200)
    assert float(new.std()) == pytest.approx(spread, rel=0.25)
    one = sample(pair, 300, 1, global_draws=1)
    assert float(one.std()) == pytest.approx(math.hypot(BETWEEN, WITHIN), rel=0.25)
    wide = sample(pair, 200, 1, proposal="prior")
    assert float(wide.std()) == pytest.approx(math.sqrt(WIDE**2 + BETWEEN**2 + 1), rel=0.25)
    assert continuation(pair, batch, 2, draws=3).shape == (30, 2)
    filled = infill(pair, full, [3], draws=2)
    assert filled.shape == (4, 6) and filled[::2, :3].equal(full.values[:, :3])  # type: ignore[index]
    seen = posterior_predictive(pair, batch, 8)
    assert seen["mu"].numel() == 8 and seen["a"].shape == (8, 10)
    for gapped in (full.continued(2), full.with_missing([3])):
        drawn = posterior_predictive(pair, gapped, 4)
        assert drawn["mu"].shape == (4,) and drawn["x_3"].shape == (4, 2)
        assert drawn["mu"].unique().numel() == 4
    for use in (
        lambda: particle_filter(pair, batch, samples=4),
        lambda: interpolate(pair, batch, batch, 2),
    ):
        with pytest.raises(UserError, match="runs given 'mu', which all sequences share: loop"):
            use()
    for values, local in global_draws(pair, batch, 2):
        exact = predictive(batch, float(values["mu"]), 0.0)
        torch.testing.assert_close(score(local, batch).total, exact, rtol=1e-4, atol=1e-4)


def test_guide_is_kept_in_a_run_folder(tmp_path: Path) -> None:
    """A run that goes on ends with the weights of one that was not interrupted."""
    pieces = [torch.randn(3) for _ in range(6)]

    def trained(folder: str, steps: int, resume: bool = False) -> dict[str, Tensor]:
        pyro.set_rng_seed(1)
        local = AutoSequenceGuide(panel, hidden_size=4, latent_sizes=())
        guide = GlobalGuide(panel, local, over=AutoMultivariateNormal)
        settings = TrainingSettings(
            num_steps=steps, precision="float32", schedule="constant", warmup=0.0, sample_every=0
        )
        run, stream = RunFolder(tmp_path / folder, "test"), PieceBatches(pieces, batch_size=2)
        Trainer(Pair(panel, guide), stream, settings, run=run, quiet=True).fit(resume=resume)
        return guide.state_dict()

    trained("run", 2)
    again, whole = trained("run", 4, resume=True), trained("whole", 4)
    assert {"over.loc", "over.scale_unconstrained"} <= whole.keys() == again.keys()
    assert all(weight.equal(again[name]) for name, weight in whole.items())


def test_figures_are_of_an_observation_of_all_data() -> None:
    """A trainer's ELBO is that of the whole data over their observations, whatever the batches."""
    from pyro_seq.train.svi import SVIUpdates

    batch, found = observed(), []
    guide = GlobalGuide(panel, levels, over=AutoDelta)
    pieces = [x[:n] for x, n in zip(batch.values, LENGTHS, strict=True)]  # type: ignore[arg-type]
    for size in (10, 2):
        pair = Pair(panel, guide)
        updates = SVIUpdates(pair, TrainingSettings(learning_rate=1e-9, precision="float32"))
        stream = PieceBatches(pieces, batch_size=size)
        with pair.scope():
            updates.prepare(stream)
            each = [updates.update(stream.draw()[0], 0, 1.0) for _ in range(30)]
        for one in each:
            assert one["loss"] == pytest.approx(-one["elbo"], rel=1e-4)
        found.append(sum(one["elbo"] for one in each) / 30)
    assert found[0] == pytest.approx(found[1], rel=0.03)


def grouped(batch: SequenceBatch) -> None:
    """Three groups, in a plate of their own, and a regression on the group that inputs name."""
    with pyro.plate("groups", 3):
        effects = pyro.sample("effects", dist.Normal(torch.zeros(3), 1.0))
    scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 0.3))
    assert batch.inputs is not None
    with batch.plate():
        z = torch.zeros(len(batch))
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", dist.Normal(0.5 * z, 0.3))
                mean = (batch.inputs[:, t] @ effects.reshape(3, 1)).squeeze(-1)
                pyro.sample(f"x_{t}", dist.Normal(mean + z, scale), obs=batch.at(t))


def test_groups_beside_as_many_sequences() -> None:
    """A plate of three groups is not that of three sequences."""
    inputs = torch.eye(3).unsqueeze(1).expand(3, 4, 3)
    batch = SequenceBatch(torch.randn(3, 4), [4, 3, 2], inputs=inputs)
    guide = GlobalGuide(grouped, AutoSequenceGuide(grouped, hidden_size=4, latent_sizes=()))
    assert problems(grouped, guide, batch) == []
    pair = Pair(grouped, guide)
    assert guide.names == ("effects", "scale")
    assert score(pair, batch, method="filter", samples=3, global_draws=4).total.shape == (3,)
    assert sample(pair, 2, 3, inputs=inputs[:2, :3]).shape == (2, 3)


def test_guides_of_ones_own() -> None:
    """One function for all latents, with an automatic guide in it or without."""
    auto = AutoNormal(poutine.block(panel, expose=["mu"]))
    own: list[Callable[[SequenceBatch], Any]] = [auto, lambda batch: both(batch, torch.tensor(0.4))]

    def both(batch: SequenceBatch, scale: Tensor) -> None:
        pyro.sample("mu", dist.Normal(torch.tensor(1.0), scale))

    for globally in own:

        def guide(batch: SequenceBatch, globally: Any = globally) -> None:
            globally(batch)
            with batch.plate():
                pyro.sample("a", dist.Normal(torch.zeros(len(batch)), 1.0))

        pair, batch = Pair(panel, guide), observed()
        assert problems(panel, guide, batch) == []
        assert score(pair, batch, samples=2, global_draws=3).total.isfinite().all()
        assert continuation(pair, batch, 1).shape == (10, 1)
        with pytest.raises(UserError, match="draws it from observations: it takes a GlobalGuide"):
            sample(pair, 2, 2)


def test_bad_input() -> None:
    batch, pieces = observed(), [torch.randn(3), torch.randn(2)]
    settings = TrainingSettings(num_steps=1, precision="float32")
    local = AutoSequenceGuide(panel)
    with pytest.raises(UserError, match=r"GlobalGuide\(model, AutoSequenceGuide\(model\)\)"):
        local(batch)
    with pytest.raises(UserError, match=r"the guide has no site 'mu'.*GlobalGuide"):
        score(Pair(panel), batch)
    with pytest.raises(UserError, match="and this model has none"):
        GlobalGuide(lambda batch: None).prepare(batch)
    with pytest.raises(UserError, match="'mu' is missing from the draws"):
        GlobalGuide(panel, levels, over={}).prepare(batch)
    with pytest.raises(UserError, match="'nu' is no site of this model's"):
        GlobalGuide(panel, over={"mu": torch.zeros(3), "nu": torch.zeros(3)}).prepare(batch)

    class Unsaid(PieceBatches):
        num_sequences = None  # type: ignore[assignment]

    stream = Unsaid(pieces, batch_size=2)
    with pytest.raises(UserError, match=r"Unsaid must say how many seq.*has no num_sequences"):
        Trainer(Pair(panel, GlobalGuide(panel, levels)), stream, settings, quiet=True).fit()
    weighing = TrainingSettings(num_steps=1, objective="iwae", num_particles=2)
    with pytest.raises(UserError, match="latents that all sequences share are learnt by trace"):
        pair = Pair(panel, GlobalGuide(panel, levels))
        Trainer(pair, PieceBatches(pieces, batch_size=2), weighing, quiet=True).fit()
    with pytest.raises(UserError, match="all latents of this pair are the sequences' own"):
        list(global_draws(Pair(lambda batch: None), batch, 1))


def with_priors(model: Any, *names: str) -> Any:
    """The model with normal priors on some of its weights."""
    to_pyro_module_(model)
    for name in names:
        path, _, last = name.rpartition(".")
        part = model.get_submodule(path)
        shape = getattr(part, last).shape
        prior = dist.Normal(torch.zeros(shape) - 0.5, 1.0).to_event(len(shape))
        setattr(part, last, PyroSample(prior))
    return model


@pytest.mark.slow
def test_weights_of_a_shipped_pair() -> None:
    """Equations run as those of any other pair: also in layout `path`, also by the filter."""
    model = SRNN(
        Factorised(Normal(), 2),
        PreviousObservation(Flatten(2)),
        hidden_size=3,
        latent_size=2,
        latent_sizes=(3,),
        layout="steps",
    )
    with_priors(model, "decoder.0.weight")
    sizes: Any = {"hidden_size": 3, "latent_sizes": (3,)}
    guide = GlobalGuide(model, SRNNGuide(model, Flatten(2), **sizes))
    batch, pair = SequenceBatch(torch.randn(3, 4, 2), [4, 4, 2]), Pair(model, guide)
    assert problems(model, guide, batch) == []
    found = score(pair, batch, method="filter", samples=4, global_draws=5)
    assert found.total.isfinite().all()
    assert sample(pair, 3, 4).shape == (3, 4, 2)
    with pytest.raises(UserError, match="each step would draw another one"):
        from pyro_seq import sample_sequences

        sample_sequences(model, 2, state=model.initial(2))
    windows = [SequenceBatch(batch.values[:2, :2]), SequenceBatch(batch.values[:2, 2:])]  # type: ignore[index]
    pyro.set_rng_seed(5)
    parts = list(score_document(pair, windows, samples=2, global_draws=6))
    assert parts[1].total.isfinite().all()
    torch.testing.assert_close(
        parts[1].total, parts[0].log_likelihood.double() + parts[1].log_likelihood
    )
    assert list(model.decoder[0]._pyro_samples) == ["weight"]


@pytest.mark.usefixtures("float64")
def test_nuts_over_the_weights_of_a_filter_and_its_draws_as_a_guide() -> None:
    """The states are summed out, so that NUTS has the globals alone; tools take its draws."""
    model = LGSSM(Normal(), trend="none", latent_size=0, noise_rank=0)
    with_priors(model, "noise_scale")
    batch = SequenceBatch((0.4 * torch.randn(3, 6)).cumsum(1))
    chain = MCMC(NUTS(model, max_plate_nesting=1), 6, 4, disable_progbar=True)
    chain.run(batch)
    draws = chain.get_samples()
    pair = Pair(model, GlobalGuide(model, over=draws))
    found = score(pair, batch, global_draws=20)
    each = [score(local, batch) for _, local in global_draws(pair, batch, 20)]
    assert all(one.exact for one in each)
    low = torch.stack([one.total for one in each]).amin(0) - 1
    assert (found.total > low).all() and sample(pair, 2, 3).shape == (2, 3)
    assert infill(pair, batch, [2]).shape == (3, 6)


def hierarchy(batch: SequenceBatch) -> None:
    """mu ~ N(0, 2), tau ~ LogNormal(-0.5, 0.5), s ~ LogNormal(0, 0.5); levels summed out."""
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 2.0))
    tau = pyro.sample("tau", dist.LogNormal(torch.tensor(-0.5), 0.5))
    noise = pyro.sample("s", dist.LogNormal(torch.tensor(0.0), 0.5))
    steps = batch.num_steps
    covariance = tau**2 * torch.ones(steps, steps) + noise**2 * torch.eye(steps)
    with batch.plate():
        normal = dist.MultivariateNormal(mu * torch.ones(steps), covariance)
        pyro.sample("x", normal, obs=batch.values)


def leveled(batch: SequenceBatch) -> None:
    """The same with its levels."""
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 2.0))
    tau = pyro.sample("tau", dist.LogNormal(torch.tensor(-0.5), 0.5))
    noise = pyro.sample("s", dist.LogNormal(torch.tensor(0.0), 0.5))
    with batch.plate():
        level = pyro.sample("a", dist.Normal(mu, tau).expand([len(batch)]))
        for t in batch.steps():
            with batch.active(t):
                pyro.sample(f"x_{t}", dist.Normal(level, noise), obs=batch.at(t))


def exact_levels(batch: SequenceBatch) -> None:
    """q(a_n | x_n, mu, tau, s), exact."""
    assert isinstance(batch.values, Tensor) and batch.globals is not None
    mu, tau, noise = (batch.globals[name] for name in ("mu", "tau", "s"))
    precision = tau**-2 + batch.lengths * noise**-2
    mean = (mu * tau**-2 + batch.values.sum(1) * noise**-2) / precision
    with batch.plate():
        pyro.sample("a", dist.Normal(mean, precision**-0.5))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_posterior_of_a_hierarchy_against_nuts() -> None:
    """Means within 0.1 posterior deviations, 95 % intervals within 10 %."""
    torch.manual_seed(0)
    x = 0.8 + 0.7 * torch.randn(60, 1) + 1.2 * torch.randn(60, 5)
    batch = SequenceBatch(x)
    chain = MCMC(NUTS(hierarchy, max_plate_nesting=1), 1_500, 300, disable_progbar=True)
    chain.run(batch)
    guide = GlobalGuide(leveled, exact_levels, over=AutoMultivariateNormal)
    rate = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.03}, "gamma": 0.999}
    )
    svi = SVI(leveled, guide, rate, Trace_ELBO(num_particles=4))
    order = torch.arange(60)
    for _ in range(3_000):
        rows = order[torch.randperm(60)[:30]]
        svi.step(batch.of_total(60).select(rows))
        rate.step()
    drawn: dict[str, list[Tensor]] = {"mu": [], "tau": [], "s": []}
    with torch.no_grad():
        for _ in range(3_000):
            for name, value in guide.draw(batch).items():
                drawn[name].append(value)
    for name, true in chain.get_samples().items():
        ours = torch.stack(drawn[name])

        assert abs(float(ours.mean() - true.mean())) < 0.1 * float(true.std()), name
        widths = [float(x.quantile(0.975) - x.quantile(0.025)) for x in (ours, true)]
        assert widths[0] == pytest.approx(widths[1], rel=0.1), name
