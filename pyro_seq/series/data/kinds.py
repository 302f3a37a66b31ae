"""Tell which kind of values a column has, and turn its cells into numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.series.data.files.numbers import (
    ALMOST,
    MOST_SAMPLE,
    Words,
    is_number,
    number_of,
    numbers_of,
    numeric_share,
    words_of,
)
from pyro_seq.series.data.files.options import ReadOptions
from pyro_seq.series.data.files.raw import Raw, as_option, quoted
from pyro_seq.series.data.schema import MOST_WORDS, Column, Kind

ORDERED = ("false", "true", "no", "yes", "n", "y", "f", "t", "off", "on")
MOST_COUNT = 1e6  # larger whole numbers are measured, not counted
POISSON = 1.2  # variance over mean up to here is a Poisson number's
ZEROS = 0.05  # more zeros than this are a mass of their own
MOST_LETTERS = 500  # of a word
LARGEST = 1e37  # beyond it float32, in which models compute, has no numbers
EDGES = 0.01  # more values at 0 or 1 than this are masses at the ends


@dataclass
class Cells:
    """Hold a column as numbers.

    Attributes:
        values: `[R]`, NaN where missing; of texts the codes.
        words: the texts in the order of their codes, or none.
    """

    values: NDArray[np.float64]
    words: tuple[str, ...] = ()


def cells_of(raw: Raw, name: str, options: ReadOptions, known: Column | None = None) -> Cells:
    """Return a column's cells as numbers, its texts as codes.

    Args:
        raw: the table.
        name: the column.
        options: the kinds and the missing values that the user names.
        known: what a schema says that the column is; its words keep their codes.

    Raises `UserError` that names the cell which does not fit.
    """
    kind = known.kind if known is not None else options.kinds.get(name)
    column = raw.frame[name]
    if column.dtype.kind in "Mm":
        raise UserError(
            f"{raw.where}, column {name!r} has times, and is no value; leave it out by --ignore"
        )
    words = kind == "category" or (kind == "yes" and known is not None and bool(known.words))
    if column.dtype.kind in "iuf" and not words:
        return Cells(_finite(raw, name, column.to_numpy(np.float64, copy=True), options))
    if column.dtype.kind == "b" and not words:
        return Cells(column.to_numpy(np.float64), ("False", "True"))
    if column.dtype.kind == "f":  # of codes with empty cells
        column = column.astype(object).map(lambda x: None if x != x else f"{x:.15g}")
    texts = words_of(column, options.missing)
    if not texts.words:
        return Cells(np.full(len(texts.codes), np.nan))
    if not words and kind != "yes":
        if kind is not None or numeric_share(texts) >= 0.5:
            values = numbers_of(raw, name, texts, options.decimal or raw.decimal)
            return Cells(_finite(raw, name, values, options))
        _check_no_units(raw, name, texts)
    return _coded(raw, name, texts, known)


def _finite(
    raw: Raw, name: str, values: NDArray[np.float64], options: ReadOptions
) -> NDArray[np.float64]:
    """Return numbers with NaN for those that stand for missing ones; none is infinite."""
    for text in options.missing:
        if is_number(text, "."):
            values[values == number_of(text, ".")] = np.nan
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise UserError(
            f"{raw.place(infinite[0], name)}: the number is infinite; leave the cell empty where "
            "the value is not known"
        )
    large = np.flatnonzero(np.abs(values) > LARGEST)
    if len(large):
        raise UserError(
            f"{raw.place(large[0], name)}: {values[large[0]]:g} is beyond {LARGEST:g}, the largest "
            "number that models compute with"
        )
    return values


def _check_no_units(raw: Raw, name: str, texts: Words) -> None:
    words = texts.words[:MOST_SAMPLE]
    almost = [code for code, word in enumerate(words) if ALMOST.fullmatch(word)]
    if len(almost) > len(words) / 2:
        word = texts.words[almost[0]]
        raise UserError(
            f"{raw.place(texts.first_row(almost[0]), name)}: {quoted(word)} is not a number; write "
            f"it without a unit, or say {as_option('--kind', name + '=category')} if it is a word"
        )


def _coded(raw: Raw, name: str, texts: Words, known: Column | None) -> Cells:
    if known is None:
        if len(texts.words) > MOST_WORDS:
            code = MOST_WORDS
            raise UserError(
                f"{raw.place(texts.first_row(code), name)}: {quoted(texts.words[code])} is the "
                f"{code + 1:,}th of {len(texts.words):,} different texts, and a category has at "
                f"most {MOST_WORDS:,}; leave the column out by --ignore, or, if it names series, "
                "say --id"
            )
        long = next((c for c, word in enumerate(texts.words) if len(word) > MOST_LETTERS), None)
        if long is not None:
            raise UserError(
                f"{raw.place(texts.first_row(long), name)}: a text of "
                f"{len(texts.words[long]):,} letters is no word of a category, which has at most "
                f"{MOST_LETTERS}; leave the column out by --ignore"
            )
        words = sorted(texts.words, key=_rank)
    else:
        words = list(known.words)
    index = {word: float(code) for code, word in enumerate(words)}
    other = [code for code, word in enumerate(texts.words) if word not in index]
    if other and known is not None:
        place, word = raw.place(texts.first_row(other[0]), name), texts.words[other[0]]
        if known.kind == "yes":
            raise UserError(f"{place}: {quoted(word)} is neither {words[0]!r} nor {words[1]!r}")
        raw.notes.append(
            f"{place}: {quoted(word)} is not among the words that the run knows, and "
            f"{len(other) - 1} more: they count as unknown"
        )
    codes = [index.get(word, float(len(words))) for word in texts.words]
    return Cells(np.array([*codes, np.nan])[texts.codes], tuple(words))


def _rank(word: str) -> tuple[int, float, str]:
    """Order words: no before yes, numbers by size, else by their letters."""
    low = word.casefold()
    at = ORDERED.index(low) if low in ORDERED else -1
    return at, number_of(word, ".") if is_number(word, ".") else 0.0, word


def kind_of(values: Sequence[NDArray[np.float64]], words: Sequence[str] = ()) -> Kind:
    """Return the kind of a column from its values in each series.

    Two values are yes or no; words a category; whole numbers from 0 counts, with a law by their
    variance over their mean, within series, and by zeros beyond a negative binomial's; other
    numbers a share with masses at 0 and 1, zero or positive, or real.
    """
    if words:
        return "yes" if len(words) == 2 else "category"
    pooled = np.concatenate(values) if len(values) != 1 else values[0]
    pooled = pooled[~np.isnan(pooled)]
    if not len(pooled):
        return "real"
    low, high = pooled.min(), pooled.max()
    if low == high:
        return "real"
    if low == 0 and high == 1 and ((pooled == 0) | (pooled == 1)).all():
        return "yes"
    zeros, ones = int((pooled == 0).sum()), int((pooled == 1).sum())
    if low >= 0 and high <= MOST_COUNT and (pooled == np.round(pooled)).all():
        return _count_kind([v[~np.isnan(v)] for v in values])
    if low >= 0 and high <= 1 and zeros + ones > max(EDGES * len(pooled), 2):
        return "share"
    return "positive" if low >= 0 and zeros > max(ZEROS * len(pooled), 2) else "real"


def _count_kind(values: Sequence[NDArray[np.float64]]) -> Kind:
    long = [v for v in values if len(v) > 1 and v.any()]
    if not long:
        return "count"
    means = np.array([v.mean() for v in long])
    variances = np.array([v.var(ddof=1) for v in long])
    if np.median(variances / means) <= POISSON:
        return "poisson"
    # of a negative binomial with these moments, P(0) = (r / (r + m))^r, r = m² / (v - m)
    sizes = means**2 / np.maximum(variances - means, 1e-9)
    expected = np.exp(sizes * (np.log(sizes) - np.log(sizes + means)))
    lengths = np.array([len(v) for v in long])
    zeros = np.array([float((v == 0).mean()) for v in long])
    excess = float(((zeros - expected) * lengths).sum() / lengths.sum())
    error = float(np.sqrt((expected * (1 - expected) * lengths).sum()) / lengths.sum())
    return "zero_inflated" if excess > max(0.02, 3 * error) else "count"


def check_kind(raw: Raw, column: Column, values: NDArray[np.float64], why: str) -> None:
    """Raise `UserError` that names the first cell which a column's kind cannot have."""
    kind = column.kind
    seen = ~np.isnan(values)
    wrong = np.zeros(len(values), bool)
    what = ""
    if kind in ("count", "poisson", "zero_inflated"):
        wrong, what = (values < 0) | (values != np.round(values)), "a whole number from 0"
    elif kind == "positive":
        wrong, what = values < 0, "0 or more"
    elif kind == "share":
        wrong, what = (values < 0) | (values > 1), "from 0 to 1"
    elif kind == "yes":
        wrong, what = (values != 0) & (values != 1), "0 or 1"
    at = np.flatnonzero(wrong & seen)
    if len(at):
        raise UserError(
            f"{raw.place(at[0], column.name)}: {values[at[0]]:g} is not {what}, as {why} that the "
            f"column is of the kind {kind}"
        )
