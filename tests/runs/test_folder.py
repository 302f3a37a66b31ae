"""Run folders: written whole or not at all, held by one process, and every way in which one can be
wrong is said.
"""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pyro_seq.errors import UserError
from pyro_seq.pairs._weights import load_weights
from pyro_seq.runs.checkpoint import FORMAT, METADATA, load_tree, save_tree
from pyro_seq.runs.folder import MAX_JSON_BYTES, RunFolder
from pyro_seq.runs.writing import WRITING, replacing

Limit = Callable[[int], AbstractContextManager[None]]

TREE: dict[str, Any] = {
    "step": 3,
    "weights": {
        "model": {"w": torch.arange(6.0).view(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)},
        "store": {},
    },
    "moments": {0: {"step": torch.tensor(3.0)}, 1: {"step": torch.tensor(4.0)}},
    "carried": (torch.zeros(0, 4), None, [True, "é", 1e-300]),
    "words": str(2**127),
}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "runs" / "one", "text")
    with made.locked():
        made.create({"a.b": 1}, {"vocabulary.json": {"characters": "aé😀"}})
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# a tree in a file


def test_tree_survives_a_file(tmp_path: Path) -> None:
    save_tree(tmp_path / "t.safetensors", TREE)
    assert equal(load_tree(tmp_path / "t.safetensors"), TREE)
    assert os.listdir(tmp_path) == ["t.safetensors"]


def test_shapes_are_read_without_the_tensors(tmp_path: Path) -> None:
    save_tree(tmp_path / "t", TREE)
    tree = load_tree(tmp_path / "t", shapes_only=True)
    for found, saved in (
        (tree["weights"]["model"]["w"], (2, 3)),
        (tree["moments"][0]["step"], ()),
        (tree["carried"][0], (0, 4)),
    ):
        assert found.is_meta and found.shape == saved
    assert tree["step"] == 3 and tree["carried"][2] == [True, "é", 1e-300]


def test_equal_trees_make_equal_bytes(tmp_path: Path) -> None:
    code = "import pathlib, sys, torch; from pyro_seq.runs.checkpoint import save_tree; "
    code += "save_tree(pathlib.Path(sys.argv[1]), eval(sys.argv[2]))"
    tree = (
        "{'b': torch.arange(3.), 'a': {0: torch.ones(2), 'c': 1.5}, 'd': torch.ones(2, "
        "dtype=torch.bfloat16)}"
    )
    save_tree(tmp_path / "1", eval(tree))
    os.environ.pop("PYTHONHASHSEED", None)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "2"), tree], check=True)
    assert (tmp_path / "2").read_bytes() == (tmp_path / "1").read_bytes()


def test_tensors_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    w = torch.arange(4.0)
    save_tree(tmp_path / "t", {"a": w, "b": w[1:], "c": w.view(2, 2).T})
    loaded = load_tree(tmp_path / "t")
    assert loaded["b"].tolist() == [1, 2, 3] and loaded["c"].tolist() == [[0, 2], [1, 3]]


def test_files_have_the_modes_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_tree(tmp_path / "t", TREE)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o640


def test_full_disk_leaves_the_file_as_it_was(tmp_path: Path, file_size_limit: Limit) -> None:
    path = tmp_path / "t.safetensors"
    save_tree(path, TREE)
    before = contents(tmp_path)
    with (
        file_size_limit(10_000),
        pytest.raises(
            UserError, match=r"cannot write .*t\.safetensors: File too large; .*untouched$"
        ),
    ):
        save_tree(path, {"w": torch.zeros(100_000)})
    assert contents(tmp_path) == before and os.listdir(tmp_path) == ["t.safetensors"]


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"


def test_error_inside_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("old")
    with pytest.raises(KeyError), replacing(tmp_path / "t") as temporary:
        temporary.write_text("half")
        raise KeyError
    assert contents(tmp_path) == {"t": b"old"}


