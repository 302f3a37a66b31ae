"""Films: frames `[T, C, H, W]` of one size, and what a pixel of theirs is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError

Film = NDArray[Any]  # [T, C, H, W]: uint8, or float32 from 0 to 1
Shape = tuple[int, int, int]

LEVELS = 255  # the brightest of 8 bits
KINDS = ("binary", "bytes", "real")
MOST_CHANNELS = 4
MOST_PIXELS = 2**20  # of a frame
MOST_BYTES = 2**31  # of all films together
UNITS = {"binary": "yes or no", "bytes": "8 bits", "real": "real numbers from 0 to 1"}


@dataclass(frozen=True, eq=False)
class Films:
    """Films of one size.

    Attributes:
        films: frames `[T_n, C, H, W]` each: 0 or 1 (`binary`) or 0 to 255 (`bytes`) as uint8, or
            float32 from 0 to 1 (`real`).
        kind: what a pixel is: `binary`, `bytes` or `real`.
        names: what each film is called.
        skipped: files that could not be read, each with the reason.
    """

    films: Sequence[Film]
    kind: str
    names: Sequence[str]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        """C, H and W of a frame."""
        colours, height, width = self.films[0].shape[1:]
        return colours, height, width

    def __len__(self) -> int:
        return len(self.films)

    def chosen(self, places: Sequence[int]) -> Films:
        """Return some of the films, by their places."""
        films = [self.films[i] for i in places]
        return Films(films, self.kind, [self.names[i] for i in places])


def films_of(
    found: Sequence[tuple[str, Film]],
    *,
    shape: Shape | None = None,
    kind: str | None = None,
    skipped: Mapping[str, str] | None = None,
) -> Films:
    """Return films by their names, all of one size and of one kind of pixels.

    Grey films among coloured ones are given their colours' number of channels. Pixels are `binary`
    where all are 0 and 1 or 0 and 255.

    Args:
        found: names, and frames `[T, C, H, W]`, of 8 bits or real.
        shape: C, H and W that a run asks for.
        kind: of pixels, that a run asks for.
        skipped: files that could not be read, with the reasons.

    Raises `UserError` for none, for frames of unequal size, and for pixels of another kind than the
    run's.
    """
    if not found:
        why = "".join(f"; {name}: {reason}" for name, reason in list((skipped or {}).items())[:1])
        raise UserError(f"there are no films to read{why}")
    if sum(film.nbytes for _, film in found) > MOST_BYTES:
        raise UserError(f"the films have more than {MOST_BYTES:,} bytes: name fewer of them")
    colours = shape[0] if shape else max(film.shape[1] for _, film in found)
    first = found[0]
    size = shape[1:] if shape else first[1].shape[2:]
    for name, film in found:
        if film.shape[2:] != size:
            whose = "the run's" if shape else f"those of {first[0]}"
            raise UserError(
                f"{name} has frames of {_size(film.shape[2:])} pixels, and {whose} are "
                f"{_size(size)}: frames must be of one size"
            )
        if film.shape[1] not in (1, colours):
            raise UserError(
                f"{name} has {film.shape[1]} channels, and the others have {colours}: make them "
                "the same"
            )
    films = [np.repeat(film, colours // film.shape[1], 1) for _, film in found]
    films, own = _of_one_kind(films, kind)
    return Films(films, own, [name for name, _ in found], dict(skipped or {}))


def _size(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _of_one_kind(films: list[Film], wanted: str | None) -> tuple[list[Film], str]:
    """Return the films as binary, bytes or real, and which of them it is."""
    brightest = max(int(np.ceil(film.max())) for film in films)
    two = all(bool(((film == 0) | (film == 1)).all()) for film in films) or all(
        bool(((film == 0) | (film == LEVELS)).all()) for film in films
    )
    real = any(film.dtype.kind == "f" for film in films)
    found = "binary" if two else "real" if real else "bytes"
    if wanted in (None, "binary") and found == "binary":
        return [(film > 0).astype(np.uint8) for film in films], "binary"
    if wanted == "binary":
        raise UserError("the run has learnt pixels of 0 and 1, and these films have others")
    kind = wanted or found
    if kind == "real":
        top = 1.0 if real or brightest <= 1 else LEVELS
        return [(film / np.float32(top)).astype(np.float32) for film in films], kind
    if real and found != "binary":
        raise UserError("the run has learnt pixels of 8 bits, and these films have real numbers")
    scale = LEVELS if brightest <= 1 else 1
    return [(film * scale).astype(np.uint8) for film in films], kind


def fingerprint(*groups: Films | None) -> str:
    """Return the SHA-256 of films' pixels."""
    digest = hashlib.sha256()
    for films in groups:
        if films is None:
            continue
        for film in films.films:
            digest.update(f"{films.kind} {film.shape}\0".encode())
            digest.update(np.ascontiguousarray(film).tobytes())
    return digest.hexdigest()
