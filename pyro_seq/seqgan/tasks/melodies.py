"""Melodies as symbols: the highest sounding key at each step, or a rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.music.data.piano_rolls import KEYS, LOWEST
from pyro_seq.music.evaluation.statistics import PITCH_CLASSES
from pyro_seq.seqgan.tasks.base import Measurement

REST = KEYS  # the symbol of silence, after those of the keys
NUM_SYMBOLS = KEYS + 1
REST_SEMITONES = 12  # how far a rest is from any note
REST_SIGN = "·"
# windows that are compared at once, and symbols of those in columns: 32 MiB
ROWS, COLUMNS, SYMBOLS = 512, 8_192, 2**18


def melody(roll: Tensor) -> Tensor:
    """Return the skyline of a piano roll `[*, 88]` as symbols `[*]`.

    A symbol is the highest key that sounds, 0 (A0) to 87 (C8), or 88, a rest (int64).

    A roll does not say which part a note is of: where the melody rests and an accompaniment sounds,
    the accompaniment is heard. Raises `UserError` for a roll of another keyboard.
    """
    if roll.shape[-1:] != (KEYS,):
        raise UserError(
            f"a melody is taken from a roll of {KEYS} keys, not one of shape {list(roll.shape)}"
        )
    sounding = roll != 0
    highest = KEYS - 1 - sounding.flip(-1).to(torch.uint8).argmax(-1)
    return torch.where(sounding.any(-1), highest, REST)


def roll_of(symbols: Tensor) -> Tensor:
    """Return the roll `[*, 88]` (uint8) whose skyline are symbols `[*]`.

    Raises `UserError` for symbols outside 0 to 88.
    """
    if symbols.numel() and not (int(symbols.min()) >= 0 and int(symbols.max()) <= REST):
        raise UserError(
            f"a melody's symbols are 0 to {REST}, got {int(symbols.min())} to {int(symbols.max())}"
        )
    return torch.nn.functional.one_hot(symbols.long(), NUM_SYMBOLS)[..., :KEYS].to(torch.uint8)


def tune_melody(roll: Tensor, every: int = 1) -> Tensor:
    """Return the melody `[T]` of a tune `[frames, 88]`, every `every`-th frame.

    It runs from the first note to the last.

    The silence around a tune is none of its rests: files fill the bar before an upbeat with it.
    Empty for a silent roll.
    """
    sounding = (roll != 0).any(-1).nonzero().flatten()
    return melody(
        roll[int(sounding[0]) : int(sounding[-1]) + 1 : every] if len(sounding) else roll[:0]
    )


def names(symbols: Tensor) -> str:
    """Return symbols `[T]` as names of notes, `C4 E4 · G♯4`, the dot being a rest."""
    pitches = [LOWEST[KEYS] + symbol for symbol in symbols.tolist()]
    return " ".join(
        PITCH_CLASSES[p % 12] + str(p // 12 - 1) if p < LOWEST[KEYS] + KEYS else REST_SIGN
        for p in pitches
    )


class Windows(NamedTuple):
    """Windows of melodies.

    Attributes:
        symbols: `[M, length]`.
        short: how many melodies are shorter than one window.
        left_out: how many symbols are in no window: those of short melodies, and at the ends of
            others.
    """

    symbols: Tensor
    short: int
    left_out: int


def windows(melodies: Sequence[Tensor], length: int) -> Windows:
    """Cut melodies `[T_n]` into consecutive windows of `length` symbols, none across two."""
    if length < 1:
        raise UserError(f"windows must be at least 1 long, got {length}")
    cut = [symbols[: len(symbols) // length * length].view(-1, length) for symbols in melodies]
    found = torch.cat(cut) if cut else torch.empty(0, length, dtype=torch.long)
    short = sum(len(symbols) < length for symbols in melodies)
    return Windows(found, short, sum(map(len, melodies)) - found.numel())


def pitch_mse(generated: Tensor, references: Tensor) -> Measurement:
    """Return the squared semitones a step from windows `[n, T]` to the nearest reference.

    For each generated window g, min over references r of 1/T Σ_t d(g_t, r_t)², where d is the
    interval between two notes in semitones, 12 between a note and a rest, and 0 between two rests;
    then the mean over generated windows, with its standard error. Memory does not grow with n or m
    beyond the windows themselves. Raises `UserError` if there are none, or they are not of one
    length.
    """
    if generated.dim() != 2 or references.dim() != 2 or generated.shape[1] != references.shape[1]:
        raise UserError(
            f"windows [n, T] are compared with references [m, T], got {list(generated.shape)} and "
            f"{list(references.shape)}"
        )
    if not generated.numel() or not references.numel():
        raise UserError(
            f"there is nothing to compare: {len(generated)} generated windows and "
            f"{len(references)} references"
        )
    distances = [_nearest(rows, references) for rows in generated.split(ROWS)]
    return Measurement.mean(torch.cat(distances) / generated.shape[1])


def _nearest(generated: Tensor, references: Tensor) -> Tensor:
    """The smallest Σ_t d(g_t, r_t)² of each row, `[n]`; exact, since every term is a whole number
    below 2^53.

    With pitches p and q, and u and v 1 where a note sounds and 0 where none does, (p − q)² u v = p²
    u v − 2 p u q v + u q² v, and what a rest costs is a multiple of u (1 − v) + (1 − u) v: one
    product of matrices for all pairs.
    """
    sounds, pitch = _notes(generated)
    cost = float(REST_SEMITONES**2)
    left = torch.cat([pitch**2, -2 * pitch, sounds, cost * sounds, cost * (1 - sounds)], 1)
    nearest = torch.full((len(generated),), torch.inf, dtype=torch.double, device=generated.device)
    for columns in references.split(max(1, min(COLUMNS, SYMBOLS // references.shape[1]))):
        there, other = _notes(columns.to(generated.device))
        right = torch.cat([there, other, other**2, 1 - there, there], 1)
        nearest = torch.minimum(nearest, (left @ right.T).amin(1))
    return nearest


def _notes(symbols: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a note sounds (1 or 0), and its key, 0 for a rest: each `[n, T]` (float64)."""
    sounds = (symbols != REST).double()
    return sounds, symbols * sounds
