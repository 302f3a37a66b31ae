"""How many threads compute and how they wait: what torch finds in the environment as it loads."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pyro_seq import _threads as threads
from pyro_seq._threads import WAITING, share_of_time
from pyro_seq.cli import pyroseq as command

NAMES = (*threads.SAYS_HOW_TO_WAIT, *threads.SAYS_HOW_MANY)
TRAIN = ["text", "train", "--train-corpus", "F", "--run-dir", "DIR"]
GENERATE = ["text", "generate", "--run-dir", "DIR"]
# a child ends where torch would be loaded, and says what the environment is
SEEN = f"""
import json, os, runpy, sys
class Seen:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(json.dumps({{n: os.environ[n] for n in {NAMES} if n in os.environ}}), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Seen())
"""
WAYS = {
    "console script": "from pyro_seq.cli import main; sys.argv = ['pyroseq', *{}]; main()",
    "python -m pyro_seq": "sys.argv = ['', *{}]; runpy.run_module('pyro_seq', run_name='__main__')",
    "python -m pyro_seq.cli": (
        "sys.argv = ['', *{}]; runpy.run_module('pyro_seq.cli', run_name='__main__')"
    ),
    "in a program": "from pyro_seq.cli import main; main({})",
}


def environment(code: str, **given: str) -> dict[str, str]:
    """What torch finds when `code` loads it, where the user has set `given` and nothing else."""
    around = {name: value for name, value in os.environ.items() if name not in NAMES} | given
    done = subprocess.run(
        [sys.executable, "-P", "-c", SEEN + code],
        env=around,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def numbers(count: int) -> dict[str, str]:
    return dict.fromkeys(threads.SAYS_HOW_MANY, str(count))


@pytest.mark.parametrize("way", WAYS)
def test_command_says_how_to_wait_and_how_many_before_torch_is_loaded(way: str) -> None:
    cores = min(8, threads.available_cores())
    watched = cores > 1 and threads.share_of_time() is None and threads.waited_for_cores()
    waiting = threads.SPINNING if watched else WAITING
    assert environment(WAYS[way].format(TRAIN)) == waiting | numbers(cores)
    assert environment(WAYS[way].format(GENERATE)) == WAITING | numbers(1)


@pytest.mark.parametrize(
    "code", ["from pyro_seq import Pair", "import pyro_seq.train.trainer", "import pyro_seq, torch"]
)
def test_library_says_how_to_wait_and_leaves_the_number_alone(code: str) -> None:
    assert environment(code) == WAITING


@pytest.mark.parametrize("name", threads.SAYS_HOW_TO_WAIT)
def test_user_who_says_how_to_wait_is_left_alone(name: str) -> None:
    value = "ACTIVE" if name == "OMP_WAIT_POLICY" else "200"
    assert environment("from pyro_seq import Pair", **{name: value}) == {name: value}


@pytest.mark.parametrize("name", threads.SAYS_HOW_MANY)
def test_user_who_says_how_many_is_left_alone_unless_the_option_says_otherwise(name: str) -> None:
    code = WAYS["console script"]
    assert environment(code.format(TRAIN), **{name: "3"}) == WAITING | {name: "3"}
    assert environment(code.format([*TRAIN, "--threads", "1"]), **{name: "3"}) == WAITING | numbers(
        1
    )


def test_once_torch_is_loaded_only_the_option_changes_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    threads.wait_briefly()
    threads.choose_threads(None, useful=4)
    assert not chosen and threads.words() is None and not set(NAMES) & set(os.environ)
    threads.choose_threads(1, useful=4)
    assert chosen == [1] and not set(NAMES) & set(os.environ)
    # it is said once
    assert threads.words() == "computing with 1 thread" and threads.words() is None


def test_every_command_that_computes_has_the_option() -> None:
    leaves = [
        leaf
        for program in command.commands.values()
        for leaf in getattr(program, "commands", {"": program}).values()
    ]
    without = [
        leaf.name
        for leaf in leaves
        if "threads" not in [parameter.name for parameter in leaf.params]
    ]
    assert without == ["look", "list"]  # which compute nothing


@pytest.mark.parametrize("number", ["0", "-1", "1000000", "two", ""])
def test_numbers_of_threads_that_cannot_be_are_refused(number: str) -> None:
    done = CliRunner().invoke(command, [*GENERATE, "--threads", number])
    assert done.exit_code == 2 and "--threads" in done.output


def test_number_that_was_chosen_is_said_by_a_training_but_not_with_quiet(
    tmp_path: Path,
    corpus: Path,
    tiny: list[str],
    pyroseq: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["text", "train", "--threads", 1, "--train-corpus", corpus, *tiny]
    assert pyroseq(*words, "--run-dir", tmp_path / "run") == 0
    assert capsys.readouterr().err.splitlines().count("computing with 1 thread") == 1
    assert pyroseq(*words, "--run-dir", tmp_path / "quiet", "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_choice_is_said_with_the_cores_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(threads, "is_too_late", lambda: False)
    monkeypatch.setattr(threads, "available_cores", lambda: 4)
    threads.choose_threads(None, useful=1)
    assert threads.words() == "computing with 1 thread on 4 cores; --threads N takes another number"
    threads.choose_threads(None, useful=8)  # what was chosen stands in the environment now
    assert threads.words() is None


# how many a training can use


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], list[int]]:
    """Runs a choice among steps that take such times by number of threads: what torch was told."""

    def run(seconds: dict[int, float]) -> list[int]:
        told, clock = [max(seconds)], [0.0]
        monkeypatch.setattr(threads, "_most", max(seconds))
        monkeypatch.setattr(threads, "available_cores", lambda: max(seconds))
        monkeypatch.setattr(os, "environ", {})
        monkeypatch.setattr(torch, "set_num_threads", told.append)
        monkeypatch.setattr(threads.time, "thread_time", lambda: clock[0])

        def step() -> None:
            clock[0] += seconds[told[-1]]

        threads.find_useful(step)
        return told

    return run


@pytest.mark.parametrize(
    ("seconds", "number", "why"),
    [
        ({1: 1.0, 2: 0.55}, 2, "one would take 1.8 times as long"),
        ({1: 1.0, 2: 0.95}, 1, "more gain too little"),
        ({1: 1.0, 2: 1.4}, 1, "more gain too little"),
        ({1: 1.0, 2: 0.6, 4: 0.45, 6: 0.43}, 4, "one would take 2.2 times as long"),
    ],
)
def test_training_takes_as_many_threads_as_shorten_its_steps(
    seconds: dict[int, float],
    number: int,
    why: str,
    trained: Callable[[dict[int, float]], list[int]],
) -> None:
    told = trained(seconds)
    assert told[-1] == number and set(told) == set(seconds)
    on = f"on {max(seconds)} cores: {why}; --threads N takes another number"
    assert threads.words() == f"computing with {number} thread{'s' * (number > 1)} {on}"


def test_as_many_threads_as_were_chosen_stay_where_a_step_fails(
    monkeypatch: pytest.MonkeyPatch, trained: Callable[[dict[int, float]], list[int]]
) -> None:
    trained({1: 1.0, 2: 0.5})
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    with pytest.raises(ZeroDivisionError):
        threads.find_useful(lambda: 1 / 0)
    assert told == [1, 2]


def test_training_is_gone_on_with_by_the_number_it_was_begun_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(threads, "_most", 4)
    monkeypatch.setattr(threads, "available_cores", lambda: 4)
    for number in (1, 8):
        threads.go_on_with(number)
        assert f"with {min(number, 4)} thread" in str(words := threads.words())
        assert "on 4 cores, as before; --threads N" in str(words)
    assert told == [1, 4]


def test_nobody_is_asked_who_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (None, 1):
        threads.choose_threads(number, useful=4)  # torch is loaded: what stands was chosen
        assert not threads.is_open()
        threads.find_useful(lambda: pytest.fail("a step was tried"))
        before = torch.get_num_threads()
        threads.go_on_with(3)
        assert torch.get_num_threads() == before


# spinning on a quiet machine, sleeping on a busy one


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], list[str]]:
    """Runs the watcher with these seconds of waiting for a core a second: what it did when."""

    def run(shares: list[float]) -> list[str]:
        done: list[str] = []
        waited, clock = iter([0.0, *accumulate(shares)]), itertools.count()
        monkeypatch.setattr(threads, "waited_for_cores", lambda: next(waited))
        monkeypatch.setattr(threads.time, "monotonic", lambda: float(next(clock)))
        monkeypatch.setattr(threads.time, "sleep", lambda seconds: done.append("."))
        monkeypatch.setattr(threads.Rest, "begin", lambda self: done.append("sleep"))
        monkeypatch.setattr(threads.Rest, "end", lambda self: done.append("spin"))
        with pytest.raises(StopIteration):
            threads._watch()
        return done

    return run


def test_threads_sleep_while_others_want_the_cores(
    looks: Callable[[list[float]], list[str]],
) -> None:
    calm = [0.01] * threads.CALM
    assert looks(calm[:-1]).count("spin") == 0
    assert "".join(looks([0.5])) == ".sleep."
    done = "".join(looks([0.5, 0.2, *calm[:-1], 0.07, *calm]))
    assert done.startswith(".sleep.sleep.") and done.endswith(".spin.")
    assert done.count("spin") == 1


def test_rest_ends_with_the_threads_that_made_it() -> None:
    code = """