@pytest.mark.parametrize("path", ["folder", "missing/t", "file/t"])
def test_where_nothing_can_be_written_it_says_so_at_once(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"), replacing(tmp_path / path):
        pytest.fail("the work was begun")


def with_metadata(path: Path, metadata: dict[str, str], **tensors: torch.Tensor) -> None:
    safetensors.torch.save_file(tensors, path, metadata=metadata)


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(whole[: len(whole) - 5])
    elif how == "header cut":
        path.write_bytes(whole[:20])
    elif how == "garbage":
        path.write_bytes(os.urandom(1_000))
    elif how == "header size":
        path.write_bytes(b"\xff" * 8 + whole[8:])
    elif how == "pickle":
        path.write_bytes(pickle.dumps(TREE["step"]))
    elif how == "torch.save":
        torch.save(TREE, path)
    elif how in ("not ours", "metadata"):
        with_metadata(path, {"tree": "3"} if how == "metadata" else {}, w=torch.zeros(2))
    elif how == "newer":
        with_metadata(path, {METADATA: f'{{"format": {FORMAT + 1}, "tree": 3}}'}, w=torch.zeros(2))
    elif how.startswith("metadata "):
        with_metadata(path, {METADATA: how.removeprefix("metadata ")}, w=torch.zeros(2))
    else:
        with_metadata(path, {METADATA: f'{{"format": {FORMAT}, "tree": {how}}}'}, w=torch.zeros(2))


DAMAGES = {
    "missing": "no checkpoint",
    "folder": "cannot read",
    "empty": "is damaged",
    "truncated": "is damaged",
    "header cut": "is damaged",
    "garbage": "is damaged",
    "header size": "is damaged",
    "pickle": "is damaged",
    "torch.save": "is damaged",
    "not ours": "is not a checkpoint of pyro_seq",
    "newer": "newer version",
    "metadata": "is not a checkpoint of pyro_seq",
    "metadata {": "is damaged",
    "metadata []": "is damaged",
    "metadata {}": "is damaged",
    'metadata {"format": 1}': "is damaged",
    'metadata {"format": null, "tree": 3}': "is damaged",
    'metadata {"format": "1", "tree": 3}': "is damaged",
    'metadata {"format": true, "tree": 3}': "is damaged",
    'metadata {"format": 1e999, "tree": 3}': "is damaged",
    "no JSON": "is damaged",
    '{"tensor": "absent"}': "is damaged",
    '{"tensor": ["w"]}': "is damaged",
    '{"dict": 3}': "is damaged",
    '{"dict": [[[1], 2]]}': "is damaged",
    '{"dict": [[1, 2, 3]]}': "is damaged",
    '{"tuple": null}': "is damaged",
    '{"set": []}': "is damaged",
    "{}": "is damaged",
    '{"list": [' * 5_000 + "]}" * 5_000: "is damaged",
}


@pytest.mark.parametrize(("how", "says"), DAMAGES.items(), ids=lambda value: value[:20])
def test_damaged_checkpoint_is_refused(tmp_path: Path, how: str, says: str) -> None:
    path = tmp_path / "t.safetensors"
    save_tree(path, TREE)
    damage(path, how)
    with pytest.raises(UserError, match=says) as error:
        load_tree(path)
    assert str(path) in str(error.value)


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["ATTACK"],)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTACK", str(tmp_path / "attacked"))
    (tmp_path / "t").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(UserError):
        load_tree(tmp_path / "t")
    torch.save(Attack(), tmp_path / "t")
    with pytest.raises(UserError):
        load_tree(tmp_path / "t")
    assert not (tmp_path / "attacked").exists()


# weights


