"""The program of films as a person uses it, and what is drawn and measured in Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_seq.errors import UserError
from pyro_seq.frames.data.demo import moving_squares
from pyro_seq.frames.drawing import between, continue_films, fill, generate, hidden_frames
from pyro_seq.frames.model import FilmModel
from pyro_seq.frames.program import frame_program
from pyro_seq.frames.scoring import evaluate, nats_per_frame, next_frame_error
from pyro_seq.frames.settings import film_settings

TINY: dict[str, Any] = {
    "frames.features": 4,
    "frames.map_channels": (3,),
    "frames.hidden_size": 3,
    "frames.kernel_sizes": (3, 1),
    "frames.encoder_channels": (3,),
    "frames.encoder_features": 4,
    "frames.batch_size": 4,
    "model.hidden_size": 4,
    "training.num_steps": 3,
    "training.valid_every": 2,
    "training.sample_every": 2,
    "training.precision": "float32",
}
WORDS = [
    word
    for name, value in TINY.items()
    for word in (
        "--set",
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}",
    )
]
Command = Callable[..., int]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    films = np.stack(moving_squares(12, 6, 8).films)[:, :, 0]
    path = tmp_path_factory.mktemp("films") / "films.npz"
    np.savez(path, train=films[:8], valid=films[8:10], test=films[10:])
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = frame_program.settings(TINY)
    frame_program.start(folder, settings, {"train_data": (data,)}, seed=1, quiet=True)
    return folder


@pytest.mark.parametrize("kind", ["binary", "bytes", "real"])
def test_films_come_back_from_observations(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 2 if kind == "binary" else 256, (3, 2, 4, 5))
    film = pixels.astype(np.uint8) if kind != "real" else (pixels / np.float32(255))
    for pixel in ("auto", "normal", "logistic"):
        if kind == "real" and pixel == "logistic":
            continue
        settings = film_settings({"frames.pixel": pixel})
        model = FilmModel(None, settings, (2, 4, 5), kind, torch.device("cpu"))  # type: ignore[arg-type]
        values = model.batch_of([film]).values
        assert isinstance(values, torch.Tensor)
        np.testing.assert_allclose(model.films_of(values)[0], film, atol=1e-6)


def test_drawing_and_scoring(run: Path) -> None:
    model = frame_program.load(run)
    films = frame_program.films_for(run)
    assert len(films) == 2 and model.kind == "binary"
    assert generate(model, 3, num_films=2).shape == (2, 3, 1, 8, 8)
    futures = continue_films(model, films.films, 2, draws=3, samples=2)
    assert futures.shape == (2, 3, 2, 1, 8, 8)
    film = films.films[0]
    drawn = fill(model, film, slice(2, 4), draws=2, samples=3)
    kept = [0, 1, 4, 5]
    np.testing.assert_array_equal(drawn[:, kept], np.stack([film[kept]] * 2))
    assert between(model, film, films.films[1], 3, samples=2).shape == (3, 6, 1, 8, 8)
    with pytest.raises(UserError, match="not all of them"):
        fill(model, film, slice(0, 6))
    torch.manual_seed(0)
    found = evaluate(model, films, skip=1, samples=3, rule="square", continuations=3)
    assert found.frames == 10 and found.valid is not None and 0 <= found.valid <= 1
    assert found.importance.mean < found.bound.mean + 5
    with pytest.raises(UserError, match="--skip 6"):
        nats_per_frame(model, films.films, skip=6, samples=1)


def test_the_error_of_the_next_frame_is_unbiased(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that draws each pixel by a coin is off by a quarter a pixel, whatever the draws."""
    model = frame_program.load(run)
    random = np.random.default_rng(0)

    def coins(model: FilmModel, films: Any, steps: int, *, draws: int, samples: int) -> Any:
        return random.integers(0, 2, (len(films), draws, steps, 1, 8, 8)).astype(np.uint8)

    monkeypatch.setattr("pyro_seq.frames.scoring.continue_films", coins)
    films = random.integers(0, 2, (200, 2, 1, 8, 8)).astype(np.uint8)
    found = next_frame_error(model, [*films], draws=3)
    assert abs(found.mean - 16) < 4 * found.standard_error


def test_frames_are_named_by_numbers() -> None:
    assert hidden_frames("5-9", 20) == slice(4, 9) and hidden_frames("3", 4) == slice(2, 3)
    assert hidden_frames(None, 9) == slice(3, 6)
    for words in ("a", "0-3", "4-3", "5-21", "-3"):
        with pytest.raises(UserError, match="--hide"):
            hidden_frames(words, 20)


def test_the_way_of_a_person(
    run: Path, data: Path, tmp_path: Path, pyroseq: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "average"
    line = ["frames", "train", "--train-data", data, "--run-dir", other, *WORDS, "--model", "rnn"]
    assert pyroseq(*line, "--quiet") == 0
    assert pyroseq("frames", "train", "--run-dir", other, "--resume", "--num-steps", 4) == 0
    out = tmp_path / "out"
    common = ["--run-dir", run, "--samples", 2, "--eval-data", data]
    capsys.readouterr()
    assert pyroseq("frames", "evaluate", *common, "--json", "--skip", 1) == 0
    assert json.loads(capsys.readouterr().out)["films"] == 2
    assert pyroseq("frames", "generate", "--run-dir", run, "--out-dir", out) == 0
    assert pyroseq("frames", "continue", *common, "--out-dir", out, "--num-frames", 3) == 0
    assert pyroseq("frames", "fill", *common, "--out-dir", out, "--hide", "2-3") == 0
    names = [
        f"{what}-1.{kind}"
        for what in ("continued", "filled", "generated")
        for kind in ("gif", "npz", "png")
    ]
    assert sorted(path.name for path in out.iterdir()) == names
    with Image.open(out / "continued-1.gif") as film:
        assert film.width > 4 * 96
    assert pyroseq("score", "--run-dir", run, out / "filled-1.npz", "--samples", 2) == 0
    assert pyroseq("frames", "report", "--run-dir", run, "--beside", other) == 0
    page = (run / "report.html").read_text()
    assert page.count("data:image/gif") >= 7 and "vrnn" in page and "rnn: the real film" in page
    assert "<script" not in page and "http://" not in page and "https://" not in page


def test_what_is_refused(run: Path, data: Path, tmp_path: Path, refused: Refused) -> None:
    assert "--train-data is missing" in refused("frames", "train", "--run-dir", tmp_path / "a")
    both = ["--demo", "--train-data", data, "--run-dir", tmp_path / "a"]
    assert "films of its own" in refused("frames", "train", *both)
    grey = tmp_path / "grey.npy"
    np.save(grey, np.full((4, 3, 8, 8), 7, np.uint8))
    words = ["--train-data", grey, "--run-dir", tmp_path / "a", "--set", "frames.pixel=bernoulli"]
    assert "pixels of 0 and 1" in refused("frames", "train", *words)
    assert "have others" in refused("frames", "evaluate", "--run-dir", run, "--eval-data", grey)
    assert "did you mean" in refused("frames", "evaluate", "--run-dir", run, "--rule", "sqare")
    far = ["--run-dir", run, "--out-dir", tmp_path, "--film", 9]
    assert "there are 2 films" in refused("frames", "fill", *far)
    assert not (tmp_path / "a").exists()


def test_other_films_are_not_gone_on_with(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npy"
    np.save(other, np.stack(moving_squares(9, 6, 8, seed=5).films)[:, :, 0])
    with pytest.raises(UserError, match=r"--train-data: .* their contents differ"):
        frame_program.resume(run, source={"train_data": (other,)}, quiet=True)
