"""The text program with pairs that carry no state: what is learnt, scored and written is checked
against sums by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_seq import Pair, SequenceBatch
from pyro_seq.programs.program import Request
from pyro_seq.runs.folder import RunFolder
from pyro_seq.text import windows
from pyro_seq.text.model import SCORING_WINDOW
from pyro_seq.text.program import text_program
from pyro_seq.text.scoring import score_blocks, scored_windows
from pyro_seq.text.training import (
    Corpora,
    TextModel,
    generate,
    new_pair,
    score_symbols,
    text_settings,
    validate,
)
from pyro_seq.text.vocabulary import Vocabulary
from pyro_seq.text.windows import separate_windows

SYMBOLS = "abcd"
WINDOW = 6
BIGRAM = """
import pyro, torch
import pyro.distributions as dist

def bigram(emission):
    k = emission.num_categories

    def model(batch):
        logits = pyro.param("logits", lambda: 3 * torch.randn(k + 1, k))
        with batch.plate():
            last = torch.full((len(batch),), k)
            for t in batch.steps():
                with batch.active(t):
                    law = dist.Categorical(logits=logits[last])
                    last = pyro.sample(f"x_{t}", law, obs=batch.at(t))

    return model
"""


@pytest.fixture
def text(tmp_path: Path) -> TextModel:
    (tmp_path / "own.py").write_text(BIGRAM)
    settings = text_settings(
        {"model.name": f"{tmp_path}/own.py:bigram", "text.window": WINDOW, "text.batch_size": 4}
    )
    vocabulary = Vocabulary("char", SYMBOLS, 1)
    return TextModel(new_pair(settings, vocabulary), vocabulary, settings, torch.device("cpu"))


def by_hand(text: TextModel, symbols: np.ndarray, window: int) -> float:
    """The log-likelihood of windows, each a sequence by itself."""
    with text.pair.scope():
        log_probs = text.pair.parameters()["logits"].detach().log_softmax(-1)
    total = 0.0
    for start in range(0, len(symbols), window):
        last = len(SYMBOLS) + 1
        for symbol in symbols[start : start + window].tolist():
            total += float(log_probs[last, symbol])
            last = symbol
    return total


def random_symbols(length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, length).astype(np.uint8)


def test_short_text_is_one_sequence(text: TextModel) -> None:
    symbols = random_symbols(5 * WINDOW + 2)
    scored = score_symbols(text, symbols)
    assert not text.carries and scored.sequences == 1
    assert scored.log_likelihood == pytest.approx(by_hand(text, symbols, len(symbols)), rel=1e-5)


def test_long_text_is_scored_in_separate_windows(text: TextModel) -> None:
    symbols = random_symbols(SCORING_WINDOW + 1)
    scored = score_symbols(text, symbols)
    assert scored.sequences == -(-(SCORING_WINDOW + 1) // WINDOW)
    assert scored.log_likelihood == pytest.approx(by_hand(text, symbols, WINDOW), rel=1e-5)


def test_effective_samples_of_separate_windows_are_those_of_the_worst(text: TextModel) -> None:
    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    z = pyro.sample(f"z_{t}", dist.Normal(torch.zeros(len(batch)), 1.0))
                    logits = z.unsqueeze(-1) * torch.arange(5.0)
                    pyro.sample(f"x_{t}", dist.Categorical(logits=logits), obs=batch.at(t))

    text.pair = Pair(model)
    symbols: Any = random_symbols(SCORING_WINDOW + 1)
    options: Any = {"samples": 5, "proposal": "prior"}
    torch.manual_seed(0)
    blocks = scored_windows(text, [(symbols, symbols)], **options)
    found = [scored.so_far.effective_samples for scored in blocks]
    torch.manual_seed(0)
    whole = score_blocks(text, [(symbols, symbols)], **options)
    assert whole.sequences == len(found) > 1 and sorted(found, reverse=True) == found
    assert whole.effective_samples == found[-1] < found[0]


@pytest.mark.parametrize("length", [1, WINDOW, 4 * WINDOW + 1, 70 * WINDOW])
def test_validation_is_on_separate_windows(text: TextModel, length: int) -> None:
    symbols = random_symbols(length)
    assert validate(text, symbols)["loss"] == pytest.approx(
        -by_hand(text, symbols, WINDOW) / length, rel=1e-5
    )


def test_separate_windows_are_the_text_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "SEPARATE_ROWS", 2)
    symbols = random_symbols(3 * WINDOW * 2 + WINDOW + 1)
    batches = list(separate_windows(symbols, window=WINDOW))
    assert [batch.lengths.tolist() for batch in batches] == [[WINDOW] * 2] * 3 + [[WINDOW, 1]]
    joined = torch.cat([batch.values[batch.mask] for batch in batches])  # type: ignore[index]
    assert joined.tolist() == symbols.tolist()


def test_text_goes_on_after_its_prompt(text: TextModel) -> None:
    with text.pair.scope(), torch.no_grad():
        logits = text.pair.parameters()["logits"]
        logits.fill_(-1e6)
        for symbol in range(4):
            logits[symbol, (symbol + 1) % 4] = 0.0  # d follows c follows b follows a
        logits[5, 0] = 0.0
    assert list(generate(text, length=6, num_samples=2, prompt="bc")) == ["dabcda"] * 2
    assert list(generate(text, length=5)) == ["abcda"]


def test_training_says_that_windows_are_separate(
    text: TextModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpora = Corpora(text.vocabulary, random_symbols(100), random_symbols(20))
    settings = text_settings(
        {
            "model.name": text.settings.model.name,
            "text.window": WINDOW,
            "training.num_steps": 3,
            "training.sample_every": 2,
        }
    )
    run = RunFolder(tmp_path / "run", "text")
    with run.locked():
        trained = text_program.train(corpora, Request(settings, {}, run))
    err = capsys.readouterr().err
    assert (
        err.count(
            "returns no state, so text.carry has no effect: each window is learnt as a sequence "
            "of "
            "its own"
        )
        == 1
    )
    assert " with 30 parameters" in err.splitlines()[0] and trained.step == 3


@pytest.mark.parametrize("kind", ["srnn", None])
def test_a_first_validation_draws_as_later_ones_do(text: TextModel, kind: str | None) -> None:
    """A resumed run's first validation is a later one of the unbroken run."""
    settings = (
        text.settings
        if kind is None
        else text_settings({"model.name": kind, "model.hidden_size": 4})
    )
    fresh = TextModel(new_pair(settings, text.vocabulary), text.vocabulary, settings, text.device)
    fresh.pair.train(False)
    shown = []
    for _ in range(2):
        torch.manual_seed(3)
        shown.append((validate(fresh, random_symbols(50)), torch.rand(())))
    assert shown[0] == shown[1]
