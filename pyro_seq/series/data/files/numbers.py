"""Tell numbers, however they are written, from words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.series.data.files.raw import MISSING, Raw, as_option, quoted

if TYPE_CHECKING:
    import pandas as pd

_GROUP = " '’\u00a0\u2009\u202f"  # what parts thousands in every country
_POINT = rf"[+-]?(?=\.?\d)(\d{{1,3}}([,{_GROUP}]\d{{3}})+|\d+)?(\.\d*)?([eE][+-]?\d+)?"
_COMMA = rf"[+-]?(?=,?\d)(\d{{1,3}}([.{_GROUP}]\d{{3}})+|\d+)?(,\d*)?([eE][+-]?\d+)?"
POINT, COMMA = re.compile(_POINT), re.compile(_COMMA)
MOST_SAMPLE = 5_000  # texts that are looked at to tell numbers from words
INFINITE = re.compile(r"[+-]?(inf|infinity|∞)", re.IGNORECASE)
# a number with a unit or a sign of money, or what Excel writes for a failed formula
ALMOST = re.compile(r"[$€£¥]?\s*[+-]?\d[\d.,' ]*\s*(%|[$€£¥]|°?[A-Za-z]{1,3})?|#\S+[!?]")


@dataclass(eq=False)
class Words:
    """Hold the texts of a column that differ, and which of them each row has.

    Attributes:
        codes: `[R]`, -1 where a cell is missing.
        words: the texts, without blanks around them.
    """

    codes: NDArray[np.int64]
    words: list[str]

    def first_row(self, code: int) -> int:
        """Return the first row that has a text."""
        return int(np.flatnonzero(self.codes == code)[0])


def words_of(column: pd.Series, missing: tuple[str, ...] = ()) -> Words:
    """Return the texts of a column; cells that say that they are missing are so."""
    import pandas as pd

    if column.dtype == object:
        column = column.map(lambda cell: cell if cell is None or cell is pd.NA else str(cell))
    codes, found = pd.factorize(column)
    stripped = [str(word).strip() for word in found]
    lacking = {*MISSING, *missing}
    index: dict[str, int] = {}
    new = np.array(
        [-1 if word in lacking else index.setdefault(word, len(index)) for word in stripped]
        + [-1],  # the last is taken by code -1
        np.int64,
    )
    return Words(new[codes], list(index))


def sign_of(words: list[str]) -> str | None:
    """Return the decimal sign that some texts use for certain, or `None` if they may use either."""
    point = comma = False
    for word in words:
        fits_point, fits_comma = is_number(word, "."), is_number(word, ",")
        point |= fits_point and not fits_comma
        comma |= fits_comma and not fits_point
    return "," if comma and not point else "." if point and not comma else None


def is_number(word: str, decimal: str) -> bool:
    """Tell whether a text is a number with this decimal sign."""
    return bool((POINT if decimal == "." else COMMA).fullmatch(word))


def number_of(word: str, decimal: str) -> float:
    """Return the number that a text is with this decimal sign, the sign of thousands left out."""
    word = re.sub(rf"[{',' if decimal == '.' else '.'}{_GROUP}]", "", word)
    return float(word.replace(",", "."))


def numeric_share(texts: Words) -> float:
    """Return which share of the differing texts, of a sample if they are many, is a number."""
    words = texts.words[:: -(-len(texts.words) // MOST_SAMPLE) or 1]
    fitting = sum(
        is_number(w, ".") or is_number(w, ",") or bool(INFINITE.fullmatch(w)) for w in words
    )
    return fitting / max(len(words), 1)


def numbers_of(raw: Raw, name: str, texts: Words, decimal: str | None) -> NDArray[np.float64]:
    """Return a column of texts as numbers `[R]`, NaN where missing.

    Args:
        raw: the table, which names the place of what is wrong.
        name: the column's name.
        texts: the column's texts.
        decimal: the decimal sign, if the file or the user has said it.

    Raises `UserError` for a text that is no number, and for numbers such as `1,234` that are
    a thousand or one with three digits, as nothing in the file tells.
    """
    own = sign_of(texts.words)
    sign = decimal or own
    if sign is None:  # all fit both signs, or some fit only one and others only the other
        for code, word in enumerate(texts.words):
            if not is_number(word, ".") and not is_number(word, ","):
                _refuse(raw, name, texts, code)
        doubtful = [c for c, w in enumerate(texts.words) if re.search(r"[.,]", w)]
        if not doubtful:
            sign = "."
        else:
            word, place = texts.words[doubtful[0]], raw.place(texts.first_row(doubtful[0]), name)
            raise UserError(
                f"{place}: {quoted(word)} may be {number_of(word, '.'):g} or "
                f"{number_of(word, ','):g}, and the column's other numbers do not tell: say which "
                "sign is the decimal one, as with --decimal ,"
            )
    values = np.full(len(texts.words) + 1, np.nan)
    for code, word in enumerate(texts.words):
        if INFINITE.fullmatch(word):
            raise UserError(
                f"{raw.place(texts.first_row(code), name)}: {quoted(word)} is infinite; leave the "
                "cell empty where the value is not known"
            )
        if not is_number(word, sign):
            _refuse(raw, name, texts, code, sign)
        values[code] = number_of(word, sign)
    return values[texts.codes]


def _refuse(raw: Raw, name: str, texts: Words, code: int, decimal: str | None = None) -> None:
    word, place = texts.words[code], raw.place(texts.first_row(code), name)
    if decimal is not None and is_number(word, "," if decimal == "." else "."):
        raise UserError(
            f"{place}: {quoted(word)} is no number with the decimal sign {decimal!r} that the "
            "file's other numbers have"
        )
    raise UserError(
        f"{place}: {quoted(word)} is not a number, as others in the column are; leave the cell "
        f"empty, or say {as_option('--missing', word)} if it is missing, or "
        f"{as_option('--kind', name + '=category')} if all are words"
    )


def floats_of(column: pd.Series) -> NDArray[np.float64]:
    """Return a column's numbers, NaN for what is none or is beyond a float's range."""
    import pandas as pd

    if column.dtype.kind not in "iuf":
        try:
            column = pd.to_numeric(column, errors="coerce")
        except OverflowError:  # an integer of hundreds of digits
            return np.full(len(column), np.nan)
    return column.to_numpy(np.float64)
