"""Find which column names the series, which has the times, and what the others are for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from pyro_seq.errors import UserError, did_you_mean
from pyro_seq.series.data.files.delimited import ID_NAMES
from pyro_seq.series.data.files.numbers import floats_of, words_of
from pyro_seq.series.data.files.options import ReadOptions
from pyro_seq.series.data.files.raw import Raw, listed
from pyro_seq.series.data.files.time_parts import TIME_NAMES
from pyro_seq.series.data.schema import MOST_WORDS, Kind, Schema
from pyro_seq.series.data.times import looks_like_times

if TYPE_CHECKING:
    import pandas as pd

# what columns that number the rows are called; `Unnamed: 0` is an index that pandas has saved
NUMBERING = re.compile(
    r"Unnamed: \d+|no\.?|nr\.?|#|index|obs|observation|row(s|name|names|_?(no|nr|number|id))?",
    re.IGNORECASE,
)
MANY = 0.3  # of the rows have a time that another row has, where series are below each other
BETWEEN = " / "  # the names of columns that name series together
FEW_ROWS = 8  # whose words may all differ by chance
MOST_JOINT = 16  # target columns of one series; more are a series each


@dataclass(eq=False)
class Roles:
    """Hold what the columns of a table are for.

    Attributes:
        id: the column that names series.
        time: the column of times.
        layout: which columns are a series.
        role: the role of each other column, in the order of the file.
        guessed: columns whose role the user has not named.
    """

    id: str | None
    time: str | None
    layout: Literal["long", "joint", "each"]
    role: dict[str, Literal["target", "known", "past", "static"]] = field(default_factory=dict)
    guessed: set[str] = field(default_factory=set)

    def of(self, *roles: str) -> list[str]:
        """Return the columns of some roles, in order."""
        return [name for name, role in self.role.items() if role in roles]


def check_names(raw: Raw, options: ReadOptions, schema: Schema | None) -> None:
    """Raise `UserError` for a column that the user names and the file lacks, or names twice."""
    columns = list(raw.frame.columns)
    named: dict[str, str] = {}
    for option in ("targets", "known", "past", "static", "ignore"):
        for name in getattr(options, option):
            if name in named:
                raise UserError(f"column {name!r} is named both by {named[name]} and by {option}")
            named[name] = option
    if options.time:
        named[options.time] = "time"
    if options.id:
        named[options.id] = "id"
    for name, kind in options.kinds.items():
        if kind not in get_args(Kind):
            raise UserError(
                f"column {name!r}: no kind {kind!r}{did_you_mean(kind, get_args(Kind))}"
            )
    own = {"value", *(() if schema is None else [c.name for c in schema.columns])}
    for name in [*named, *options.kinds]:
        if name not in columns and name not in own:
            raise UserError(f"{raw.where} has no column {name!r}{did_you_mean(name, columns)}")


def roles_of(raw: Raw, options: ReadOptions) -> Roles:
    """Return what the columns are for: as the user says, else by their names and cells."""
    ignored = set(options.ignore)
    names = [name for name in raw.frame.columns if name not in ignored]
    given = {*options.targets, *options.known, *options.past, *options.static, *options.kinds}
    given |= {*raw.roles}
    free = [name for name in names if name not in given]
    named_ids = [name for name in free if name.casefold() in ID_NAMES]
    time = options.time if options.time is not None else _time_of(raw, free, named_ids)
    id_ = options.id if options.id is not None else raw.id
    id_ = id_ if id_ is not None else _id_of(raw, free, named_ids, time or None)
    id_, time = id_ or None, time or None
    if options.layout == "long" and id_ is None:
        raise UserError(f"{raw.where} has no column that names series; name it by --id")
    if options.layout in ("joint", "each") and id_ is not None:
        if options.id:
            raise UserError(f"series named by {id_!r} are long, not {options.layout}")
        id_ = None
    rest = [name for name in names if name not in (id_, time)]
    if len(raw.nameless) < len(raw.frame.columns):
        numbering = [*raw.nameless, *named_ids, *(n for n in rest if NUMBERING.fullmatch(n))]
        numbering += [] if time is None or names[0] in numbering else [names[0]]
        unnamed = [n for n in numbering if n in rest and n not in given]
    else:  # the file has no header
        unnamed = []
    for name in unnamed:
        named = name not in raw.nameless and name not in named_ids
        if len(rest) > 1 and _runs(raw.frame[name], from_one=named):
            raw.notes.append(f"{name!r} only numbers the rows, and is left out")
            rest.remove(name)
    rest = _without_labels(raw, rest, given)
    roles = Roles(id_, time, "joint")
    for name in rest:
        role = next(
            (r for r in ("known", "past", "static") if name in getattr(options, r)),
            "target" if name in options.targets else raw.roles.get(name, "target"),
        )
        if role == "target" and options.targets and name not in options.targets:
            continue
        roles.role[name] = role
        if name not in given:
            roles.guessed.add(name)
    odd = [n for n in rest if n in roles.guessed and n.casefold() in TIME_NAMES]
    for name in odd if time is None else []:
        raw.notes.append(
            f"{name!r} is called as times are, and is read as a value: it does not go up from row "
            "to row"
        )
    left = [name for name in rest if name not in roles.role]
    if left:
        raw.notes.append(f"columns that are not named are left out: {listed(left)}")
    if options.ignore:
        raw.notes.append(f"left out, as is said: {listed(options.ignore)}")
    if not roles.of("target") and not options.future:
        raise UserError(f"{raw.where} has no column to predict")
    many = len(roles.of("target")) > MOST_JOINT
    roles.layout = "long" if id_ is not None else options.layout or ("each" if many else "joint")
    return roles


def _without_labels(raw: Raw, names: Sequence[str], given: Set[str]) -> list[str]:
    """Return columns without those of words that differ in each row, of which none comes again."""
    words = [n for n in names if n not in given and raw.frame[n].dtype.kind not in "biufcMm"]
    for name in (
        words if FEW_ROWS < len(raw.frame) <= MOST_WORDS and len(words) < len(names) else ()
    ):
        texts = words_of(raw.frame[name])
        plain = sum(not any(letter.isdigit() for letter in word) for word in texts.words)
        labels = name.casefold() in TIME_NAMES or plain > len(texts.words) / 2
        if len(texts.words) == len(raw.frame) and labels:
            raw.notes.append(
                f"{name!r} has another word in each row, of which nothing can be learnt, and is "
                "left out; if they are times, say how they are written by --time-format"
            )
            names = [other for other in names if other != name]
    return list(names)


def _runs(column: pd.Series, *, from_one: bool) -> bool:
    """Tell whether a column counts rows, by one each; if asked for, from 0 or 1 on."""
    numbers = floats_of(column)
    if from_one and numbers[0] not in (0, 1):
        return False
    moves = np.diff(numbers)
    return bool((moves == 1).mean() > 0.99) if len(moves) else False


def _time_of(raw: Raw, free: Sequence[str], ids: Sequence[str]) -> str | None:
    """Return the column of times: a dated one, if possible of a usual name, else whole numbers.

    Whole numbers are times if the column has a usual name, or is the first and has none, and they
    go up within each series.
    """
    usual = [n for n in free if n.casefold() in TIME_NAMES or n in raw.nameless[:1]]
    for name in [*usual, *(n for n in free if n not in usual)]:
        if name not in ids and looks_like_times(raw, name):
            return name
    for name in sorted(usual, key=lambda name: name in raw.nameless):
        column = raw.frame[name]
        if column.dtype.kind not in "iuf" or column.isna().any() or name in ids:
            continue
        groups = iter([[raw.frame[ids[0]]]]) if ids else _groups(raw, free)
        for group in groups:
            keys = [one.to_numpy() for one in group]
            moves = column.groupby(keys, sort=False, dropna=False).diff().dropna().to_numpy()
            if len(moves) and (moves > 0).mean() > 0.99:
                return name
    return None


def _groups(raw: Raw, free: Sequence[str]) -> Iterator[list[pd.Series]]:
    """Yield what may name series: the file, columns of words or of whole numbers, all words."""
    import pandas as pd

    yield [pd.Series(raw.file_of)]
    words = [raw.frame[name] for name in _words_in(raw, free)]
    yield from ([one] for one in words)
    yield from ([raw.frame[name]] for name in _numbers_in(raw, free, None))
    if len(words) > 1:
        yield words


def _words_in(raw: Raw, free: Sequence[str]) -> list[str]:
    """Return columns of words that come again: they may name series."""
    frame = raw.frame
    words = [name for name in free if frame[name].dtype.kind not in "biufcMm"]
    return [name for name in words if frame[name].nunique() < len(frame) / 2]


def _numbers_in(raw: Raw, free: Sequence[str], time: str | None) -> list[str]:
    """Return columns of whole numbers that may name series, as `store` and `firm` do.

    The rows of a number are together, or each number is there at more than half of all times.
    """
    frame, found = raw.frame, []
    for name in free:
        column = frame[name]
        if column.dtype.kind not in "iu" or name == time or name.casefold() in TIME_NAMES:
            continue
        if not 2 <= (count := column.nunique()) < len(frame) / 2:
            continue
        if column.min() >= 1800 and column.max() <= 2200 and count == np.ptp(column) + 1:
            continue  # years, as those of seasons
        together = int((column != column.shift()).sum()) == count
        if not together and time is not None:
            together = frame.groupby(name)[time].nunique().min() > frame[time].nunique() / 2
        if together:
            found.append(name)
    return found


def _id_of(raw: Raw, free: Sequence[str], named: Sequence[str], time: str | None) -> str | None:
    """Return the column that names series: one of a usual name, or one that parts equal times."""
    frame = raw.frame
    repeated = [n for n in named if n != time and frame[n].nunique() < len(frame)]
    if time is None:
        return repeated[0] if repeated else None
    for name in repeated:
        if not frame.duplicated([name, time]).any():
            return name
    if repeated and frame.duplicated([repeated[0], time]).mean() < MANY:
        return repeated[0]
    if repeated:
        keys = dict.fromkeys([*repeated, *_words_in(raw, free), *_numbers_in(raw, free, time)])
        return _id_of_several(raw, list(keys), time) or repeated[0]
    share = float(frame.duplicated([time]).mean())
    if share < MANY or len(raw.files) > 1:
        return None
    found = [
        name
        for name in free
        if name != time
        and frame[name].dtype.kind not in "biufcMm"
        and frame[name].nunique() < len(frame) / 2
        and not frame.duplicated([name, time]).any()
    ]
    count = [frame[name].nunique() for name in found]
    alike = len(found) > 1 and len(frame[found].drop_duplicates()) == count[0] == max(count)
    if len(found) == 1 or alike:  # of several that part the rows in the same way the first
        raw.notes.append(f"{found[0]!r} tells rows of the same time apart: it names the series")
        return found[0]
    if found:
        return None
    numbers = _numbers_in(raw, free, time)
    alone = [name for name in numbers if not frame.duplicated([name, time]).any()]
    if alone:  # of several the first, as the file's owner has sorted it
        raw.notes.append(f"{alone[0]!r} tells rows of the same time apart: it names the series")
        return alone[0]
    return _id_of_several(raw, [*_words_in(raw, free), *numbers], time)


def _id_of_several(raw: Raw, keys: Sequence[str], time: str) -> str | None:
    """Return a new column that names series by several columns, if it takes as many."""
    words = [name for name in keys if name != time]
    if len(words) < 2 or raw.frame[words].isna().any(axis=None):
        return None
    if raw.frame.duplicated([*words, time]).any():
        return None
    for name in reversed(words):
        fewer = [other for other in words if other != name]
        if fewer and not raw.frame.duplicated([*fewer, time]).any():
            words = fewer
    name = BETWEEN.join(words)
    raw.notes.append(f"{name!r} together tell rows of the same time apart: they name the series")
    put_ids_together(raw, name)
    return name


def put_ids_together(raw: Raw, name: str | None) -> None:
    """Add the column `a / b` of the words of columns `a` and `b`, if it is asked for and lacks."""
    if name is None or name in raw.frame.columns or BETWEEN not in name:
        return
    parts = name.split(BETWEEN)
    if all(part in raw.frame.columns for part in parts):
        words = [raw.frame[part].astype(str).str.strip() for part in parts]
        raw.frame = raw.frame.assign(**{name: words[0].str.cat(words[1:], sep=BETWEEN)})


def roles_of_schema(raw: Raw, options: ReadOptions, schema: Schema) -> Roles:
    """Return what the columns are for in a run; what the file lacks is named."""
    columns = list(raw.frame.columns)
    needed = [name for name in (schema.id, schema.time) if name is not None]
    each = schema.layout == "each"
    for column in schema.columns:
        ahead = column.role != "known" and options.future
        if not ahead and not (each and column.role == "target"):
            needed.append(column.name)
    for name in needed:
        if name not in columns:
            raise UserError(
                f"{raw.where} lacks the column {name!r}, which the run was trained with"
                + did_you_mean(name, columns)
            )
    roles = Roles(schema.id, schema.time, schema.layout)
    known = {column.name: column.role for column in schema.columns}
    taken = {schema.id, schema.time, *options.ignore}
    other = []
    for name in columns:
        if name in known and not (each and known[name] == "target"):
            roles.role[name] = known[name]
        elif name not in taken and each and name in (options.targets or columns):
            roles.role[name] = "target"
        elif name not in taken:
            other.append(name)
    other = [name for name in other if name not in raw.nameless]
    if other:
        raw.notes.append(f"columns that the run was not trained with are left out: {listed(other)}")
    return roles
