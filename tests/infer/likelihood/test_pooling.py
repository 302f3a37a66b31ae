"""Particles by the thousand, in portions: the same estimates as of all of them at once, in a memory
that does not grow with them.
"""

from __future__ import annotations

import io
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pyro_seq._progress import Progress
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood import pooling
from pyro_seq.infer.likelihood.document import score_document
from pyro_seq.infer.likelihood.pareto import k_hat
from pyro_seq.infer.likelihood.pooling import portions
from pyro_seq.infer.likelihood.score import Score
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.models import RNN
from pyro_seq.pairs.pair import Pair

SEEDS = 60


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight particles at a time."""
    monkeypatch.setattr(pooling, "MOST_STATES", 8)


def windows(pair: Pair, x: torch.Tensor, length: int) -> list[SequenceBatch]:
    model: Any = pair.model
    return [model.batch(part) for part in x.split(length, 1)]


def last(scores: Iterator[Score]) -> Score:
    return list(scores)[-1]


def test_portions_hold_all_particles_and_are_of_like_sizes() -> None:
    assert portions(3, 100, 16) == (3, [16])
    assert portions(20_000, 10, 16) == (2**14, [16])  # sequences come apart first
    rows, sizes = portions(5, 64, 1_000_000)
    assert (
        rows == 1
        and sum(sizes) == 1_000_000
        and max(sizes) <= pooling.MOST_STATES
        and max(sizes) - min(sizes) <= 1
    )
    assert portions(1, 10**9, 7) == (1, [3, 2, 2])  # the spread of one particle is not to be told
    assert max(portions(1, 100_000, 1_000)[1]) * 100_000 <= pooling.MOST_WEIGHTS


@pytest.mark.parametrize("method", ["importance", "elbo"])
def test_whole_paths_are_weighed_as_if_all_had_been_drawn_at_once(
    few: None, linear_gaussian: Callable[..., Pair], method: Any
) -> None:
    pair, x = linear_gaussian(shift=0.2), torch.randn(1, 5)
    model: Any = pair.model
    torch.manual_seed(3)
    parts = [score(pair, model.batch(x), method=method, samples=8) for _ in range(3)]
    torch.manual_seed(3)
    with torch.random.fork_rng():  # a look at the first window tells whether there are latents
        score(pair, model.batch(x), method=method)
        after = torch.get_rng_state()
    torch.set_rng_state(after)
    parts = [score(pair, model.batch(x), method=method, samples=8) for _ in range(3)]
    torch.manual_seed(3)
    pooled = last(score_document(pair, [model.batch(x)], method=method, samples=24))
    totals = torch.stack([part.total for part in parts])
    if method == "elbo":
        expected, steps = totals.mean(0), torch.stack([part.steps for part in parts]).mean(0)
    else:
        expected = totals.logsumexp(0) - math.log(3)
        grown = torch.stack([part.steps for part in parts]).cumsum(-1).logsumexp(0) - math.log(3)
        steps = grown - torch.cat([torch.zeros(1, 1), grown[:, :-1]], -1)
    assert (pooled.samples, pooled.method) == (24, method)
    torch.testing.assert_close(pooled.total, expected)
    torch.testing.assert_close(pooled.steps, steps)
    torch.testing.assert_close(pooled.steps.sum(-1), pooled.total)
    if method == "importance":
        weights = (totals - totals.logsumexp(0)).exp()
        numbers = torch.stack(
            [part.effective_samples for part in parts if part.effective_samples is not None]
        )
        torch.testing.assert_close(pooled.effective_samples, 1 / (weights**2 / numbers).sum(0))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["importance", "filter", "elbo"])
def test_figures_over_windows_and_their_errors_are_right(
    few: None, linear_gaussian: Callable[..., Pair], method: Any
) -> None:
    """Unbiased for the exact likelihood, as without portions; the error bar is the spread over
    seeds.
    """
    torch.manual_seed(5)
    pair = linear_gaussian(widen=1.2)
    model: Any = pair.model
    x = torch.randn(1, 6)
    exact = float(model.log_likelihood(x))
    found = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        found.append(last(score_document(pair, windows(pair, x, 3), method=method, samples=32)))
    totals = torch.stack([scored.total for scored in found]).flatten()
    spread, said = (
        float(totals.std()),
        float(torch.stack([scored.variance for scored in found]).mean().sqrt()),
    )
    assert 0.75 < said / spread < 1.33
    if method == "elbo":
        assert float(totals.mean()) < exact
        at_once = float(score_document_of(pair, windows(pair, x, 3), 800))
        assert abs(float(totals.mean()) - at_once) < 4 * math.hypot(
            spread / SEEDS**0.5, spread * (32 / 800) ** 0.5
        )
        return
    ratio = (totals - exact).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / SEEDS**0.5
    effective = torch.stack(
        [scored.effective_samples for scored in found if scored.effective_samples is not None]
    )
    assert ((effective >= 1) & (effective <= 32 + 1e-9)).all()


def score_document_of(pair: Pair, given: list[SequenceBatch], samples: int) -> torch.Tensor:
    """The ELBO of so many particles at once."""
    state = None
    for window in given:
        scored = score(pair, window, method="elbo", samples=samples, state=state)
        state = scored.state
    return scored.total


def test_sequences_come_apart_and_together_again(few: None, written: Pair) -> None:
    """Of several lengths, each scored as it is alone; what is padding has no share."""
    x = torch.randn(5, 4)
    batch = SequenceBatch(x, [4, 2, 3, 1, 4])
    for samples in (4, 20):
        (pooled,) = score_document(written, iter([batch]), samples=samples)
        assert (
            pooled.mask.equal(batch.mask)
            and (pooled.steps[~batch.mask] == 0).all()
            and pooled.samples == samples
        )
        torch.testing.assert_close(pooled.steps.double().sum(-1), pooled.total)
        direct = score(written, batch, samples=1_000)
        assert (
            (pooled.total - direct.total).abs()
            < 6 * (pooled.variance + direct.variance).sqrt() + 0.5
        ).all()
        if samples == 20:
            with pytest.raises(
                UserError, match="worked on in portions leave no state to go on from"
            ):
                _ = pooled.state


def test_impossible_observations_are_minus_infinity(
    few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = Score(
        torch.tensor([[-1.0, -math.inf]]), torch.ones(1, 2) > 0, torch.tensor([-math.inf]),
        torch.tensor([math.inf]), "importance", 8,
        torch.zeros(1), lambda: None,
    )  # fmt: skip
    fine = Score(torch.tensor([[-1.0, -2.0]]), torch.ones(1, 2) > 0, torch.tensor([-3.0]),
    torch.tensor([0.1]), "importance", 8,
                 torch.tensor([4.0]), lambda: None)  # fmt: skip
    for both, total, effective in (
        ([scored, scored], -math.inf, 0.0),
        ([scored, fine], -3 - math.log(2), 4.0),
    ):
        window = pooling.PooledWindow(torch.ones(1, 2) > 0, 16)
        for part in both:
            window.add(part, torch.zeros(1))
        pooled = window.score()
        assert float(pooled.total) == pytest.approx(total) and pooled.effective_samples is not None
        assert float(pooled.effective_samples) == pytest.approx(effective)
        assert float(pooled.variance) == (math.inf if effective == 0 else pytest.approx(0.1))


def test_a_pair_without_latents_is_scored_once_and_leaves_a_state(few: None) -> None:
    pair = Pair(RNN(Categorical(3), PreviousObservation(OneHot(3)), hidden_size=4))
    batch = SequenceBatch(torch.randint(3, (2, 6)))
    (found,) = score_document(pair, [batch], samples=1_000)
    assert found.exact and found.samples == 1 and found.state["carried"] is not None
    torch.testing.assert_close(found.total, score(pair, batch).total)


def test_progress_is_shown(few: None, written: Pair) -> None:
    shown = io.StringIO()
    progress = Progress(stream=shown, interval=0)
    batch = SequenceBatch(torch.randn(2, 3))
    list(score_document(written, [batch], samples=24, progress=progress))
    lines = shown.getvalue().splitlines()
    assert lines[0] == "sequences 1 of 2: 0 of 24 samples scored, the next 8 at window 1"
    assert lines[-1] == "sequences 2 of 2: 16 of 24 samples scored, the next 8 at window 1"


PEAK = """
import resource, sys, torch
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.guides import SRNNGuide
from pyro_seq.models import SRNN
from pyro_seq.pairs.pair import Pair
from pyro_seq.infer.likelihood.document import score_document
from pyro_seq.infer.likelihood import pooling

