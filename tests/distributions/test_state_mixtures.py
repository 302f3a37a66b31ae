"""Named groups that share a hidden state: the exact law of a step, in densities, samples, filters,
gaps and continuations.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from pyro_seq import (
    Pair,
    SequenceBatch,
    UserError,
    continuation,
    emissions,
    infill,
    particle_filter,
    score,
)
from pyro_seq._pytree import tree_map
from pyro_seq.contexts import Chain, PreviousObservation, SideInputs
from pyro_seq.distributions.state_mixtures import StateMixture
from pyro_seq.emissions.nade import NADE
from pyro_seq.encoders import Flatten, Joint, OneHot
from pyro_seq.infer.sampling import draw, sample_sequences, tempered
from pyro_seq.models import HMM

S, T = 3, 12

pytestmark = pytest.mark.usefixtures("float64")


def new_model(
    members: str = "symbol flag",
    *,
    autoregressive: bool = True,
    states: int = S,
    spread: float = 2.0,
) -> HMM:
    made = {
        "symbol": emissions.Categorical(3),
        "flag": emissions.Bernoulli(),
        "notes": emissions.Factorised(emissions.Bernoulli(), 2),
        "level": emissions.Normal(),
        "share": emissions.Beta(),
        "count": emissions.Binomial(4),
        "frame": NADE(3, 4),
    }
    seen = {"symbol": OneHot(3), "notes": Flatten(2), "frame": Flatten(3)}
    names = members.split()
    context = Chain(
        PreviousObservation(Joint({name: seen.get(name, Flatten(())) for name in names})),
        SideInputs(2),
    )
    emission = emissions.Joint({name: made[name] for name in names})
    model = HMM(
        emission, context, num_states=states, embedding_size=4, autoregressive=autoregressive
    )
    with torch.no_grad():
        model.embedding.mul_(spread)
    return model


def sequences(model: HMM, n: int, steps: int = T) -> SequenceBatch:
    u = torch.randn(n, steps, 2)
    with torch.no_grad():
        return SequenceBatch(
            sample_sequences(model, steps, state=model.initial(n), inputs=u), inputs=u
        )


MEMBERS = ["symbol flag", "symbol flag notes level share count", "frame symbol", "flag frame"]


@pytest.mark.parametrize("autoregressive", [False, True])
@pytest.mark.parametrize("members", MEMBERS)
def test_filter_is_exact(members: str, autoregressive: bool) -> None:
    """As many particles as one likes, from guide or prior: the belief sums the states out, and
    every particle says the same.
    """
    torch.manual_seed(3)
    model = new_model(members, autoregressive=autoregressive)
    batch = sequences(model, 4)
    exact = score(Pair(model), batch)
    for samples in (1, 7):
        filtered = particle_filter(Pair(model), batch, samples=samples)
        torch.testing.assert_close(
            filtered.steps.double(), exact.steps.double(), rtol=1e-9, atol=1e-9
        )
        torch.testing.assert_close(filtered.particles.total, exact.total, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("members", ["symbol flag", "frame symbol"])
def test_filter_over_missing_steps_is_unbiased(members: str) -> None:
    """What is missing is drawn for each particle by itself: the mean of the estimates over seeds is
    the likelihood of the rest.
    """
    torch.manual_seed(5)
    model = new_model(members, autoregressive=False)
    batch = sequences(model, 1, 6)
    missing = torch.tensor([[False, True, False, True, True, False]])
    with torch.no_grad():  # without a context the states alone carry what was seen
        likelihoods = model._joint(
            torch.zeros(1, 6, 0), model.emission.prepare(batch.values, batch.mask)
        )
        likelihoods = torch.where(missing.unsqueeze(-1), 0.0, likelihoods)
        belief, exact = model.initial_logits.log_softmax(-1), torch.zeros(())
        for t in range(6):
            joint = belief + likelihoods[0, t]
            exact, belief = (
                exact + joint.logsumexp(-1),
                (joint.log_softmax(-1).unsqueeze(-1) + model._transition()).logsumexp(0),
            )
    torch.manual_seed(0)
    many = particle_filter(
        Pair(model),
        batch.select(torch.zeros(600, dtype=torch.long)),
        samples=8,
        missing=missing.expand(600, 6),
    )
    ratios = (many.particles.total - exact).exp()
    error = ratios.std() / 600**0.5
    assert abs(ratios.mean() - 1) < 4 * error and error < 0.05
    alone = particle_filter(Pair(model), batch, samples=64, missing=missing)
    drawn = tree_map(lambda x: x[0, :, 1].flatten(1) if x.dim() > 3 else x[0, :, 1], alone.values)
    assert all(len(x.unique(dim=0)) > 1 for x in drawn.values()), (
        "one draw does not serve all particles"
    )


@pytest.mark.parametrize("transform_distribution", [None, partial(tempered, temperature=0.6)])
@pytest.mark.parametrize("autoregressive", [False, True])
def test_samples_have_the_law_of_the_densities(
    autoregressive: bool, transform_distribution: Any
) -> None:
    """Groups drawn together, and a second member given an observed first: a chi-square test of each
    against the densities.
    """
    torch.manual_seed(2)
    model, many = new_model(autoregressive=autoregressive), 20_000
    state = tree_map(lambda x: x[:1], sequences_state(model))
    u, cells = (
        torch.zeros(1, 2),
        [
            {"symbol": torch.tensor([i]), "flag": torch.tensor([float(j)])}
            for i in range(3)
            for j in range(2)
        ],
    )

    def laws(lead: int) -> Any:
        found: dict[str, Any] = {}
        start = tree_map(lambda x: x.expand(lead, *x.shape[1:]), state)

        def keep(law: Any) -> Any:
            found.update(law if transform_distribution is None else transform_distribution(law))
            return {name: part.sample() for name, part in found.items()}

        model.advance(start, u.expand(lead, 2), lambda prior: prior.sample(), keep)
        return found

    with torch.no_grad():
        joint = (
            torch.stack(
                [sum(law.log_prob(cell[name]) for name, law in laws(1).items()) for cell in cells]
            )
            .exp()
            .flatten()
        )
        assert joint.sum().item() == pytest.approx(1.0, abs=1e-12)
        drawn = draw(laws(many))
        counts = torch.bincount((2 * drawn["symbol"] + drawn["flag"]).long(), minlength=6).double()
        # 1 - 1e-4 quantile, 5 degrees of freedom
        assert ((counts - many * joint).square() / (many * joint)).sum() < 25.7
        given = laws(many)
        given["symbol"].log_prob(torch.full((many,), 1))
        on = given["flag"].sample().mean()
        expected = joint[3] / joint[2:4].sum()
        assert abs(on - expected) < 4 * (expected * (1 - expected) / many).sqrt()


def sequences_state(model: HMM) -> Any:
    batch = sequences(model, 1, 3)
    with torch.no_grad():
        return model(batch).state


def test_particles_draw_states_of_their_own() -> None:
    """Of a belief that all particles share, and a law that shows the state: draws for K particles
    are not K copies.
    """
    model = new_model("level flag", autoregressive=False, spread=20.0)
    laws: dict[str, Any] = {}
    with torch.no_grad():
        model.advance(
            model.initial(5),
            torch.zeros(5, 2),
            lambda prior: prior.sample(),
            lambda law: laws.update(law) or draw(law),
        )
        assert isinstance(laws["level"], StateMixture) and laws["level"].batch_shape == (5,)
        drawn = {name: law.expand((400, 5)).sample() for name, law in laws.items()}
    assert drawn["level"].shape == (400, 5)
    assert all(len(drawn["level"][:, n].round().unique()) >= S for n in range(5))


@pytest.mark.parametrize(
    "emission",
    [
        emissions.Categorical(9),
        emissions.Categorical(1_000),
        emissions.Bernoulli(),
        emissions.Binomial(5),
        emissions.Normal(),
        emissions.Beta(),
        emissions.Factorised(emissions.Bernoulli(), 4),
        lambda: NADE(5, 4),
    ],
)
def test_expanded_emissions_draw_for_each_particle(emission: Any) -> None:
    emission = emission if isinstance(emission, emissions.Emission) else emission()
    drawn = emission(torch.zeros(3, emission.num_features)).expand((200, 3)).sample()
    assert drawn.shape == (200, 3, *emission.event_shape)
    for n in range(3):
        assert (
            len(drawn[:, n].flatten(1).unique(dim=0) if drawn.dim() > 2 else drawn[:, n].unique())
            > 1
        )
    assert not drawn[:, 0].equal(drawn[:, 1])


def test_fills_and_continuations_of_a_group() -> None:
    """Levels that show which state a sequence is in for good: fills between, and what follows, are
    of that state.
    """
    torch.manual_seed(0)
    model = new_model("level flag", autoregressive=False, states=2)
    with torch.no_grad():
        model.transition_logits.copy_(torch.tensor([[20.0, 0.0], [0.0, 20.0]]))
        model.embedding.copy_(torch.eye(2, 4))
        model.decoder[0].weight.zero_()[:, :2] = torch.tensor(
            [[5.0, -5.0], [-8.0, -8.0], [9.0, -9.0]]
        )
        model.decoder[0].bias.zero_()
    levels = torch.tensor([5.0, -5.0]).repeat_interleave(20)
    batch = SequenceBatch(
        {
            "level": levels[:, None].expand(40, 4),
            "flag": (levels > 0).double()[:, None].expand(40, 4),
        },
        inputs=torch.zeros(40, 4, 2),
    )
    filled = infill(Pair(model), batch, torch.tensor([False, True, True, False]), samples=32)
    after = continuation(Pair(model), batch, 3, inputs=torch.zeros(40, 3, 2), draws=2)
    for found, expected in ((filled, levels), (after, levels.repeat_interleave(2))):
        assert (found["level"] - expected[:, None]).abs().max() < 0.5
        assert found["flag"].equal((expected > 0).double()[:, None].expand_as(found["flag"]))


def test_soft_draws_and_refusals() -> None:
    """Gradients go through a value and not through the choice of a state; what cannot be sharpened
    says so when it is drawn.
    """
    model = new_model("level flag")

    def soft(law: Any) -> Any:
        return {"level": law["level"].rsample(), "flag": law["flag"].probs}

    with pyro.validation_enabled(False):  # a probability is no flag
        x, _, _ = model.advance(
            model.initial(6), torch.zeros(6, 2), lambda prior: prior.sample(), soft
        )
    assert (
        x["level"].requires_grad
        and x["flag"].shape == (6,)
        and ((x["flag"] > 0) & (x["flag"] < 1)).all()
    )
    with pytest.raises(UserError, match="does not apply"), torch.no_grad():
        sample_sequences(
            model,
            1,
            state=model.initial(2),
            inputs=torch.zeros(2, 1, 2),
            transform_distribution=partial(tempered, temperature=0.5),
        )


def test_improbable_symbols_keep_their_density() -> None:
    """A symbol that every state all but excludes: 400 nats, also in float32, whose smallest number
    is 87 nats away.
    """
    for autoregressive in (False, True):
        hmm = HMM(
            emissions.Categorical(3),
            PreviousObservation(OneHot(3)),
            num_states=2,
            embedding_size=2,
            autoregressive=autoregressive,
        ).float()
        with torch.no_grad():
            hmm.embedding.copy_(torch.eye(2))
            hmm.decoder[0].weight.zero_()[:, :2] = torch.tensor(
                [[0.0, 0.0], [1.0, 2.0], [-400.0, -500.0]]
            )
            hmm.decoder[0].bias.zero_()
        values = torch.tensor([[0, 2, 1]])
        torch.set_default_dtype(torch.float32)
        batch = SequenceBatch(values)
        filtered = particle_filter(Pair(hmm), batch, samples=3)
        torch.testing.assert_close(
            filtered.steps.double(), score(Pair(hmm), batch).steps.double(), rtol=1e-5, atol=1e-4
        )
        assert filtered.steps[0, 1] < -300
        torch.set_default_dtype(torch.float64)


def test_order_of_a_group() -> None:
    """Asked for another value of a member, those after it are conditioned on that one."""
    model = new_model(autoregressive=False, spread=5.0)
    laws: dict[str, Any] = {}
    with torch.no_grad():
        model.advance(
            model.initial(1),
            torch.zeros(1, 2),
            lambda prior: prior.sample(),
            lambda law: laws.update(law) or draw(law),
        )
        by_symbol = []
        for symbol in range(3):
            laws["symbol"].log_prob(torch.tensor([symbol]))
            by_symbol.append(laws["flag"].log_prob(torch.ones(1)))
        laws["symbol"].log_prob(torch.tensor([0]))
        again: Tensor = laws["flag"].log_prob(torch.ones(1))
    assert again.equal(by_symbol[0]) and not by_symbol[0].allclose(by_symbol[1])
