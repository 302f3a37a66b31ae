"""Piano rolls: files of them, files that are none, and when frames sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyro_seq.errors import UserError
from pyro_seq.music.data.piano_rolls import KEYS, Timing, read_polyphonic


def test_frames_sound_by_rate_or_by_beats() -> None:
    assert Timing(rate=20).seconds(30) == pytest.approx(1.5)
    assert Timing(rate=20, grid=4, tempo=90).seconds(12) == pytest.approx(2.0)


def test_the_real_files(data_dir: Path) -> None:
    splits = read_polyphonic(data_dir / "polyphonic" / "jsb_chorales.npz")
    assert {name: (len(pieces), sum(map(len, pieces))) for name, pieces in splits.items()} == {
        "train": (229, 13_807),
        "valid": (76, 4_602),
        "test": (77, 4_725),
    }
    assert all(piece.shape[1] == KEYS and piece.max() == 1 for piece in splits["test"])


def test_files_that_hold_no_music(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            read_polyphonic(path)

    path = tmp_path / "missing.npz"
    refused("no such file")
    path = tmp_path / "broken.npz"
    path.write_bytes(b"PK\x03\x04 not an archive")
    refused("broken.npz holds no polyphonic music")
    frames, lengths = np.zeros((5, 11), np.uint8), np.array([2, 3])
    complete = {
        f"{split}_{name}": array
        for split in ("train", "valid", "test")
        for name, array in (("frames", frames), ("lengths", lengths))
    }
    for change in (
        {"train_lengths": np.array([2, 2])},
        {"valid_frames": frames[:, :4]},
        {"test_frames": frames.astype(float)},
    ):
        np.savez(path, **(complete | change))
        refused("holds no polyphonic music")
    np.savez(path, **(complete | {"test_lengths": np.array([[1], [2]], dtype=object)}))
    refused("holds no polyphonic music")
    np.savez(path, train_frames=frames)
    refused("holds no polyphonic music: KeyError")
