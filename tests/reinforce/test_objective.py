"""`Reinforce` against the exact gradient of its objective, on a generator small enough to enumerate
every sequence.
"""

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
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from pyro_seq import Pair, Reinforce, Rollouts, SequenceBatch, UserError, no_guide
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import Embedding
from pyro_seq.models import ISEQ, RNN
from pyro_seq.poutine.step_densities import entropies
from pyro_seq.reinforce.advantages import discounted_returns, generalised_advantages
from pyro_seq.reinforce.baselines import Baseline, Critic, LeaveOneOut, MovingAverage
from pyro_seq.reinforce.objective import rewards_by_step

pytestmark = pytest.mark.usefixtures("float64")

SYMBOLS, STEPS = 3, 4
EVERY = torch.tensor(list(itertools.product(range(SYMBOLS), repeat=STEPS)))
PLACES = SYMBOLS ** torch.arange(STEPS - 1, -1, -1)


def context() -> PreviousObservation:
    return PreviousObservation(Embedding(SYMBOLS, 2))


def generator(**options: Any) -> RNN:
    model = RNN(Categorical(SYMBOLS), context(), hidden_size=3, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # far enough from uniform for steps to depend on each other
    return model


def table(seed: int = 1) -> Tensor:
    """A reward for each step of each sequence, by its symbols so far; far from zero, so that a
    baseline has something to do.
    """
    random = torch.Generator().manual_seed(seed)
    columns = [
        (1 + torch.rand(SYMBOLS ** (t + 1), generator=random)).repeat_interleave(
            SYMBOLS ** (STEPS - 1 - t)
        )
        for t in range(STEPS)
    ]
    return torch.stack(columns, 1)


def looked_up(rewards: Tensor) -> Callable[[SequenceBatch], Tensor]:
    return lambda batch: rewards[(batch.values * PLACES).sum(-1)]


def exact_gradient(
    model: RNN, rewards: Tensor, entropy_bonus: float = 0.0, lengths: tuple[int, ...] = (STEPS,)
) -> dict[str, Tensor]:
    """The gradient of E[sum_t r_t + beta H_t], summed over sequences of these lengths, by all
    sequences that there are.
    """
    features, _ = model.decode(model.hidden_states(SequenceBatch(EVERY))[0], None, None)
    logits = features.log_softmax(-1)
    log_probs = logits.gather(-1, EVERY.unsqueeze(-1)).squeeze(-1)
    entropies = -(logits.exp() * logits).sum(-1)
    objective = torch.zeros(())
    for length in lengths:
        # what follows a shorter sequence counts once
        p = log_probs[:, :length].sum(1).exp() / SYMBOLS ** (STEPS - length)
        earned = rewards[:, :length] if rewards.dim() == 2 else rewards.unsqueeze(1)
        objective = (
            objective + (p * (earned.sum(1) + entropy_bonus * entropies[:, :length].sum(1))).sum()
        )
    gradients = torch.autograd.grad(objective, list(model.parameters()), allow_unused=True)
    return {
        name: g
        for (name, _), g in zip(model.named_parameters(), gradients, strict=True)
        if g is not None
    }


def estimates(
    model: RNN, objective: Reinforce, times: int, rows: int, lengths: tuple[int, ...] = (STEPS,)
) -> dict[str, Tensor]:
    """Independent estimates of the gradient, `[times, *shape]`, each a mean over `rows` sequences
    of each length.
    """
    found: dict[str, list[Tensor]] = {}
    for _ in range(times):
        model.zero_grad()
        objective.loss_and_grads(
            model, no_guide, SequenceBatch(None, list(lengths) * rows, num_steps=STEPS)
        )
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                # of the objective, not of its negative
                found.setdefault(name, []).append(-parameter.grad / rows)
    return {name: torch.stack(each) for name, each in found.items()}


def assert_unbiased(found: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    mean, expected = (
        torch.cat([x.flatten() for x in tree.values()])
        for tree in ({n: found[n].mean(0) for n in exact}, exact)
    )
    error = torch.cat([(found[n].std(0) / len(found[n]) ** 0.5).flatten() for n in exact])
    assert error.norm() < 0.3 * expected.norm(), "too few samples to tell anything"
    assert ((mean - expected).abs() <= 4 * error + 1e-12).all()


BASELINES: dict[str, Callable[[], Baseline | None]] = {
    "none": lambda: None,
    "moving_average": MovingAverage,
    "per_step": lambda: MovingAverage(num_steps=STEPS),
    "leave_one_out": LeaveOneOut,
    "critic": lambda: Critic(context(), hidden_size=4),
}


@pytest.mark.parametrize("baseline", BASELINES)
def test_gradient_is_that_of_the_expected_reward(baseline: str) -> None:
    model, rewards = generator(), table()
    objective = Reinforce(looked_up(rewards), baseline=BASELINES[baseline]())
    assert_unbiased(estimates(model, objective, times=50, rows=800), exact_gradient(model, rewards))


@pytest.mark.parametrize("layout", ["path", "steps"])
def test_reward_of_whole_sequences(layout: Any) -> None:
    model, rewards = generator(layout=layout), table().sum(1)
    assert_unbiased(
        estimates(model, Reinforce(looked_up(rewards)), times=60, rows=2000),
        exact_gradient(model, rewards),
    )


@pytest.mark.parametrize("baseline", ["none", "leave_one_out"])
def test_gradient_with_an_entropy_bonus(baseline: str) -> None:
    model, rewards = generator(), table()
    objective = Reinforce(looked_up(rewards), baseline=BASELINES[baseline](), entropy_bonus=0.7)
    assert_unbiased(
        estimates(model, objective, times=50, rows=800), exact_gradient(model, rewards, 0.7)
    )


def test_gradient_of_sequences_that_end_early() -> None:
    model, lengths = generator(), (2, 4, 1)
    rewards = table()
    objective = Reinforce(
        looked_up(rewards), baseline=MovingAverage(num_steps=STEPS), entropy_bonus=0.3
    )
    found = estimates(model, objective, times=50, rows=300, lengths=lengths)
    assert_unbiased(found, exact_gradient(model, rewards, 0.3, lengths))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("rewards", [table(), table().sum(1)], ids=["by step", "whole"])
@pytest.mark.parametrize("baseline", ["none", "per_step"])
def test_gradient_with_rollouts(rewards: Tensor, baseline: str) -> None:
    model = generator()
    rollouts = Rollouts(Pair(model), looked_up(rewards), num_rollouts=2)
    objective = Reinforce(action_values=rollouts, baseline=BASELINES[baseline]())
    assert_unbiased(estimates(model, objective, times=50, rows=600), exact_gradient(model, rewards))


@pytest.mark.parametrize("rewards", [table(), table().sum(1)], ids=["by step", "whole"])
def test_value_with_action_values(rewards: Tensor) -> None:
    """With rollouts the sum of what the sequences earn, as with the reward itself; else the mean of
    Q(x_1).
    """
    model, batch = generator(), SequenceBatch(None, [STEPS, STEPS, STEPS, STEPS])
    earned = looked_up(rewards)
    pyro.set_rng_seed(0)
    by_reward = Reinforce(earned).loss(model, no_guide, batch)
    pyro.set_rng_seed(0)
    by_rollouts = Reinforce(action_values=Rollouts(Pair(model), earned, num_rollouts=2)).loss(
        model, no_guide, batch
    )
    assert by_rollouts == pytest.approx(by_reward)

    def values(batch: SequenceBatch) -> Tensor:
        return torch.tensor([3.0, 2.0, 1.0, 0.5]).expand(len(batch), -1)

    assert Reinforce(action_values=values).loss(model, no_guide, batch) == pytest.approx(-12.0)


def variance(model: RNN, **options: Any) -> float:
    objective = Reinforce(**options)
    estimates(model, objective, times=5, rows=50)  # for averages to settle
    found = estimates(model, objective, times=30, rows=50)
    return sum(float(each.var(0).sum()) for each in found.values())


def test_baselines_and_rollouts_lower_the_variance() -> None:
    model, reward = generator(), looked_up(table())
    plain = variance(model, reward=reward)
    for make in (MovingAverage, lambda: MovingAverage(num_steps=STEPS), LeaveOneOut):
        assert variance(model, reward=reward, baseline=make()) < 0.7 * plain
    rolled = variance(
        model, action_values=Rollouts(Pair(model), reward, num_rollouts=8), baseline=LeaveOneOut()
    )
    assert rolled < variance(model, reward=reward, baseline=LeaveOneOut())


def test_a_critic_learns_what_is_to_be_expected() -> None:
    model, critic = generator(), Critic(context(), hidden_size=8)
    rewards = table()
    svi = SVI(
        model,
        no_guide,
        pyro.optim.Adam(lambda name: {"lr": 0.03 if "baseline" in name else 0.0}),
        Reinforce(looked_up(rewards), baseline=critic),
    )
    for _ in range(200):
        svi.step(SequenceBatch(None, [STEPS] * 100))
    batch = SequenceBatch(EVERY)
    with torch.no_grad():
        features, _ = model.decode(model.hidden_states(batch)[0], None, None)
        log_probs = features.log_softmax(-1).gather(-1, EVERY.unsqueeze(-1)).squeeze(-1)
        first = (log_probs.sum(1).exp() * rewards.sum(1)).sum()
        torch.testing.assert_close(critic(batch, rewards)[0, 0], first, atol=0.1, rtol=0)


def test_value_is_the_negative_of_what_was_earned() -> None:
    model, rewards = generator(), table()
    objective = Reinforce(looked_up(rewards), num_particles=3, entropy_bonus=0.1)
    value = objective.loss(model, no_guide, SequenceBatch(None, [STEPS] * 2_000)) / 2_000
    entropy = exact_value(model, rewards, 0.1)
    assert value == pytest.approx(-entropy, abs=0.05)
    latest = objective.latest
    assert (
        latest is not None
        and latest.returns.shape == (2_000, STEPS)
        and not latest.advantages.requires_grad
    )


def exact_value(model: RNN, rewards: Tensor, entropy_bonus: float) -> float:
    with torch.no_grad():
        logits = model.decode(model.hidden_states(SequenceBatch(EVERY))[0], None, None)[
            0
        ].log_softmax(-1)
    p = logits.gather(-1, EVERY.unsqueeze(-1)).sum((1, 2)).exp()
    return float((p * (rewards.sum(1) - entropy_bonus * (logits.exp() * logits).sum((1, 2)))).sum())


def test_the_same_generator_learns_by_likelihood_and_by_reward() -> None:
    model = generator()
    optimiser = pyro.optim.Adam({"lr": 0.05})
    SVI(model, no_guide, optimiser, Trace_ELBO()).step(SequenceBatch(EVERY))
    svi = SVI(
        model,
        no_guide,
        optimiser,
        Reinforce(lambda batch: (batch.values == 1).double(), baseline=LeaveOneOut()),
    )
    losses = [svi.step(SequenceBatch(None, [STEPS] * 64)) / 64 for _ in range(60)]
    assert losses[0] > -3 and losses[-1] < -3.9


def test_a_model_of_ones_own() -> None:
    def model(batch: SequenceBatch) -> None:
        logits = pyro.param("logits", torch.zeros(STEPS, SYMBOLS))
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Categorical(logits=logits[t]), obs=batch.at(t))

    rewards = table()
    svi = SVI(
        model,
        no_guide,
        pyro.optim.Adam({"lr": 0.1}),
        Reinforce(looked_up(rewards), baseline=MovingAverage()),
    )
    losses = [svi.step(SequenceBatch(None, [STEPS] * 200)) / 200 for _ in range(80)]
    assert losses[-1] < losses[0] - 0.3
    assert losses[-1] == pytest.approx(-float(rewards.sum(1).max()), abs=1.0)


@pytest.mark.parametrize("kind", ["function", "pyro module"])
def test_rollouts_of_a_model_of_ones_own(kind: str) -> None:
    def steps(logits: Tensor, batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Categorical(logits=logits[t]), obs=batch.at(t))

    class Own(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.logits = PyroParam(torch.zeros(STEPS, SYMBOLS))

        def forward(self, batch: SequenceBatch) -> None:
            steps(self.logits, batch)

    pair = Pair(
        Own()
        if kind == "pyro module"
        else lambda batch: steps(pyro.param("logits", torch.zeros(STEPS, SYMBOLS)), batch)
    )
    with pair.scope():
        pair.model(SequenceBatch(EVERY))  # which registers a function's parameters
        rollouts = Rollouts(
            pair, looked_up(table().sum(1)), num_rollouts=2, rollout_policy_decay=0.0
        )
        critic = Critic(context(), hidden_size=4)
        svi = SVI(
            pair.model,
            no_guide,
            pyro.optim.Adam({"lr": 0.1}),
            Reinforce(action_values=rollouts, baseline=critic),
        )
        losses = []
        for _ in range(40):
            losses.append(svi.step(SequenceBatch(None, [STEPS] * 100)) / 100)
            rollouts.follow(pair)
    assert losses[-1] < losses[0] - 0.2


def test_a_second_critic_learns_as_well() -> None:
    for _ in range(2):
        critic = Critic(context(), hidden_size=4)
        before = critic.readout.weight.clone()
        svi = SVI(
            generator(),
            no_guide,
            pyro.optim.Adam({"lr": 0.1}),
            Reinforce(looked_up(table()), baseline=critic),
        )
        svi.step(SequenceBatch(None, [STEPS] * 10))
        assert not torch.equal(critic.readout.weight, before)


def test_a_look_at_the_loss_changes_nothing() -> None:
    average = MovingAverage()
    svi = SVI(
        generator(),
        no_guide,
        pyro.optim.Adam({"lr": 0.1}),
        Reinforce(looked_up(table()), baseline=average),
    )
    svi.evaluate_loss(SequenceBatch(None, [STEPS] * 10))
    assert not average.weight
    svi.step(SequenceBatch(None, [STEPS] * 10))
    assert average.weight


def test_entropy_of_events_in_plates_beside_the_sequences() -> None:
    probs = torch.tensor([0.1, 0.5, 0.9])

    def model(batch: SequenceBatch) -> None:
        p = pyro.param("p", probs)
        with batch.plate(), pyro.plate("k", 3, dim=-2):
            for t in batch.steps():
                pyro.sample(
                    f"x_{t}",
                    dist.Bernoulli(p[:, None].expand(3, len(batch))),
                    obs=torch.ones(3, len(batch)),
                )

    trace = poutine.trace(model).get_trace(SequenceBatch(torch.ones(3, 2)))
    torch.testing.assert_close(
        entropies(trace, torch.zeros(3, 2)), dist.Bernoulli(probs).entropy().sum().expand(3, 2)
    )


def test_errors_of_a_reward_are_its_own() -> None:
    def broken(batch: SequenceBatch) -> Tensor:
        raise IndexError("list index out of range")

    for objective in (
        Reinforce(broken),
        Reinforce(action_values=Rollouts(Pair(generator()), broken)),
    ):
        with pytest.raises(IndexError, match="list index"):
            objective.loss(generator(), no_guide, SequenceBatch(None, [STEPS] * 4))


def test_a_baseline_of_another_length() -> None:
    objective = Reinforce(looked_up(table()), baseline=MovingAverage(num_steps=7))
    with pytest.raises(
        UserError,
        match=(
            r"the baseline must give \[5, 4\] numbers, or what broadcasts to that, and gives "
            r"\[7\]"
        ),
    ):
        objective.loss(generator(), no_guide, SequenceBatch(None, [STEPS] * 5))


def test_dropout_is_off() -> None:
    model = generator(output_dropout=0.5).train()
    objective, seen = Reinforce(lambda batch: batch.values.double().sum(1)), []
    assert model.training
    for _ in range(2):
        torch.manual_seed(3)
        model.zero_grad()
        objective.loss_and_grads(model, no_guide, SequenceBatch(None, [STEPS] * 8))
        seen.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        torch.rand(5)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert model.training and model.drop_output.training


def test_a_sampler_of_ones_own_says_what_was_drawn_and_how_long_it_is() -> None:
    model, lengths = generator(), torch.tensor([1, 2, 3, 4])

    def played(drawn_by: Any, batch: SequenceBatch) -> SequenceBatch:
        assert drawn_by is model
        return SequenceBatch(torch.ones(4, STEPS, dtype=torch.long), lengths)

    objective = Reinforce(lambda batch: batch.values.double(), sample=played)
    assert objective.loss(model, no_guide, SequenceBatch(None, [STEPS] * 4)) == -10
    latest = objective.latest
    assert latest is not None
    assert latest.returns.tolist() == [[1, 0, 0, 0], [2, 1, 0, 0], [3, 2, 1, 0], [4, 3, 2, 1]]


# returns


def test_returns_against_their_definition() -> None:
    rewards, values = torch.randn(3, 5), torch.randn(3, 5)
    after = torch.randn(3)
    for discount in (1.0, 0.9, 0.0):
        for ending in (None, after):
            expected = torch.zeros(3, 5)
            running = torch.zeros(3) if ending is None else ending
            for t in reversed(range(5)):
                running = rewards[:, t] + discount * running
                expected[:, t] = running
            torch.testing.assert_close(discounted_returns(rewards, discount, ending), expected)
            torch.testing.assert_close(
                generalised_advantages(rewards, values, discount, 1.0, ending), expected - values
            )
    one_step = rewards + 0.9 * torch.cat([values[:, 1:], after[:, None]], 1) - values
    torch.testing.assert_close(generalised_advantages(rewards, values, 0.9, 0.0, after), one_step)
    mixed, running = torch.zeros(3, 5), torch.zeros(3)
    for t in reversed(range(5)):
        running = one_step[:, t] + 0.9 * 0.7 * running
        mixed[:, t] = running
    torch.testing.assert_close(generalised_advantages(rewards, values, 0.9, 0.7, after), mixed)


def test_normalised_advantages() -> None:
    objective = Reinforce(looked_up(table()), normalise=True)
    objective.loss(generator(), no_guide, SequenceBatch(None, [2, 4, 3] * 10, num_steps=STEPS))
    latest = objective.latest
    assert latest is not None
    active = latest.advantages[latest.sequences.mask]
    torch.testing.assert_close(
        (active.mean(), active.std(correction=0)), (torch.zeros(()), torch.ones(()))
    )
    assert not latest.advantages[~latest.sequences.mask].any()


# what is refused


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            lambda batch: torch.full((len(batch),), torch.nan),
            r"the reward is not finite: nan for sequence 0$",
        ),
        (
            lambda batch: torch.ones(len(batch), STEPS).index_fill(1, torch.tensor(2), torch.inf),
            "inf for sequence 0, step 2",
        ),
        (
            lambda batch: torch.ones(len(batch), 7),
            (
                r"must give \[8, 4\] numbers, one for each step, or \[8\], one for each sequence, "
                r"and "
                r"gives shape \[8, 7\]"
            ),
        ),
        (lambda batch: 1.0, "and gives float"),
    ],
)
def test_rewards_that_are_none(reward: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Reinforce(reward).loss(generator(), no_guide, SequenceBatch(None, [STEPS] * 8))


def test_action_values_are_wanted_for_each_step() -> None:
    objective = Reinforce(action_values=lambda batch: torch.ones(len(batch)))
    with pytest.raises(
        UserError,
        match=(
            r"the action values must give \[8, 4\] numbers, one for each step, and gives shape "
            r"\[8\]"
        ),
    ):
        objective.loss(generator(), no_guide, SequenceBatch(None, [STEPS] * 8))


def test_what_padding_earns_is_nothing_even_where_it_is_not_a_number() -> None:
    batch = SequenceBatch(torch.zeros(2, 3, dtype=torch.long), [1, 3])
    earned = rewards_by_step(
        lambda batch: torch.where(batch.mask, 1.0, torch.nan), batch, torch.zeros(2, 3)
    )
    assert earned.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert rewards_by_step(
        lambda batch: torch.tensor([5.0, 7.0]), batch, torch.zeros(2, 3)
    ).tolist() == [[5, 0, 0], [0, 0, 7]]


def test_batches_guides_and_generators_that_do_not_fit() -> None:
    objective = Reinforce(lambda batch: torch.ones(len(batch)))
    with pytest.raises(UserError, match=r"it wants a batch to be sampled.*got one with values"):
        objective.loss(generator(), no_guide, SequenceBatch(EVERY))
    with pytest.raises(UserError, match="got list"):
        objective.loss(generator(), no_guide, [1])

    def guide(batch: SequenceBatch) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(UserError, match=r"without a guide .no_guide., and this guide samples 'z'"):
        objective.loss(generator(), guide, SequenceBatch(None, [STEPS] * 2))
    with pytest.raises(UserError, match="generators without latents, and this one samples 'z'"):
        objective.loss(
            ISEQ(Categorical(SYMBOLS), context(), latent_size=2),
            no_guide,
            SequenceBatch(None, [STEPS] * 2),
        )


def test_options_that_do_not_go_together() -> None:
    def reward(batch: SequenceBatch) -> Tensor:
        return torch.ones(len(batch))

    for options in (
        {},
        {"reward": reward, "action_values": reward},
        {"reward": reward, "discount": 2},
        {"action_values": reward, "discount": 0.5},
    ):
        with pytest.raises(ValueError, match=r"Reinforce takes|must lie in|are returns already"):
            Reinforce(**options)