def test_weights_are_copied_in_place() -> None:
    target = {"w": torch.zeros(2), "n": torch.zeros((), dtype=torch.long)}
    w = target["w"]
    load_weights(target, {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(7)}, "f")
    assert w.tolist() == [1, 2] and target["n"] == 7


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (None, "holds no weights"),
        ({"w": [1.0, 2.0], "b": torch.zeros(1)}, "holds no weights"),
        ({"w": torch.ones(2)}, "'b' is missing"),
        ({"w": torch.ones(2), "b": torch.zeros(1), "c": torch.zeros(1)}, "'c' is unknown"),
        ({"w": torch.ones(2, 1), "b": torch.zeros(1)}, r"'w' has shape \[2, 1\], not \[2\]"),
        ({"w": torch.ones(2), "b": torch.tensor([float("nan")])}, "'b' is not finite"),
        ({"w": torch.ones(2), "b": torch.tensor([float("inf")])}, "'b' is not finite"),
        (
            {"w": torch.ones(2), "b": torch.tensor([1e300], dtype=torch.float64)},
            "'b' is not finite",
        ),
        (
            {"w": torch.ones(2), "b": torch.zeros(1, dtype=torch.long)},
            "'b' is torch.int64, not torch.float32",
        ),
        (
            {"w": torch.ones(2), "b": torch.zeros(1, dtype=torch.complex64)},
            "'b' is torch.complex64",
        ),
    ],
)
def test_weights_that_do_not_fit_change_nothing(weights: Any, says: str) -> None:
    target = {"w": torch.zeros(2), "b": torch.zeros(1)}
    with pytest.raises(UserError, match=says):
        load_weights(target, weights, "f")
    assert not target["w"].any() and not target["b"].any()


# the folder


def test_run_is_created_whole(run: RunFolder) -> None:
    assert run.exists() and run.settings() == {"a.b": 1}
    assert run.read_json("vocabulary.json") == {"characters": "aé😀"}
    assert "é" in (run.path / "vocabulary.json").read_text(encoding="utf-8")
    assert sorted(contents(run.path)) == [".lock", "run.json", "vocabulary.json"]


def test_run_is_not_created_twice(run: RunFolder) -> None:
    before = contents(run.path)
    with pytest.raises(UserError, match=r"already holds a run: add --resume"), run.locked():
        run.create({}, {"vocabulary.json": {}})
    assert contents(run.path) == before


@pytest.mark.parametrize(
    "name", ["vocabulary.json", "best.safetensors", "last.safetensors", "metrics.jsonl"]
)
def test_files_that_are_not_a_runs_are_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name} but no run.json"):
        RunFolder(tmp_path, "text").check_free("vocabulary.json")
    (tmp_path / name).unlink()
    (tmp_path / "notes.txt").touch()
    RunFolder(tmp_path, "text").check_free("vocabulary.json")


def test_run_killed_as_it_began_can_be_begun_again(run: RunFolder) -> None:
    (run.path / "run.json").unlink()
    run.check_free("vocabulary.json")
    save_tree(run.last, {})
    with pytest.raises(UserError, match="nothing is overwritten"):
        run.check_free("vocabulary.json")


def test_run_cannot_be_created_on_a_full_disk_by_halves(
    tmp_path: Path, file_size_limit: Limit
) -> None:
    run = RunFolder(tmp_path / "r", "text")
    with (
        run.locked(),
        file_size_limit(500),
        pytest.raises(UserError, match=r"cannot write .*run\.json"),
    ):
        run.create({"a": "x" * 1_000}, {"vocabulary.json": {}, "corpora.json": {}})
    assert sorted(contents(run.path)) == [".lock"]
    assert not run.exists()


def test_path_that_is_not_utf8_survives_json(run: RunFolder) -> None:
    name = os.fsdecode(b"caf\xe9 \\ud800")
    run.write_json("corpora.json", {"path": name})
    assert run.read_json("corpora.json") == {"path": name}


LOCKED_WHEN_TOLD = """
import sys
from pyro_seq.errors import UserError
from pyro_seq.runs.folder import RunFolder
for _ in sys.stdin:
    try:
        with RunFolder(sys.argv[1], "text").locked():
            print("held", flush=True)
    except UserError as error:
        print(error, flush=True)
"""


