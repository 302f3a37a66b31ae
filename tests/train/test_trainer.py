"""Training: what a step computes, what is learnt, and which pairs and objectives there can be."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from pyro_seq import Pair, SequenceBatch, UserError, score
from pyro_seq.nn.precision import fast_precision
from pyro_seq.train import trainer as training
from pyro_seq.train.loop import Callback, Loop, Measured
from pyro_seq.train.trainer import Hooks
from small_trainings import (
    PAIRS,
    Stream,
    equal,
    full_symbols,
    function_pair,
    logged,
    new_pair,
    new_trainer,
    parameters,
    periodic,
    random_symbols,
    real_numbers,
)

# one step


@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("kind", PAIRS)
def test_steps_by_hand(kind: str, layout: str, float64: None) -> None:
    """Three steps are those of AdamW on the annealed, penalised, clipped mean loss per
    observation.
    """
    pair = new_pair(kind, layout=layout)
    other = copy.deepcopy(pair)
    changes: dict[str, Any] = {
        "l1": 1e-3,
        "l2": 1e-2,
        "weight_decay": 0.1,
        "clip_norm": 0.5,
        "learning_rate": 1e-2,
        "beta2": 0.9,
    }
    trainer = new_trainer(
        pair, num_steps=3, kl_schedule="linear", kl_start=0.5, kl_steps=2, **changes
    )
    lines = logged(trainer)
    pyro.set_rng_seed(0)
    trainer.fit()

    pyro.set_rng_seed(0)
    ours = list(other.parameters().values())
    matrices = [p for p in ours if p.dim() > 1]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": [p for p in ours if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimiser, stream = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.9)), Stream(random_symbols)
    for number, beta in enumerate((0.5, 0.75, 1.0)):
        batch, _ = stream.draw()
        guide_trace = poutine.trace(other.guide).get_trace(batch)
        model_trace = poutine.trace(poutine.replay(other.model, trace=guide_trace)).get_trace(batch)
        likelihood = torch.stack(
            [
                s["fn"].log_prob(s["value"]).sum()
                for s in sites(model_trace, observed=True, mask=batch.mask)
            ]
        ).sum()
        divergence = guide_trace.log_prob_sum() - (model_trace.log_prob_sum() - likelihood)
        loss = (beta * divergence - likelihood) / 10
        optimiser.zero_grad()
        (loss + sum(1e-3 * p.abs().sum() + 5e-3 * p.square().sum() for p in matrices)).backward()
        norm = torch.nn.utils.clip_grad_norm_(ours, 0.5)
        optimiser.step()
        line = lines[number]
        expected = {
            "loss": loss,
            "log_likelihood": likelihood / 10,
            "kl": divergence / 10,
            "gradient_norm": norm,
            "kl_strength": beta,
        }
        for name, value in expected.items():
            assert line[name] == pytest.approx(
                float(torch.as_tensor(value).detach()), rel=1e-6, abs=1e-9
            ), name
        assert line["elbo"] == pytest.approx(line["log_likelihood"] - line["kl"])
    for (name, p), q in zip(parameters(pair).items(), ours, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10, msg=name)


def sites(trace: Any, *, observed: bool, mask: Tensor) -> list[dict[str, Any]]:
    """The observed sites, those of the steps layout with their own mask put on."""
    found = []
    for site in trace.nodes.values():
        if site["type"] == "sample" and site["is_observed"] == observed:
            masked = site["fn"] if site["mask"] is None else site["fn"].mask(site["mask"])
            found.append({"fn": masked, "value": site["value"]})
    return found


def test_free_bits() -> None:
    """A divergence below the threshold counts as the threshold, and gives no gradient."""
    trainer = new_trainer(new_pair("srnn", residual=False), num_steps=1, free_bits=50.0)
    before, lines = parameters(trainer.pair), logged(trainer)
    trainer.fit()
    assert lines[0]["loss"] == pytest.approx(50.0 - lines[0]["log_likelihood"], rel=1e-5)
    prior = {name for name in before if name.startswith("model.prior")}
    still = {name for name, p in parameters(trainer.pair).items() if torch.equal(p, before[name])}
    assert prior <= still
    assert "guide.network.mlp.0.weight" not in still


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_learning_rate_over_a_run(schedule: str) -> None:
    trainer = new_trainer(
        new_pair("rnn"),
        num_steps=10,
        learning_rate=0.1,
        schedule=schedule,
        warmup=0.2,
        final_lr_fraction=0.5,
    )
    lines = logged(trainer)
    trainer.fit()
    rates = [line["learning_rate"] for line in lines]
    middle = {"linear": 0.1 * (1 - 0.5 * 0.5), "cosine": 0.1 * (0.5 + 0.5 * 0.5)}[schedule]
    assert [rates[0], rates[1], rates[5], rates[9]] == pytest.approx([0.05, 0.1, middle, 0.05])


def test_log_lines_are_means() -> None:
    lines = {}
    for every in (1, 3):
        pyro.set_rng_seed(0)
        trainer = new_trainer(new_pair("srnn"), num_steps=6, log_every=every)
        lines[every] = logged(trainer)
        trainer.fit()
    assert [line["step"] for line in lines[3]] == [3, 6]
    for name in ("loss", "log_likelihood", "kl", "elbo", "gradient_norm"):
        single = [line[name] for line in lines[1]]
        assert [line[name] for line in lines[3]] == pytest.approx(
            [sum(single[:3]) / 3, sum(single[3:]) / 3]
        )


# what is learnt


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", PAIRS)
def test_learns_a_periodic_sequence(kind: str) -> None:
    """To below 0.05 nats a step, from log 3 = 1.1, and then generates it."""
    trainer = new_trainer(
        new_pair(kind, hidden_size=16), Stream(periodic), num_steps=120, learning_rate=0.03
    )
    lines = logged(trainer)
    trainer.fit()
    assert lines[0]["loss"] > 0.9
    assert max(line["loss"] for line in lines[-10:]) < 0.05
    with torch.no_grad():
        sampled = trainer.pair.model(SequenceBatch(None, [12] * 20)).values
    assert float((sampled == torch.arange(12) % 3).double().mean()) > 0.9


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", PAIRS)
def test_carried_states_are_used(kind: str) -> None:
    """Windows of two steps of a sequence of period four: only what is carried tells which half it
    is.
    """

    class Windows(Stream):
        def draw(self) -> tuple[SequenceBatch, bool]:
            self.drawn += 1
            start = 2 * self.drawn
            return SequenceBatch(
                torch.tensor([0, 0, 1, 2, 0, 0])[torch.arange(start, start + 2) % 4].expand(4, 2)
            ), self.drawn > 1

    trainer = new_trainer(
        new_pair(kind, hidden_size=16), Windows(periodic), num_steps=120, learning_rate=0.03
    )
    lines = logged(trainer)
    trainer.fit()
    assert max(line["loss"] for line in lines[-10:]) < 0.2 < math.log(2) / 2


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_same_seed_same_weights(ema_decay: float) -> None:
    found = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        trainer = new_trainer(
            new_pair("srnn", input_dropout=0.3, output_dropout=0.3),
            num_steps=8,
            ema_decay=ema_decay,
        )
        trainer.fit()
        found.append(parameters(trainer.pair))
    assert equal(*found)


def test_callbacks_are_told_of_validations() -> None:
    """In order, after the best weights are kept; what they raise ends the training there."""
    losses, told = iter([3.0, 2.0, 2.5]), []

    class Told(Callback):
        def on_validation(self, loop: Loop, found: Measured) -> None:
            assert isinstance(loop, training.Trainer) and loop.best_loss <= found.value
            told.append((loop.step, found.value, found.better))
            if loop.step == 4:
                raise LookupError

    hooks = Hooks(validate=lambda: {"loss": next(losses)}, callbacks=[Told()], at_start=True)
    trainer = new_trainer(new_pair("rnn"), hooks=hooks, num_steps=9, valid_every=2)
    with pytest.raises(LookupError):
        trainer.fit()
    assert told == [(0, 3.0, True), (2, 2.0, True), (4, 2.5, False)] and trainer.step == 4


def test_validation_does_not_disturb_training() -> None:
    """Whatever validation and samples draw at random, the training goes the same way."""

    def disturb() -> dict[str, float]:
        torch.rand(100)
        return {"loss": 1.0}

    hooks = Hooks(validate=disturb, samples=lambda: {"a": str(torch.rand(3))})
    found = []
    for hooked in (None, hooks):
        pyro.set_rng_seed(3)
        trainer = new_trainer(
            new_pair("srnn", input_dropout=0.3),
            num_steps=6,
            hooks=hooked,
            valid_every=2,
            sample_every=2,
            patience=0,
        )
        trainer.batches.make = full_symbols
        losses = logged(trainer)
        trainer.fit()
        found.append([line["loss"] for line in losses if line["split"] == "train"])
    assert found[0] == found[1]


# any pair, any objective


class Shared(PyroModule):
    """A model or a guide with a network that both use, a layer of its own under a name that both
    have, and a constrained parameter.
    """

    def __init__(self, network: nn.Module, constrained: str, *, observes: bool) -> None:
        super().__init__()
        self.network, self.constrained, self.observes = network, constrained, observes
        self.layer = PyroModule[nn.Linear](2, 1)
        setattr(
            self, constrained, PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)
        )

    def forward(self, batch: SequenceBatch) -> None:
        scale = getattr(self, self.constrained)
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    if self.observes:
                        z = pyro.sample(f"z_{t}", dist.Normal(torch.zeros(len(batch)), 1.0))
                    loc = self.layer(self.network((z if self.observes else batch.at(t))[:, None]))[
                        :, 0
                    ]
                    name = f"x_{t}" if self.observes else f"z_{t}"
                    pyro.sample(
                        name, dist.Normal(loc, scale), obs=batch.at(t) if self.observes else None
                    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "a plain module": lambda: nn.Linear(1, 2),
    "a PyroModule": lambda: PyroModule[nn.Linear](1, 2),
    "a PyroModule of modules": lambda: PyroModule[nn.Sequential](
        PyroModule[nn.Linear](1, 2), nn.Tanh()
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_of_pyro_modules_moves(network: str) -> None:
    """Also what they share, and what has one name in both of them."""
    shared = NETWORKS[network]()
    pair = Pair(Shared(shared, "scale", observes=True), Shared(shared, "width", observes=False))
    before = parameters(pair)
    assert len(before) == 2 + 2 * 3
    new_trainer(pair, Stream(real_numbers), num_steps=3, learning_rate=0.01).fit()
    after = parameters(pair)
    assert not [name for name, p in after.items() if torch.equal(p, before[name])]


def test_constrained_parameters_of_one_name_are_an_error() -> None:
    """In Pyro's store model and guide would have one and the same parameter."""
    pair = Pair(
        Shared(nn.Linear(1, 2), "scale", observes=True),
        Shared(nn.Linear(1, 2), "scale", observes=False),
    )
    with pytest.raises(
        UserError,
        match=r"'(model|guide).scale_unconstrained' was replaced by another one of its name",
    ):
        new_trainer(pair, Stream(real_numbers), num_steps=3).fit()


