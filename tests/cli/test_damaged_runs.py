"""Run folders that are missing, incomplete, damaged or hostile: each command says so in one line
and leaves them as they are.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_seq._pytree import tree_map
from pyro_seq.cli import main
from pyro_seq.runs.checkpoint import load_tree, save_tree

Commands = Callable[[Path, Path], dict[str, list[Any]]]
Limit = Callable[[int], AbstractContextManager[None]]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["generate", "evaluate", "resume"])
def test_run_folder_that_is_not_there(
    tmp_path: Path, corpus: Path, refused: Callable[..., str], name: str, commands: Commands
) -> None:
    assert "no run folder at" in refused(*commands(tmp_path / "missing", corpus)[name])
    assert "it is a file" in refused(*commands(corpus, corpus)[name])
    assert "holds no run (run.json is missing)" in refused(*commands(tmp_path, corpus)[name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["generate", "evaluate", "resume"])
@pytest.mark.parametrize(
    "missing",
    ["run.json", "vocabulary.json", "corpora.json", "best.safetensors", "last.safetensors", "both"],
)
def test_run_folder_with_a_file_missing(
    spoilt: Path,
    corpus: Path,
    refused: Callable[..., str],
    name: str,
    missing: str,
    commands: Commands,
) -> None:
    for file in ("best.safetensors", "last.safetensors") if missing == "both" else (missing,):
        (spoilt / file).unlink()
    needed = {"run.json", "vocabulary.json"} | (
        {"corpora.json", "last.safetensors"} if name == "resume" else {"both"}
    )
    if missing in needed:
        before = contents(spoilt)
        line = refused(*commands(spoilt, corpus)[name])
        assert str(spoilt) in line and ("missing" in line or "no weights yet" in line)
        assert contents(spoilt) == before
    else:  # the other one of the two is enough, or nothing was trained yet
        with pytest.raises(SystemExit) as ended:
            main([*map(str, commands(spoilt, corpus)[name])])
        assert ended.value.code == 0


@pytest.mark.parametrize("name", ["run.json", "vocabulary.json", "corpora.json"])
@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "{}", "[" * 100_000, "\0", '{"format": 1, "kind": "text", "settings": 3}'],
    ids=range(8),
)
def test_damaged_json(
    spoilt: Path,
    corpus: Path,
    refused: Callable[..., str],
    name: str,
    text: str,
    commands: Commands,
) -> None:
    (spoilt / name).write_text(text)
    before = contents(spoilt)
    for command in (
        commands(spoilt, corpus).values()
        if name != "corpora.json"
        else [commands(spoilt, corpus)["resume"]]
    ):
        line = refused(*command)
        assert str(spoilt / name) in line and "damaged" in line
    assert contents(spoilt) == before


def rewrite(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 99}, "newer version"),
        ({"kind": "midi"}, "holds a run of kind 'midi', not 'text'"),
        ({"settings": {"model.hiden_size": 8}}, "unknown setting 'model.hiden_size'"),
        ({"settings": {}}, "does not fit run.json"),
        # would be 8 TB
        (
            {"settings": {"model.hidden_size": 65_536, "model.num_layers": 64}},
            "does not fit run.json",
        ),
        ({"settings": {"model.hidden_size": 10**30}}, "model.hidden_size must lie in"),
        ({"settings": {"model.name": "srnn"}}, "does not fit run.json"),
    ],
)
def test_run_json_of_another_kind_version_or_size(
    spoilt: Path,
    corpus: Path,
    refused: Callable[..., str],
    changes: dict[str, Any],
    says: str,
    commands: Commands,
) -> None:
    rewrite(spoilt / "run.json", **changes)
    for command in commands(spoilt, corpus).values():
        assert says in refused(*command)


@pytest.mark.parametrize(
    "value",
    [None, [], {}, "x", -1, 0.5, float("nan"), float("inf"), True, 10**30, [[1]], ["a"]],
    ids=repr,
)
def test_settings_of_wrong_types(spoilt: Path, refused: Callable[..., str], value: Any) -> None:
    settings = json.loads((spoilt / "run.json").read_text())["settings"]
    for name, right in settings.items():
        if type(value) is type(right) or name in ("training.max_minutes", "training.clip_norm"):
            continue
        if isinstance(right, (float, list)) and isinstance(value, (int, float, list, str)):
            continue  # may be right
        rewrite(spoilt / "run.json", settings=settings | {name: value})
        assert name in refused("text", "generate", "--run-dir", spoilt), name


@pytest.mark.parametrize(
    "changes",
    [
        {"characters": "abc"},
        {"characters": "ab" + "".join(map(chr, range(0xE000, 0xE000 + 100_000)))},
        {"oov_buckets": 1_000_000},
        {"level": "byte"},
    ],
    ids=["small", "large", "buckets", "byte"],
)
def test_vocabulary_that_does_not_fit_the_weights(
    spoilt: Path,
    corpus: Path,
    refused: Callable[..., str],
    changes: dict[str, Any],
    commands: Commands,
) -> None:
    rewrite(spoilt / "vocabulary.json", **changes)
    for command in commands(spoilt, corpus).values():
        assert "not fit" in refused(*command)


@pytest.mark.parametrize("changes", [
    {"seed": -1}, {"seed": 2**64}, {"seed": float("inf")}, {"seed": None},
    {"valid_fraction": float("nan")}, {"valid_fraction": 2},
    {"files": {}}, {"files": []}, {"files": {"train": "x"}},
    {"files": {"train": {"path": 3, "sha256": "x"}}},
    {"files": {"train": {"path": "x\0", "sha256": "x"}}},
    {"files": {"train": {"path": "/", "sha256": "x"}}},
    {"files": {"train": {"path": "missing", "sha256": "x"}}},
], ids=repr)  # fmt: skip
def test_damaged_corpora_json(
    spoilt: Path,
    corpus: Path,
    refused: Callable[..., str],
    changes: dict[str, Any],
    commands: Commands,
) -> None:
    rewrite(spoilt / "corpora.json", **changes)
    before = contents(spoilt)
    line = refused(*commands(spoilt, corpus)["resume"])
    assert any(words in line for words in ("damaged", "cannot read", "is a directory"))
    assert contents(spoilt) == before


def nan_weights(tree: dict[str, Any]) -> dict[str, Any]:
    next(iter(tree["weights"]["model"].values())).view(-1)[0] = torch.nan
    return tree


def smaller_weights(tree: dict[str, Any]) -> dict[str, Any]:
    tree["weights"]["model"] = {
        name: weight[..., :2] for name, weight in tree["weights"]["model"].items()
    }
    return tree


WEIGHTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "not finite": nan_weights,
    "of another size": smaller_weights,
    "none": lambda tree: tree | {"weights": None},
    "a list": lambda tree: [tree],
    "a tensor": lambda tree: tree | {"weights": torch.zeros(3)},
    "a model's missing": lambda tree: tree | {"weights": {"store": {}}},
    "a model's as a tensor": lambda tree: (
        tree | {"weights": {"store": {}, "model": torch.zeros(1)}}
    ),
    "a model's as words": lambda tree: (
        tree | {"weights": {"store": {}, "model": dict.fromkeys(tree["weights"]["model"], "x")}}
    ),
    "one more": lambda tree: (
        tree
        | {"weights": {"store": {}, "model": tree["weights"]["model"] | {"extra": torch.zeros(1)}}}
    ),
    "a guide's": lambda tree: tree | {"weights": tree["weights"] | {"guide": {}}},
    "step as a word": lambda tree: tree | {"step": "x"},
}


@pytest.mark.parametrize("how", WEIGHTS)
def test_weights_that_are_not_this_models(
    spoilt: Path, corpus: Path, refused: Callable[..., str], how: str, commands: Commands
) -> None:
    for name, command in (("best", "generate"), ("last", "resume")):
        path = spoilt / f"{name}.safetensors"
        save_tree(path, WEIGHTS[how](load_tree(path)))
        before = contents(spoilt)
        line = refused(*commands(spoilt, corpus)[command])
        assert str(path) in line
        changed = {file for file, data in contents(spoilt).items() if before.get(file) != data}
        assert changed <= {"run.json"}  # the steps asked for


FILES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-9],
    "cut in the header": lambda data: data[:50],
    "garbage": lambda data: bytes(range(256)) * 20,
    "a pickle": lambda data: pickle.dumps({"weights": 1}),
    "a huge header": lambda data: (2**40).to_bytes(8, "little") + data[8:],
    "another format": lambda data: b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
}


@pytest.mark.parametrize("how", FILES)
def test_damaged_weights_file(
    spoilt: Path, corpus: Path, refused: Callable[..., str], how: str, commands: Commands
) -> None:
    for path, command in (
        (spoilt / "best.safetensors", "generate"),
        (spoilt / "last.safetensors", "resume"),
    ):
        path.write_bytes(FILES[how](path.read_bytes()))
        damaged = path.read_bytes()
        line = refused(*commands(spoilt, corpus)[command])
        assert str(path) in line and ("damaged" in line or "not a checkpoint" in line)
        assert path.read_bytes() == damaged


CHECKPOINTS: dict[str, Any] = {
    "step": "x",
    "minutes": None,
    "best_loss": [],
    "validated": {},
    "optimiser": {"steps": 3, "moments": {0: {}}, "averages": []},
    "batches": {"position": 10**9},
    "sums": 3,
    "metrics_size": 10**9,
    "random": {"cpu": torch.zeros(3)},
    "carried": 5,
}


def carried(
    tree: dict[str, Any], function: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, Any]:
    return tree | {"carried": tree_map(function, tree["carried"])}


CARRIED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "none": lambda tree: tree | {"carried": {"model": None, "guide": None}},
    "empty": lambda tree: tree | {"carried": {"model": {}, "guide": None}},
    "of another size": lambda tree: carried(tree, lambda state: state[..., :1]),
    "of another batch": lambda tree: carried(tree, lambda state: state[:1]),
    "not finite": lambda tree: carried(
        tree,
        lambda state: torch.full_like(state, torch.nan) if state.is_floating_point() else state,
    ),
    "of other symbols": lambda tree: carried(
        tree, lambda state: state if state.is_floating_point() else state + 1_000
    ),
}


@pytest.mark.parametrize("how", CARRIED)
def test_states_carried_over_that_do_not_fit(
    spoilt: Path, corpus: Path, refused: Callable[..., str], how: str, commands: Commands
) -> None:
    path = spoilt / "last.safetensors"
    tree = load_tree(path)
    # so that the next window follows the last one
    assert tree["batches"]["position"] + 12 <= 432 // 4
    save_tree(path, CARRIED[how](tree))
    assert f"{path} is not a checkpoint of this run" in refused(*commands(spoilt, corpus)["resume"])


@pytest.mark.parametrize("key", CHECKPOINTS)
def test_checkpoint_that_is_not_this_runs(
    spoilt: Path, corpus: Path, refused: Callable[..., str], key: str, commands: Commands
) -> None:
    path = spoilt / "last.safetensors"
    whole = load_tree(path)
    for tree in (
        whole | {key: CHECKPOINTS[key]},
        {name: value for name, value in whole.items() if name != key},
    ):
        save_tree(path, tree)
        before = path.read_bytes(), (spoilt / "metrics.jsonl").read_bytes()
        refused(*commands(spoilt, corpus)["resume"])
        assert (path.read_bytes(), (spoilt / "metrics.jsonl").read_bytes()) == before


def test_model_that_has_diverged(
    spoilt: Path, corpus: Path, refused: Callable[..., str], commands: Commands
) -> None:
    tree = load_tree(spoilt / "best.safetensors")
    for weight in tree["weights"]["model"].values():
        weight.fill_(3e38)
    save_tree(spoilt / "best.safetensors", tree)
    assert "not finite" in refused(*commands(spoilt, corpus)["evaluate"])
    assert "are not finite" in refused(*commands(spoilt, corpus)["generate"])


@pytest.mark.parametrize("place", [
    "run.json", "vocabulary.json", "corpora.json", "last.safetensors", "best.safetensors",
    "metrics.jsonl", ".lock", "tensorboard",
    "samples", "samples/sample-1.mid", "games/000000.safetensors", "imagined", "videos",
    "pretraining/last.safetensors",
])  # fmt: skip
@pytest.mark.parametrize("what", ["link", "link to a folder", "pipe"])
def test_links_and_pipes_in_a_run_folder(
    spoilt: Path,
    corpus: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    place: str,
    what: str,
    commands: Commands,
) -> None:
    outside, path = tmp_path / "outside", spoilt / place
    outside.mkdir()
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.rename(outside / path.name)
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(outside if what == "link to a folder" else outside / path.name)
    before = contents(tmp_path)
    for command in commands(spoilt, corpus).values():
        line = refused(*command)
        assert f"{place} is a {'pipe' if what == 'pipe' else 'symbolic link'}; remove it" in line
    assert contents(tmp_path) == before
