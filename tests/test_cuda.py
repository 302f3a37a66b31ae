"""The same on a GPU as on the CPU: densities, gradients, scores, samples and trainings; skipped
where there is none.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_seq import (
    AutoSequenceGuide,
    Pair,
    Reinforce,
    RunFolder,
    SequenceBatch,
    Trainer,
    TrainingSettings,
    continuation,
    infill,
    interpolate,
    posterior_predictive,
    sample,
    score,
    score_document,
)
from pyro_seq._pytree import tree_leaves
from pyro_seq._rng import fork_rng, random_state, set_random_state
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import Chain, Context, LastObservations, PreviousObservation, SideInputs
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.elementary import Bernoulli, Categorical
from pyro_seq.encoders import Embedding, Encoder, Flatten
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.models import RNN
from pyro_seq.nn._latent_scan import scan_combined_latents, scan_latents, scan_latents_by_steps
from pyro_seq.nn.feedforward import MLP
from pyro_seq.nn.gaussian import Combiner, NormalNet
from pyro_seq.reinforce.baselines import Critic, LeaveOneOut, MovingAverage
from pyro_seq.reinforce.rollouts import Rollouts

GPU = "cuda"
SYMBOLS, INPUTS, STEPS = 4, 2, 5
LENGTHS = (5, 3, 0, 1)
Maker = Callable[[PairComponents, str], Pair]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def rich_context(encoder: Encoder) -> Context:
    return Chain(
        LastObservations(encoder, 2, MLP(2 * encoder.num_features, [4], activation="tanh")),
        SideInputs(INPUTS),
    )


def parts() -> PairComponents:
    """A symbol and three notes at each step, and side inputs."""
    emission = Joint({"symbol": Categorical(SYMBOLS), "notes": Factorised(Bernoulli(), 3)})
    return PairComponents(
        emission,
        lambda: JointEncoder({"symbol": Embedding(SYMBOLS, 3), "notes": Flatten(3)}),
        rich_context,
        INPUTS,
    )


def batch(lengths: Any = LENGTHS, steps: int = STEPS) -> SequenceBatch:
    n = len(lengths)
    values = {
        "symbol": torch.randint(0, SYMBOLS, (n, steps)),
        "notes": torch.randint(0, 2, (n, steps, 3)).to(torch.get_default_dtype()),
    }
    return SequenceBatch(values, lengths, inputs=torch.randn(n, steps, INPUTS))


def on_gpu(pair: Pair) -> Pair:
    return copy.deepcopy(pair).to(GPU)


@contextmanager
def noise_of_the_cpu() -> Iterator[None]:
    """Standard normal noise is drawn on the CPU by seed 0, whatever device it is for."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: Any, dtype: Any = None, device: Any = "cpu", **_: Any) -> Tensor:
        size = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return torch.empty(size, dtype=dtype).normal_(generator=generator).to(device)

    def of_normals(shape: Any, dtype: Any, device: Any) -> Tensor:
        return drawn(shape, dtype=dtype, device=device)

    with (
        mock.patch("torch.randn", drawn),
        mock.patch("torch.distributions.normal._standard_normal", of_normals),
    ):
        yield


def assert_same(found: Any, expected: Any) -> None:
    """Trees of tensors, those found on the GPU."""
    for x, y in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert x.device.type == GPU
        torch.testing.assert_close(x.cpu(), y, rtol=1e-9, atol=1e-10)


def loss_and_gradients(
    pair: Pair, given: SequenceBatch, elbo: Any = Trace_ELBO
) -> tuple[Tensor, dict[str, Tensor]]:
    with pair.scope(), noise_of_the_cpu():
        loss = elbo(max_plate_nesting=1).differentiable_loss(pair.model, pair.guide, given)
        parameters = pair.parameters()
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return loss, {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}


# densities and gradients


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("layout", ["path", "steps"])
def test_bounds_and_their_gradients(shipped: Maker, layout: str, elbo: Any, float64: None) -> None:
    pair, given = shipped(parts(), layout), batch()
    expected, found = (
        loss_and_gradients(p, b, elbo) for p, b in ((pair, given), (on_gpu(pair), given.to(GPU)))
    )
    assert_same(found[0].detach(), expected[0].detach())
    assert found[1].keys() == expected[1].keys()
    assert_same(found[1], expected[1])


@pytest.mark.parametrize("kind", ["hmm", "rnn"])
@pytest.mark.parametrize("layout", ["path", "steps"])
def test_exact_likelihoods(kind: str, layout: str, float64: None) -> None:
    pair, given = (
        make_pair(model_settings(kind, {"hidden_size": 4, "layout": layout}), parts()),
        batch(),
    )
    given = given.select(torch.tensor([0, 1, 3]))
    expected, found = score(pair, given), score(on_gpu(pair), given.to(GPU))
    assert_same(found.steps, expected.steps)
    assert_same(found.total, expected.total)


