"""Texts whose lines are sequences, each of which begins and ends by itself."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.text import windows
from pyro_seq.text.attribution import attribute
from pyro_seq.text.scoring import evaluate
from pyro_seq.text.training import (
    TextModel,
    generate,
    new_pair,
    read_corpora,
    text_settings,
    validate,
)
from pyro_seq.text.vocabulary import Vocabulary
from pyro_seq.text.windows import LineBatches, lines_of, separate_lines

SMALL: dict[str, Any] = {
    "model.hidden_size": 6,
    "text.embedding_size": 4,
    "text.unit": "line",
    "text.oov_buckets": 0,
}
LATENT: dict[str, Any] = {"model.name": "srnn", "model.latent_size": 2, "model.latent_sizes": (4,)}
CORPUS = "".join(f"{'ab' * (i % 5)}{'c' * (i % 3)}.\n" for i in range(60))


def text_model(characters: str = "ab", **changes: Any) -> TextModel:
    settings = text_settings(SMALL | changes)
    vocabulary = Vocabulary("char", characters, settings.text.oov_buckets, line_end=True)
    torch.manual_seed(3)
    pair = new_pair(settings, vocabulary)
    pair.train(False)
    return TextModel(pair, vocabulary, settings, torch.device("cpu"))


def log_p(text: TextModel, line: str) -> float:
    """log p(line and its end), the line scored alone."""
    symbols = torch.from_numpy(text.vocabulary.encode(line + "\n").astype(np.int64))
    return float(score(text.pair, SequenceBatch(symbols.unsqueeze(0))).total)


def test_probabilities_of_all_lines_and_of_those_that_go_on_add_up_to_1() -> None:
    """The end is one observation: what has ended by three symbols, and what has not."""
    text = text_model()
    total = sum(
        np.exp(log_p(text, "".join(line)))
        for n in range(3)
        for line in itertools.product("ab", repeat=n)
    )
    going_on = torch.tensor(list(itertools.product(range(2), repeat=3)))
    total += float(score(text.pair, SequenceBatch(going_on)).total.exp().sum())
    assert total == pytest.approx(1, abs=1e-5)


def test_generated_lines_have_the_law_of_their_scores() -> None:
    text, n = text_model(), 20_000
    samples = list(generate(text, length=3, num_samples=n))
    for line in ("", "a", "b", "ab", "ba", "bb"):
        p = np.exp(log_p(text, line))
        assert abs(sum(sample == line for sample in samples) - n * p) < 4.5 * np.sqrt(
            n * p * (1 - p)
        )
    assert {len(sample) for sample in samples} == {0, 1, 2, 3}
    after = list(generate(text, length=1, num_samples=n, prompt="a"))
    first = {end: sum(sample == end for sample in after) for end in ("", "a", "b")}
    begins = {
        s: float(
            score(
                text.pair, SequenceBatch(torch.tensor([text.vocabulary.encode("a" + s).tolist()]))
            ).total
        )
        for s in ("\n", "a", "b")
    }
    weights = np.exp(np.array(list(begins.values())))
    expected = n * weights / weights.sum()
    assert (np.abs(np.array(list(first.values())) - expected) < 4.5 * np.sqrt(expected)).all()


@pytest.mark.parametrize("prompt", ["a\n", "\r", "a\nb"])
def test_a_prompt_is_a_lines_beginning(prompt: str) -> None:
    with pytest.raises(
        UserError, match="a prompt is the beginning of a line, and this one has a line end in it"
    ):
        next(generate(text_model(), length=3, prompt=prompt))
    with pytest.raises(UserError, match="never seen: 'x'"):
        next(generate(text_model(), length=3, prompt="x"))


@pytest.mark.parametrize("changes", [{}, LATENT], ids=["rnn", "srnn"])
def test_a_file_is_the_sum_of_its_lines(tmp_path: Path, changes: dict[str, Any]) -> None:
    text, path = text_model(**changes), tmp_path / "t.txt"
    lines = ["a", "abba", "b" * 40, "ab", "a" * 1_500, "b"]
    path.write_bytes("\r\n\r\n".join(lines).encode())
    seen: list[tuple[int, str]] = []
    scored = evaluate(
        text,
        path,
        samples=2,
        listeners=[lambda position, piece, scored: seen.append((position, piece))],
    )
    assert scored.sequences == 6 and scored.characters == sum(map(len, lines)) + 6
    assert [piece for _, piece in seen] == [line + "\n" for line in lines]
    assert [position for position, _ in seen] == np.cumsum(
        [0, *(len(line) + 1 for line in lines[:-1])]
    ).tolist()
    if not changes:
        assert scored.method == "exact"
        assert scored.log_likelihood == pytest.approx(
            sum(log_p(text, line) for line in lines), rel=1e-5
        )


def test_a_vocabulary_must_be_one_of_the_unit(tmp_path: Path) -> None:
    text = text_model()
    documents = TextModel(
        text.pair, Vocabulary("char", "ab"), text_settings({"text.embedding_size": 4}), text.device
    )
    path = tmp_path / "t"
    path.write_text("ab\nb\n")
    with pytest.raises(
        UserError,
        match=r"of one unit, document or line, to be compared: A \(line\), B \(document\)",
    ):
        attribute([text, documents], ["A", "B"], path)
    found = attribute([text, text_model("ba")], ["A", "B"], path)
    assert found.symbols == 5 and found.models[0].log_likelihood == pytest.approx(
        max(evaluate(model, path).log_likelihood for model in (text, text_model("ba"))), rel=1e-6
    )
    assert (found.turn["before"] + found.turn["after"]).endswith("b\n")


class TestBatches:
    SYMBOLS = np.array([0, 1, 9, 9, 2, 9, 3, 3, 3, 9], dtype=np.uint8)

    def test_lines_and_their_ends(self) -> None:
        assert lines_of(self.SYMBOLS, 9).tolist() == [[0, 3], [3, 4], [4, 6], [6, 10]]
        assert lines_of(self.SYMBOLS[:0], 9).shape == (0, 2)

    def test_each_line_once_in_every_pass(self) -> None:
        batches = LineBatches(self.SYMBOLS, 9, batch_size=3, seed=1)
        orders = set()
        for _ in range(5):
            rows = []
            for _ in range(2):
                batch, follows = batches.draw()
                assert not follows and isinstance(batch.values, torch.Tensor)
                rows += [batch.values[i, :n].tolist() for i, n in enumerate(batch.lengths.tolist())]
            assert sorted(rows) == [[0, 1, 9], [2, 9], [3, 3, 3, 9], [9]]
            orders.add(str(rows))
        assert len(orders) > 1

    def test_going_on_is_as_if_never_stopped(self) -> None:
        for drawn in range(6):
            first, again = (
                LineBatches(self.SYMBOLS, 9, batch_size=1, seed=seed) for seed in (1, 2)
            )
            for _ in range(drawn):
                first.draw()
            again.load_state(json.loads(json.dumps(first.state())))
            for _ in range(9):
                a, b = first.draw()[0].values, again.draw()[0].values
                assert isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.equal(b)
        for wrong in ({"position": 99}, {"position": -1}, {"position": "x"}, {}):
            with pytest.raises(
                ValueError, match=r"lies outside the pass|no state of lines|invalid literal"
            ):
                again.load_state(first.state() | wrong if wrong else {})

    def test_all_lines_in_batches_of_bounded_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(windows, "LINE_STEPS", 6)
        found = list(separate_lines(self.SYMBOLS, 9))
        assert sum(batch.num_observations for batch in found) == 10
        assert all(len(batch) * batch.num_steps <= 6 for batch in found)
        monkeypatch.setattr(windows, "LINE_STEPS", 1)
        assert [len(batch) for batch in separate_lines(self.SYMBOLS, 9)] == [1, 1, 1, 1]


def test_validation_counts_each_end(tmp_path: Path) -> None:
    text, path = text_model(), tmp_path / "t"
    path.write_text("ab\n\nb\naab\n")
    symbols, _ = text.vocabulary.encode_file(path)
    assert validate(text, symbols)["loss"] == pytest.approx(
        -sum(log_p(text, line) for line in ("ab", "b", "aab")) / 9, rel=1e-5
    )


def test_corpora_are_cut_between_lines(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(CORPUS)
    settings = text_settings(SMALL).text
    corpora = read_corpora(settings, path, valid_fraction=0.25)
    both = [corpora.vocabulary.decode(part) for part in (corpora.train, corpora.valid)]
    assert "".join(both) == CORPUS and [part.count("\n") for part in both] == [45, 15]
    path.write_text("one line")
    assert len(read_corpora(settings, path, valid_fraction=0.9).valid) == 0
    path.write_text("short\n" + "long" * 300)
    with pytest.raises(
        UserError,
        match=(
            r"t: the line that begins with 'longlonglonglonglong' has 1,201 symbols, "
            r".*text\.longest_line is 1,000"
        ),
    ):
        read_corpora(settings, path)
    path.write_text("\r\n\n")
    with pytest.raises(UserError, match="has no line with anything in it"):
        read_corpora(settings, path)


@pytest.mark.parametrize("level", ["char", "byte"])
def test_from_a_file_to_lines(
    pyroseq: Callable[..., int],
    refused: Callable[..., str],
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    level: str,
) -> None:
    """Trained, gone on with, scored and written by the command."""
    path = tmp_path / "lines.txt"
    path.write_text(CORPUS)
    words = [
        "text",
        "train",
        "--train-corpus",
        path,
        *tiny,
        "--set",
        "text.unit=line",
        "--set",
        f"text.level={level}",
        "--quiet",
    ]
    assert pyroseq(*words, "--run-dir", tmp_path / "run", "--num-steps", 3) == 0
    assert (
        pyroseq(
            "text", "train", "--run-dir", tmp_path / "run", "--resume", "--num-steps", 5, "--quiet"
        )
        == 0
    )
    capsys.readouterr()
    run = ["--run-dir", tmp_path / "run"]
    assert pyroseq("text", "evaluate", *run, "--eval-corpus", path) == 0
    out = capsys.readouterr().out
    assert (
        ", each line's end among them" in out and f"{'lines':<22}60, each scored by itself" in out
    )
    assert (
        pyroseq(
            "text",
            "evaluate",
            *run,
            "--eval-corpus",
            path,
            "--json",
            "--per-character",
            tmp_path / "c",
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["sequences"] == 60 and found["characters"] == len(CORPUS)
    if level == "char":
        rows = [line.split("\t") for line in (tmp_path / "c").read_text().splitlines()[1:]]
        assert "".join(json.loads(row[1]) for row in rows) == CORPUS
    assert pyroseq("score", *run, path, "--lines", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["steps"] for entry in lines] == [len(line) + 1 for line in CORPUS.splitlines()]
    assert sum(entry["log_likelihood"] for entry in lines) == pytest.approx(
        found["log_likelihood"], rel=1e-5
    )
    (tmp_path / "prompt").write_text("ab\r\n")
    assert (
        pyroseq(
            "text",
            "generate",
            *run,
            "--num-samples",
            9,
            "--length",
            400,
            "--prompt-file",
            tmp_path / "prompt",
            "--json",
        )
        == 0
    )
    samples = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (
        all(sample.startswith("ab") and "\n" not in sample for sample in samples)
        and len({*map(len, samples)}) > 2
    )
    assert "has a line end in it" in refused("text", "generate", *run, "--prompt", "a\n")
    (tmp_path / "blank").write_text("\n\n")
    for command in (["text", "evaluate", *run, "--eval-corpus"], ["score", *run]):
        assert "has no line with anything in it: there is nothing to score" in refused(
            *command, tmp_path / "blank"
        )


def test_lines_come_in_the_order_of_a_plain_shuffle() -> None:
    """All shuffled, pools of eight minibatches sorted by length, these shuffled: as runs of earlier
    versions drew them, whose places are gone on from.
    """
    lengths = np.random.default_rng(1).integers(1, 30, 301)
    symbols = np.zeros(lengths.sum(), np.uint8)
    symbols[lengths.cumsum() - 1] = 9
    edges, size = lines_of(symbols, 9), 7
    batches, random = LineBatches(symbols, 9, batch_size=size, seed=5), np.random.default_rng(5)
    for _ in range(2):
        order, plain = random.permutation(301), []
        for first in range(0, 301, 8 * size):
            pool = order[first : first + 8 * size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            plain += [pool[i : i + size] for i in range(0, len(pool), size)]
        state = batches.state()
        for place in random.permutation(len(plain)):
            batch, _ = batches.draw()
            assert batch.lengths.tolist() == (edges[plain[place]] @ [-1, 1]).tolist()
        other = LineBatches(symbols, 9, batch_size=size, seed=6)
        other.load_state(batches.state())  # a pass that has come to its end
        assert state["position"] in (0, len(plain))
        follows = batches.draw()[0].lengths, other.draw()[0].lengths
        assert follows[0].tolist() == follows[1].tolist()
        batches.load_state(other.state() | {"position": 0})
