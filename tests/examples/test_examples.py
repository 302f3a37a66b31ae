"""The examples run, small, and say what they promise; each fits on three screens."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pyro
import pytest

from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.score import UnreliableEstimate

FOLDER = Path(__file__).parent.parent.parent / "examples"
MOST_LINES = 150
UNRELIABLE = f"ignore::{UnreliableEstimate.__module__}.{UnreliableEstimate.__name__}"
FIGURE = r"-?\d+\.\d+ ± \d+\.\d+"  # one that was measured, with its error
PICTURE = "--picture {folder}/out.png"


def slow(*case: str) -> object:
    """A case that takes seconds."""
    return pytest.param(*case, marks=pytest.mark.slow)


def imported(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for its module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def clean_store() -> Iterator[None]:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_it_is_short_and_says_how_it_is_run(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES, f"{path.name} has {len(lines)} lines"
    assert path.stem == "topic" or any(
        line.startswith(f"python examples/{path.name}") for line in lines
    )


@pytest.mark.filterwarnings(UNRELIABLE)  # after two steps, a guide is no good
@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        slow("own_model", f"--steps 2 {PICTURE}", f"constant rate: {FIGURE} more"),
        slow("own_guide", "--steps 2 --draws 30", f"ours beside the other: {FIGURE} nats"),
        ("own_reward", "--steps 2 --reward-steps 2", f"by reward: {FIGURE} of 4 turns"),
        (
            "srnn_polyphonic",
            "--steps 2 --sound {folder}/out.wav",
            rf"SRNN \(b, the bound\): {FIGURE}",
        ),
        ("forecasting", "--steps 2 --weeks 2", f"CRPS: {FIGURE}"),
        slow("switching_dynamics", f"--steps 2 --num 8 {PICTURE}", f"found: {FIGURE}"),
        slow("missing_data", f"--steps 2 --held-out 2 {PICTURE}", f"straight lines: .* {FIGURE}"),
    ],
)
def test_it_runs(
    name: str, words: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported(name).main(words.format(folder=tmp_path).split())
    said = capsys.readouterr().out
    assert re.search(says, said), said
    if "{folder}" in words:
        (written,) = tmp_path.glob("out.*")
        assert written.stat().st_size > 1_000


def test_forecasts_of_a_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    days = np.datetime64("2024-01-01") + np.arange(140)
    sold = 50 + 20 * np.sin(2 * np.pi * np.arange(140) / 7)
    sold[30:40] = np.nan
    rows = [
        f"{day},{'' if np.isnan(x) else round(x, 2)}" for day, x in zip(days, sold, strict=True)
    ]
    (tmp_path / "sales.csv").write_text("\n".join(["day,sold", *rows]))
    words = f"--csv {tmp_path / 'sales.csv'} --value sold --weeks 2 --steps 2"
    imported("forecasting").main(words.split())
    assert "1 series, 126 steps to learn from" in capsys.readouterr().out


class TestOwnProgram:
    SMALL = "--set model.hidden_size=6 --set training.precision=float32 --quiet"

    def test_train_resume_and_judge(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        own = imported("own_program")

        def run(words: str) -> None:
            own.visits.main(words.split(), standalone_mode=False)

        visits = ["open search view cart pay", "open view view", "open search view"] * 10
        (tmp_path / "visits.txt").write_text("\n".join(visits))
        with pytest.raises(click.UsageError, match="--data is missing: what to learn"):
            run(f"train --run-dir {tmp_path / 'run'}")
        begin = f"train --data {tmp_path / 'visits.txt'} --run-dir {tmp_path / 'run'} {self.SMALL}"
        run(f"{begin} --num-steps 2")
        run(f"{begin} --num-steps 4 --resume")
        loaded = own.visit_program.load(tmp_path / "run")
        assert loaded.events == ["(end)", "cart", "open", "pay", "search", "view"]
        capsys.readouterr()
        (tmp_path / "others.txt").write_text("open search\npay pay pay pay")
        run(f"odd --run-dir {tmp_path / 'run'} --data {tmp_path / 'others.txt'}")
        said = capsys.readouterr().out.splitlines()
        assert len(said) == 2 and all("nats an event, most at" in line for line in said)

        (tmp_path / "others.txt").write_text("open dance")
        with pytest.raises(UserError, match=r"never seen: \['dance'\]"):
            run(f"odd --run-dir {tmp_path / 'run'} --data {tmp_path / 'others.txt'}")
        (tmp_path / "visits.txt").write_text("open view")
        with pytest.raises(UserError, match=r"is not what .* learnt from"):
            run(f"{begin} --num-steps 6 --resume")
