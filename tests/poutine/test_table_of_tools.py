"""Every tool of Pyro in the tables of docs/pyro-tools.md, run in both layouts and on functions.

What a cell says is what this file sees: `yes` is run here, and where there is an oracle compared
with it; `no` fails here, in the words of the row. The page's rows are compared with these.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer, poutine
from pyro.infer import SVI, Trace_ELBO, autoguide
from pyro.infer.inspect import get_dependencies, get_model_relations
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor

import linear_chain
from pyro_seq import Pair, SequenceBatch, emissions, no_guide
from pyro_seq.contexts import NoContext
from pyro_seq.models import DMM, HMM

PAGE = Path(__file__).parent.parent.parent / "docs" / "pyro-tools.md"
KINDS = ("path", "steps", "function")

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore"),  # Pyro's own, about what it guesses
]


class Case(NamedTuple):
    """A pair whose guide is the exact posterior, so that each of its weights is log p(x)."""

    model: Any
    guide: Any
    batch: SequenceBatch
    log_likelihood: float

    @property
    def latents(self) -> list[str]:
        """The sites of the model's latents."""
        nodes = poutine.trace(self.model).get_trace(self.batch).nodes
        return [name for name in nodes if re.fullmatch(r"z(_\d)?", name)]


class Row(NamedTuple):
    """How a tool is used, where it fails, and in which words."""

    use: Callable[[Case], Any]
    fails: tuple[str, ...] = ()
    says: str = ""
    states: bool = False
    needs: str = ""


def objective(make: Callable[[], Any], error: float | None = 1e-6) -> Callable[[Case], None]:
    """Its loss under the exact guide is -log p(x); two steps of SVI."""

    def use(case: Case) -> None:
        svi = SVI(case.model, case.guide, pyro.optim.Adam({"lr": 1e-3}), make())
        found = svi.step(case.batch)
        if error is not None:
            assert found == pytest.approx(-case.log_likelihood, abs=error)
        svi.step(case.batch)
        params = [value for _, value in pyro.get_param_store().named_parameters()]
        assert params and all(bool(value.isfinite().all()) for value in params)

    return use


def tensor_monte_carlo(case: Case) -> None:
    guide = infer.config_enumerate(case.guide, default="parallel", num_samples=3, expand=False)
    loss = infer.TraceTMC_ELBO(max_plate_nesting=1).loss(case.model, guide, case.batch)
    # of a path all draws weigh the same; steps are mixed
    error = 1e-6 if case.latents == ["z"] else 6.0
    assert loss == pytest.approx(-case.log_likelihood, abs=error)


def predictive(case: Case) -> None:
    for parallel in (False, True):
        found = infer.Predictive(case.model, guide=case.guide, num_samples=4, parallel=parallel)(
            case.batch
        )
        assert all(found[name].shape[0] == 4 for name in case.latents)


def weighed(case: Case) -> None:
    for parallel in (False, True):
        found = infer.WeighedPredictive(
            case.model, guide=case.guide, num_samples=4, parallel=parallel
        )(case.batch)
        torch.testing.assert_close(
            found.log_weights.double(), torch.full((4,), case.log_likelihood)
        )


def importance(case: Case) -> None:
    found = infer.Importance(case.model, case.guide, num_samples=3).run(case.batch)
    assert float(found.get_log_normalizer()) == pytest.approx(case.log_likelihood)
    mean = infer.EmpiricalMarginal(found, sites=case.latents[0]).mean
    assert mean.shape[0] == len(case.batch) or mean.shape[-1] == len(case.batch)


def density(case: Case) -> None:
    """What a Markov chain goes by is -log p(x, z)."""
    start, energy, *_ = initialize_model(case.model, model_args=(case.batch,), max_plate_nesting=1)
    assert sorted(start) == sorted(case.latents)
    trace = poutine.trace(poutine.condition(case.model, data=start)).get_trace(case.batch)
    torch.testing.assert_close(energy(start), -trace.log_prob_sum())


