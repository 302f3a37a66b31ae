"""A sample of command lines at random, on small finished runs.

None ends in a traceback, hangs, takes gigabytes, or leaves files behind where it is refused.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

SPEC = importlib.util.spec_from_file_location(
    "random_commands", Path(__file__).parent.parent.parent / "tools" / "random_commands.py"
)
assert SPEC is not None and SPEC.loader is not None
random_commands: Any = importlib.util.module_from_spec(SPEC)
sys.modules["random_commands"] = random_commands
SPEC.loader.exec_module(random_commands)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, trained: Path, seqgan_run: Path) -> Path:
    """A folder with a run of a text and one of SeqGAN, and the files that lines name."""
    folder = tmp_path_factory.mktemp("place")
    random_commands.make_place(folder, {"text-run": trained, "seqgan-run": seqgan_run})
    return folder


def test_sample_of_random_lines(place: Path) -> None:
    runs = {"text": "text-run", "seqgan": "seqgan-run"}
    lines = random_commands.Lines(16, runs, random_commands.SMALL)
    limits = {"seconds": 4.0, "address_space": 8 * 2**30}
    found = [*random_commands.outcomes(lines, 30, place, **limits)]
    wrong = {" ".join(outcome.words): outcome.findings(2_048) for outcome in found}
    assert not any(wrong.values()), {words: faults for words, faults in wrong.items() if faults}
    codes = {outcome.code for outcome in found}
    assert 2 in codes and codes & {0, 130}  # some do something, to the end or until they are told


@pytest.mark.parametrize(
    ("code", "interrupted", "megabytes", "output", "left", "findings"),
    [
        (0, False, 100, "", ["run"], []),
        (2, False, 100, "pyroseq: no", [], []),
        (2, False, 100, "pyroseq: no", ["run"], ["refused, and left run"]),
        (1, False, 100, "Traceback (most recent call last)", [], ["exit code 1", "traceback"]),
        (130, True, 100, "pyroseq: interrupted", ["run"], []),
        (130, False, 100, "", [], ["exit code 130"]),
        (None, True, 100, "", [], ["did not stop when it was interrupted"]),
        (-11, False, 3_000, "", [], ["exit code -11", "3,000 MiB"]),
    ],
)
def test_what_counts_as_a_finding(
    code: int | None,
    interrupted: bool,
    megabytes: int,
    output: str,
    left: list[str],
    findings: list[str],
) -> None:
    outcome = random_commands.Outcome(
        ["text", "train"], code, interrupted, megabytes, 1.0, output, left
    )
    assert outcome.findings(2_048) == findings


def test_every_command_and_option_is_drawn() -> None:
    lines = random_commands.Lines(0, {"text": "run"}, random_commands.SMALL)
    drawn = [lines.draw() for _ in range(4_000)]
    for path, command in random_commands.leaves().items():
        options = {
            parameter.opts[0] for parameter in command.params if parameter.opts[0].startswith("--")
        } - {"--help"}
        given = {word for words in drawn if words[: len(path)] == [*path] for word in words}
        assert options <= given, (path, options - given)


def test_seed_decides_the_lines() -> None:
    first, second = (
        random_commands.Lines(16, {"text": "run"}, random_commands.SMALL) for _ in range(2)
    )
    assert [first.draw() for _ in range(20)] == [second.draw() for _ in range(20)]
