"""A pair of one's own from the command line: list, check, train, resume, evaluate, generate; what
is said of a wrong one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pyro_seq.config.registry import SHIPPED

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "topic.py"
FAULTY = """
import pyro, torch
import pyro.distributions as dist

def maker(emission):
    def model(batch):
        logits = pyro.param("logits", torch.zeros(5))
        with batch.plate():
            for t in batch.steps():
                z = pyro.sample(f"z_{t}", dist.Normal(torch.zeros(len(batch)), 1.0))
                law = dist.Categorical(logits=logits + z.unsqueeze(-1))
                pyro.sample(f"x_{t}", law, obs=batch.at(t))

    def guide(batch):
        pyro.param("unused", torch.zeros(()))

    return model, guide
"""


@pytest.fixture(scope="module")
def words() -> list[str]:
    sizes = [
        "model.hidden_size=6",
        "model.latent_size=2",
        "model.drift=0.2",
        "text.embedding_size=4",
    ]
    sizes += [
        "text.batch_size=4",
        "text.window=6",
        "training.num_steps=3",
        "training.valid_every=2",
        "training.sample_every=2",
    ]
    return [word for setting in sizes for word in ("--set", setting)]


@pytest.fixture(scope="module")
def run(
    pyroseq: Callable[..., int],
    tmp_path_factory: pytest.TempPathFactory,
    corpus: Path,
    words: list[str],
) -> Path:
    """A run of three steps of the example's pair."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("own") / "run"
    pair = f"{EXAMPLE}:Topic"
    assert (
        pyroseq(
            "text",
            "train",
            "--quiet",
            "--train-corpus",
            corpus,
            "--run-dir",
            folder,
            "--pair",
            pair,
            *words,
        )
        == 0
    )
    return folder


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 40


