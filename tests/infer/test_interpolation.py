"""Between two sequences: the ends are what their latents decode to, and the way between them is
straight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_seq import Pair, SequenceBatch, UserError, interpolate
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.composite import Joint
from pyro_seq.emissions.elementary import Bernoulli, Categorical
from pyro_seq.encoders import Flatten, OneHot
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.infer.sampling import tempered
from pyro_seq.infer.stepping import stepper
from pyro_seq.models import RNN


def its_mean(law: Any) -> Any:
    return dist.Delta(law.mean)


@pytest.mark.parametrize("layout", ["path", "steps"])
def test_linear_gaussian(linear_gaussian: Callable[..., Pair], layout: str) -> None:
    """With the exact posterior and means for draws, the way goes from one smoothed path to the
    other in equal steps.
    """
    pair = linear_gaussian(layout)
    model: Any = pair.model
    x, y = (
        torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]),
        torch.tensor([[-1.0, -2.0, -3.0], [4.0, 4.0, 4.0]]),
    )
    found = interpolate(
        pair, model.batch(x), model.batch(y), 5, samples=4000, transform_distribution=its_mean
    )
    assert found.shape == (10, 3)
    found = found.view(2, 5, 3)
    error = model.posterior(x)[1].diagonal().max().sqrt() / 4000**0.5
    for end, given in ((0, x), (-1, y)):
        assert ((found[:, end] - model.posterior(given)[0]).abs() < 5 * error).all()
    torch.testing.assert_close(found.diff(dim=1), found.diff(dim=1)[:, :1].expand(2, 4, 3))


def test_unequal_lengths_and_chunks() -> None:
    parts = PairComponents(
        Joint({"tone": Categorical(3), "on": Bernoulli()}),
        lambda: JointEncoder({"tone": OneHot(3), "on": Flatten(())}),
        PreviousObservation,
    )
    pair = make_pair(model_settings("srnn", {"hidden_size": 4, "latent_size": 2}), parts)

    def batch(steps: int, lengths: list[int]) -> SequenceBatch:
        return SequenceBatch(
            {
                "tone": torch.randint(0, 3, (2, steps)),
                "on": torch.randint(0, 2, (2, steps)).float(),
            },
            lengths,
        )

    with mock.patch.object(stepper, "CHUNK_STEPS", 1):
        found = interpolate(
            pair,
            batch(6, [6, 2]),
            batch(4, [3, 4]),
            3,
            samples=2,
            transform_distribution=lambda law: tempered(law, temperature=0.5),
        )
    assert found["tone"].shape == (6, 4) and found["tone"].dtype == torch.long
    mask = torch.arange(4) < torch.tensor([3, 2]).repeat_interleave(3).unsqueeze(-1)
    assert not found["on"][~mask].any() and not found["tone"][~mask].any()


def test_functions_with_a_latent_of_the_sequence() -> None:
    """A level of each whole sequence; side inputs go the same way."""

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            level = pyro.sample("level", dist.Normal(0.0, 5.0))
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(
                        f"x_{t}",
                        dist.Normal(level + batch.inputs_at(t)[:, 0], 1e-4),
                        obs=batch.at(t),
                    )  # type: ignore[index]

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample("level", dist.Normal((batch.values - batch.inputs[..., 0]).mean(-1), 1e-4))  # type: ignore

    ends = [
        SequenceBatch(torch.full((1, 3), level), inputs=torch.full((1, 3, 1), u))
        for level, u in ((1.0, 0.0), (7.0, 2.0))
    ]
    found = interpolate(Pair(model, guide), *ends, 3)
    torch.testing.assert_close(
        found, torch.tensor([1.0, 4.0, 7.0]).unsqueeze(-1).expand(3, 3), rtol=0, atol=1e-2
    )


def test_refusals(linear_gaussian: Callable[..., Pair]) -> None:
    pair = linear_gaussian()
    batch = pair.model.batch(torch.zeros(2, 3))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="got 2 and 1 sequences"):
        interpolate(pair, batch, batch.select(slice(0, 1)), 3)
    with pytest.raises(UserError, match="a batch has no observations"):
        interpolate(pair, batch, batch.without_values(), 3)
    with pytest.raises(UserError, match="at least 2 places and 1 sample, got 1 and 64"):
        interpolate(pair, batch, batch, 1)
    with pytest.raises(UserError, match="must have side inputs"):
        interpolate(pair, batch, SequenceBatch(torch.zeros(2, 3)), 3)
    with pytest.raises(UserError, match="at their beginning"):
        interpolate(pair, batch, batch.with_state({}), 3)
    symbols = SequenceBatch(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(UserError, match="no latents"):
        interpolate(
            Pair(RNN(Categorical(3), PreviousObservation(OneHot(3)), hidden_size=3)),
            symbols,
            symbols,
            3,
        )

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample("k", dist.Categorical(torch.ones(3)))

    with pytest.raises(UserError, match="site 'k' are discrete"):
        interpolate(Pair(guide, guide), symbols, symbols, 3)


def walk(batch: SequenceBatch) -> None:
    with batch.plate():
        z = torch.zeros(len(batch))
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", dist.Normal(z, 0.5))
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=batch.at(t))


def test_functions_of_unequal_steps_are_cut_to_the_shorter() -> None:
    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"z_{t}", dist.Normal(batch.at(t), 1e-6))

    long, short = torch.randn(2, 7), torch.randn(2, 4)
    pair = Pair(walk, guide)
    for first, second in ((long, short), (short, long)):
        found = interpolate(
            pair,
            SequenceBatch(first),
            SequenceBatch(second),
            3,
            samples=1,
            transform_distribution=its_mean,
        ).view(2, 3, 4)
        wanted = torch.stack([first[:, :4], (first[:, :4] + second[:, :4]) / 2, second[:, :4]], 1)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_functions_with_a_path_in_one_site() -> None:
    """Of batches of unequal length, the path of the shorter one's steps."""

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            z = pyro.sample("z", dist.Normal(0.0, 5.0).expand([batch.num_steps]).to_event(1))
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Normal(z[..., t], 1e-4), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample("z", dist.Normal(batch.values, 1e-4).to_event(1))

    first, second = SequenceBatch(torch.arange(6.0).expand(1, 6)), SequenceBatch(torch.zeros(1, 4))
    found = interpolate(Pair(model, guide), first, second, 3)
    expected = torch.arange(4.0) * torch.tensor([1.0, 0.5, 0.0]).unsqueeze(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)


def test_latents_of_different_shapes_are_refused() -> None:
    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample("z", dist.Normal(0.0, 1.0).expand([batch.num_steps + 1]).to_event(1))

    with pytest.raises(
        UserError, match=r"latents of site 'z' have different shapes, \[4\] and \[3\]"
    ):
        interpolate(
            Pair(guide, guide),
            SequenceBatch(torch.zeros(1, 3)),
            SequenceBatch(torch.zeros(1, 2)),
            2,
        )