def chain(kernel: Callable[[Any], Any]) -> Callable[[Case], None]:
    def use(case: Case) -> None:
        density(case)
        run = infer.MCMC(kernel(case.model), 2, warmup_steps=2, disable_progbar=True)
        run.run(case.batch)
        assert sorted(run.get_samples()) == sorted(case.latents)

    return use


def automatic(make: Callable[[Any], Any]) -> Callable[[Case], None]:
    def use(case: Case) -> None:
        guide = make(case.model)
        svi = SVI(case.model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(num_particles=4))
        assert abs(svi.step(case.batch)) < 1e4
        assert set(case.latents) <= set(poutine.trace(guide).get_trace(case.batch).nodes)

    return use


def several(model: Any) -> Any:
    found = autoguide.AutoGuideList(model)
    found.append(autoguide.AutoNormal(poutine.block(model, hide=["z_0"])))
    found.append(autoguide.AutoDelta(poutine.block(model, expose=["z_0"])))
    return found


def given(handler: Callable[..., Any]) -> Callable[[Case], None]:
    """A latent's value is what the handler says."""

    def use(case: Case) -> None:
        name = case.latents[-1]
        value = torch.zeros_like(
            poutine.trace(case.model).get_trace(case.batch).nodes[name]["value"]
        )
        nodes = poutine.trace(handler(case.model, {name: value})).get_trace(case.batch).nodes
        if handler is hidden:
            assert name not in nodes
        elif handler is not done:
            assert nodes[name]["value"] is value

    return use


def conditioned(model: Any, data: dict[str, Tensor]) -> Any:
    return poutine.condition(model, data=data)


def done(model: Any, data: dict[str, Tensor]) -> Any:
    return poutine.do(model, data=data)


def hidden(model: Any, data: dict[str, Tensor]) -> Any:
    return poutine.block(model, hide=list(data))


def replayed(case: Case) -> None:
    drawn = poutine.trace(case.guide).get_trace(case.batch)
    model = poutine.trace(poutine.replay(case.model, trace=drawn)).get_trace(case.batch)
    for name in case.latents:
        assert model.nodes[name]["value"] is drawn.nodes[name]["value"]
    gain = model.log_prob_sum() - drawn.log_prob_sum()
    assert float(gain) == pytest.approx(case.log_likelihood)


def unconditioned(case: Case) -> None:
    nodes = poutine.trace(poutine.uncondition(case.model)).get_trace(case.batch).nodes
    observed = [site for name, site in nodes.items() if re.fullmatch(r"x(_\d)?", name)]
    assert observed and not any(site["is_observed"] for site in observed)


def lifted(case: Case) -> None:
    nodes = poutine.trace(case.model).get_trace(case.batch).nodes
    names = [name for name, site in nodes.items() if site["type"] == "param"]
    prior = {name: dist.LogNormal(0.0, 1.0) for name in names}
    lift = poutine.trace(poutine.lift(case.model, prior=prior)).get_trace(case.batch).nodes
    assert all(lift[name]["type"] == "sample" for name in names), "parameters stay as they are"


def scaled(case: Case) -> None:
    def by(f: Any) -> Any:
        return poutine.scale(f, scale=0.5)

    loss = Trace_ELBO().loss(by(case.model), by(case.guide), case.batch)
    assert loss == pytest.approx(-case.log_likelihood / 2)


def masked(case: Case) -> None:
    rows = torch.tensor([True, False, True])

    def by(f: Any) -> Any:
        return poutine.mask(f, mask=rows)

    loss = Trace_ELBO().loss(by(case.model), by(case.guide), case.batch)
    alone = Trace_ELBO().loss(case.model, case.guide, case.batch.select(rows))
    assert loss == pytest.approx(alone)


