"""Training by several processes: the step of all is that of one, and all end alike."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ranked import CASES, QUICK

HELPERS = Path(__file__).parent.parent / "helpers"
Found = dict[str, Any]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What came of every training by processes."""
    return outcomes(tmp_path_factory.mktemp("ranked"))


def outcomes(folder: Path, *words: str) -> Found:
    path = os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-P", str(HELPERS / "ranked.py"), str(folder), *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0 and "Traceback" not in ran.stderr, ran.stderr
    found: Found = json.loads(ran.stdout)
    return found


def apart(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """|found - expected| / |expected| of all tensors together; `None` stands for none."""
    assert found.keys() == expected.keys()
    assert [name for name, x in found.items() if x is None] == [
        name for name, x in expected.items() if x is None
    ]
    numbers = [name for name, x in expected.items() if x is not None]
    difference = math.hypot(*(math.dist(found[name], expected[name]) for name in numbers))
    return difference / math.hypot(*(math.hypot(*expected[name]) for name in numbers))


def check_gradients(found: Found, case: str, ranks: str) -> None:
    expected = found["gradients"]["1"][0][case]
    assert len(found["gradients"][ranks]) == int(ranks)
    for of_rank in found["gradients"][ranks]:
        assert apart(of_rank[case]["gradients"], expected["gradients"]) <= 1e-12
        assert of_rank[case]["figures"] == pytest.approx(expected["figures"], rel=1e-12)


@pytest.mark.parametrize(
    ("case", "ranks"), [*((case, "2") for case in CASES), *((case, "3") for case in QUICK)]
)
def test_gradients_are_those_of_one_process(found: Found, case: str, ranks: str) -> None:
    """Of sequences of unequal length, with equal noise, in float64; so are the figures."""
    check_gradients(found, case, ranks)


@pytest.mark.slow
def test_gradients_of_three_ranks(tmp_path: Path) -> None:
    found = outcomes(tmp_path, "gradients")
    for case in CASES:
        check_gradients(found, case, "3")


def test_weights_and_validations_are_those_of_one_process(found: Found) -> None:
    (one,), two = found["weights"]["1"], found["weights"]["2"]
    assert two[0] == two[1] | {"validations": two[0]["validations"]}
    assert one["validations"] == two[0]["validations"] == 3 and two[1]["validations"] == 0
    for of_rank in two:
        assert (of_rank["step"], of_rank["best"]) == (60, pytest.approx(one["best"], rel=1e-6))
        for name, expected in one["weights"].items():
            assert math.dist(of_rank["weights"][name], expected) <= 1e-5 * math.hypot(*expected)


def test_patience_and_minutes_end_all_at_one_step(found: Found) -> None:
    assert [of_rank["step"] for of_rank in found["patience"]] == [9, 9]
    first, second = found["minutes"]
    assert first["step"] == second["step"] > 0 and first["minutes"] == second["minutes"] >= 0.01


@pytest.mark.parametrize(
    ("what", "number", "words"),
    [
        ("another number", 1, "was written by 2 processes, and this is a training by 1 process"),
        ("nan", 2, "the log prob of site 'x' in the model is not finite"),
        ("small batch", 3, "a batch has 2 sequences, fewer than the 3 processes that share it"),
        ("other settings", 2, "process 1 has other training settings than process 0"),
        ("other data", 2, "process 1 has other data (a first batch) than process 0"),
        ("terminated", 2, "KeyboardInterrupt: 15"),
        ("interrupted", 2, "KeyboardInterrupt: 2"),
        ("full disk", 2, "File too large"),
        ("died", 1, "another process of this training has ended, so process 0 of 2 ends too"),
    ],
)
def test_all_end_in_the_same_words(found: Found, what: str, number: int, words: str) -> None:
    said = found[what][:number]
    assert len(said) == number and len(set(said)) == 1
    assert words in said[0]


def test_the_last_checkpoint_stays(found: Found) -> None:
    """A signal is granted after the step that it is heard with; a full disk leaves what was."""
    assert found["terminated"][-1] == found["interrupted"][-1] > 0
    assert found["full disk"][-1] > 0 and found["died"][-1] == 0
