"""Cells that are missing: densities of what was seen, draws of what was not, against enumeration
and closed forms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

from pyro_seq import (
    Pair,
    SequenceBatch,
    UserError,
    continuation,
    infill,
    no_guide,
    posterior_predictive,
    score,
)
from pyro_seq._pytree import tree_map
from pyro_seq.config import PairComponents
from pyro_seq.contexts import LastObservations, NoContext, PreviousObservation
from pyro_seq.distributions.numeric.student import LowRankMultivariateStudentT
from pyro_seq.emissions.base import conditioned, mask_cells
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.elementary import Bernoulli, Beta, Categorical, Normal
from pyro_seq.encoders import Flatten, OneHot, WithIndicators
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.guides import AutoSequenceGuide
from pyro_seq.infer.smc.particle_filter import particle_filter
from pyro_seq.models import HMM, RNN
from pyro_seq.pairs.guide import SequenceGuide
from pyro_seq.pairs.model import SequenceModel, in_one_path
from pyro_seq.poutine.step_densities import sample_sites


def parts() -> PairComponents:
    """A group of a symbol, a vector and a share, whose encoders are told what was seen."""
    emission = Joint({"a": Categorical(3), "b": Factorised(Normal(), 2), "c": Beta()})

    def encoder() -> JointEncoder:
        members = {"a": OneHot(3), "b": Flatten(2), "c": Flatten(())}
        return JointEncoder({name: WithIndicators(part) for name, part in members.items()})

    return PairComponents(emission, encoder, PreviousObservation)


def gapped(junk: float | None = math.nan) -> SequenceBatch:
    """Cells, members and whole steps missing, in sequences of unequal lengths; none for `None`."""
    torch.manual_seed(1)
    values = {"a": torch.randint(3, (3, 5)), "b": torch.randn(3, 5, 2), "c": torch.rand(3, 5)}
    if junk is None:
        return SequenceBatch(values, [5, 4, 5])
    missing = {name: torch.rand(x.shape) < 0.4 for name, x in values.items()}
    for cells in missing.values():
        cells[0, 2] = cells[1, 0] = True
    values["a"] = values["a"].masked_fill(missing["a"], 7)
    for name in ("b", "c"):
        values[name] = values[name].masked_fill(missing[name], junk)
    return SequenceBatch(values, [5, 4, 5], missing=missing)


def loss_and_gradients(pair: Pair, batch: SequenceBatch) -> list[Tensor]:
    """The loss at latents of one seed, and the gradients of all weights."""
    pyro.set_rng_seed(3)
    guide: Any = pair.guide
    with pair.scope():
        elbo: Any = Trace_ELBO().differentiable_loss(pair.model, guide, batch.with_cache())
        elbo.backward()
        found = {name: p.grad for name, p in pair.parameters().items()}
    gradients = [torch.zeros(()) if grad is None else grad.clone() for grad in found.values()]
    for p in pair.parameters().values():
        p.grad = None
    return [elbo.detach(), *gradients]


def log_joint(pair: Pair, batch: SequenceBatch, layout: Any) -> list[Tensor]:
    """The log-densities of model and guide at one path of latents, `[N]` each."""
    model: Any = pair.model
    model.layout, z = layout, torch.linspace(-1, 1, 90)[: 15 * model.latent_size].view(3, 5, -1)
    latents = {f"z_{t}": x for t, x in enumerate(z.unbind(1))} | {"z": z}
    found = []
    for side in (pair.model, pair.guide):
        trace = poutine.trace(poutine.condition(side, latents)).get_trace(batch)
        trace.compute_log_prob()
        sites = [site for _, site in sample_sites(trace)]
        found.append(sum((site["log_prob"] for site in sites), torch.zeros(3)).detach())
    return found


def test_shipped_pairs_count_what_was_seen(
    shipped: Callable[[PairComponents, str], Pair], float64: None
) -> None:
    """What stands in missing cells changes no loss and no gradient, both layouts are equal, and so
    are a batch and the same told that nothing is missing.
    """
    pair = shipped(parts(), "path")
    pair.train(False)
    first, second = (loss_and_gradients(pair, gapped(junk)) for junk in (math.nan, 0.7))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert all(x.isfinite().all() for x in first) and in_one_path(pair.model, gapped())  # type: ignore[arg-type]
    none = gapped(None)
    told = none.with_missing(torch.zeros(5, dtype=torch.bool))
    for batch in (none, told, gapped()):
        for path, steps in zip(
            *(log_joint(pair, batch, layout) for layout in ("path", "steps")), strict=True
        ):
            torch.testing.assert_close(path, steps)
    for layout in ("path", "steps"):
        for x, y in zip(*(log_joint(pair, b, layout) for b in (none, told)), strict=True):
            torch.testing.assert_close(x, y)
    steps = score(pair, gapped(), samples=3, method="filter", proposal="prior").steps
    assert steps[0, 2] == steps[1, 0] == 0 and (steps[:, 3] != 0).all()


@pytest.mark.one_in(3)
def test_shipped_pairs_fill_cells(
    shipped: Callable[[PairComponents, str], Pair], float64: None
) -> None:
    """What was observed comes back bit for bit, and what was not lies within the support."""
    pair, batch = shipped(parts(), "path"), gapped()
    filled = infill(pair, batch, samples=3, draws=2)
    predicted = posterior_predictive(pair, batch, 2, particles=3)
    for name, x in filled.items():
        seen, values = (tree[name].repeat_interleave(2, 0) for tree in (batch.seen, batch.values))
        assert x[seen].equal(values[seen]) and x.isfinite().all()
        for t in range(5):
            drawn, cells = predicted[f"x_{t}_{name}"], batch.seen_at(t)[name]
            assert drawn[:, cells].equal(values[::2, t][cells].expand(2, -1).to(drawn.dtype))
    c = filled["c"][batch.missing_cells["c"].repeat_interleave(2, 0)]
    assert len(c) and ((c > 0) & (c < 1)).all()


def test_an_rnn_sees_zeros_and_that_they_were_not_seen(float64: None) -> None:
    """Each step's score is the sum over cells seen, given features of what was seen before."""
    encoder = WithIndicators(Flatten(2))
    model = RNN(Factorised(Normal(), 2), PreviousObservation(encoder), hidden_size=3)
    x = torch.randn(1, 3, 2)
    missing = torch.tensor([[[False, True], [True, True], [False, False]]])
    found = score(Pair(model), SequenceBatch(x, missing=missing)).steps[0]
    state = model.initial(1)
    shown = torch.where(missing, 0.0, x)
    contexts = torch.stack([torch.zeros(4), torch.tensor([x[0, 0, 0], 0, 1, 0]), torch.zeros(4)])
    h, _ = model.rnn_step(contexts.unsqueeze(0), contexts[:0], state["carried"])
    law = model.emit(model.decode(h, None, None)[0], contexts.unsqueeze(0))
    expected = (law.base_dist.log_prob(shown) * ~missing).sum(-1)[0]
    torch.testing.assert_close(found, expected)
    with pytest.raises(UserError, match="1 steps are to be sampled"):
        score(Pair(model), SequenceBatch(x, missing=missing).continued(1))