def decentred(case: Case) -> None:
    names = {name: LocScaleReparam(0.0) for name in case.latents}
    nodes = poutine.trace(poutine.reparam(case.model, names)).get_trace(case.batch).nodes
    assert all(f"{name}_decentered" in nodes for name in case.latents)


def seeded(case: Case) -> None:
    model = poutine.handlers.seed(case.model, rng_seed=1)
    one, two = (poutine.trace(model).get_trace(case.batch).log_prob_sum() for _ in range(2))
    assert one == two


def copies(case: Case) -> None:
    with pyro.plate("particles", 5, dim=-2):
        nodes = poutine.trace(case.guide).get_trace(case.batch).nodes
    assert all(nodes[name]["fn"].batch_shape == (5, 3) for name in case.latents)


def subsampled(case: Case) -> None:
    with pyro.plate("data", 12, subsample_size=3):
        case.model(case.batch)


def minibatch(case: Case) -> None:
    """One of three, three times as much, is all on average."""
    losses = [
        Trace_ELBO().loss(
            *(poutine.scale(f, scale=3.0) for f in (case.model, case.guide)),
            case.batch.select(slice(i, i + 1)),
        )
        for i in range(3)
    ]
    assert sum(losses) / 3 == pytest.approx(-case.log_likelihood)


def dependencies(case: Case) -> None:
    found = get_dependencies(case.model, (case.batch,))["prior_dependencies"]
    x = next(name for name in found if name.startswith("x"))
    assert case.latents[0] in found[x]


def relations(case: Case) -> None:
    """What `render_model` draws, by graphviz where that is installed."""
    found = get_model_relations(case.model, (case.batch,))
    assert set(case.latents) <= set(found["sample_sample"])


def marked(case: Case) -> None:
    nodes = (
        poutine.trace(poutine.infer_config(case.model, config_fn=lambda site: {"told": 1}))
        .get_trace(case.batch)
        .nodes
    )
    assert all(nodes[name]["infer"]["told"] == 1 for name in case.latents)


def random_weights(case: Case) -> None:
    """A weight with a prior is drawn once a call, for all sequences."""
    if hasattr(case.model, "layout"):
        model: Any = DMM(emissions.Normal(), NoContext(), latent_size=1, layout=case.model.layout)
        to_pyro_module_(model)
        weight = model.decoder[-1].weight
        prior = dist.Normal(0.0, 1.0).expand(weight.shape).to_event(2)
        model.decoder[-1].weight = PyroSample(prior)
        batch = SequenceBatch(case.batch.values)
    else:
        part = PyroModule[torch.nn.Linear](1, 1)
        part.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))

        def model(batch: SequenceBatch) -> None:
            drift = part(torch.ones(1))
            case.model(batch)
            assert drift.shape == (1,)

        batch = case.batch
    nodes = poutine.trace(model).get_trace(batch).nodes
    assert sum(name.endswith("weight") and site["type"] == "sample" for name, site in nodes.items())


def discrete(case: Case) -> None:
    """The likeliest states, by name."""
    model = infer.infer_discrete(case.model, first_available_dim=-2, temperature=0)
    nodes = poutine.trace(model).get_trace(case.batch).nodes
    assert "z_0" in nodes, "the states are summed out, and none is left to infer"
    assert nodes["z_0"]["value"].shape == (3,)


def summed(case: Case) -> None:
    loss = infer.TraceEnum_ELBO(max_plate_nesting=1).loss(case.model, case.guide, case.batch)
    assert loss == pytest.approx(-case.log_likelihood)


def filtered(case: Case) -> None:
    infer.SMCFilter(case.model, case.guide, num_particles=3, max_plate_nesting=1).init(case.batch)


def compiled(case: Case) -> None:
    sgd = pyro.optim.SGD({"lr": 0.0})
    infer.CSIS(case.model, case.guide, sgd, num_inference_samples=2).step(case.batch)


