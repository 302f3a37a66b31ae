"""Spaces of settings to search: `model.latent_size=2..64:log`, `model.cell=gru,lstm`.

Types and bounds are those that the settings' own fields declare.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyro_seq.config.fields import Setting, declared, flatten, override
from pyro_seq.errors import UserError

if TYPE_CHECKING:
    import optuna

COMMA = re.compile(
    r",(?![^\[(]*[\])])"
)  # outside of brackets, which hold a setting of several items
RIGHT = "right would be NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C"


@dataclass(frozen=True)
class Dimension:
    """Describe the values that one setting may take.

    Attributes:
        name: of the setting, dotted.
        choices: the values, as words; empty for a range.
        low, high: the ends of a range, both among its values; whole for a setting of whole numbers.
        log: whether equal ratios are equally likely, not equal differences.
    """

    name: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def suggested(self, trial: optuna.Trial) -> Setting:
        """Return the value that a trial suggests."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.name, self.low, self.high, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


def split_space(word: str, source: str) -> tuple[str, str]:
    """Return (the setting, its values as words) of `NAME=VALUES`; `source` says in errors where."""
    name, equals, values = (part.strip() for part in word.partition("="))
    if not (name and equals and values):
        raise UserError(f"{source} {word}: {RIGHT}")
    return name, values


def separated(values: str, here: str, taken: Callable[[str], object] = str) -> tuple[str, ...]:
    """Return the values of `A,B,C`; raise `UserError` for one alone, and for equal ones."""
    words = tuple(part.strip() for part in COMMA.split(values))
    if len({taken(part) for part in words}) < max(2, len(words)):
        what = "a value is named twice" if len(words) > 1 else "one value is for --set"
        raise UserError(f"{here}: {what}; {RIGHT}")
    return words


def dimension(word: str, settings: object, source: str = "--space") -> Dimension:
    """Read `NAME=LOW..HIGH`, `NAME=LOW..HIGH:log` or `NAME=A,B,C`.

    Args:
        word: the words.
        settings: a dataclass of dataclasses that has the setting.
        source: where the words come from, for errors.

    Raises `UserError` for words of another form, a setting that there is not, values that it does
    not take, and a range of a setting that is not a number.
    """
    name, values = split_space(word, source)
    here = f"{source} {word}"

    def taken(value: str) -> Setting:
        return dict(flatten(override(settings, {name: value}, source)))[name]

    if name not in dict(flatten(settings)):
        taken(values)  # says that there is none, and which name is near
    kind, rules = declared(settings, name)
    if kind in (int, float) and ".." in values:
        if "choices" in rules:
            raise UserError(f"{here}: it is one of {', '.join(map(str, rules['choices']))}")
        ends, colon, how = values.partition(":")
        low, high = (taken(end.strip()) for end in ends.split("..", 1))
        if not isinstance(low, int | float) or not isinstance(high, int | float):
            raise UserError(f"{here}: a range needs two numbers; {RIGHT}")
        if how.strip() != "log" * bool(colon) or not low < high:
            raise UserError(f"{here}: {RIGHT}, with LOW below HIGH")
        if colon and low <= 0:
            raise UserError(f"{here}: on a logarithmic scale LOW must be above 0")
        return Dimension(name, (), low, high, bool(colon))
    return Dimension(name, separated(values, here, taken))
