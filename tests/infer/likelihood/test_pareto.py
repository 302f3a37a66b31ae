"""Pareto k-hat against closed forms, and what is said of weights that have degenerated."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch

import pyro_seq
from pyro_seq import Pair, SequenceBatch, score, score_document
from pyro_seq.cli.common import doubt
from pyro_seq.cli.programs.text import report as text_report
from pyro_seq.cli.score import report as sequence_report
from pyro_seq.infer.likelihood.pareto import fitted_shape, k_hat
from pyro_seq.infer.likelihood.score import UnreliableEstimate, warn_if_unreliable
from pyro_seq.programs.scored_run import Estimate, ScoredSequence, as_document
from pyro_seq.text.scoring import TextScore
from pyro_seq.text.vocabulary import Vocabulary


@pytest.mark.one_in(2)
@pytest.mark.parametrize("shape", [-0.4, 0.2, 0.5, 0.7, 1.0, 2.0])
def test_shape_of_generalised_pareto_draws(shape: float, float64: None) -> None:
    """From their quantile function (u^-k - 1) / k; fits are drawn to 1/2 by a weight of ten."""
    m, fits = 400, 500
    draws = ((torch.rand(fits, m).pow(-shape) - 1) / shape).sort(-1).values
    found = fitted_shape(draws * 3)
    assert abs(found.mean() - (m * shape + 5) / (m + 10)) < 4 * found.std() / math.sqrt(fits) + 0.03
    # of the maximum likelihood estimate
    assert abs(found.std() - (1 + shape) / math.sqrt(m)) < 0.25 * (1 + shape) / math.sqrt(m)
    assert torch.allclose(found, fitted_shape(draws), atol=1e-6)  # no matter the scale


def test_k_hat_of_weights(float64: None) -> None:
    uniform = torch.rand(300, 2000)
    for shape in (0.3, 0.7, 1.2):
        assert abs(k_hat(-shape * uniform.log() + 500).mean() - shape) < 0.06
    assert k_hat(torch.zeros(2, 50)).tolist() == [-math.inf] * 2 and k_hat(
        torch.full((1, 50), -math.inf)
    ).tolist() == [-math.inf]
    assert k_hat(torch.randn(2, 24)).isnan().all()
    assert (k_hat(torch.randn(20, 1000) * 0.1) < 0.7).all() and (
        k_hat(torch.randn(20, 1000) * 20) > 0.7
    ).all()
    assert k_hat(torch.tensor([[0.0] + [-math.inf] * 99]))[0] > 0.7


def windows(pair: Any, n: int, width: int) -> list[SequenceBatch]:
    x = (
        torch.randn(n, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).cumsum(
            -1
        )
        * 0.7
    )
    return [pair.model.batch(part) for part in x.split(width, 1)]


def test_degenerate_weights_warn(linear_gaussian: Callable[..., Pair]) -> None:
    """From the prior over windows of ten, errors are too small; from the exact guide not."""
    pair = linear_gaussian()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = list(
            score_document(
                pair, windows(pair, 4, 10), method="importance", samples=200, proposal="prior"
            )
        )
        count = len(caught)
        assert (
            score(pair, windows(pair, 4, 30)[0], method="importance", samples=200).doubt is None
            and len(caught) == count
        )
    assert caught and all(issubclass(one.category, UnreliableEstimate) for one in caught)
    assert "Pareto k-hat" in str(caught[0].message) and "the weights have degenerated" in str(
        caught[0].message
    )
    heavy = torch.stack([one.k_hat for one in scores])  # type: ignore[misc]
    few = torch.stack([one.effective_samples for one in scores])  # type: ignore[misc]
    assert (
        (heavy[1:] >= heavy[:-1]).all() and (few[1:] <= few[:-1]).all() and (heavy[-1] > 0.7).any()
    )
    assert scores[-1].doubt is not None and scores[-1].state["k_hat"].shape == (4,)


def test_other_methods(linear_gaussian: Callable[..., Pair]) -> None:
    pair = linear_gaussian()
    batch = windows(pair, 2, 30)[0]
    assert (
        score(pair, batch, method="elbo", samples=50).k_hat is None
        and score(pair, batch, samples=10).k_hat.isnan().all()
    )  # type: ignore[union-attr]
    filtered = score(pair, batch, method="filter", samples=50)
    assert filtered.k_hat is None and filtered.doubt is None


def test_reports_say_it() -> None:
    """In words and in what --json writes, of `score` and of the programs' `evaluate`."""
    warning = warn_if_unreliable("importance", 100, 1.5, 1.25)
    assert (
        warning is not None
        and "Pareto k-hat 1.25, above 0.7; effective samples 1.5 of 100" in warning
    )
    assert (
        warn_if_unreliable("importance", 100, 60.0, 0.7) is None
        and warn_if_unreliable("filter", 100, 4.0, None) is not None
    )
    assert (
        warn_if_unreliable("importance", 4, 1.1, None) is None
        and warn_if_unreliable("importance", 100, 0.0, None) is None
    )
    estimate = Estimate(
        log_likelihood=-20.0,
        standard_error=0.5,
        method="importance",
        samples=100,
        effective_samples=1.5,
        k_hat=1.25,
        warning=warning,
    )
    sequence = ScoredSequence(**estimate.figures(), name="a.txt", steps=9)
    shown = sequence_report(sequence, "byte")
    assert f"  warning             {warning}" in shown and "; Pareto k-hat 1.25)" in shown
    assert (
        as_document(sequence, "byte")["k_hat"] == 1.25
        and as_document(sequence, "byte")["warning"] == warning
    )
    text = TextScore(
        **estimate.figures(),
        characters=9,
        nats_per_character=2.2,
        bits_per_character=3.2,
        perplexity=9.2,
        unknown=0,
    )
    assert f"warning               {warning}" in text_report(text, Vocabulary("char", "a"))
    assert doubt(estimate, 22) == [f"warning               {warning}"]


def test_dataclasses_of_tensors_are_equal_to_themselves_alone(
    linear_gaussian: Callable[..., Pair],
) -> None:
    """Tensors compared entry by entry have no truth value: no dataclass may do that."""
    wrong = []
    for module in pkgutil.walk_packages(pyro_seq.__path__, "pyro_seq."):
        if module.name.endswith("__main__"):
            continue
        for name, found in vars(importlib.import_module(module.name)).items():
            if (
                inspect.isclass(found)
                and dataclasses.is_dataclass(found)
                and found.__module__ == module.name
            ):
                holds = any(
                    kind in str(field.type)
                    for field in dataclasses.fields(found)
                    for kind in ("Tensor", "ndarray", "NDArray")
                )
                if holds and found.__eq__ is not object.__eq__:
                    wrong.append(f"{module.name}.{name}")
    assert not wrong
    pair = linear_gaussian()
    batch = windows(pair, 2, 30)[0]
    pyro.set_rng_seed(0)
    one, other = score(pair, batch), score(pair, batch)
    assert one == one and one != other and one in [other, one] and len({one, other}) == 2