def test_a_module_that_pyro_does_not_know() -> None:
    """Without any registered parameter Pyro computes no gradient, which is an error; with one it
    computes all of them.
    """

    class Plain(nn.Module):
        def __init__(self, registers: bool) -> None:
            super().__init__()
            self.loc, self.other, self.registers = (
                nn.Parameter(torch.zeros(())),
                nn.Linear(1, 1),
                registers,
            )

        def forward(self, batch: SequenceBatch) -> None:
            if self.registers:
                pyro.module("other", self.other)
            with batch.plate():
                for t in batch.steps():
                    with batch.active(t):
                        pyro.sample(
                            f"x_{t}",
                            dist.Normal(self.loc, 1.0).expand([len(batch)]),
                            obs=batch.at(t),
                        )

    pair = Pair(Plain(registers=True))
    new_trainer(pair, Stream(real_numbers), num_steps=3).fit()
    assert float(pair.model.loc.detach()) != 0
    with pytest.raises(
        UserError,
        match=(
            r"this pair registers no parameters with Pyro \(pyro.param, pyro.module\): there is "
            r"nothing to train"
        ),
    ):
        new_trainer(Pair(Plain(registers=False)), Stream(real_numbers), num_steps=1).fit()


def test_a_pair_of_functions_trains() -> None:
    pair = function_pair()
    trainer = new_trainer(pair, Stream(real_numbers), num_steps=60, learning_rate=0.05)
    lines = logged(trainer)
    trainer.fit()
    assert sum(line["loss"] for line in lines[-10:]) < sum(line["loss"] for line in lines[:10])
    assert set(parameters(pair)) == {"scale", "weight", "gain", "width"}
    assert not pyro.get_param_store().keys()  # the global store has seen nothing of it