def hmm(layout: Any = "path", group: bool = True, autoregressive: bool = False) -> HMM:
    emission: Any = Factorised(Bernoulli(), 2)
    if group:
        emission = Joint({"a": Categorical(3), "b": emission})
    encoder = JointEncoder({"a": OneHot(3), "b": Flatten(2)}) if group else Flatten(2)
    return HMM(
        emission,
        PreviousObservation(encoder),
        num_states=3,
        layout=layout,
        autoregressive=autoregressive,
    )


def state_densities(model: HMM, values: Any, seen: Any) -> Tensor:
    """log p(x_t's cells seen | z_t) `[N, T, S]`, cell by cell."""
    law: Any = model.emission(model.decoder(model.embedding))
    total = torch.zeros(())
    for name, part in law.items() if isinstance(law, dict) else (("", law),):
        x, cells = (tree[name] if name else tree for tree in (values, seen))
        base = part.base_dist if name != "a" else part
        rest = 0 if name == "a" else 1
        log_prob = base.log_prob(x.unsqueeze(2)) * cells.unsqueeze(2)
        total = total + (log_prob.sum(-1) if rest else log_prob)
    return total


def by_paths(model: HMM, densities: Tensor) -> tuple[Tensor, Tensor]:
    """(log p(x) `[N]`, p(z_t | x) `[N, T, S]`) by a sum over all paths of states."""
    steps, states = densities.shape[1:]
    first, then = model.initial_logits.log_softmax(-1), model.transition_logits.log_softmax(-1)
    joint, occupied = [], []
    for path in itertools.product(range(states), repeat=steps):
        total = first[path[0]] + sum(then[i, j] for i, j in itertools.pairwise(path))
        joint.append(total + sum(densities[:, t, z] for t, z in enumerate(path)))
        occupied.append(torch.nn.functional.one_hot(torch.tensor(path), states))
    weights = torch.stack(joint)
    shares = torch.einsum("pn,pts->nts", weights.softmax(0), torch.stack(occupied).double())
    return weights.logsumexp(0), shares