def test_only_one_process_writes_a_run(run: RunFolder) -> None:
    words = [sys.executable, "-c", LOCKED_WHEN_TOLD, str(run.path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, text=True, **pipes) as other:  # type: ignore[call-overload]

        def tried() -> str:
            other.stdin.write("\n")
            other.stdin.flush()
            return str(other.stdout.readline())

        with run.locked():
            # another file under the same name
            run.write_json("run.json", {"format": FORMAT, "kind": "text", "settings": {}})
            with run.locked():
                pass
            assert "is being written by another process" in tried()
        assert tried() == "held\n"


@pytest.mark.parametrize("there", [True, False])
def test_lock_that_is_a_link_is_refused(run: RunFolder, tmp_path: Path, there: bool) -> None:
    target = tmp_path / "diary"
    if there:
        target.write_text("dear diary")
    (run.path / ".lock").unlink(missing_ok=True)
    (run.path / ".lock").symlink_to(target)
    with (
        pytest.raises(
            UserError,
            match=r"cannot write the run folder .*: \.lock is a symbolic link; remove it$",
        ),
        run.locked(),
    ):
        pytest.fail("the lock was held")
    assert target.read_text() == "dear diary" if there else not target.exists()


def test_what_a_killed_process_was_writing_is_cleared_away(run: RunFolder) -> None:
    for folder in (run.path, run.path / "games"):
        (folder / f"{WRITING}x1").mkdir(parents=True)
        (folder / f"{WRITING}x1" / "last.safetensors").write_bytes(b"half")
    with run.locked():
        assert not list(run.path.rglob(f"{WRITING}*"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is damaged"),
        ("{", "is damaged"),
        ('{"format": 1', "is damaged"),
        ("[]", "does not hold an object"),
        ("null", "does not hold an object"),
        ("[" * 200_000, "nested too deeply"),
        ('{"format": ' + "9" * 5_000 + "}", "is damaged"),
        ("\0", "is damaged"),
        ("{}", "no format"),
        ('{"format": "1", "kind": "text", "settings": {}}', "no format"),
        ('{"format": true, "kind": "text", "settings": {}}', "no format"),
        ('{"format": 0, "kind": "text", "settings": {}}', "no format"),
        ('{"format": Infinity, "kind": "text", "settings": {}}', "no format"),
        ('{"format": 1, "kind": "text", "settings": []}', "no settings"),
        (f'{{"format": {FORMAT + 1}, "kind": "text", "settings": {{}}}}', "newer version"),
        (
            '{"format": 1, "kind": "text", "settings": {}}',
            rf"older version of pyro_seq \(format 1, this one reads {FORMAT}\): train anew",
        ),
        ('{"format": 1, "kind": "midi", "settings": {}}', "of kind 'midi', not 'text'"),
        ('{"format": 1, "settings": {}}', "of kind None, not 'text'"),
    ],
    ids=range(18),
)
def test_wrong_run_json_is_refused(run: RunFolder, text: str, says: str) -> None:
    (run.path / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=says) as error:
        run.settings()
    assert str(run.path) in str(error.value)


def test_json_that_is_not_utf8_too_large_missing_or_a_folder_is_refused(run: RunFolder) -> None:
    path = run.path / "vocabulary.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="is damaged"):
        run.read_json(path.name)
    os.truncate(path, MAX_JSON_BYTES + 1)
    with pytest.raises(UserError, match="too large"):
        run.read_json(path.name)
    path.unlink()
    with pytest.raises(UserError, match=r"is incomplete: vocabulary\.json is missing"):
        run.read_json(path.name)
    path.mkdir()
    with pytest.raises(UserError, match="cannot read"):
        run.read_json(path.name)


def test_folder_without_a_run_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run folder at .*: there is nothing"):
        RunFolder(tmp_path / "x", "text").settings()
    (tmp_path / "f").touch()
    with pytest.raises(UserError, match=r"no run folder at .*: it is a file"):
        RunFolder(tmp_path / "f", "text").settings()
    with pytest.raises(UserError, match=r"is a file, not a folder"):
        RunFolder(tmp_path / "f", "text").check_free()
    with (
        pytest.raises(UserError, match=r"cannot write the run folder"),
        RunFolder(tmp_path / "f", "text").locked(),
    ):
        pass
    with pytest.raises(UserError, match=r"holds no run \(run\.json is missing\)"):
        RunFolder(tmp_path, "text").settings()


def test_all_of_unicode_fits_into_a_vocabulary_file(run: RunFolder) -> None:
    characters = "".join(map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]))
    assert len(json.dumps({"characters": characters}).encode()) < MAX_JSON_BYTES
    run.write_json("vocabulary.json", {"characters": characters})
    assert run.read_json("vocabulary.json") == {"characters": characters}
