"""The likelihood of sequences and the entropy of a generator at any temperature, by the
definition.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_seq import Pair, SequenceBatch, score
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import Embedding
from pyro_seq.models import RNN
from pyro_seq.seqgan.metrics.quality import generated, likelihood, quality
from pyro_seq.seqgan.tasks.base import Measurement
from pyro_seq.seqgan.tasks.oracle_task import OracleRendering

SYMBOLS, STEPS = 7, 5


def generator(layout: Any = "path") -> RNN:
    torch.manual_seed(1)
    model = RNN(
        Categorical(SYMBOLS),
        PreviousObservation(Embedding(SYMBOLS, 4)),
        hidden_size=8,
        layout=layout,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def logits(model: RNN, sequences: Tensor) -> Tensor:
    with torch.no_grad():
        return model.decode(model.hidden_states(SequenceBatch(sequences))[0], None, None)[0]


@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_likelihood_at_a_temperature(layout: Any, temperature: float) -> None:
    model, sequences = generator(layout), torch.randint(SYMBOLS, (40, STEPS))
    nll, entropy = likelihood(Pair(model), sequences, temperature=temperature)
    log_p = (logits(model, sequences) / temperature).log_softmax(-1)
    each = -log_p.gather(-1, sequences.unsqueeze(-1)).squeeze(-1).mean(1).double()
    assert nll.value == pytest.approx(float(each.mean()), rel=1e-5)
    assert nll.standard_error == pytest.approx(float(each.std() / 40**0.5), rel=1e-5)
    assert entropy.value == pytest.approx(float(-(log_p.exp() * log_p).sum(-1).mean()), rel=1e-5)


def test_likelihood_is_the_score_where_nothing_is_sharpened() -> None:
    pair, sequences = Pair(generator()), torch.randint(SYMBOLS, (30, STEPS))
    assert likelihood(pair, sequences)[0].value == pytest.approx(
        -float(score(pair, SequenceBatch(sequences)).total.mean()) / STEPS, rel=1e-5
    )


def test_entropy_is_the_expected_nll_of_what_is_generated() -> None:
    pair = Pair(generator())
    for temperature in (0.7, 1.3):
        new = generated(pair, 4_000, STEPS, temperature=temperature)
        nll, entropy = likelihood(pair, new, temperature=temperature)
        assert nll.standard_error is not None
        assert abs(nll.value - entropy.value) < 4 * nll.standard_error


def test_quality_asks_the_task_about_new_sequences() -> None:
    seen: list[Tensor] = []

    class Judge:
        rendering = OracleRendering(SYMBOLS)

        def judge(self, new: Tensor, references: Tensor) -> dict[str, Measurement]:
            seen.extend([new, references])
            return {"ones": Measurement.mean((new == 1).double().mean(1))}

    references = torch.randint(SYMBOLS, (20, STEPS))
    figures = quality(Pair(generator()), Judge(), references, 50)  # type: ignore[arg-type]
    assert set(figures) == {"nll", "entropy", "ones"}
    assert seen[0].shape == (50, STEPS) and seen[1] is references


def test_a_figure_of_one_value_has_no_error() -> None:
    assert Measurement.mean(torch.tensor([2.0])) == (2.0, None)
    assert Measurement.mean(torch.tensor([1.0, 3.0])) == (2.0, pytest.approx(1.0))