def test_pairs_that_cannot_be_trained() -> None:
    def fixed(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample(
                "x",
                dist.Normal(0.0, 1.0).expand([len(batch), batch.num_steps]).to_event(1),
                obs=batch.values,
            )

    with pytest.raises(UserError, match="this pair registers no parameters"):
        new_trainer(Pair(fixed), Stream(real_numbers), num_steps=1).fit()

    calls = []

    def growing(batch: SequenceBatch) -> None:
        calls.append(pyro.param(f"loc{len(calls)}", torch.tensor(0.0)))
        with batch.plate():
            pyro.sample(
                "x",
                dist.Normal(calls[-1], 1.0).expand([len(batch), batch.num_steps]).to_event(1),
                obs=batch.values,
            )

    with pytest.raises(RuntimeError, match="a parameter appeared after the first step"):
        new_trainer(Pair(growing), Stream(real_numbers), num_steps=1).fit()


ELBOS: dict[str, Callable[[], Any]] = {
    "particles": lambda: Trace_ELBO(num_particles=3),
    "vectorised": lambda: Trace_ELBO(
        num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
    "mean field": TraceMeanField_ELBO,
    "graph": TraceGraph_ELBO,
    "renyi": lambda: RenyiELBO(alpha=0.5, num_particles=3),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("kind", PAIRS)
def test_any_objective(kind: str, elbo: str, carry: bool) -> None:
    stream = Stream(full_symbols, carry=carry)
    trainer = new_trainer(
        new_pair(kind), stream, num_steps=4, elbo=ELBOS[elbo](), learning_rate=0.01
    )
    before, lines = parameters(trainer.pair), logged(trainer)
    trainer.fit()
    assert not [
        name for name, p in parameters(trainer.pair).items() if torch.equal(p, before[name])
    ]
    assert len(lines) == 4 and all(math.isfinite(line["loss"]) for line in lines)


def test_an_objective_that_is_not_linear_in_the_densities() -> None:
    """The loss and gradient are those of the whole bound, divided by the number of observations."""
    pair = new_pair("srnn")
    trainer = new_trainer(
        pair, num_steps=1, elbo=RenyiELBO(alpha=0, num_particles=4), clip_norm=0.0
    )
    other, lines = copy.deepcopy(pair), logged(trainer)
    pyro.set_rng_seed(5)
    trainer.fit()
    pyro.set_rng_seed(5)
    loss = RenyiELBO(alpha=0, num_particles=4).loss_and_grads(
        other.model, other.guide, Stream(random_symbols).draw()[0]
    )
    norm = torch.stack([p.grad.square().sum() for p in other.parameters().values()]).sum().sqrt()
    assert lines[0]["loss"] == pytest.approx(loss / 10, rel=1e-5)
    assert lines[0]["gradient_norm"] == pytest.approx(float(norm) / 10, rel=1e-4)


def test_discrete_latents_are_summed_out() -> None:
    """A hidden Markov model under TraceEnum_ELBO: the loss is the forward algorithm's, and
    falls.
    """

    @config_enumerate
    def model(batch: SequenceBatch) -> None:
        rows, locs = (
            pyro.param("rows", torch.tensor([[0.2, -0.3], [0.5, 0.1]])),
            pyro.param("locs", torch.tensor([-1.0, 1.0])),
        )
        with batch.plate():
            z: Any = 0
            for t in batch.steps():
                with batch.active(t):
                    z = pyro.sample(f"z_{t}", dist.Categorical(logits=rows[z]))
                    pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=batch.at(t))

    batch = real_numbers(torch.Generator().manual_seed(0))
    transition, expected = torch.tensor([[0.2, -0.3], [0.5, 0.1]]).log_softmax(-1), 0.0
    for x, length in zip(batch.values, batch.lengths, strict=True):
        forward = transition[0]
        for t in range(int(length)):
            if t:
                forward = (forward[:, None] + transition).logsumexp(0)
            forward = forward + dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).log_prob(x[t])
        expected -= float(forward.logsumexp(0))
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    trainer = new_trainer(
        Pair(model), Stream(lambda _: batch), num_steps=30, elbo=elbo, learning_rate=0.05
    )
    lines = logged(trainer)
    trainer.fit()
    assert lines[0]["loss"] == pytest.approx(expected / batch.num_observations, rel=1e-5)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.03


# precision


@pytest.mark.one_in(5)
@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("kind", PAIRS)
def test_bfloat16_is_near_float32(kind: str, cell: str, carry: bool) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        pyro.set_rng_seed(0)
        stream = Stream(full_symbols, carry=carry)
        trainer = new_trainer(
            new_pair(kind, cell=cell), stream, num_steps=15, learning_rate=0.02, precision=precision
        )
        lines = logged(trainer)
        trainer.fit()
        losses.append(torch.tensor([line["loss"] for line in lines]))
        assert all(p.dtype == torch.float32 for p in parameters(trainer.pair).values())
    assert not torch.equal(*losses)
    torch.testing.assert_close(*losses, rtol=0.02, atol=0.02)


def test_auto_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "fast_precision", lambda device, largest: torch.bfloat16)
    seen = []
    pair = new_pair("rnn")
    pair.model.decoder.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    new_trainer(pair, num_steps=1, precision="auto").fit()
    assert seen[-1] == torch.bfloat16
    assert fast_precision(torch.device("cpu"), 2**20) in (torch.bfloat16, torch.float32)
    assert fast_precision(torch.device("cpu"), 2**10) == torch.float32, (
        "small products are not worth casting"
    )