pooling.MOST_STATES = 1_024
model = SRNN(Categorical(5), PreviousObservation(OneHot(5)), hidden_size=512, latent_size=4)
pair = Pair(model, SRNNGuide(model, OneHot(5), hidden_size=8))
x = torch.zeros(1, 4, dtype=torch.long)
parts = [SequenceBatch(part) for part in x.split(2, 1)]
for scored in score_document(pair, parts, samples=int(sys.argv[1]), method="elbo"):
    pass
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from /proc, which only Linux has"
)
def test_memory_does_not_grow_with_particles() -> None:
    """Ten times the particles of two portions; kept whole, their states alone would take 80 MB
    more.
    """

    def peak(samples: int) -> int:
        return int(
            subprocess.run(
                [sys.executable, "-c", PEAK, str(samples)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )

    assert peak(20 * 1_024) - peak(2 * 1_024) < 40


def test_pareto_k_hat_of_portions_is_that_of_all_weights() -> None:
    """Of weights with a heavy tail, in portions of unequal size."""
    torch.manual_seed(0)
    weights = -1.2 * torch.rand(1, 300, dtype=torch.double).log()
    window = pooling.PooledWindow(torch.ones(1, 1) > 0, 300)
    for part in weights.split([100, 170, 30], -1):
        k = part.shape[-1]
        total = part.logsumexp(-1) - math.log(k)
        state = {"particles": SimpleNamespace(log_weights=part)}
        scored = Score(
            total.unsqueeze(-1), torch.ones(1, 1) > 0, total, torch.ones(1), "importance", k,
            torch.ones(1),
            lambda state=state: state, k_hat(part),
        )  # fmt: skip
        window.add(scored, torch.zeros(1))
    pooled = window.score()
    assert pooled.k_hat is not None and float(pooled.k_hat) > 0.7
    torch.testing.assert_close(pooled.k_hat, k_hat(weights))
