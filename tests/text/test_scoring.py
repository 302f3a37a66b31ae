"""Texts in blocks and windows: nothing depends on where they are cut; and what surprises, with the
text around it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.text import scoring as text_scoring
from pyro_seq.text.scoring import (
    AROUND,
    MostSurprising,
    evaluate,
    score_blocks,
    score_symbols,
    windows_of,
)
from pyro_seq.text.training import TextModel, new_pair, text_settings
from pyro_seq.text.vocabulary import Vocabulary

TEXT = "the cat sat on the mat; the dog did not, and so on.\n" * 9
SMALL: dict[str, Any] = {"model.hidden_size": 6, "text.embedding_size": 4, "text.window": 16}
LATENT: dict[str, Any] = {"model.name": "srnn", "model.latent_size": 2, "model.latent_sizes": (4,)}


def text_model(**changes: Any) -> TextModel:
    settings = text_settings(SMALL | changes)
    vocabulary = Vocabulary("char", "".join(sorted(set(TEXT))))
    torch.manual_seed(3)
    pair = new_pair(settings, vocabulary)
    pair.train(False)
    return TextModel(pair, vocabulary, settings, torch.device("cpu"))


@pytest.mark.parametrize("sizes", [[1], [7], [100, 3, 0, 5], [10_000]])
@pytest.mark.parametrize("window", [1, 16, 1_000])
def test_windows_of_blocks_are_the_text(sizes: list[int], window: int) -> None:
    symbols, blocks, start = np.arange(333), [], 0
    while start < 333:
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(
            (symbols[start : start + size], "".join(map(chr, symbols[start : start + size])))
        )
        start += size
    both = list(windows_of(blocks, window))
    windows = [symbols for symbols, _ in both]
    assert "".join(str(piece) for _, piece in both) == "".join(map(chr, symbols))
    assert np.concatenate(windows).tolist() == symbols.tolist()
    assert all(len(w) == window for w in windows[:-1]) and 0 < len(windows[-1]) <= window
    assert list(windows_of([], window)) == []


@pytest.mark.parametrize("method", ["elbo", "importance", "filter"])
def test_every_method_scores_a_document(method: Any) -> None:
    text = text_model(**LATENT)
    symbols = text.vocabulary.encode(TEXT)
    scored = score_blocks(
        text, [(symbols[:200], TEXT[:200]), (symbols[200:], TEXT[200:])], method=method, samples=8
    )
    assert scored.method == method and scored.samples == 8 and scored.characters == len(TEXT)
    assert scored.standard_error is not None and 0 < scored.standard_error < 50
    assert (scored.effective_samples is None) == (method == "elbo")
    with pytest.raises(UserError, match="so its likelihood is an integral"):
        score_symbols(text, symbols, method="exact")


@pytest.mark.parametrize("changes", [{}, LATENT])
def test_long_sequences_side_by_side_are_scored_as_each_by_itself(
    changes: dict[str, Any], float64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, each by the windows up to its own end: exact figures are equal, and sampled ones
    agree within their errors.
    """
    monkeypatch.setattr(text_scoring, "SCORING_WINDOW", 20)
    text = text_model(**changes)
    pieces = [
        TEXT[start : start + n] for start, n in ((0, 45), (7, 9), (3, 48), (11, 90), (5, 100))
    ]
    blocks = [(text.vocabulary.encode(piece), piece) for piece in pieces]
    groups = [[piece for _, piece in group] for group in text_scoring._groups(text, blocks)]
    assert groups == [pieces[:1], pieces[1:2], pieces[2:4], pieces[4:]]
    options: Any = {"method": "elbo", "samples": 32} if changes else {}
    found = list(text_scoring.scored_sequences(text, blocks, **options))
    assert [scored.piece for scored in found] == pieces
    for block, scored in zip(blocks, found, strict=True):
        alone, by_itself = score_symbols(text, block[0], **options), scored.so_far
        error = np.hypot(alone.standard_error or 0.0, by_itself.standard_error or 0.0)
        difference = abs(alone.log_likelihood - by_itself.log_likelihood)
        assert difference <= 5 * error + 1e-9
        assert float(scored.nats.sum()) == pytest.approx(-by_itself.log_likelihood, abs=1e-9)
        assert len(scored.nats) == len(block[0])


def test_the_most_surprising_symbols_with_the_text_around(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Equal to ranking all of them, wherever the windows' edges fall."""
    text, path = text_model(), tmp_path / "t.txt"
    path.write_text(TEXT)
    every: list[float] = []
    evaluate(
        text,
        path,
        listeners=[lambda position, symbols, nats: every.extend(nats.tolist())],
    )
    assert len(every) == len(TEXT)
    for window in (5, 1_000):
        monkeypatch.setattr(text_scoring, "scoring_window", lambda text, window=window: window)
        ranking = MostSurprising(12)
        evaluate(text, path, listeners=[ranking])
        found = ranking.ranked()
        best = sorted(every, reverse=True)[:12]
        assert [s.nats for s in found] == pytest.approx(best, rel=1e-5)
        for s in found:
            assert every[s.step] == pytest.approx(s.nats, rel=1e-5) and TEXT[s.step] == s.shown
            assert TEXT[: s.step].endswith(s.before) and len(s.before) == min(AROUND, s.step)
            assert TEXT[s.step + 1 :][:AROUND] == s.after


def test_a_document_that_is_empty(tmp_path: Path) -> None:
    (tmp_path / "e.txt").write_text("")
    with pytest.raises(UserError, match=r"e\.txt is empty: there is nothing to score"):
        evaluate(text_model(), tmp_path / "e.txt")
    with pytest.raises(UserError, match="the text is empty"):
        score_blocks(text_model(), [])
