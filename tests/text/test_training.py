"""Text models: scores against those computed by hand, continuations, byte level, and what memory
they take.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from pyro_seq.config.model_settings import Layer
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.document import filtered_state, score_document
from pyro_seq.text import scoring as text_scoring
from pyro_seq.text import training as module
from pyro_seq.text.model import SCORING_WINDOW, scoring_window
from pyro_seq.text.training import (
    TextModel,
    TextSettings,
    evaluate,
    generate,
    new_pair,
    read_corpora,
    score_symbols,
    text_settings,
    validate,
)
from pyro_seq.text.vocabulary import Vocabulary
from pyro_seq.text.windows import document_windows

SMALL = {
    "model.hidden_size": 8,
    "model.latent_size": 3,
    "model.latent_sizes": (8,),
    "text.embedding_size": 4,
    "text.window": 12,
}
TEXT = "the cat sat on the mat, é\n" * 7


def text_model(
    kind: str = "rnn", vocabulary: Vocabulary | None = None, **changes: Any
) -> TextModel:
    """A model with weights large enough that it is far from uniform."""
    settings = text_settings(Layer(SMALL, lenient=True), {"model.name": kind} | changes)
    vocabulary = vocabulary or Vocabulary("char", "".join(sorted(set(TEXT) - {"é"})), 2)
    torch.manual_seed(5)
    pair = new_pair(settings, vocabulary)
    with torch.no_grad():
        for side in pair.modules().values():
            for parameter in side.parameters():
                parameter.normal_(0, 0.7 if kind == "rnn" else 0.3)
    pair.train(False)
    return TextModel(pair, vocabulary, settings, torch.device("cpu"))


def log_probs_by_hand(text: TextModel, symbols: list[int]) -> list[float]:
    """log p(x_t | x_{<t}) of an LSTM, in NumPy and float64, from its equations."""
    weights = {name: weight.double().numpy() for name, weight in text.model.state_dict().items()}
    h = c = np.zeros(8)
    embedded = np.zeros(4)
    found = []
    for symbol in symbols:
        gates = (
            weights["recurrence.rnn.weight_ih_l0"] @ embedded + weights["recurrence.rnn.bias_ih_l0"]
        )
        gates += weights["recurrence.rnn.weight_hh_l0"] @ h + weights["recurrence.rnn.bias_hh_l0"]
        i, f, g, o = np.split(gates, 4)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        logits = weights["decoder.0.weight"] @ h + weights["decoder.0.bias"]
        found.append(float(logits[symbol] - np.log(np.exp(logits).sum())))
        embedded = weights["context.encoder.table.weight"][symbol]
    return found


# scores


def test_scores_are_those_computed_by_hand(tmp_path: Path) -> None:
    text = text_model()
    path = tmp_path / "t.txt"
    path.write_text(TEXT)
    by_hand = log_probs_by_hand(text, text.vocabulary.encode(TEXT).tolist())
    lines = io.StringIO()
    scored = evaluate(text, path, per_character=lines)
    total = math.fsum(by_hand)
    assert scored.log_likelihood == pytest.approx(total, rel=1e-6)
    assert scored.characters == len(TEXT) and scored.unknown == 7
    assert scored.nats_per_character == pytest.approx(-total / len(TEXT), rel=1e-6)
    assert scored.bits_per_character == pytest.approx(-total / len(TEXT) / math.log(2), rel=1e-6)
    assert scored.perplexity == pytest.approx(math.exp(-total / len(TEXT)), rel=1e-6)
    assert (scored.method, scored.samples, scored.standard_error) == ("exact", 1, 0.0)
    rows = [line.split("\t") for line in lines.getvalue().splitlines()[1:]]
    assert [float(nats) for _, _, nats in rows] == pytest.approx([-x for x in by_hand], abs=2e-5)
    # also what is outside the vocabulary
    assert "".join(json.loads(shown) for _, shown, _ in rows) == TEXT


def test_document_longer_than_a_window_is_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_model()
    symbols = text.vocabulary.encode(TEXT)
    whole = score_symbols(text, symbols).log_likelihood
    monkeypatch.setattr(text_scoring, "scoring_window", lambda text: 7)
    assert score_symbols(text, symbols).log_likelihood == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(("kind", "length"), [("rnn", SCORING_WINDOW), ("iseq", 5_000)])
def test_scoring_window_is_bounded_without_latents(kind: str, length: int) -> None:
    assert scoring_window(text_model(kind, **{"text.window": 5_000})) == length


@pytest.mark.parametrize("kind", ["iseq", "srnn"])
def test_bound_says_so_and_grows_tighter(kind: str) -> None:
    text = text_model(kind)
    symbols = text.vocabulary.encode(TEXT)
    scored = {k: [score_symbols(text, symbols, samples=k) for _ in range(3)] for k in (1, 32)}
    assert all(
        s.method == "importance" and s.samples == k
        for k, several in scored.items()
        for s in several
    )
    assert all(s.standard_error is None for s in scored[1])
    assert all(s.standard_error is not None and s.standard_error > 0 for s in scored[32])
    means = {k: sum(s.log_likelihood for s in several) / 3 for k, several in scored.items()}
    assert means[32] > means[1]


def test_log_likelihood_that_is_not_finite_is_an_error() -> None:
    text = text_model()
    with torch.no_grad():
        text.model.get_parameter("decoder.0.bias")[0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        score_symbols(text, text.vocabulary.encode(TEXT))
    with pytest.raises(UserError, match="not finite"):
        next(generate(text, length=50))


def test_validation_reads_streams_side_by_side() -> None:
    text = text_model()
    symbols = text.vocabulary.encode(TEXT)
    edges = np.linspace(0, len(symbols), 17).round().astype(int)
    by_hand = sum(
        sum(log_probs_by_hand(text, symbols[a:b].tolist())) for a, b in itertools.pairwise(edges)
    )
    with text.pair.scope():
        figures = validate(text, symbols)
    assert figures["loss"] == pytest.approx(-by_hand / len(symbols), rel=1e-6)
    assert figures["bits"] == pytest.approx(figures["loss"] / math.log(2))


@pytest.mark.parametrize("kind", ["rnn", "iseq", "srnn"])
@pytest.mark.parametrize("length", [1, 5, 17, 100])
def test_validation_text_of_any_length(kind: str, length: int) -> None:
    text = text_model(kind)
    with text.pair.scope():
        assert math.isfinite(validate(text, text.vocabulary.encode(TEXT)[:length])["loss"])


def test_more_samples_make_a_validation_surer() -> None:
    """The variance of the ELBO's estimate falls as 1/K: to a sixteenth, which 23 degrees of freedom
    tell from a quarter.
    """
    deviations = []
    for samples in (1, 16):
        text = text_model("iseq", **{"training.valid_particles": samples})
        symbols = text.vocabulary.encode(TEXT)[:100]
        losses = []
        with text.pair.scope():
            for seed in range(24):
                torch.manual_seed(seed)
                losses.append(validate(text, symbols)["loss"])
        deviations.append(np.std(losses))
    assert deviations[1] < deviations[0] / 2


# generation


@pytest.mark.parametrize("kind", ["rnn", "iseq", "srnn"])
def test_seed_decides_the_samples(kind: str) -> None:
    text = text_model(kind)
    samples = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        samples.append(list(generate(text, length=30, num_samples=3, prompt="the ")))
    assert samples[0] == samples[1] != samples[2]
    assert all(len(sample) == 30 for sample in samples[0]) and len(set(samples[0])) == 3


def test_samples_follow_the_model_after_the_prompt() -> None:
    text = text_model()
    prompt = text.vocabulary.encode("the cat")
    logs = [
        log_probs_by_hand(text, [*prompt.tolist(), symbol])[-1]
        for symbol in range(len(text.vocabulary))
    ]
    n = 20_000
    counts = np.zeros(len(text.vocabulary.characters))
    for sample in generate(text, length=1, num_samples=n, prompt="the cat"):
        counts[text.vocabulary.characters.index(sample)] += 1
    probabilities = np.exp(logs)[:-2]  # the two buckets are never drawn
    probabilities /= probabilities.sum()
    assert counts.sum() == n
    errors = (counts - n * probabilities) / np.sqrt(n * probabilities * (1 - probabilities))
    assert np.abs(errors).max() < 5


def test_top_1_is_the_likeliest_and_samples_are_new_text_only() -> None:
    text = text_model()
    symbols = text.vocabulary.encode("the ").tolist()
    for _ in range(10):
        symbols.append(
            int(
                np.argmax(
                    [
                        log_probs_by_hand(text, [*symbols, s])[-1]
                        for s in range(len(text.vocabulary))
                    ]
                )
            )
        )
    assert next(generate(text, length=10, prompt="the ", top_k=1)) == text.vocabulary.decode(
        np.array(symbols[4:])
    )


def test_many_samples_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_model()
    monkeypatch.setattr(module, "SAMPLED_ROWS", 4)
    samples = list(generate(text, length=6, num_samples=11, prompt="the "))
    assert (
        len(samples) == 11 and len(set(samples)) > 5 and {len(sample) for sample in samples} == {6}
    )
    monkeypatch.setattr(module, "SAMPLED_SYMBOLS", 6)
    assert len(list(generate(text, length=1_500, num_samples=2))) == 2


def test_generation_holds_only_what_it_has_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_model()
    allocated = []
    empty = np.empty
    monkeypatch.setattr(
        module.np,
        "empty",
        lambda shape, dtype: (
            allocated.append((shape, np.dtype(dtype).itemsize)) or empty(shape, dtype)
        ),
    )
    next(generate(text, length=1_001, num_samples=1_000_000))
    assert allocated == [((256, 1_001), 1)]


def test_state_after_the_prompt_is_that_of_its_reading() -> None:
    text = text_model()
    symbols = text.vocabulary.encode(TEXT)
    with text.pair.scope():
        short = filtered_state(text.pair, document_windows(symbols, window=5), draws=2)["model"]
        whole = filtered_state(text.pair, document_windows(symbols, window=len(symbols)), draws=2)[
            "model"
        ]
    for a, b in zip(short["carried"], whole["carried"], strict=True):
        assert torch.allclose(a, b, atol=1e-5) and torch.equal(a[0], a[1])


@pytest.mark.parametrize(("options", "says"), [
    ({"length": 0}, "at least 1"), ({"num_samples": 0}, "at least 1"),
    ({"prompt": "é"}, "never seen: 'é'"),
    ({"prompt": "".join(map(chr, range(300, 400)))}, "and 90 more"),
    ({"temperature": -0.5}, "at least 0"), ({"top_k": 0}, "at least 1"),
])  # fmt: skip
def test_generation_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        next(generate(text_model(), **({"length": 5} | options)))


# bytes


def test_byte_level_reads_and_writes_anything(tmp_path: Path) -> None:
    data = bytes(range(256)) * 3
    (tmp_path / "b.bin").write_bytes(data)
    text = text_model(vocabulary=Vocabulary("byte"), **{"text.level": "byte"})
    scored = evaluate(text, tmp_path / "b.bin")
    assert scored.characters == 768 and scored.unknown == 0
    assert scored.log_likelihood == pytest.approx(
        sum(log_probs_by_hand(text, list(data))), rel=1e-6
    )
    assert len(next(generate(text, length=40, prompt="é😀\udcff"))) <= 40


# corpora


def test_validation_part_is_the_corpus_end(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("abcdefghij" * 10)
    settings = TextSettings().text
    corpora = read_corpora(settings, tmp_path / "t", valid_fraction=0.25)
    assert (len(corpora.train), len(corpora.valid)) == (75, 25)
    assert (
        corpora.vocabulary.decode(np.concatenate([corpora.train, corpora.valid]))
        == "abcdefghij" * 10
    )
    assert len(read_corpora(settings, tmp_path / "t", valid_fraction=0).valid) == 0
    for fraction in (-0.1, 1.0, math.nan):
        with pytest.raises(UserError, match=r"must lie in \[0, 1\)"):
            read_corpora(settings, tmp_path / "t", valid_fraction=fraction)


def test_vocabulary_comes_from_where_it_is_said_to(tmp_path: Path) -> None:
    for name, content in (("train", "aab"), ("valid", "abz"), ("more", "abcxyz")):
        (tmp_path / name).write_text(content)
    settings = TextSettings().text
    corpora = read_corpora(settings, tmp_path / "train", valid=tmp_path / "valid")
    assert corpora.vocabulary.characters == "ab" and corpora.valid.tolist() == [0, 1, 2]
    corpora = read_corpora(
        settings, tmp_path / "train", valid=tmp_path / "valid", vocabulary_from=tmp_path / "more"
    )
    assert corpora.vocabulary.characters == "abcxyz" and corpora.valid.tolist() == [0, 1, 5]


def test_a_symbol_is_embedded_and_seen_by_the_next_step_alone() -> None:
    text = text_model()
    symbols = torch.tensor([text.vocabulary.encode(TEXT)[:12].tolist()])
    changed = symbols.clone()
    changed[0, 5] += 1
    with text.pair.scope(), torch.no_grad():
        first, second = (
            next(iter(score_document(text.pair, document_windows(s[0].numpy(), window=12)))).steps
            for s in (symbols, changed)
        )
    assert (
        torch.equal(first[0, :5], second[0, :5])
        and not torch.isclose(first[0, 5:], second[0, 5:]).any()
    )
    assert functional.one_hot(symbols).shape[-1] <= len(text.vocabulary)
