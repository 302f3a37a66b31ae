"""Settings that ask for gigabytes are refused before anything is made, by their names and with the
size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyro_seq.errors import UserError
from pyro_seq.seqgan.presets import PRESETS
from pyro_seq.seqgan.program import seqgan_program
from pyro_seq.seqgan.sizes import MOST_SYMBOLS, check_sequences, check_sizes


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_allowed(name: str) -> None:
    check_sizes(seqgan_program.settings(PRESETS[name]))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"task.num_train": 1_000_000, "task.length": 100},
            r"task\.num_train=1000000 sequences of 100 symbols are .* 0\.8 GB",
        ),
        (
            {"task.num_held_out": 10_000_000},
            r"task\.num_held_out=10000000 sequences of 20 symbols are 200,000,000 symbols, 1\.6 GB",
        ),
        ({"task.length": 10_000}, r"task\.num_train=10000 sequences of 10000 symbols"),
        (
            {"task.batch_size": 65_536},
            r"task\.batch_size=10000, task\.length=20, task\.oracle_symbols=5000 make .* 4\.0 GB",
        ),
        ({"adversarial.batch_size": 65_536}, r"adversarial\.batch_size=65536, task\.length=20"),
        ({"task.oracle_symbols": 1_000_000}, r"task\.oracle_symbols=1000000"),
        ({"adversarial.valid_samples": 10_000_000}, r"adversarial\.valid_samples=10000000"),
        ({"discriminator.samples": 10_000_000}, r"discriminator\.samples=10000000"),
        (
            {"discriminator.batch_size": 65_536},
            r"discriminator\.batch_size=65536, task\.length=20, its widest layer=100",
        ),
        ({"discriminator.embedding_size": 65_536}, r"its widest layer=65536"),
        (
            {"adversarial.rollout_batch": 2**24, "adversarial.rollouts": 100_000},
            r"adversarial\.rollout_batch=16777216 completions",
        ),
    ],
)
def test_sizes_that_take_gigabytes_are_refused_by_name(changes: dict[str, int], named: str) -> None:
    with pytest.raises(UserError, match=named):
        check_sizes(seqgan_program.settings(changes))


def test_refused_run_leaves_nothing_and_takes_no_time(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    begun = time.process_time()
    line = refused(
        "seqgan", "train", "--run-dir", tmp_path / "run", "--set", "task.num_held_out=10000000"
    )
    assert (
        line.startswith("task.num_held_out=10000000 sequences") and not (tmp_path / "run").exists()
    )
    assert time.process_time() - begun < 2


def test_more_sequences_than_are_held_at_once_are_refused(
    seqgan_run: Path, refused: Callable[..., str]
) -> None:
    check_sequences(MOST_SYMBOLS // 6, 6, "num_samples")
    with pytest.raises(UserError, match="num_samples=11184811 sequences of 6 symbols"):
        check_sequences(MOST_SYMBOLS // 6 + 1, 6, "num_samples")