def test_score_of_a_trained_pair() -> None:
    """The loss that training reports is what scoring finds."""
    trainer = new_trainer(new_pair("rnn"), num_steps=1, learning_rate=1e-12)
    lines = logged(trainer)
    trainer.fit()
    batch, _ = Stream(random_symbols).draw()
    assert -float(score(trainer.pair, batch).log_likelihood.sum()) / 10 == pytest.approx(
        lines[0]["loss"], rel=1e-5
    )


class TestLatentsInUse:
    """Active units are a figure of each validation, and a collapse is said once."""

    def trained(self, reads: bool, **changes: Any) -> tuple[list[dict[str, Any]], list[str]]:
        """Validations of a chain whose observations depend on its latent, or do not."""

        def model(batch: SequenceBatch) -> None:
            pyro.module("emission", emission)
            standard = dist.Normal(torch.zeros(len(batch), 1), 1.0).to_event(1)
            with batch.plate():
                for t in batch.steps():
                    with batch.active(t):
                        z = pyro.sample(f"z_{t}", standard)
                        loc = emission(z if reads else 0 * z).squeeze(-1)
                        pyro.sample(f"x_{t}", dist.Normal(loc, 0.5), obs=batch.at(t))

        def guide(batch: SequenceBatch) -> None:
            slope = pyro.param("slope", torch.tensor(1.0))
            with batch.plate():
                for t in batch.steps():
                    with batch.active(t):
                        loc = (slope * batch.at(t)).unsqueeze(-1)
                        pyro.sample(f"z_{t}", dist.Normal(loc, 1.0).to_event(1))

        torch.manual_seed(0)
        emission = nn.Linear(1, 1)
        with torch.no_grad():
            emission.weight.fill_(1.0)

        def draw(random: torch.Generator) -> SequenceBatch:
            return SequenceBatch(torch.randn(16, 4, generator=random))

        trainer = new_trainer(
            Pair(model, guide),
            Stream(draw),
            hooks=Hooks(validate=lambda: {"loss": 1.0}),
            num_steps=60,
            valid_every=20,
            learning_rate=0.1,
            **changes,
        )
        lines, said = logged(trainer), list[str]()
        trainer.log.progress.say = said.append  # type: ignore[method-assign,assignment]
        trainer.fit()
        return [line for line in lines if line["split"] == "valid"], said

    def test_used(self) -> None:
        lines, said = self.trained(reads=True)
        assert [line["active_units"] for line in lines] == [1.0, 1.0, 1.0]
        assert not any("collapse" in line for line in said)

    def test_collapsed(self) -> None:
        lines, said = self.trained(reads=False)
        assert lines[-1]["active_units"] == 0.0
        assert sum("posterior collapse" in line for line in said) == 1

    def test_it_is_not_judged_before_the_divergence_is_at_full_strength(self) -> None:
        _, said = self.trained(reads=False, kl_schedule="linear", kl_steps=1_000, kl_start=0.5)
        assert not any("collapse" in line for line in said)
