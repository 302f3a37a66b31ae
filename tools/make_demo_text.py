"""Writes pyro_seq/text/data/fable.txt, the text on which `pyroseq demo` trains: tales, dialogues,
verses, letters and almanac pages.

All of it is made from `fable_grammar.txt`, so it is ours to give away, and a small model sees its
structure within a minute. The same grammar and seed give the same text under every version of
Python:

    python tools/make_demo_text.py            writes the file
    python tools/make_demo_text.py --check    fails where the file is not what the grammar gives
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

GRAMMAR = Path(__file__).with_name("fable_grammar.txt")
TARGET = Path(__file__).parent.parent / "pyro_seq" / "text" / "data" / "fable.txt"
SEED = 1862
SIZE = 150_000  # characters
KINDS = (
    "tale",
    "dialogue",
    "tale",
    "verse",
    "dialogue",
    "tale",
    "letter",
    "dialogue",
    "tale",
    "almanac",
)

PRONOUNS = {
    "he": {"he": "he", "him": "him", "his": "his"},
    "she": {"he": "she", "him": "her", "his": "her"},
}
SLOT = re.compile(r"\{(a )?(?:(\w+)=)?(\w+)(?:\.(\w+))?\}", re.IGNORECASE)


def read_grammar(path: Path = GRAMMAR) -> dict[str, list[str]]:
    """The rules of the grammar: name to alternatives, in the file's order."""
    rules: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            alternatives = rules.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            alternatives.append(line)
    return rules


@dataclass
class Bag:
    """Draws without replacement and refills when empty, so that a page does not say the same thing
    twice.
    """

    items: Sequence[str]
    rng: random.Random
    left: list[str] = field(default_factory=list)
    last: str = ""

    def draw(self) -> str:
        """The next item; never the one just drawn, unless there is only one."""
        if not self.left:
            self.left = list(self.items)
        # only random() itself is promised to be the same under every version of Python
        index = int(self.rng.random() * len(self.left))
        if self.left[index] == self.last and len(self.left) > 1:
            index = (index + 1) % len(self.left)
        self.last = self.left.pop(index)
        return self.last


class Teller:
    """Expands rules of a grammar, with a cast and a memory that last for one piece."""

    def __init__(self, rules: dict[str, list[str]], seed: int) -> None:
        rng = random.Random(seed)
        self.bags = {name: Bag(alternatives, rng) for name, alternatives in rules.items()}
        self.cast: dict[str, dict[str, str]] = {}
        self.memory: dict[str, str] = {}

    def piece(self, kind: str) -> str:
        """One piece of the given kind, with a new cast: beasts in every other tale, people
        elsewhere.
        """
        self.memory = {}
        beasts = kind == "tale" and len(self.bags["beasts"].left) % 2 == 0
        group = self.bags["beasts" if beasts else "people"]
        names: list[str] = []
        while len(names) < 3:  # a refill of the bag can bring someone back
            who = group.draw()
            if who not in names:
                names.append(who)
        self.cast = {
            role: self.character(who)
            for role, who in zip(("hero", "friend", "third"), names, strict=True)
        }
        text = self.expand(f"{{{kind}}}").replace(" // ", "\n\n").replace(" / ", "\n")
        # whoever speaks twice in a row speaks once
        text = re.sub(r"^(\w+: )(.*)\n\1", r"\1\2 ", text, flags=re.MULTILINE)
        return re.sub(r"\.” (?=[a-z])", ",” ", text)  # “So be it,” said …

    @staticmethod
    def character(line: str) -> dict[str, str]:
        """The forms under which the grammar speaks of someone: name, short, trade and pronouns."""
        name, trade, pronoun = line.split(" | ")
        return {
            "name": name,
            "short": name.removeprefix("the "),
            "trade": trade,
            **PRONOUNS[pronoun],
        }

    def expand(self, template: str) -> str:
        """`template` with every slot filled in, the slots inside of slots as well."""
        return SLOT.sub(self.fill, template)

    def fill(self, slot: re.Match[str]) -> str:
        """What stands for one slot: a character, a remembered word or an expansion, in the slot's
        own case.
        """
        article, name, rule, form = slot.groups()
        word = (
            self.look_up(rule.lower(), form and form.lower())
            if name is None
            else self.remember(name.lower(), rule.lower())
        )
        if article:
            word = ("an " if word[0] in "aeiou" else "a ") + word
        shape = slot.group().strip("{}").split(".")[0]
        if shape.isupper():
            return word.upper()
        return word[0].upper() + word[1:] if shape[0].isupper() else word

    def look_up(self, rule: str, form: str | None) -> str:
        """A form of someone in the cast, a word remembered, or else an expansion of the rule."""
        if rule in self.cast:
            return self.cast[rule][form or "name"]
        return self.memory.get(rule) or self.expand(self.bags[rule].draw())

    def remember(self, name: str, rule: str) -> str:
        """An expansion of the rule, which from now on is also known as `name`."""
        self.memory[name] = self.expand(self.bags[rule].draw())
        return self.memory[name]


def demo_text(seed: int = SEED, size: int = SIZE) -> str:
    """Pieces of all kinds in turn, two empty lines between them, until there are at least `size`
    characters.
    """
    teller = Teller(read_grammar(), seed)
    pieces = ["TALES FROM ALDERMOUTH"]
    length = 0
    while length < size:
        pieces.append(teller.piece(KINDS[(len(pieces) - 1) % len(KINDS)]))
        length += len(pieces[-1]) + 3
    return "\n\n\n".join(pieces) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Writes the file, or with `--check` compares it; returns the exit code."""
    text = demo_text()
    if "--check" in arguments:
        same = TARGET.read_bytes() == text.encode()
        print(
            "as generated"
            if same
            else f"{TARGET.name} is not what the grammar gives: run python tools/make_demo_text.py"
        )
        return 0 if same else 1
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(text.encode())
    words = set(re.findall(r"[^\W\d_]+", text.lower()))
    print(f"{TARGET.name}: {len(text):,} characters, {len(set(text))} distinct, {len(words)} words")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