@pytest.mark.parametrize("depth", [(), (5,), (5, 6)])
@pytest.mark.parametrize("residual", [False, True])
def test_paths_in_one_kernel(depth: tuple[int, ...], residual: bool, float64: None) -> None:
    """On the GPU, against the loop under autograd there; with gradients to every input and
    weight.
    """
    n, z, features = 3, 2, 4
    nets = [
        NormalNet(features + z, depth, z, activation="tanh").to(GPU) for _ in range(1 + residual)
    ]
    inputs = [
        torch.randn(n, STEPS, z),
        torch.randn(n, z),
        *(torch.randn(n, STEPS, features) for _ in nets),
    ]
    leaves = [x.to(GPU).requires_grad_() for x in inputs] + [
        p for net in nets for p in net.parameters()
    ]
    noise, first, seen, *prior = leaves[: len(inputs)]
    given = (noise, first, nets[0], seen, *((nets[1], prior[0]) if residual else ()))
    results = []
    for function in (scan_latents, scan_latents_by_steps):
        path, scale = function(*given)
        loss = (
            path.sin() * torch.linspace(1, 2, path.numel(), device=GPU).view_as(path)
        ).sum() + scale.log().sum()
        results.append((path, scale, torch.autograd.grad(loss, leaves, allow_unused=True)))
    torch.testing.assert_close(results[0][:2], results[1][:2])
    for left, right in zip(results[0][2], results[1][2], strict=True):
        assert (left is None or not left.any()) if right is None else torch.allclose(left, right)


def test_combined_path(float64: None) -> None:
    combiner = Combiner(2, 4).to(GPU)
    noise, first, evidence = (
        torch.randn(*shape, device=GPU) for shape in ((3, STEPS, 2), (3, 2), (3, STEPS, 4))
    )
    path, scale = scan_combined_latents(noise, first, combiner, evidence)
    z = first
    for t in range(STEPS):
        law = combiner(evidence[:, t], z)
        z = law.loc + law.scale * noise[:, t]
        torch.testing.assert_close(path[:, t], z)
        torch.testing.assert_close(scale[:, t], law.scale)


def walk(given: SequenceBatch) -> None:
    """A random walk as a function, whose parameter is made where the batch lies."""
    scale = pyro.param("scale", lambda: torch.full((), 0.7, device=given.device))
    with given.plate():
        z: Any = torch.zeros(len(given), device=given.device)
        for t in given.steps():
            with given.active(t):
                z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, scale), obs=given.at(t))


def walking(given: SequenceBatch) -> None:
    pull = pyro.param("pull", lambda: torch.full((), 0.3, device=given.device))
    with given.plate():
        for t in given.steps():
            with given.active(t):
                pyro.sample(f"z_{t}", dist.Normal(pull * given.at(t), 1.0))


@pytest.mark.parametrize(
    "make",
    [lambda: walking, lambda: AutoSequenceGuide(walk, hidden_size=4)],
    ids=["written", "free"],
)
def test_functions_and_their_parameters(make: Callable[[], Any], float64: None) -> None:
    """A pair moves with what its functions have registered, also under a guide for free."""
    pair, given = Pair(walk, make()), SequenceBatch(torch.randn(3, 4), [4, 2, 1])
    with pair.scope():
        score(pair, given, method="elbo")  # which registers the parameters
        expected = loss_and_gradients(pair, given)
        found = loss_and_gradients(pair.to(GPU), given.to(GPU))
    assert {"scale"} < expected[1].keys()
    assert_same(found[0].detach(), expected[0].detach())
    assert_same(found[1], expected[1])


# scores and samples


@pytest.mark.parametrize("method", ["elbo", "importance", "filter"])
@pytest.mark.parametrize("layout", ["path", "steps"])
def test_estimates(shipped: Maker, layout: str, method: Any, float64: None) -> None:
    """Estimates of one figure on both devices, within their errors."""
    pair, given = shipped(parts(), layout), batch((5, 3, 1))
    gpu = on_gpu(pair)
    expected, found = (
        score(pair, given, method=method, samples=200),
        score(gpu, given.to(GPU), method=method, samples=200),
    )
    assert found.total.device.type == GPU and found.steps.device.type == GPU
    error = (expected.standard_error**2 + found.standard_error.cpu() ** 2).sqrt()
    assert ((found.total.cpu() - expected.total).abs() < 5 * error + 1e-9).all()
    assert torch.allclose(found.steps.sum(1), found.total)


def test_estimates_over_windows(shipped: Maker) -> None:
    pair = on_gpu(shipped(parts(), "path"))
    windows = [batch((5, 5)).to(GPU), batch((5, 4)).to(GPU)]
    method: Any = "filter" if getattr(pair.model, "latent_size", 0) else "exact"
    first = score(pair, windows[0], method=method, samples=16)
    second = score(pair, windows[1], method=method, samples=16, state=first.state)
    assert second.total.device.type == GPU and second.total.isfinite().all()
    assert [
        scored.total.device.type
        for scored in score_document(pair, windows, method=method, samples=16)
    ] == [GPU, GPU]