def stein(case: Case) -> None:
    kernel, adam = infer.RBFSteinKernel(), pyro.optim.Adam({"lr": 0.01})
    found = infer.SVGD(case.model, kernel, adam, num_particles=2, max_plate_nesting=1)
    assert set(found.step(case.batch)) == set(case.latents)


JIT = (KINDS, "Tracer cannot infer type")
GUIDES = {
    "AutoDelta": autoguide.AutoDelta,
    "AutoNormal": autoguide.AutoNormal,
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": autoguide.AutoLowRankMultivariateNormal,
    "AutoLaplaceApproximation": autoguide.AutoLaplaceApproximation,
    "AutoIAFNormal": autoguide.AutoIAFNormal,
    "AutoStructured": autoguide.AutoStructured,
    "AutoGaussian": autoguide.AutoGaussian,
}
ROWS: dict[str, Row] = {
    "Trace_ELBO": Row(objective(Trace_ELBO)),
    "TraceGraph_ELBO": Row(objective(infer.TraceGraph_ELBO)),
    "TraceMeanField_ELBO": Row(objective(infer.TraceMeanField_ELBO, 12.0)),
    "TraceEnum_ELBO": Row(objective(lambda: infer.TraceEnum_ELBO(max_plate_nesting=1))),
    "TraceEnum_ELBO, of states": Row(summed, states=True),
    "RenyiELBO": Row(objective(lambda: infer.RenyiELBO(num_particles=3))),
    "TraceTailAdaptive_ELBO": Row(
        objective(
            lambda: infer.TraceTailAdaptive_ELBO(
                num_particles=3, vectorize_particles=True, max_plate_nesting=1
            ),
            None,
        )
    ),
    "TraceTMC_ELBO": Row(tensor_monte_carlo),
    "ReweightedWakeSleep": Row(objective(lambda: infer.ReweightedWakeSleep(num_particles=3), None)),
    "EnergyDistance": Row(objective(lambda: infer.EnergyDistance(num_particles=3), None)),
    "JitTrace_ELBO": Row(objective(infer.JitTrace_ELBO), *JIT),
    "JitTraceGraph_ELBO": Row(objective(infer.JitTraceGraph_ELBO), *JIT),
    "JitTraceMeanField_ELBO": Row(objective(infer.JitTraceMeanField_ELBO), *JIT),
    "JitTraceEnum_ELBO": Row(objective(infer.JitTraceEnum_ELBO), *JIT),
    "Predictive": Row(predictive),
    "WeighedPredictive": Row(weighed),
    "Importance, EmpiricalMarginal": Row(importance),
    "NUTS": Row(chain(lambda model: infer.NUTS(model, max_tree_depth=2))),
    "HMC": Row(chain(lambda model: infer.HMC(model, num_steps=2))),
    "RandomWalkKernel": Row(chain(infer.RandomWalkKernel)),
    "SVGD": Row(stein),
    "infer_discrete": Row(discrete, ("path",), "none is left to infer", states=True),
    "SMCFilter": Row(filtered, KINDS, "has no attribute 'init'"),
    "CSIS": Row(compiled, KINDS, "unexpected keyword argument 'observations'"),
    "poutine.condition": Row(given(conditioned)),
    "poutine.do": Row(given(done)),
    "poutine.block": Row(given(hidden)),
    "poutine.replay": Row(replayed),
    "poutine.uncondition": Row(unconditioned),
    "poutine.lift": Row(lifted, ("path", "steps"), "parameters stay as they are"),
    "poutine.scale": Row(scaled),
    "poutine.mask": Row(masked),
    "poutine.infer_config": Row(marked),
    "poutine.reparam, LocScaleReparam": Row(decentred, ("path",), "no one location and scale"),
    "poutine.handlers.seed": Row(seeded),
    "poutine.collapse": Row(
        lambda case: poutine.trace(poutine.collapse(case.model)).get_trace(case.batch),
        KINDS, "No module named 'funsor'", needs="funsor",
    ),
    "pyro.plate to the left": Row(copies),
    "pyro.plate with subsample_size": Row(subsampled, KINDS, "would make copies"),
    "batch.select under poutine.scale": Row(minibatch),
    "PyroSample": Row(random_weights, ("path",), r"random weights \(PyroSample\)"),
    "get_dependencies": Row(dependencies),
    "render_model": Row(relations),
    "AutoGuideList": Row(automatic(several)),
    **{name: Row(automatic(make)) for name, make in GUIDES.items()},
}  # fmt: skip