import threading, torch
from pyro_seq._threads import Rest
torch.set_num_threads(2)
rest, before = Rest(), threading.active_count()
for _ in range(2):
    rest.begin(); rest.begin()
    assert threading.active_count() > before
    assert torch.ones(100_000).add_(1).sum() == 200_000
    rest.end(); rest.end()
    assert threading.active_count() == before
torch.set_num_threads(1)
rest.begin()
assert threading.active_count() == before
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_waiting_for_cores_is_known_where_the_kernel_says_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_read", lambda path: "10 2000000000 3\n")
    monkeypatch.setattr(threads.os, "listdir", lambda path: ["1", "2"])
    assert threads.waited_for_cores() == 4.0
    for text in ("", "0\n"):
        monkeypatch.setattr(threads, "_read", lambda path, text=text: text)
        assert threads.waited_for_cores() is None


@pytest.mark.parametrize("why", ["platform", "quota", "kernel", "user"])
def test_nothing_spins_where_it_cannot_be_watched(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = dict(WAITING)
    monkeypatch.setattr(os, "environ", around)
    monkeypatch.setattr(threads, "is_too_late", lambda: False)
    monkeypatch.setattr(threads, "available_cores", lambda: 4)
    monkeypatch.setattr(threads, "share_of_time", lambda: 3.5 if why == "quota" else None)
    monkeypatch.setattr(threads, "waited_for_cores", lambda: None if why == "kernel" else 0.0)
    if why == "platform":
        monkeypatch.setattr(sys, "platform", "darwin")
    if why == "user":
        around["OMP_WAIT_POLICY"] = "ACTIVE"
    expected = dict(around)
    threads.choose_threads(None, useful=8)
    assert around == expected | numbers(4)


# control groups


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize(
    ("groups", "share"),
    [
        ({"": "150000 100000"}, 1.5),
        ({"": "max 100000"}, None),
        ({"": "max 100000", "a": "200000 100000", "a/b": "max 100000"}, 2.0),
        ({"a": "50000 100000", "a/b": "400000 100000"}, 0.5),
        ({}, None),
    ],
)
def test_share_of_a_container_of_version_2(
    groups: dict[str, str], share: float | None, tmp_path: Path
) -> None:
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    for name, limit in groups.items():
        group(tmp_path / "fs" / name, cpu__max=limit + "\n")
    assert share_of_time(str(tmp_path / "cgroup"), str(tmp_path / "fs")) == share


@pytest.mark.parametrize(
    ("quota", "share"), [("300000", 3.0), ("-1", None), ("0", None), ("what", None)]
)
def test_share_of_a_container_of_version_1(quota: str, share: float | None, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("5:cpu,cpuacct:/docker/1\n4:cpuset:/\n1:name=systemd:/\n")
    group(
        tmp_path / "fs" / "cpu,cpuacct" / "docker" / "1",
        cpu__cfs_quota_us=quota,
        cpu__cfs_period_us="100000\n",
    )
    assert share_of_time(str(tmp_path / "cgroup"), str(tmp_path / "fs")) == share


@pytest.mark.parametrize("text", ["", "nonsense", "0::\n", ":::::\n", "0::/../..\n"])
def test_groups_that_cannot_be_read_set_no_limit(text: str, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(text)
    assert share_of_time(str(tmp_path / "cgroup"), str(tmp_path / "fs")) is None


def test_cores_are_at_least_one_and_at_most_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores_of_affinity", lambda: 8)
    for share, cores in ((None, 8), (0.2, 1), (1.5, 2), (3.0, 3), (64.0, 8)):
        monkeypatch.setattr(threads, "share_of_time", lambda share=share: share)
        assert threads.available_cores() == cores