def test_samples(shipped: Maker) -> None:
    """Each is on the GPU, of its shape, and what was observed stays in it."""
    pair, given = on_gpu(shipped(parts(), "path")), batch((5, 3)).to(GPU)
    new = sample(pair, 3, 4, inputs=torch.randn(3, 4, INPUTS, device=GPU))
    assert new["notes"].shape == (3, 4, 3) and new["notes"].device.type == GPU
    full = batch((5, 5)).to(GPU)
    later = continuation(
        pair, full, 2, inputs=torch.randn(2, 2, INPUTS, device=GPU), samples=4, draws=3
    )
    assert later["symbol"].shape == (6, 2) and later["symbol"].device.type == GPU
    missing = torch.zeros(2, 5, dtype=torch.bool, device=GPU)
    missing[:, 1] = True
    filled = infill(pair, given, missing, samples=4, draws=3)
    assert filled["symbol"].shape == (6, 5) and filled["symbol"].device.type == GPU
    assert filled["symbol"].view(2, 3, 5)[0, :, 0].eq(given.values["symbol"][0, 0]).all()
    if getattr(pair.model, "latent_size", 0):
        between = interpolate(pair, given, full, 3, samples=4)
        assert between["notes"].shape[:2] == (6, 5) and between["notes"].device.type == GPU
        found = posterior_predictive(pair, given, 6)
        assert all(x.device.type == GPU for x in found.values())


@pytest.mark.parametrize("layout", ["path", "steps"])
def test_discrete_states(layout: str) -> None:
    pair = make_pair(model_settings("hmm", {"num_states": 3, "layout": layout}), parts()).to(GPU)
    given = batch((5, 3)).to(GPU)
    assert (
        sample(pair, 2, 3, inputs=torch.zeros(2, 3, INPUTS, device=GPU))["symbol"].device.type
        == GPU
    )
    missing = torch.zeros(2, 5, dtype=torch.bool, device=GPU)
    missing[:, 1] = True
    assert infill(pair, given, missing, samples=4)["symbol"].device.type == GPU


def test_random_state_and_draws_aside() -> None:
    torch.rand(3, device=GPU)
    state = random_state()
    first = torch.rand(4, device=GPU), torch.rand(4)
    with fork_rng(5):
        torch.rand(9, device=GPU)
    second = torch.rand(4, device=GPU)
    set_random_state(state)
    assert torch.equal(torch.rand(4, device=GPU), first[0]) and torch.equal(torch.rand(4), first[1])
    assert torch.equal(torch.rand(4, device=GPU), second)


# training


class Stream:
    """The same minibatches again and again."""

    def __init__(self, batches: list[SequenceBatch]) -> None:
        self.batches, self.at = batches, 0

    def draw(self) -> tuple[SequenceBatch, bool]:
        self.at += 1
        return self.batches[self.at % len(self.batches)], False

    def state(self) -> Any:
        return {"at": self.at}

    def load_state(self, state: Any) -> None:
        self.at = int(state["at"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "auto"])
def test_training_and_going_on(shipped: Maker, tmp_path: Path, precision: str) -> None:
    """The bound rises; a run that stopped half-way ends near one that did not."""
    data = Stream([batch((5, 4, 3, 5)).to(GPU)])
    settings: dict[str, Any] = {
        "learning_rate": 1e-2,
        "precision": precision,
        "ema_decay": 0.5,
        "sample_every": 0,
        "checkpoint_seconds": 1e6,
    }
    settings |= {"warmup": 0.0, "schedule": "constant", "log_every": 15}
    ends = []
    for name, lengths in (("whole", (60,)), ("halves", (30, 60))):
        torch.manual_seed(1)
        pair = shipped(parts(), "path").to(GPU)
        run = RunFolder(tmp_path / name, "text")
        with run.locked():
            run.create({}, {})
        data.at = 0
        torch.manual_seed(2)
        for i, steps in enumerate(lengths):
            if i:
                torch.manual_seed(3)
            trainer = Trainer(
                pair, data, TrainingSettings(num_steps=steps, **settings), run=run, quiet=True
            )
            trainer.fit(resume=i > 0)
        ends.append({name: p.detach().cpu() for name, p in pair.parameters().items()})
    lines = [
        json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["loss"] < lines[0]["loss"]
    for name, value in ends[0].items():
        torch.testing.assert_close(
            ends[1][name],
            value,
            rtol=0.02,
            atol=0.02,
            msg=lambda text, name=name: f"{name}: {text}",
        )


# policy gradient


def context() -> Context:
    return PreviousObservation(Embedding(SYMBOLS, 3))


@pytest.mark.parametrize("make", [None, LeaveOneOut, MovingAverage, lambda: Critic(context())])
def test_policy_gradient_and_rollouts(make: Any) -> None:
    model = RNN(Categorical(SYMBOLS), context(), hidden_size=4).to(GPU)
    pair, given = Pair(model), SequenceBatch(None, [4] * 6)

    def reward(b: SequenceBatch) -> Tensor:
        return b.values.float().sum(1)

    rollouts = Rollouts(pair, reward, num_rollouts=3)
    objective: Any = Reinforce(rollouts, baseline=make and make().to(GPU))
    with pair.scope():
        loss = objective.loss_and_grads(model, pair.guide, given)
        assert math.isfinite(float(loss))
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
