"""What holds for every test: a clean Pyro, a fixed seed, one thread, and warnings that fail."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from hypothesis import settings

from pyro_seq.cli import main

ROOT = Path(__file__).parent.parent

# The same examples on every run: a test that fails does so for everyone.
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")

# Tests run side by side, each in one thread; so do the commands that they start.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def clean_pyro() -> Iterator[None]:
    """An empty parameter store, seed 0, validation on; the default dtype is what it was when the test is over."""
    dtype = torch.get_default_dtype()
    torch.set_num_threads(1)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled():
        yield
    torch.set_default_dtype(dtype)
    pyro.clear_param_store()


@pytest.fixture
def float64(clean_pyro: None) -> None:
    """New tensors are float64, so that two ways to compute the same density can be told equal."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data: `PYRO_SEQ_DATA`, or `../shared/data` beside the checkout; tests are skipped without it."""
    named = os.environ.get("PYRO_SEQ_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        where = f"PYRO_SEQ_DATA={named} is not a folder" if named else "set PYRO_SEQ_DATA to its folder"
        pytest.skip(f"needs the real data: {where}")
    return folder


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of `pyroseq text train` that make a training of a few milliseconds."""
    sizes = ["model.hidden_size=8", "text.embedding_size=4", "text.batch_size=4", "text.window=12"]
    length = ["training.num_steps=4", "training.valid_every=2", "training.precision=float32"]
    return [word for setting in sizes + length for word in ("--set", setting)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 480 characters."""
    path = tmp_path_factory.mktemp("corpus") / "cat.txt"
    path.write_text("the cat sat on the mat; " * 20)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tiny: list[str]) -> Path:
    """The folder of a finished run, to be read only."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    torch.set_num_threads(1)
    with pytest.raises(SystemExit) as ended:
        main(["text", "train", "--quiet", "--train-corpus", str(corpus), "--run-dir", str(folder), *tiny])
    assert ended.value.code == 0
    return folder


@pytest.fixture
def spoilt(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def commands() -> Callable[[Path, Path], dict[str, list[Any]]]:
    """Every command that uses a run."""
    return lambda run, corpus: {
        "generate": ["text", "generate", "--run-dir", run, "--length", 3],
        "evaluate": ["text", "evaluate", "--run-dir", run, "--eval-corpus", corpus],
        "resume": ["text", "train", "--run-dir", run, "--resume", "--num-steps", 6],
    }


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused with exit code 2: the one line that it says, without the program's name."""

    def command(*words: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        *progress, line = err.splitlines()
        assert ended.value.code == 2, err
        assert line.startswith("pyroseq: ") and out == "" and "Traceback" not in err
        assert all(" to train on, " in shown or shown.startswith(("step ", "going on")) for shown in progress), err
        return line.removeprefix("pyroseq: ")

    return command


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Inside `file_size_limit(size)` no file can grow beyond `size` bytes: writes fail as on a full disk."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