def test_list(pyroseq: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert pyroseq("pairs", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[: len(SHIPPED)]] == [
        [name, "shipped"] for name in SHIPPED
    ]
    assert all(len(line.split()) > 3 for line in lines)


def test_check_of_a_sound_pair(
    pyroseq: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        word
        for emission in ("categorical", "bernoulli", "normal")
        for word in ("--emission", emission)
    ]
    assert (
        pyroseq("pairs", "check", f"{EXAMPLE}:Topic", *options, "--set", "model.latent_size=1") == 0
    )
    assert capsys.readouterr().out == "categorical: OK\nbernoulli: OK\nnormal: OK\n"


@pytest.mark.parametrize("kind", sorted(SHIPPED))
def test_shipped_pairs_keep_the_contract(
    pyroseq: Callable[..., int], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    emission = "normal" if kind in ("lgssm", "slds") else "categorical"
    assert pyroseq("pairs", "check", kind, "--emission", emission) == 0, capsys.readouterr().out


def test_check_of_a_faulty_pair(
    pyroseq: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(FAULTY)
    assert pyroseq("pairs", "check", f"{tmp_path}/own.py:maker") == 1
    out, err = capsys.readouterr()
    first, *problems = out.splitlines()
    assert err == "" and first == f"categorical: {len(problems)} problem" + "s" * (
        len(problems) > 1
    )
    assert all(line.startswith("  - ") for line in problems) and "z_0" in out


def test_check_of_a_pair_that_fails(
    pyroseq: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text("def maker(emission): return 3\n")
    assert pyroseq("pairs", "check", f"{tmp_path}/own.py:maker") == 1
    assert "  - the pair" in capsys.readouterr().out


NOT_FINITE = """
import pyro, torch
import pyro.distributions as dist

def maker(emission, late=False):
    scale = torch.nn.Parameter(torch.ones(()))

    def model(batch):
        if late and batch.num_steps > 3:
            raise ValueError("so many steps")
        pyro.param("scale", scale)
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    z = pyro.sample(f"z_{t}", dist.LogNormal(torch.zeros(len(batch)), scale))
                    logits = z.unsqueeze(-1) * torch.ones(emission.num_categories)
                    pyro.sample(f"x_{t}", dist.Categorical(logits=logits), obs=batch.at(t))

    def guide(batch):
        pyro.param("scale", scale)
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    loc = torch.zeros(len(batch)) if late else torch.full((len(batch),), torch.nan)
                    pyro.sample(f"z_{t}", dist.LogNormal(loc, scale))

    return model, guide
"""


def test_what_is_not_finite_is_said_of_its_site(
    pyroseq: Callable[..., int],
    tmp_path: Path,
    corpus: Path,
    refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "own.py").write_text(NOT_FINITE)
    pair = f"{tmp_path}/own.py:maker"
    assert pyroseq("pairs", "check", pair) == 1
    assert (
        "  - the value of site 'z_0' (and 5 more) in the guide is not finite"
        in capsys.readouterr().out
    )
    line = refused(
        "text",
        "train",
        "--quiet",
        "--train-corpus",
        corpus,
        "--run-dir",
        tmp_path / "run",
        "--pair",
        pair,
    )
    assert line.startswith("on the first batch: the value of site 'z_0'") and line.endswith(
        "in the guide is not finite (sequence 0)"
    )


def test_code_of_a_pair_that_fails_is_one_line(
    tmp_path: Path, corpus: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "own.py").write_text(NOT_FINITE)
    train = [
        "text",
        "train",
        "--quiet",
        "--train-corpus",
        corpus,
        "--pair",
        f"{tmp_path}/own.py:maker",
        "--set",
        "model.late=true",
    ]
    for _ in range(2):  # nothing of the run stays
        line = refused(*train, "--run-dir", tmp_path / "run")
    assert (
        line == f"this pair's code fails: ValueError: so many steps (line 10 of {tmp_path}/own.py)"
    )


def test_wrong_words_to_check(refused: Callable[..., str]) -> None:
    assert (
        refused("pairs", "check", "srn") == "pairs check: unknown pair 'srn'; did you mean 'srnn'?"
    )
    assert refused("pairs", "check", "none.py:x").startswith("--pair none.py:x: cannot read ")
    assert "unknown setting 'model.sise'" in refused(
        "pairs", "check", "rnn", "--set", "model.sise=3"
    )
    assert "is what is checked" in refused("pairs", "check", "rnn", "--set", "model.name=srnn")
    assert "invalid" in refused("pairs", "check", "rnn", "--emission", "poisson").lower()


def test_example_is_trained_checked_scored_and_sampled(
    pyroseq: Callable[..., int], run: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert (
        settings["model.name"] == f"{EXAMPLE}:Topic"
        and settings["model.drift"] == 0.2
        and "model.cell" not in settings
    )
    pair = ["--run-dir", run, "--pair", f"{EXAMPLE}:Topic"]
    assert (
        pyroseq("text", "evaluate", *pair, "--eval-corpus", corpus, "--samples", 4, "--json") == 0
    )
    score = json.loads(capsys.readouterr().out)
    assert score["characters"] == 480 and score["sequences"] == 1 and score["standard_error"] > 0
    assert (
        pyroseq(
            "text",
            "generate",
            *pair,
            "--length",
            9,
            "--prompt",
            "the ",
            "--num-samples",
            2,
            "--json",
        )
        == 0
    )
    samples = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(sample) for sample in samples] == [13, 13] and all(
        sample.startswith("the ") for sample in samples
    )
    assert (
        pyroseq("text", "generate", *pair, "--length", 5, "--temperature", 0.5, "--top-k", 2) == 0
    )


def test_long_text_is_said_to_be_scored_in_sequences(
    pyroseq: Callable[..., int], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.txt").write_text("the cat sat on the mat; " * 50)
    words = [
        "--run-dir",
        run,
        "--pair",
        f"{EXAMPLE}:Topic",
        "--eval-corpus",
        tmp_path / "long.txt",
        "--samples",
        2,
    ]
    assert pyroseq("text", "evaluate", *words) == 0
    assert "200 sequences, each by itself: this pair carries no state" in capsys.readouterr().out


def test_resumed_run_equals_the_unbroken_one(
    pyroseq: Callable[..., int], run: Path, corpus: Path, words: list[str], tmp_path: Path
) -> None:
    pair = ["--pair", f"{EXAMPLE}:Topic"]
    begun = [
        "text",
        "train",
        "--quiet",
        "--train-corpus",
        corpus,
        *pair,
        *words,
        "--set",
        "training.schedule=constant",
    ]
    assert pyroseq(*begun, "--run-dir", tmp_path / "broken", "--set", "training.num_steps=2") == 0
    assert (
        pyroseq(
            "text",
            "train",
            "--quiet",
            "--run-dir",
            tmp_path / "broken",
            "--resume",
            "--num-steps",
            4,
            *pair,
        )
        == 0
    )
    assert pyroseq(*begun, "--run-dir", tmp_path / "whole", "--set", "training.num_steps=4") == 0
    assert (tmp_path / "broken" / "best.safetensors").read_bytes() == (
        tmp_path / "whole" / "best.safetensors"
    ).read_bytes()


def test_code_that_a_run_names_is_not_run(
    run: Path,
    corpus: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    commands: Callable[[Path, Path], dict[str, list[object]]],
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    document = json.loads((copy / "run.json").read_text())
    spec = f"{tmp_path}/evil 1.py:maker"
    (tmp_path / "evil 1.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w')\n")
    document["settings"]["model.name"] = spec
    (copy / "run.json").write_text(json.dumps(document))
    for command in commands(copy, corpus).values():
        line = refused(*command)
        assert line == (
            f"{copy} was trained with a pair of your own, whose code is not run unless you say "
            f"so: add --pair '{spec}'"
        )
    (tmp_path / "c.toml").write_text(f"model.name = {json.dumps(spec)}\n")
    line = refused("text", "train", "--config", tmp_path / "c.toml", "--print-config")
    assert line.endswith(f"add --pair '{spec}'") and not (tmp_path / "was run").exists()


def test_moved_file_is_named_where_it_lies_now(
    pyroseq: Callable[..., int], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(EXAMPLE, tmp_path / "moved.py")
    assert (
        pyroseq(
            "text",
            "generate",
            "--run-dir",
            run,
            "--length",
            3,
            "--pair",
            f"{tmp_path}/moved.py:Topic",
        )
        == 0
    )
    assert len(capsys.readouterr().out) == 4


def test_another_pair_than_the_runs(
    run: Path, trained: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert "was trained with the pair 'rnn'" in refused(
        "text", "generate", "--run-dir", trained, "--pair", f"{EXAMPLE}:Topic"
    )
    (tmp_path / "own.py").write_text(
        EXAMPLE.read_text().replace("drift=0.1", "drft=0.1").replace("(drift)", "(drft)")
    )
    assert "unknown setting 'model.drift'" in refused(
        "text", "generate", "--run-dir", run, "--pair", f"{tmp_path}/own.py:Topic"
    )
    (tmp_path / "own.py").write_text(EXAMPLE.read_text().replace("self.keep", "self.kept"))
    assert "does not fit" in refused(
        "text", "generate", "--run-dir", run, "--pair", f"{tmp_path}/own.py:Topic"
    )


def test_wrong_words_to_train(refused: Callable[..., str]) -> None:
    train = ["text", "train", "--print-config"]
    assert (
        refused(*train, "--model", "rnn", "--pair", "a.py:b")
        == "--model and --pair exclude each other: both say which pair"
    )
    assert (
        refused(*train, "--model", "a.py:b")
        == "--model takes the name of a pair; one of your own is named by --pair a.py:b"
    )
    line = refused(*train, "--pair", f"{EXAMPLE}:Topic", "--set", "model.drift=far")
    assert line == "--set: model.drift must be a number, got 'far'"
    line = refused(*train, "--pair", f"{EXAMPLE}:Topic", "--set", "model.cell=gru")
    assert "unknown setting 'model.cell'" in line and line.endswith(
        "takes model.drift, model.hidden_size, model.latent_size"
    )


def test_check_says_which_objective_sums_states_out(
    pyroseq: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    check = "pairs", "check", "hmm", "--set", "model.num_states=3"
    assert pyroseq(*check, "--set", "model.layout=steps") == 0
    told = capsys.readouterr().out
    assert "categorical: OK\n  site 'z_0' (and 5 more) is marked to be enumerated" in told
    assert "training.objective=enum (TraceEnum_ELBO), and its scores are exact" in told
    assert pyroseq(*check) == 0
    assert capsys.readouterr().out == "categorical: OK\n"
