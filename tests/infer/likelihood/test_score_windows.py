"""Windows of a document: what the model must leave for the next one."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.document import filtered_state, score_document
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.pairs.model import SequenceOutput
from pyro_seq.pairs.pair import Pair, no_guide

STAYS = torch.tensor([[0.98, 0.02], [0.02, 0.98]])  # p(x_t | x_{t-1})
X = torch.zeros(2, 12, dtype=torch.long)
SAYS = (
    "^the model returned no state with the window before: have it return a SequenceOutput with a "
    "state, or score whole sequences$"
)


def chain(batch: SequenceBatch) -> torch.Tensor:
    """The last symbol of sequences in which each stays what it was, most often; the first is either
    one.
    """
    last = None if batch.state is None else batch.state["model"]
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                p = torch.full((len(batch), 2), 0.5) if last is None else STAYS[last]
                last = pyro.sample(f"x_{t}", dist.Categorical(p), obs=batch.at(t))
    assert last is not None
    return last


def forgetful(batch: SequenceBatch) -> None:
    chain(batch)


def careful(batch: SequenceBatch) -> SequenceOutput:
    return SequenceOutput(None, None, chain(batch))


def noisy(batch: SequenceBatch) -> None:
    for t in batch.steps():
        pyro.sample(f"z_{t}", dist.Normal(torch.zeros(len(batch)), 1.0))
    chain(batch)


def guide_of_noise(batch: SequenceBatch) -> SequenceOutput:
    for t in batch.steps():
        pyro.sample(f"z_{t}", dist.Normal(torch.zeros(len(batch)), 1.0))
    return SequenceOutput(None, None, torch.zeros(len(batch)))


def windows(length: int = 3) -> list[SequenceBatch]:
    return [SequenceBatch(part) for part in X.split(length, 1)]


def test_of_a_model_with_a_state_are_one_sequence() -> None:
    """The guide needs no state for that."""
    whole = score(Pair(forgetful), SequenceBatch(X)).total
    torch.testing.assert_close(
        whole, torch.full((2,), 0.5).log().double() + 11 * STAYS[0, 0].log().double()
    )
    parts = list(score_document(Pair(careful, no_guide), windows()))
    torch.testing.assert_close(parts[-1].total, whole)
    assert all(part.exact for part in parts)


def layers_first(batch: SequenceBatch) -> SequenceOutput:
    return SequenceOutput(None, None, chain(batch).expand(3, -1))


def count(batch: SequenceBatch) -> SequenceOutput:
    chain(batch)
    return SequenceOutput(None, None, torch.tensor(batch.num_steps))


@pytest.mark.parametrize("method", ["importance", "filter"])
@pytest.mark.parametrize(("model", "shape"), [(layers_first, r"\[3, "), (count, r"\[\]")])
@pytest.mark.parametrize("latent", [False, True])
def test_states_without_the_sequences_first_are_refused_where_a_window_would_start_from_them(
    model: Any, shape: str, method: Any, latent: bool
) -> None:
    """Whole sequences need none."""

    def noisy_too(batch: SequenceBatch) -> SequenceOutput:
        for t in batch.steps():
            pyro.sample(f"z_{t}", dist.Normal(torch.zeros(len(batch)), 1.0))
        return model(batch)

    pair = Pair(noisy_too if latent else model)
    first = score(pair, windows()[0], method=method, samples=4, proposal="prior")
    torch.testing.assert_close(first.total, score(Pair(forgetful), windows()[0]).total)
    with pytest.raises(
        UserError,
        match=(
            f"^the model's state has a tensor of shape {shape}.*its first dimension must be the "
            "sequences"
        ),
    ):
        score(pair, windows()[1], state=first.state)


@pytest.mark.parametrize("method", ["auto", "exact", "filter"])
def test_second_window_of_a_model_without_a_state_is_refused(method: Any) -> None:
    pair = Pair(forgetful)
    parts = score_document(pair, windows(), method=method)
    first = next(parts)
    torch.testing.assert_close(first.total, score(pair, windows()[0]).total)
    with pytest.raises(UserError, match=SAYS):
        next(parts)
    with pytest.raises(UserError, match=SAYS):
        score(pair, windows()[1], state=first.state)
    with pytest.raises(UserError, match=SAYS):
        filtered_state(pair, windows())


@pytest.mark.parametrize("method", ["elbo", "importance", "filter"])
@pytest.mark.parametrize("proposal", ["guide", "prior"])
def test_a_guide_s_state_is_not_enough(method: Any, proposal: Any) -> None:
    parts = score_document(
        Pair(noisy, guide_of_noise), windows(), method=method, samples=3, proposal=proposal
    )
    next(parts)
    with pytest.raises(UserError, match=SAYS):
        next(parts)


def test_a_window_alone_needs_no_state() -> None:
    (scored,) = score_document(Pair(forgetful), windows(12))
    torch.testing.assert_close(scored.total, score(Pair(careful), SequenceBatch(X)).total)