def function(batch: SequenceBatch) -> None:
    """The model of `linear_chain`, its noise a parameter."""
    noise = pyro.param("noise", torch.tensor(linear_chain.R))
    z = None
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", linear_chain.transition(z, len(batch)))
                pyro.sample(f"x_{t}", dist.Normal(linear_chain.C * z, noise), obs=batch.at(t))


def states_function(hmm: HMM) -> Callable[[SequenceBatch], None]:
    """The model's equations as a function."""
    first, move = hmm.initial_logits.detach(), hmm.transition_logits.detach()
    emission = hmm.emission(hmm.decoder(hmm.embedding).detach())

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            z = None
            for t in batch.steps():
                with batch.active(t):
                    prior = dist.Categorical(logits=first if z is None else move[z])
                    z = pyro.sample(f"z_{t}", prior, infer={"enumerate": "parallel"})
                    law = dist.Normal(emission.loc[z], emission.scale[z])
                    pyro.sample(f"x_{t}", law, obs=batch.at(t))

    return model


@pytest.fixture
def case_of(linear_gaussian: Callable[..., Pair]) -> Callable[[str, bool], Case]:
    def make(kind: str, states: bool) -> Case:
        torch.manual_seed(0)
        logging.getLogger("pyro").setLevel(logging.ERROR)
        x = torch.randn(3, 3)
        if states:
            hmm = HMM(emissions.Normal(), NoContext(), num_states=2, embedding_size=2)
            total = -Trace_ELBO().loss(hmm, no_guide, SequenceBatch(x))
            if kind == "function":
                return Case(states_function(hmm), no_guide, SequenceBatch(x), total)
            hmm.layout = kind  # type: ignore[assignment]
            return Case(hmm, no_guide, SequenceBatch(x), total)
        if kind == "function":
            total = float(linear_chain.exact_log_likelihood(x, [3] * 3).sum())
            return Case(function, linear_chain.exact_guide, SequenceBatch(x), total)
        pair = linear_gaussian(kind)
        total = float(pair.model.log_likelihood(x).sum())  # type: ignore[union-attr, operator]
        return Case(pair.model, pair.guide, SequenceBatch(x, inputs=torch.zeros(3, 3, 0)), total)

    return make


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tool", ROWS)
def test_what_the_table_says(tool: str, kind: str, case_of: Callable[[str, bool], Case]) -> None:
    row = ROWS[tool]
    if row.needs and importlib.util.find_spec(row.needs):
        pytest.skip(f"{row.needs} is installed")
    case = case_of(kind, row.states)
    if kind not in row.fails:
        row.use(case)
        return
    with pytest.raises(Exception, match=row.says):
        row.use(case)


def page_rows() -> dict[str, list[str]]:
    """The cells of each row of the page's tables with a column for functions."""
    found: dict[str, list[str]] = {}
    inside = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[1:4] == list(KINDS):
            inside = True
        elif inside and not set(line) <= set("|- "):
            found[cells[0].replace("`", "")] = cells[1:]
    return found


def test_page_has_these_rows() -> None:
    page = page_rows()
    assert list(page) == list(ROWS)
    for tool, (*cells, why) in page.items():
        expected = ["no" if kind in ROWS[tool].fails else "yes" for kind in KINDS]
        assert cells == expected, tool
        assert why or "no" not in cells, f"{tool}: a no without a reason"
