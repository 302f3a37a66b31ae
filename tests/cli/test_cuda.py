"""The commands on a GPU; skipped where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pyro_seq.music.data.sources import DEMO
from pyro_seq.text.model import text_settings
from pyro_seq.text.program import text_program

GPU = "cuda"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_text_across_devices(
    corpus: Path,
    tmp_path: Path,
    pyroseq: Callable[..., int],
    tiny: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Trained on one device, scored on the other: the same figures."""
    for device, other in ((GPU, "cpu"), ("cpu", GPU)):
        run = tmp_path / device
        assert (
            pyroseq(
                "text",
                "train",
                "--quiet",
                "--train-corpus",
                corpus,
                "--run-dir",
                run,
                "--device",
                device,
                *tiny,
            )
            == 0
        )
        assert (
            pyroseq(
                "text",
                "train",
                "--quiet",
                "--run-dir",
                run,
                "--resume",
                "--num-steps",
                6,
                "--device",
                other,
            )
            == 0
        )
        figures = []
        for where in (device, other):
            capsys.readouterr()
            assert (
                pyroseq(
                    "text",
                    "evaluate",
                    "--run-dir",
                    run,
                    "--eval-corpus",
                    corpus,
                    "--device",
                    where,
                    "--json",
                )
                == 0
            )
            figures.append(json.loads(capsys.readouterr().out))
        numbers = [[v for v in figure.values() if isinstance(v, float)] for figure in figures]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3)
        assert pyroseq("text", "generate", "--run-dir", run, "--length", 20, "--device", other) == 0


@pytest.mark.parametrize("kind", ["rnn", "iseq", "srnn", "vrnn", "dmm", "hmm"])
def test_text_of_every_pair(kind: str, corpus: Path, tmp_path: Path) -> None:
    small = {
        "model.name": kind,
        "training.num_steps": 3,
        "training.valid_every": 2,
        "text.window": 12,
        "text.batch_size": 4,
    }
    settings = text_settings(small)
    options = {"device": torch.device(GPU), "quiet": True}
    begun = text_program.start(
        tmp_path / "r", settings, {"train_corpus": corpus, "valid_fraction": 0.2}, seed=0, **options
    )
    assert begun.step == 3


@pytest.mark.parametrize(
    "emission", ["bernoulli", "nade", "beta", "convolution", "autoregressive_convolution"]
)
@pytest.mark.parametrize("kind", ["rnn", "srnn", "dmm"])
def test_music(
    kind: str,
    emission: str,
    tmp_path: Path,
    pyroseq: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = {
        "rolls.window": 16,
        "rolls.batch_size": 3,
        "frames.hidden_size": 4,
        "training.num_steps": 4,
        "training.sample_every": 4,
    }
    words = [
        w
        for k, v in (sizes | {"model.name": kind, "frames.emission": emission}).items()
        for w in ("--set", f"{k}={v}")
    ]
    run = tmp_path / "run"
    train = [
        "midi",
        "train",
        "--quiet",
        "--demo",
        "--preset",
        "default",
        "--grid",
        4,
        "--run-dir",
        run,
        "--device",
        GPU,
    ]
    assert pyroseq(*train, *words) == 0
    assert (
        pyroseq(
            "midi",
            "generate",
            "--run-dir",
            run,
            "--out-dir",
            tmp_path / "out",
            "--device",
            GPU,
            "--length",
            3,
        )
        == 0
    )
    shutil.copytree(DEMO, tmp_path / "tunes")
    figures = []
    for device in (GPU, "cpu"):
        capsys.readouterr()
        assert (
            pyroseq(
                "midi",
                "evaluate",
                "--run-dir",
                run,
                "--eval-files",
                tmp_path / "tunes",
                "--device",
                device,
                "--json",
            )
            == 0
        )
        figures.append(json.loads(capsys.readouterr().out)["nats_per_frame"])
    # the others' are estimates
    assert figures[0] == pytest.approx(figures[1], rel=1e-2 if kind == "rnn" else 0.2)


@pytest.mark.parametrize("task", ["oracle", "text", "music"])
def test_adversarial(
    task: str,
    tmp_path: Path,
    pyroseq: Callable[..., int],
    corpus: Path,
    seqgan_words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = {"oracle": [], "text": ["--corpus", corpus], "music": ["--demo"]}[task]
    run = tmp_path / "run"
    assert (
        pyroseq(
            "seqgan",
            "train",
            "--quiet",
            "--task",
            task,
            *data,
            "--run-dir",
            run,
            "--device",
            GPU,
            *seqgan_words,
        )
        == 0
    )
    for device in (GPU, "cpu"):
        assert (
            pyroseq("seqgan", "generate", "--run-dir", run, "--num-samples", 3, "--device", device)
            == 0
        )
        assert (
            pyroseq("seqgan", "evaluate", "--run-dir", run, "--device", device, "--num-samples", 12)
            == 0
        )
    assert (
        pyroseq(
            "seqgan",
            "train",
            "--quiet",
            "--run-dir",
            run,
            "--resume",
            "--adversarial-steps",
            6,
            "--device",
            GPU,
        )
        == 0
    )