@pytest.mark.parametrize("group", [True, False])
def test_an_hmm_sums_over_states_given_the_cells_seen(group: bool, float64: None) -> None:
    torch.manual_seed(2)
    values: Any = {"a": torch.randint(3, (2, 3)), "b": torch.randint(2, (2, 3, 2)).double()}
    missing: Any = {name: torch.rand(x.shape) < 0.5 for name, x in values.items()}
    if not group:
        values, missing = values["b"], missing["b"]
    batch = SequenceBatch(values, missing=missing)
    model = hmm(group=group)
    total, shares = by_paths(model, state_densities(model, values, batch.seen))
    torch.testing.assert_close(score(Pair(model), batch).total, total)
    torch.testing.assert_close(model.posterior(batch), shares)
    torch.testing.assert_close(
        particle_filter(Pair(model), batch, samples=1).particles.total, total
    )
    model.layout = "steps"
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, no_guide, batch)
    assert loss == pytest.approx(-float(total.sum().detach()))


@pytest.mark.parametrize("autoregressive", [True, False])
@pytest.mark.parametrize("group", [True, False])
def test_an_hmm_fills_the_cells_as_enumeration_has_them(
    group: bool, autoregressive: bool, float64: None
) -> None:
    """All cells of one sequence: each missing cell's law given the cells seen, to 4.5 errors."""
    torch.manual_seed(4)
    model, draws = hmm(group=group, autoregressive=autoregressive), 1500
    model.embedding.data *= 2
    values: Any = {"a": torch.tensor([[1, 0]]), "b": torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])}
    missing: Any = {
        "a": torch.tensor([[False, True]]), "b": torch.tensor([[[True, False], [False, True]]])
    }  # fmt: skip
    if not group:
        values, missing = values["b"], missing["b"]
    filled = infill(Pair(model), SequenceBatch(values, missing=missing), samples=16, draws=draws)
    b = filled["b"] if group else filled
    assert b[:, 0, 1].eq(0).all() and b[:, 1, 0].eq(0).all()
    totals = {}
    for one, two, symbol in itertools.product((0.0, 1.0), (0.0, 1.0), range(3) if group else (0,)):
        whole = tree_map(torch.clone, values)
        vector = whole["b"] if group else whole
        vector[0, 0, 0], vector[0, 1, 1] = one, two
        if group:
            whole["a"][0, 1] = symbol
        totals[one, two, symbol] = score(Pair(model), SequenceBatch(whole)).total[0]
    exact = torch.stack([*totals.values()]).softmax(0)
    for (one, two, symbol), p in zip(totals, exact, strict=True):
        hit = (b[:, 0, 0] == one) & (b[:, 1, 1] == two)
        if group:
            hit &= filled["a"][:, 1] == symbol
        assert abs(float(hit.double().mean() - p)) < 4.5 * float((p * (1 - p) / draws).sqrt())


def chain(batch: SequenceBatch) -> None:
    """Two bits a step; each depends on both bits of the step before: functions, by `at(t)`."""
    with batch.plate():
        before: Any = torch.zeros(len(batch), 2)
        for t in batch.steps():
            logits = before @ torch.tensor([[2.0, -1.0], [1.0, 2.0]]) - 0.5
            law: Any = dist.Bernoulli(logits=logits).to_event(1)
            x = batch.at(t)
            if x is not None:
                law = mask_cells(law, batch.seen_at(t))
            with batch.active(t):
                before = pyro.sample(f"x_{t}", law, obs=x)


