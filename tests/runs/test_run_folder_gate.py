"""Run folders that hold links, pipes, sockets and devices: nothing outside of them is read or
written, and nobody is waited for.
"""

from __future__ import annotations

import os
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.render.samples import Rendered
from pyro_seq.runs.checkpoint import load_tree, save_tree
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.metrics import AppendedFile, MetricsFile, read_metrics
from pyro_seq.runs.plain_files import open_plain
from pyro_seq.runs.writing import WRITING, check_writable, clear_left, held, new_folder, replacing

Make = Callable[[Path, Path], None]


def unix_socket(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path.parent)  # a socket's path may not be long
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)
    os.chdir(before)


FILES: dict[str, Make] = {
    "link to a file": lambda path, outside: path.symlink_to(outside / "diary"),
    "link to a folder": lambda path, outside: path.symlink_to(outside),
    "link to nothing": lambda path, outside: path.symlink_to(outside / "new"),
    "link to itself": lambda path, outside: path.symlink_to(path.name),
    "pipe": lambda path, outside: os.mkfifo(path),
    "socket": lambda path, outside: unix_socket(path),
}
SAYS = {"pipe": "is a pipe; remove it", "socket": "is a socket; remove it"}


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder that nothing may be changed in."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "diary").write_text("dear diary")
    yield folder
    assert os.listdir(folder) == ["diary"] and (folder / "diary").read_text() == "dear diary"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run", "text")
    with made.locked():
        made.create({"a.b": 1}, {})
    return made


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "place",
    [
        "notes",
        "metrics.jsonl",
        "tensorboard",
        "games/000001.safetensors",
        "samples/step-1/samples.txt",
    ],
)
def test_a_run_folder_with_anything_but_files_is_not_opened(
    run: RunFolder, outside: Path, name: str, place: str
) -> None:
    path = run.path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    FILES[name](path, outside)
    says = f"the run folder {run.path}: {place} {SAYS.get(name, 'is a symbolic link; remove it')}"
    with pytest.raises(UserError, match=says):
        run.settings()
    with pytest.raises(UserError, match=f"cannot write {says}"), run.locked():
        pytest.fail("the lock was held")


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes devices")
def test_devices_are_refused_and_stay(run: RunFolder) -> None:
    device = run.path / "last.safetensors"
    try:
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except OSError:
        pytest.skip("not even root makes devices here")
    with pytest.raises(UserError, match=r"last\.safetensors is a device; remove it"):
        run.settings()
    for follow in (True, False):
        with pytest.raises(UserError, match="it is a device"), replacing(device, follow=follow):
            pytest.fail("it would have been replaced")
    assert stat.S_ISCHR(device.lstat().st_mode)


def test_what_belongs_to_others_is_not_looked_into(
    run: RunFolder, tmp_path: Path, outside: Path
) -> None:
    for name in ("a", ".venv"):
        (run.path / name).mkdir()
        (run.path / name / "link").symlink_to(outside)
    assert run.settings() == {"a.b": 1}
    (tmp_path / "named").symlink_to(run.path)  # by the user
    assert RunFolder(tmp_path / "named", "text").settings() == {"a.b": 1}
    with RunFolder(tmp_path / "named", "text").locked():
        pass


@pytest.mark.parametrize("name", FILES)
def test_files_are_opened_without_following_or_waiting(
    tmp_path: Path, outside: Path, name: str
) -> None:
    path = tmp_path / "file"
    FILES[name](path, outside)
    for attempt in (
        open_plain,
        lambda path: AppendedFile(path).close(),
        lambda path: MetricsFile(path, 3).close(),
        load_tree,
    ):
        with pytest.raises((OSError, UserError)) as error:
            attempt(path)
        assert "file is a" in str(error.value) or "shorter" in str(error.value)
    assert read_metrics(path) == []
    with pytest.raises(UserError, match=r"cannot write .*: it is a"), replacing(path, follow=False):
        pytest.fail("it would have been replaced")
    if name in SAYS:
        with pytest.raises(UserError, match=r"cannot write .*: it is a"), replacing(path):
            pytest.fail("it would have been replaced")


def test_checkpoints_do_not_follow_links(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "t").symlink_to(outside / "diary")
    with pytest.raises(UserError, match="it is a symbolic link"):
        save_tree(tmp_path / "t", {})


def test_metrics_with_a_second_name_are_copied_before_they_are_written_to(
    run: RunFolder, outside: Path
) -> None:
    os.link(outside / "diary", run.metrics)
    metrics = MetricsFile(run.metrics, 4)
    metrics.write(step=1)
    metrics.close()
    assert run.metrics.read_text() == 'dear{"step": 1}\n'


def test_an_output_named_by_a_link_does_not_replace_what_the_run_keeps(
    run: RunFolder, tmp_path: Path
) -> None:
    save_tree(run.last, {})
    (tmp_path / "report.html").symlink_to(run.last)
    assert (
        run.holds(tmp_path / "report.html")
        and run.holds(run.last)
        and not run.holds(run.path / "other")
    )


@pytest.mark.parametrize("line", ['{"a": 1, "a": 2}', '{"a": [{"b": 1, "b": 1}]}'])
def test_json_in_which_a_value_would_be_lost(run: RunFolder, line: str) -> None:
    (run.path / "music.json").write_text(line)
    with pytest.raises(UserError, match=r"music\.json is damaged: a name stands twice"):
        run.read_json("music.json")


