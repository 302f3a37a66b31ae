"""What holds for every test: a clean Pyro, a fixed seed, one thread, and warnings that fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch
from hypothesis import settings

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
