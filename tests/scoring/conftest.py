"""Runs to score with: of texts, exact and with latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyro_seq.text.program import text_program

SMALL: dict[str, Any] = {
    "model.hidden_size": 6,
    "model.latent_size": 2,
    "text.embedding_size": 3,
    "text.batch_size": 4,
    "text.window": 12,
    "text.oov_buckets": 0,
    "training.num_steps": 3,
    "training.sample_every": 0,
    "training.precision": "float32",
}


@pytest.fixture(scope="session")
def trained_on(corpus: Path) -> Callable[..., Path]:
    """Train a small run in a folder, with changed settings."""

    def train(folder: Path, seed: int = 0, **changes: Any) -> Path:
        known = {name: value for name, value in SMALL.items() if name != "model.latent_size"}
        small = SMALL if changes.get("model.name") == "srnn" else known
        settings = text_program.settings(small | changes)
        text_program.start(folder, settings, {"train_corpus": corpus}, seed=seed, quiet=True)
        return folder

    return train


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory, trained_on: Callable[..., Path]) -> Path:
    """A run without latents, to be read only."""
    return trained_on(tmp_path_factory.mktemp("exact") / "run")


@pytest.fixture(scope="session")
def latent(tmp_path_factory: pytest.TempPathFactory, trained_on: Callable[..., Path]) -> Path:
    """A run with latents, to be read only."""
    return trained_on(tmp_path_factory.mktemp("latent") / "run", **{"model.name": "srnn"})