def test_headers_and_trees_that_no_run_writes(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes((2**26).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match="its header would be too large"):
        load_tree(path)
    save_tree(path, {"a": torch.zeros(2)})
    whole = path.read_bytes()
    for old, new in (
        (b'\\"tensor\\": \\"a\\"}', b'\\"list\\": []}      '),
        (b'[[\\"a\\",', b"[[null,"),
    ):
        assert old in whole
        path.write_bytes(whole.replace(old, new.ljust(len(old))))
        with pytest.raises(UserError, match="is damaged"):
            load_tree(path)


# processes beside each other


CHILD = "import sys; from pathlib import Path; from pyro_seq.runs.writing import replacing\n"


def test_what_a_living_process_writes_stays_and_what_a_killed_one_wrote_goes(
    tmp_path: Path,
) -> None:
    work = (
        "with replacing(Path(sys.argv[1])) as path:\n    path.write_text('half'); "
        "print('ready', flush=True); input()"
    )
    words = [sys.executable, "-c", CHILD + work, str(tmp_path / "t")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        clear_left(tmp_path)
        assert len(list(tmp_path.glob(f"{WRITING}*"))) == 1
        child.kill()
    clear_left(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_run_does_not_clear_away_what_is_written_below_it(tmp_path: Path) -> None:
    runs = RunFolder(tmp_path, "text")
    inner, left = tmp_path / "a" / f"{WRITING}x", tmp_path / "samples" / f"{WRITING}x"
    mine = tmp_path / "games" / f"{WRITING}x"  # of a run that was put into a folder of this name
    for folder in (inner, left, mine):
        folder.mkdir(parents=True)
    (tmp_path / "games" / ".lock").touch()
    with runs.locked():
        assert inner.exists() and mine.exists() and not left.exists()


def test_a_run_whose_folder_is_another_one_by_now_is_not_written_to(run: RunFolder) -> None:
    with run.locked():
        run.save(run.last, {"step": 1})
        os.rename(run.path, run.path.with_name("moved"))
        with pytest.raises(
            UserError,
            match="was removed, or begun anew, while this process was writing to it: it stops here",
        ):
            run.save(run.last, {"step": 2})
        with RunFolder(run.path, "text").locked():
            with pytest.raises(UserError, match="begun anew"):
                run.save(run.last, {"step": 2})
            with pytest.raises(UserError, match="begun anew"):
                run.write_json("run.json", {})
        assert not run.last.exists()


def test_it_is_noticed_also_while_the_file_is_being_written(run: RunFolder) -> None:
    with (
        run.locked(),
        pytest.raises(UserError, match="begun anew"),
        run.replacing("report.html") as temporary,
    ):
        temporary.write_text("x")
        (run.path / ".lock").unlink()
        with RunFolder(run.path, "text").locked():
            pass
    assert not (run.path / "report.html").exists()


def test_a_new_folder_is_held_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with new_folder(folder, "--out-dir"):
        with (
            pytest.raises(UserError, match="is being written to by another process"),
            new_folder(folder, "--out-dir"),
        ):
            pytest.fail("two have it")
        (folder / "x").touch()
    with pytest.raises(UserError, match="holds files already"), new_folder(folder, "--out-dir"):
        pytest.fail("it is not empty")
    with new_folder(tmp_path / "empty", "--out-dir"):
        pass
    assert not (tmp_path / "empty").exists()
    with pytest.raises(UserError, match="is a file"), new_folder(folder / "x", "--out-dir"):
        pytest.fail("it is a file")


def test_without_files_to_open_nothing_is_left_behind(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = os.dup(0)
    os.close(opened)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened, before[1]))  # no more than there are
    try:
        with (
            pytest.raises(UserError, match=r"cannot write .*: Too many open files"),
            replacing(tmp_path / "t"),
        ):
            pytest.fail("the work was begun")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for left in tmp_path.iterdir():  # to remove a folder it would have to be opened
        assert left.name.startswith(WRITING)
    clear_left(tmp_path)
    assert os.listdir(tmp_path) == []


def test_folders_are_held_by_one(tmp_path: Path) -> None:
    with held(tmp_path) as mine, held(tmp_path) as theirs:
        assert mine and not theirs
    with held(tmp_path / "gone") as mine:
        assert not mine
    check_writable(tmp_path / "new", "--out-dir")
    assert os.listdir(tmp_path / "new") == []


def sample() -> Rendered:
    return Rendered(torch.zeros(4, 88, dtype=torch.bool), Timing(rate=4.0))


def test_samples_take_numbers_that_nobody_has(tmp_path: Path, outside: Path) -> None:
    """Each of two commands has looked at the folder before the other writes: both begin with number
    1.
    """
    (tmp_path / "sample-3.wav").symlink_to(outside / "new")  # taken as well, whatever it is
    formats = [("mid", "png"), ("mid",), ("png",), ("png", "mid")]
    written = [path.name for words in formats for path in sample().write(tmp_path, 1, words)]
    assert written == [
        "sample-1.mid",
        "sample-1.png",
        "sample-2.mid",
        "sample-4.png",
        "sample-5.png",
        "sample-5.mid",
    ]
    assert all((tmp_path / name).stat().st_size for name in written)


def test_a_sample_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, file_size_limit: Any
) -> None:
    with (
        file_size_limit(200),
        pytest.raises(UserError, match=r"cannot write .*sample-1\.png: File too large"),
    ):
        sample().write(tmp_path, 1, ("mid", "png"))
    assert sorted(os.listdir(tmp_path)) in ([], ["sample-1.mid"])