def test_functions_fill_the_cells_as_enumeration_has_them(float64: None) -> None:
    values = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    missing = torch.tensor([[[False, True], [True, False], [False, False]]])
    draws, pair = 2000, Pair(chain)
    filled = infill(pair, SequenceBatch(values), missing, samples=16, draws=draws)
    assert filled[:, ~missing[0]].equal(values[:, ~missing[0]].expand(draws, -1))
    totals = {}
    for one, two in itertools.product((0.0, 1.0), repeat=2):
        whole = values.clone()
        whole[0, 0, 1], whole[0, 1, 0] = one, two
        totals[one, two] = score(pair, SequenceBatch(whole)).total[0]
    exact = torch.stack([*totals.values()]).softmax(0)
    predicted = posterior_predictive(
        pair, SequenceBatch(values, missing=missing), draws, particles=16
    )
    for (one, two), p in zip(totals, exact, strict=True):
        error = 4.5 * float((p * (1 - p) / draws).sqrt())
        hit = (filled[:, 0, 1] == one) & (filled[:, 1, 0] == two)
        assert abs(float(hit.double().mean() - p)) < error
        hit = (predicted["x_0"][:, 0, 1] == one) & (predicted["x_1"][:, 0, 0] == two)
        assert abs(float(hit.double().mean() - p)) < error
    assert predicted["x_1"][:, 0, 1].eq(1).all() and predicted["x_2"].eq(1).all()


def test_functions_that_count_missing_cells_are_refused(float64: None) -> None:
    def counts_all(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    law = dist.Normal(torch.zeros(2), 1.0).to_event(1)
                    pyro.sample(f"x_{t}", law, obs=batch.at(t))

    x, cells = torch.randn(2, 3, 2), torch.zeros(2, 3, 2, dtype=torch.bool)
    cells[0, 1, 0] = True
    with pytest.raises(UserError, match=r"site 'x_1' would count cells that are missing"):
        score(Pair(counts_all), SequenceBatch(x, missing=cells))
    # steps of which nothing was seen are left out by `active`
    gone = torch.tensor([[False, True, False], [False, False, True]])
    found = score(Pair(counts_all), SequenceBatch(x, missing=gone)).steps
    expected = dist.Normal(0.0, 1.0).log_prob(x).sum(-1) * ~gone
    torch.testing.assert_close(found, expected)


def test_latents_of_missing_steps_count(linear_gaussian: Any, written: Pair) -> None:
    """The estimate is of log p of the steps seen, of a declared pair and of functions, though
    proposals look at zeros: to five standard errors.
    """
    model, n = linear_gaussian().model, 100
    x = torch.randn(1, 6)
    gone = torch.isin(torch.arange(6), torch.tensor([1, 2, 5]))
    expected = model.log_likelihood(x, ~gone)
    batch = model.batch(x.expand(n, -1)).with_missing(gone)
    for pair in (linear_gaussian(widen=1.3), written):
        for method in ("importance", "filter"):
            found = score(pair, batch, samples=200, method=method)  # type: ignore[arg-type]
            shares = (found.total - expected).exp()
            assert abs(float(shares.mean() - 1)) < 5 * float(shares.std()) / math.sqrt(n), method


class TwoCells(SequenceModel):
    """z_t ~ N(0.8 z_{t-1}, 0.6); both cells of x_t ~ N(z_t, 0.5)."""

    latent_size = 1

    def __init__(self) -> None:
        super().__init__(Factorised(Normal(positive="exp", epsilon=0.0), 2), NoContext())
        self.scale = torch.nn.Parameter(torch.tensor(0.5).log())

    def transition(self, h: Tensor, previous: Tensor) -> dist.Normal:
        return dist.Normal(0.8 * previous, torch.full_like(previous, 0.6))

    def decode(self, h: Tensor, latents: Tensor | None, rnn_state: Any) -> tuple[Tensor, Any]:
        assert latents is not None
        one = torch.cat([latents, self.scale.expand_as(latents)], -1)
        return torch.cat([one, one], -1), rnn_state

    def joint(self, steps: int) -> Tensor:
        """The covariance of all cells `[2 T, 2 T]`."""
        impulse = torch.tensor(
            [[0.6 * 0.8 ** (t - s) if s <= t else 0.0 for s in range(steps)] for t in range(steps)]
        )
        return torch.kron(impulse @ impulse.t(), torch.ones(2, 2)) + 0.25 * torch.eye(2 * steps)


class TwoCellsGuide(SequenceGuide):
    """A guide that was never told of missing cells."""

    def __init__(self, model: TwoCells) -> None:
        super().__init__(model)
        self.place = torch.nn.Parameter(torch.zeros(()))

    def encode(self, batch: SequenceBatch, rnn_state: Any) -> tuple[tuple[Tensor, ...], Any]:
        return (batch.values.mean(-1, keepdim=True),), rnn_state  # type: ignore[union-attr]

    def posterior(self, evidence: tuple[Tensor, ...], previous: Tensor) -> dist.Normal:
        loc = 0.25 * previous + 0.6 * evidence[0]
        return dist.Normal(loc, torch.full_like(loc, 0.35))


def two_cells(batch: SequenceBatch) -> None:
    """`TwoCells` as a function."""
    with batch.plate():
        z: Any = torch.zeros(len(batch))
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", dist.Normal(0.8 * z, 0.6))
                law: Any = dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), 0.5).to_event(1)
                if batch.at(t) is not None:
                    law = mask_cells(law, batch.seen_at(t))
                pyro.sample(f"x_{t}", law, obs=batch.at(t))


