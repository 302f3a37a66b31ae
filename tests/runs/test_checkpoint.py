"""Checkpoints that one process reads while another one writes them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import safetensors
import torch

from pyro_seq.errors import UserError
from pyro_seq.runs import checkpoint
from pyro_seq.runs.checkpoint import load_tree, save_tree


def tree(number: int, size: int) -> dict[str, object]:
    """A tree that knows its number twice: in the metadata, and in its tensor."""
    return {"step": number, "weights": torch.full((size,), float(number))}


def test_a_file_that_is_replaced_is_read_whole(tmp_path: Path) -> None:
    """Never the metadata of one checkpoint with the tensors of the next, of the same size."""
    path, done = tmp_path / "last.safetensors", threading.Event()
    save_tree(path, tree(0, 1000))

    def write() -> None:
        for number in range(300):
            save_tree(path, tree(number, 1000 + number % 3))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    readings = 0
    while not done.is_set():
        found = load_tree(path)
        assert (found["weights"] == found["step"]).all()
        readings += 1
    writer.join()
    assert readings > 1


@pytest.mark.parametrize("size", [1000, 7])
def test_a_file_that_is_replaced_between_two_openings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path = tmp_path / "last.safetensors"
    save_tree(path, tree(1, 1000))
    opened = safetensors.safe_open
    times: list[int] = []

    class Replaced:
        """Open a file, which is replaced before its tensors are read."""

        def __init__(self, *given: object, **named: object) -> None:
            self.file = opened(*given, **named)  # type: ignore[arg-type]

        def __enter__(self) -> object:
            entered = self.file.__enter__()
            if not times:
                save_tree(path, tree(2, size))
            times.append(1)
            return entered

        def __exit__(self, *given: object) -> None:
            self.file.__exit__(*given)

    monkeypatch.setattr(checkpoint.safetensors, "safe_open", Replaced)
    found = load_tree(path)
    assert found["step"] == 2 and found["weights"].tolist() == [2.0] * size
    assert len(times) == 2


def test_a_file_that_is_always_replaced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.safetensors"
    save_tree(path, tree(1, 10))
    monkeypatch.setattr(checkpoint, "_is_called", lambda opened, path: False)
    with pytest.raises(UserError, match="replaced faster than it can be read"):
        load_tree(path)
