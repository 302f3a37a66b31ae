"""Who wrote this? The posterior against sums by hand, vocabularies that differ, and where the
evidence turns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_seq.cli import main
from pyro_seq.errors import UserError
from pyro_seq.text import attribution
from pyro_seq.text.attribution import CumulativeLogLikelihood, attribute
from pyro_seq.text.training import TextModel, evaluate, new_pair, text_settings
from pyro_seq.text.vocabulary import CODE_POINTS, Vocabulary

SMALL = {"model.hidden_size": 4, "text.embedding_size": 3, "text.window": 7}


def unigram(probabilities: dict[str, float], buckets: int = 0) -> TextModel:
    """A model of independent characters: all weights but the last bias are zero."""
    vocabulary = Vocabulary("char", "".join(c for c in probabilities if len(c) == 1), buckets)
    settings = text_settings(SMALL | {"model.name": "rnn"})
    pair = new_pair(settings, vocabulary)
    with torch.no_grad():
        for parameter in pair.model.parameters():  # type: ignore[union-attr]
            parameter.zero_()
        pair.model.get_parameter("decoder.0.bias").copy_(
            torch.tensor([*probabilities.values()]).log()
        )  # type: ignore[union-attr]
    pair.train(False)
    return TextModel(pair, vocabulary, settings, torch.device("cpu"))


A, B = {"a": 0.9, "b": 0.1}, {"a": 0.2, "b": 0.8}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        (tmp_path / "t.txt").write_text(text)
        return tmp_path / "t.txt"

    return write


def log_likelihood(text: str, law: dict[str, float]) -> float:
    return sum(math.log(law[c]) for c in text)


@pytest.mark.parametrize("prior", [None, (1.0, 3.0)])
def test_posterior_is_bayes_rule(write: Callable[[str], Path], prior: Any) -> None:
    text = "abbaababab"
    found = attribute([unigram(A), unigram(B)], ["A", "B"], write(text), prior=prior)
    weights = (0.5, 0.5) if prior is None else (0.25, 0.75)
    joint = [
        w * math.exp(log_likelihood(text, law)) for w, law in zip(weights, (A, B), strict=True)
    ]
    by_name = {model.name: model for model in found.models}
    for name, w, p, law in zip("AB", weights, joint, (A, B), strict=True):
        assert by_name[name].posterior == pytest.approx(p / sum(joint), rel=1e-5)
        assert by_name[name].prior == pytest.approx(w) and by_name[name].method == "exact"
        assert by_name[name].log_likelihood == pytest.approx(log_likelihood(text, law), rel=1e-5)
    assert found.log_odds == pytest.approx(abs(math.log(joint[0] / joint[1])), rel=1e-4)
    assert found.standard_error == 0 and found.symbols == 10
    assert [p["symbols"] for p in found.along] == list(range(11))
    last = found.along[-1]
    assert last["symbols"] == 10 and last["posterior"] == pytest.approx(
        [model.posterior for model in found.models], rel=1e-5
    )


def test_the_evidence_turns_where_the_author_does(write: Callable[[str], Path]) -> None:
    found = attribute([unigram(A), unigram(B)], ["A", "B"], write("a" * 30 + "b" * 60 + "ab"))
    assert found.models[0].name == "B"
    assert (
        found.turn["position"] == 30
        and found.turn["before"] == "a" * 30
        and found.turn["after"].startswith("b" * 60)
    )
    assert found.turn["log_odds"] == pytest.approx(30 * math.log(0.2 / 0.9), rel=1e-5)
    gains = math.log(8) * 61 + math.log(2 / 9)
    assert found.strongest.start == 30 and found.strongest.nats == pytest.approx(
        max(gains, 60 * math.log(8)), rel=1e-5
    )
    assert attribute([unigram(A), unigram(B)], ["A", "B"], write("bbb")).turn["position"] == 0


def test_vocabularies_that_differ_are_compared_over_all_characters(
    write: Callable[[str], Path],
) -> None:
    """One model knows b, the other only that it is one of 1,114,111 others."""
    narrow = unigram({"a": 0.5, "bucket": 0.5}, buckets=1)
    wide = unigram(A | {"bucket": 1e-9}, buckets=1)
    found = attribute([narrow, wide], ["narrow", "wide"], write("aab"))
    by_name = {model.name: model for model in found.models}
    assert by_name["narrow"].log_likelihood == pytest.approx(
        2 * math.log(0.5) + math.log(0.5 / (CODE_POINTS - 1)), rel=1e-5
    )
    assert by_name["narrow"].unknown == 1 and by_name["wide"].unknown == 0
    assert found.models[0].name == "wide"


def test_bucket_sizes_count_every_other_character() -> None:
    vocabulary = Vocabulary("char", "abé", 7)
    points = np.setdiff1d(np.arange(CODE_POINTS), [*map(ord, "abé")])
    assert vocabulary.bucket_sizes().tolist() == np.bincount(points % 7, minlength=7).tolist()
    assert Vocabulary("char", "ab").bucket_sizes().tolist() == []


def test_error_bars_of_pairs_with_latents(write: Callable[[str], Path]) -> None:
    vocabulary, settings = (
        Vocabulary("char", "ab"),
        text_settings(
            SMALL | {"model.name": "srnn", "model.latent_size": 2, "model.latent_sizes": (4,)}
        ),
    )
    torch.manual_seed(0)
    latent = TextModel(new_pair(settings, vocabulary), vocabulary, settings, torch.device("cpu"))
    path = write("abbaababab" * 3)
    found = attribute([latent, unigram(A)], ["latent", "A"], path, samples=8)
    by_name = {model.name: model for model in found.models}
    assert (
        by_name["latent"].method == "importance"
        and found.standard_error == by_name["latent"].standard_error
    )
    assert found.standard_error is not None and found.standard_error > 0
    assert attribute([latent, unigram(A)], ["latent", "A"], path, samples=1).standard_error is None
    assert by_name["A"].log_likelihood == pytest.approx(evaluate(unigram(A), path).log_likelihood)


def test_a_long_text_is_followed_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "MOST_POINTS", 10)
    steps, trail, random = (
        np.random.default_rng(0).normal(size=1_000),
        CumulativeLogLikelihood(),
        np.random.default_rng(1),
    )
    start = 0
    while start < len(steps):
        size = int(random.integers(1, 60))
        trail.add(steps[start : start + size])
        start += size
    assert trail.stride == 128 and len(trail.points) == 8
    assert trail.points == pytest.approx(np.append(0, steps.cumsum())[::128].tolist())
    assert trail.total == pytest.approx(steps.sum()) and trail.length == 1_000


def test_questions_without_an_answer(write: Callable[[str], Path]) -> None:
    a, b = unigram(A), unigram(B)
    path = write("ab")
    for models, names, prior, says in (
        ([a], ["A"], None, "at least two models"),
        ([a, a], ["A", "A"], None, "each model is given once"),
        ([a, b], ["A", "B"], (1.0,), "a number above 0 for each of the 2 models"),
        ([a, b], ["A", "B"], (1.0, 0.0), "a number above 0 for each"),
        (
            [a, TextModel(a.pair, Vocabulary("byte"), a.settings, a.device)],
            ["A", "B"],
            None,
            r"one level, char or byte.*B \(byte\)",
        ),
    ):
        with pytest.raises(UserError, match=says):
            attribute(models, names, path, prior=prior)
    with pytest.raises(UserError, match="is empty: there is nothing to score"):
        attribute([a, b], ["A", "B"], write(""))
    with pytest.raises(UserError, match="no symbol for 'c', and no bucket"):
        attribute([a, b], ["A", "B"], write("abc"))


def test_command(
    trained: Path,
    spoilt: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
) -> None:
    words = [
        "text",
        "attribute",
        "--run-dir",
        str(trained),
        "--run-dir",
        str(spoilt),
        "--text",
        str(corpus),
    ]
    for extra in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main([*words, *extra, "--prior", "1", "--prior", "4"])
        assert ended.value.code == 0
    out = capsys.readouterr().out
    shown, document = out[: out.index('{"symbols"')], json.loads(out[out.index('{"symbols"') :])
    assert f"log odds of {spoilt} over {trained}: 1.39 nats (standard error 0.00)" in shown
    assert (
        "it is the prior that decides" in shown and "the passage that speaks most for it" in shown
    )
    assert document["models"][0]["posterior"] == pytest.approx(0.8) and document["symbols"] == 480
    assert "at least two models" in refused(*words[:4], *words[-2:])
    assert "number above 0 for each of the 2" in refused(*words, "--prior", "1")


def test_runs_of_several_pairs_of_ones_own(
    trained: Path,
    corpus: Path,
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
) -> None:
    """Each has its own --pair, in the order of the runs that need one."""
    source = (
        "from pyro_seq.models import RNN\n\ndef {name}(emission, context):\n    return "
        "RNN(emission, context, hidden_size={size})\n"
    )
    specs, runs = [], []
    for name, size in (("small", 3), ("large", 5)):
        (tmp_path / f"{name}.py").write_text(source.format(name=name, size=size))
        specs.append(f"{tmp_path / name}.py:{name}")
        runs.append(tmp_path / name)
        options = [word for word in tiny if not word.startswith("model.")]
        options = [
            word
            for i, word in enumerate(options)
            if word != "--set" or options[i + 1 : i + 2] not in ([], ["--set"])
        ]
        with pytest.raises(SystemExit) as ended:
            main(
                [
                    "text",
                    "train",
                    "--quiet",
                    "--pair",
                    specs[-1],
                    "--train-corpus",
                    str(corpus),
                    "--run-dir",
                    str(runs[-1]),
                    *options,
                ]
            )
        assert ended.value.code == 0
    words = [
        "text",
        "attribute",
        "--text",
        corpus,
        "--run-dir",
        runs[0],
        "--run-dir",
        trained,
        "--run-dir",
        runs[1],
    ]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in (*words, "--pair", specs[0], "--pair", specs[1])])
    assert ended.value.code == 0 and str(runs[1]) in capsys.readouterr().out
    assert "add --pair" in refused(*words)
    assert "weight" in refused(*words, "--pair", specs[1], "--pair", specs[0])
    assert "once or once each" in refused(*words, *["--pair", specs[0]] * 3)
    assert "for the 0 runs" in refused(
        "text",
        "attribute",
        "--text",
        corpus,
        "--run-dir",
        trained,
        "--run-dir",
        trained,
        "--pair",
        specs[0],
    )