def two_cells_guide(batch: SequenceBatch) -> None:
    with batch.plate():
        z: Any = torch.zeros(len(batch))
        for t in batch.steps():
            with batch.active(t):
                loc = 0.25 * z + 0.6 * batch.at(t).mean(-1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, 0.35))


@pytest.mark.parametrize("kind", ["declared", "functions"])
def test_gaussian_cells_have_their_exact_law(kind: str, float64: None) -> None:
    """Fills of cells given all cells seen, with latents in between, and the likelihood of the cells
    seen, against the joint normal: means, variances and estimates to 4.5 standard errors.
    """
    model, draws, steps = TwoCells(), 500, 4
    guide: Any = TwoCellsGuide(model)
    pair = Pair(model, guide) if kind == "declared" else Pair(two_cells, two_cells_guide)
    x = torch.tensor([[[0.9, 0.0], [0.0, 0.0], [-0.6, 0.2], [0.0, 1.1]]])
    missing = torch.tensor([[False, True], [True, True], [False, False], [True, False]])
    batch = SequenceBatch(x, missing=missing.unsqueeze(0))
    gone, whole = missing.flatten(), model.joint(steps)
    gain = whole[gone][:, ~gone] @ torch.linalg.inv(whole[~gone][:, ~gone])
    mean = gain @ x.flatten()[~gone]
    variance = (whole[gone][:, gone] - gain @ whole[~gone][:, gone]).diagonal()
    drawn = infill(pair, batch, samples=32, draws=draws).flatten(1)[:, gone]
    assert ((drawn.mean(0) - mean).abs() < 4.5 * (variance / draws).sqrt()).all()
    assert ((drawn.var(0) / variance - 1).abs() < 4.5 * math.sqrt(2 / draws)).all()
    law = dist.MultivariateNormal(torch.zeros(int((~gone).sum())), whole[~gone][:, ~gone])
    total, n = law.log_prob(x.flatten()[~gone]), 50
    for proposal in ("guide", "prior"):
        copies = batch.repeat(n)
        found = score(pair, copies, samples=100, method="filter", proposal=proposal)  # type: ignore[arg-type]
        shares = (found.total - total).exp()
        assert abs(float(shares.mean() - 1)) < 4.5 * float(shares.std()) / math.sqrt(n)
    if kind == "declared":
        filtered = particle_filter(
            pair, SequenceBatch(x).repeat(n), samples=100, missing=missing.expand(n, 4, 2)
        )
        shares = (filtered.particles.total - total).exp()
        assert abs(float(shares.mean() - 1)) < 4.5 * float(shares.std()) / math.sqrt(n)
        assert filtered.values[:, :, ~missing].equal(x[0][~missing].expand(n, 100, -1))


def test_a_model_may_fill_exactly(float64: None) -> None:
    class Exact(TwoCells):
        def exact_fill(self, batch: SequenceBatch, draws: int) -> Any:
            assert batch.missing_cells is not None and batch.missing_cells.sum() == 3
            return torch.full((len(batch) * draws, 4, 2), 7.0)

    x = torch.randn(1, 4, 2)
    own = torch.tensor([[[True, False]] + [[False, False]] * 3])
    filled = infill(Pair(Exact(), no_guide), SequenceBatch(x, missing=own), [2], draws=2)
    assert (filled == 7).sum() == 6 and filled[:, 1].equal(x[:, 1].expand(2, 2))


