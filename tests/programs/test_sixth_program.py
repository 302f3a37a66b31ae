"""A new program takes little: `examples/arrays.py` is one, of an array and a pair."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

from pyro_seq import SequenceBatch, score
from pyro_seq.errors import UserError
from pyro_seq.programs import share

FILE = Path(__file__).parent.parent.parent / "examples" / "arrays.py"
MOST_LINES = 60
SMALL = ["--set", "model.hidden_size=6", "--set", "training.precision=float32", "--quiet"]
SMALL += ["--set", "training.schedule=constant", "--set", "training.warmup=0"]


@pytest.fixture(scope="module")
def own() -> Any:
    """The module of the program."""
    spec = importlib.util.spec_from_file_location("arrays", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["arrays"] = module  # where a dataclass looks for its module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def array(tmp_path: Path) -> Path:
    path = tmp_path / "array.npy"
    np.save(path, np.arange(60).reshape(6, 10) % 5)
    return path


def test_it_is_short() -> None:
    lines = [line for line in FILE.read_text().splitlines() if line.strip()]
    own = [line for line in lines if not line.startswith(("import ", "from ", '"""'))]
    assert len(own) <= MOST_LINES, len(own)


def test_train_resume_and_load(own: Any, array: Path, tmp_path: Path) -> None:
    def run(*words: object) -> None:
        own.train.main([*map(str, words), *SMALL], standalone_mode=False)

    folder = tmp_path / "run"
    with pytest.raises(click.UsageError, match="--data is missing: what to learn"):
        run("--run-dir", folder)
    line = ["--data", array, "--run-dir", folder, "--seed", 2]
    run(*line, "--num-steps", 3)
    run(*line, "--num-steps", 6, "--resume")
    whole = tmp_path / "whole"
    run("--data", array, "--run-dir", whole, "--seed", 2, "--num-steps", 6)
    loaded = own.array_program.load(folder)
    assert loaded.step == 6
    for a, b in zip(
        loaded.pair.parameters().values(),
        own.array_program.load(whole).pair.parameters().values(),
        strict=True,
    ):
        assert torch.equal(a, b)
    values = torch.from_numpy(np.load(array))
    scored = score(loaded.pair, SequenceBatch(values))
    assert scored.total.shape == (6,) and (scored.total < 0).all()
    with pytest.raises(UserError, match=r"^--seed: the run in .* was begun with seed = 2, not 3;"):
        run("--run-dir", folder, "--resume", "--seed", 3)
    np.save(array, np.zeros((2, 3), dtype=np.int64))
    with pytest.raises(UserError, match=r"^--data: .* is not what .* was begun with"):
        run(*line, "--resume")


def test_share(own: Any, array: Path, tmp_path: Path) -> None:
    """A program that does not say what is given away gives all, and no path."""
    settings = own.array_program.settings({"model.hidden_size": 4, "training.num_steps": 2})
    source = {"data": array}
    own.array_program.start(tmp_path / "run", settings, source, seed=0, quiet=True)
    with pytest.raises(UserError, match=r"array\.json holds a path of this machine.*shared`\)"):
        share(own.array_program, tmp_path / "run", tmp_path / "out")
    kept = tmp_path / "run" / "array.json"
    kept.write_text(kept.read_text().replace(str(array), "elsewhere"))
    share(own.array_program, tmp_path / "run", tmp_path / "out")
    assert own.array_program.load(tmp_path / "out").step == 2


def test_print_config(
    own: Any, array: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--print-config", "--model", "srnn", "--num-steps", "7", *SMALL]
    own.train.main(words, standalone_mode=False)
    out = capsys.readouterr().out
    assert 'model.name = "srnn"' in out and "training.num_steps = 7" in out
    assert not list(tmp_path.glob("run*"))
