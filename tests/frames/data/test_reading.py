"""Films from files: arrays, GIFs, folders of pictures, and what is none."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyro_seq.errors import UserError
from pyro_seq.frames.data import pictures
from pyro_seq.frames.data.demo import moving_squares
from pyro_seq.frames.data.films import fingerprint
from pyro_seq.frames.data.reading import has_splits, read_films
from pyro_seq.frames.data.rules import is_one_square, rule_of
from pyro_seq.frames.show.render import as_rgb, contact_sheet, gif_bytes
from pyro_seq.programs.plotting import enlarged, side_by_side

RANDOM = np.random.default_rng(0)
BITS = RANDOM.integers(0, 2, (3, 4, 5, 6), dtype=np.uint8)


def saved(path: Path, array: Any = None, **arrays: Any) -> Path:
    if arrays:
        np.savez(path, **arrays)
    else:
        np.save(path, array)
    return path


def test_arrays_with_and_without_channels(tmp_path: Path) -> None:
    plain = read_films([saved(tmp_path / "a.npy", BITS)])
    assert plain.kind == "binary" and plain.shape == (1, 5, 6) and len(plain) == 3
    np.testing.assert_array_equal(plain.films[1][:, 0], BITS[1])
    last = read_films([saved(tmp_path / "b.npz", frames=BITS[..., None] * np.uint8(255))])
    assert fingerprint(last) == fingerprint(plain)
    colours = RANDOM.integers(0, 256, (2, 3, 5, 6, 3), dtype=np.uint8)
    read = read_films([saved(tmp_path / "c.npy", colours)])
    assert read.kind == "bytes" and read.shape == (3, 5, 6)
    np.testing.assert_array_equal(np.moveaxis(read.films[0], 1, -1), colours[0])
    real = read_films([saved(tmp_path / "d.npy", RANDOM.random((2, 3, 5, 6)))])
    assert real.kind == "real" and real.films[0].dtype == np.float32
    long = read_films([saved(tmp_path / "e.npz", frames=BITS, lengths=[2, 4, 3])])
    assert [*map(len, long.films)] == [2, 4, 3]


def test_splits(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", train=BITS, valid=BITS[:1], test=BITS[:2], digit=np.arange(3))
    assert [len(read_films([path], split)) for split in ("train", "valid", "test")] == [3, 1, 2]
    assert has_splits([path]) and not has_splits([saved(tmp_path / "b.npz", frames=BITS)])


def test_gifs_and_folders_of_pngs(tmp_path: Path) -> None:
    films = moving_squares(2, 6)
    kept = tmp_path / "films"
    (kept / "ten").mkdir(parents=True)
    (kept / "a.gif").write_bytes(gif_bytes(as_rgb(films.films[0], "binary")))
    for t, frame in enumerate(films.films[1][:, 0]):
        Image.fromarray(frame * np.uint8(255)).save(kept / "ten" / f"frame{t + 7}.png")
    (kept / "notes.txt").write_text("no picture")
    (kept / "film.mp4").write_bytes(b"\0" * 99)
    read = read_films([kept])
    assert read.kind == "binary" and len(read) == 2
    np.testing.assert_array_equal(read.films[0], films.films[0])
    np.testing.assert_array_equal(read.films[1], films.films[1])  # frame9 before frame10
    said = {Path(name).name: why for name, why in read.skipped.items()}
    assert "no GIF or PNG" in said["notes.txt"] and "videos are not read" in said["film.mp4"]


def png(path: Path, size: tuple[int, int] = (4, 4), mode: str = "L", **how: Any) -> Path:
    Image.new(mode, size, **how).save(path)
    return path


def refused_pictures(folder: Path, number: int) -> str:
    """Make a folder of pictures of which no film can be made, and say what is to be said."""
    if number == 0:
        png(folder / "1.png"), png(folder / "2.png", (4, 5))
        return "unequal size: 4 x 4 pixels, then 5 x 4"
    if number == 1:
        png(folder / "1.png")
        return "it has one frame"
    if number == 2:
        png(folder / "1.png", mode="RGBA", color=(1, 2, 3, 9)), png(folder / "2.png")
        return "transparent pixels"
    if number == 3:
        whole = png(folder / "1.png", (64, 64)).read_bytes()
        (folder / "1.png").write_bytes(whole[: len(whole) // 2])
        return "no whole picture|no GIF or PNG"
    if number == 4:
        png(folder / "1.png", (5_000, 4_000)), png(folder / "2.png")
        return "5000 x 4000 pixels"
    png(folder / "1.png", mode="I;16"), png(folder / "2.png")
    return "more than 8 bits"


@pytest.mark.parametrize("number", range(6))
def test_pictures_that_are_no_film(tmp_path: Path, number: int) -> None:
    says = refused_pictures(tmp_path, number)
    with pytest.raises(UserError, match=f"there are no films to read; .*({says})"):
        read_films([tmp_path])


def test_a_film_of_too_many_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_FRAMES", 5)
    path = tmp_path / "a.gif"
    path.write_bytes(gif_bytes(as_rgb(moving_squares(1, 8).films[0], "binary")))
    with pytest.raises(UserError, match="more than 5 frames: cut it"):
        read_films([path])


def bomb(path: Path) -> Path:
    """An archive that says its array has a terabyte."""
    head = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(head, shape)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("frames.npy", head.getvalue() + b"\0" * 100)
    return path


def test_arrays_that_are_no_films(tmp_path: Path) -> None:
    cases = {
        "a.npy": (BITS[0], r"has shape \[4, 5, 6\]"),
        "b.npy": (BITS * 2.5, "from 0 to 2.5"),
        "c.npy": (BITS.astype(int) - 1, "from -1 to 0"),
        "d.npy": (np.where(BITS, np.nan, 0.5), "not a number"),
        "e.npy": (np.zeros((1, 2, 3, 3, 5), np.uint8), "has 5 channels"),
        "f.npy": (np.zeros((0, 2, 3, 3), np.uint8), "no extent is 0"),
        "g.npy": (BITS.astype(int) * 300, "from 0 to 300"),
    }
    for name, (array, says) in cases.items():
        with pytest.raises(UserError, match=says):
            read_films([saved(tmp_path / name, array)])
    np.save(tmp_path / "h.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match="Python objects"):
        read_films([tmp_path / "h.npy"])
    with pytest.raises(UserError, match="shape"):
        read_films([bomb(tmp_path / "i.npz")])
    with pytest.raises(UserError, match="films are 'frames'"):
        read_films([saved(tmp_path / "j.npz", values=BITS)])
    with pytest.raises(UserError, match="is missing"):
        read_films([tmp_path / "k.npy"])
    (tmp_path / "l.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match="no whole npz"):
        read_films([tmp_path / "l.npz"])


def test_films_of_other_sizes_and_kinds(tmp_path: Path) -> None:
    small = saved(tmp_path / "a.npy", BITS)
    large = saved(tmp_path / "b.npy", np.zeros((1, 2, 8, 8), np.uint8))
    with pytest.raises(UserError, match=r"8 x 8 pixels, and those of .* are 5 x 6"):
        read_films([small, large])
    with pytest.raises(UserError, match="and the run's are 8 x 8"):
        read_films([small], shape=(1, 8, 8))
    grey = saved(tmp_path / "c.npy", BITS * np.uint8(7))
    with pytest.raises(UserError, match="pixels of 0 and 1"):
        read_films([grey], kind="binary")
    assert set(np.unique(read_films([small], kind="bytes").films[0])) == {0, 255}
    assert read_films([small], shape=(3, 5, 6)).shape == (3, 5, 6)


def test_the_square_is_one_square_everywhere_on_the_torus() -> None:
    films = np.stack(moving_squares(20, 5).films)
    assert is_one_square(films).all()
    broken = films.copy()
    broken[:, :, 0, 0, 0] ^= 1
    assert not is_one_square(broken).any()
    assert not is_one_square(np.zeros((1, 1, 8, 8), np.uint8)).any()
    with pytest.raises(UserError, match="did you mean 'square'"):
        rule_of("squares")


def test_rendering() -> None:
    film = moving_squares(1, 4).films[0]
    shown = enlarged(as_rgb(film, "binary"), 32)
    assert shown.shape == (4, 32, 32, 3) and set(np.unique(shown)) == {0, 255}
    both = side_by_side([shown, shown[:2]])
    assert both.shape == (4, 32, 68, 3)
    with Image.open(io.BytesIO(gif_bytes(both))) as moving:
        assert moving.n_frames == 4 and moving.size == (68, 32)
    with Image.open(io.BytesIO(contact_sheet([shown, shown], columns=2))) as sheet:
        assert sheet.size == (68, 68)