def test_continuations_go_on_from_what_was_seen(float64: None) -> None:
    """x_t = the symbol before it, or 2 after a step that was not seen."""
    encoder = WithIndicators(OneHot(3))
    model = RNN(Categorical(3), PreviousObservation(encoder), hidden_size=3, skip=True)
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.zero_()
        weight = next(p for p in model.decoder.parameters() if p.dim() == 2)
        weight[:, 3:6] = 50 * torch.eye(3)
        weight[2, 6] = -200.0  # seen
        bias = next(p for p in model.decoder.parameters() if p.dim() == 1)
        bias[2] = 100.0
    gone = torch.tensor([[False, False], [False, True]])
    batch = SequenceBatch(torch.tensor([[0, 1], [0, 1]]), missing=gone)
    assert continuation(Pair(model), batch, 1).tolist() == [[1], [2]]


def test_a_mixture_weighs_its_components_by_what_was_seen(float64: None) -> None:
    """Against Bayes' rule on two components of a vector, as a density and as draws."""
    loc = torch.tensor([[-3.0, -3.0], [3.0, 3.0]])
    law = dist.MixtureSameFamily(
        dist.Categorical(logits=torch.zeros(2)), dist.Normal(loc, 1.0).to_event(1)
    )
    x, seen = torch.tensor([0.2, 0.0]), torch.tensor([True, False])
    each = dist.Normal(loc[:, 0], 1.0).log_prob(x[0])
    torch.testing.assert_close(mask_cells(law, seen).log_prob(x), each.logsumexp(0) - math.log(2))
    drawn = conditioned(law, x, seen).sample((20_000,))[:, 1]
    p = float(each.softmax(0)[1])
    assert abs(float((drawn > 0).double().mean()) - p) < 0.02
    whole = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    with pytest.raises(UserError, match="MultivariateNormal has no way to leave cells out"):
        mask_cells(whole, seen)
    assert mask_cells(whole, torch.zeros(2, dtype=torch.bool)).log_prob(x) == 0


def test_an_automatic_guide_sees_indicators(written: Pair) -> None:
    batch = SequenceBatch(torch.randn(3, 4), missing=torch.rand(3, 4) < 0.4)
    guide = AutoSequenceGuide(written.model, hidden_size=3, latent_sizes=(3,)).prepare(batch)
    assert isinstance(guide.encoder, WithIndicators) and guide.encoder.num_features == 2
    plain = AutoSequenceGuide(written.model, hidden_size=3).prepare(
        SequenceBatch(torch.randn(3, 4))
    )
    assert isinstance(plain.encoder, Flatten)


def test_windows_carry_what_was_seen(float64: None) -> None:
    """A context of three observations, over windows and over the whole: the same scores."""
    context = LastObservations(WithIndicators(Flatten(2)), 3)
    pair = Pair(RNN(Factorised(Normal(), 2), context, hidden_size=3))
    batch = SequenceBatch(torch.randn(2, 7, 2), missing=torch.rand(2, 7, 2) < 0.5)
    whole, state, found = score(pair, batch).steps, None, []
    for start, end in ((0, 2), (2, 3), (3, 7)):
        values, missing = batch.values[:, start:end], batch.missing_cells[:, start:end]  # type: ignore[index]
        part = score(pair, SequenceBatch(values, missing=missing), state=state)
        state, found = part.state, [*found, part.steps]
    torch.testing.assert_close(torch.cat(found, 1), whole)


@pytest.mark.parametrize("kind", ["mixture", "low rank"])
def test_vectors_seen_in_part_count_at_a_step(kind: str, float64: None) -> None:
    """A mixture of vectors and a low-rank t in a step's mask, by the laws of the cells seen."""
    loc = torch.tensor([[0.0, 1.0], [2.0, 3.0]])

    def law(cells: slice = slice(None)) -> Any:
        if kind == "low rank":
            df, part = torch.tensor(3.0), loc[0, cells]
            return LowRankMultivariateStudentT(df, part, 1 + part, torch.ones(len(part), 1))
        parts = dist.Normal(loc[:, cells], 1.0).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), parts)

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    seen = mask_cells(law(), batch.seen_at(t))
                    pyro.sample(f"x_{t}", seen, obs=batch.at(t))

    x, gone = torch.randn(2, 2, 2), torch.zeros(2, 2, 2, dtype=torch.bool)
    gone[0, 1, 0] = True
    found = score(Pair(model, no_guide), SequenceBatch(x, missing=gone)).steps
    expected = law().log_prob(x)
    expected[0, 1] = law(slice(1, 2)).log_prob(x[0, 1, 1:])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
