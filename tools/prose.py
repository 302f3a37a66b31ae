"""Count sentences that must be read twice, and first lines of docstrings without a verb.

    python tools/prose.py [N]     also prints the N worst of each; 0 if not given

Sentences are those of README.md, the pages of docs/ and the docstrings; code, tables and headings
are left out. The exit code is 1 where the share of both, or that of first lines, is above its bar.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST = 35  # words of a sentence
BAR = 0.02
PACKAGES = ("pyro_seq", "models", "guides", "cli")
ABBREVIATIONS = r"\b(?:e\.g|i\.e|et al|sec|eq|vs|cf|approx|resp|fig|no|Eq|Sec)\."
# A first line begins with a verb where it documents what a function or a method does; classes,
# modules and properties are named by a noun, and a private function by either.
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings() -> Iterator[tuple[str, ast.AST, str]]:
    """Yield each docstring of the package as (where, what it documents, text)."""
    for folder in PACKAGES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)):
                    text = ast.get_docstring(node)
                    line = getattr(node, "lineno", 1)
                    if text:
                        yield f"{path.relative_to(ROOT)}:{line}", node, text


def pages() -> Iterator[tuple[str, str]]:
    """Yield each page as (name, text)."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text in Markdown; items of lists are read by themselves."""
    text = re.sub(r"^---\n.*?^---\n", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(```+|:::+).*?^\1", "\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$", " formula ", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(?m)^(?:\||#|    ).*$", "\n", text)
    text = re.sub(r"(?m)^\s*(?:[-*]|\d+\.) ", "\n", text)
    text = re.sub(ABBREVIATIONS, lambda found: found[0].replace(".", ""), text)
    for paragraph in re.split(r"\n\s*\n", text):
        joined = " ".join(paragraph.split())
        yield from filter(None, re.split(r"(?<=[.!?])[)\"”*]*\s+(?=\S)", joined))


def prose(docstring: str) -> str:
    """A docstring without its code, its sections' heads and their names."""
    lines = []
    in_section = False
    for line in docstring.split("\n"):
        if re.fullmatch(r"(Args|Attributes|Raises|Returns):", line):
            in_section = True
            lines.append("")
        elif in_section and re.match(r"    \S", line):
            lines += ["", line.partition(": ")[2]]
        else:
            in_section = in_section and (not line or line.startswith(" "))
            lines.append(line.strip() if in_section else line)
    return "\n".join(lines)


def words(sentence: str) -> int:
    """Count the words of a sentence: what has a letter."""
    return sum(bool(re.search(r"[^\W\d_]", word)) for word in sentence.split())


def is_property(node: ast.AST) -> bool:
    """Tell whether what is documented is read as a value, so that a noun names it."""
    names = {ast.unparse(each).split(".")[-1] for each in getattr(node, "decorator_list", ())}
    return bool(names & {"property", "cached_property", "lazy_property", "setter"})


def has_verb(first: str) -> bool:
    """Tell whether a first line begins with a verb in the imperative, one of `VERBS`."""
    word = re.match(r"[A-Z][a-z]+(?=[ .,:;-]|$)", first)
    return word is not None and word[0].lower() in VERBS


VERBS = frozenset(
    """
    accept accumulate act add adjust advance allow annotate answer append apply approximate ask
    assemble assign attach average backpropagate begin bind bound bring broadcast build bundle
    cache calculate call cap carry cast change check choose clamp classify clear clip close code
    collect combine compare complete compose compute concatenate condition configure connect
    consider continue convert copy correct count cover create crop cut deal decide declare
    decode decorate default define delete derive describe detach detect determine diagnose
    discount discretise display divide do download draw dream drop encode end enter enumerate
    estimate evaluate exchange exclude expand explain export express extend extract fall fetch
    fill filter find finish fit fix flatten flush fold follow force forecast forget form format
    forward freeze gather generate get give go group guard guess hand handle have hide hold
    identify ignore imagine implement import include index infer inform initialise initialize
    insert install integrate interpolate invert join judge keep know label lay lead learn leave
    let limit list load locate lock log look lower make map marginalise mark mask match mean
    measure merge mix model move multiply name narrow normalise note notice number observe offer
    open optimise order override overwrite pack pad parse pass perform permute pick place plan
    play plot pool predict prepare print process propose prove provide pull push put quote raise
    rank read rebuild receive recognise record reduce refuse register regularise reject release
    reload remember remove rename render repeat replace replay report represent resample reset
    reshape resolve restore restrict resume return reverse reward round run sample save say
    scale scan score search see seed select send separate serve set share shift shorten show
    shrink shuffle shut simulate skip slice smooth solve sort speak specify spell split spread
    squash stack stand start state stay stop store stretch subtract suggest sum summarise
    support suppress swap synthesise take tell temper test tie time total trace track train
    transform translate transpose treat trim try tune turn unpack update use validate verify
    view visit wait walk warm warn watch weigh weight whiten wrap write yield
    """.split()  # noqa: SIM905
)


def too_long(read: list[tuple[int, str, str]]) -> list[str]:
    """Return the sentences of too many words, the longest first, each with where it stands."""
    long = sorted((one for one in read if one[0] > LONGEST), reverse=True)
    return [f"{count} words, {where}: {line}" for count, where, line in long]


def shown(title: str, bad: list[str], total: int, worst: int) -> bool:
    """Print one figure beside its bar, and the first of what is counted; tell whether it holds."""
    share = len(bad) / max(total, 1)
    print(f"{title:<48}{len(bad):>5} of {total:>6,}  {share:7.2%}  (bar {BAR:.0%})")
    for line in bad[:worst]:
        print(f"    {line}")
    return share <= BAR


def main() -> int:
    """Print the shares, and the worst cases if asked for."""
    worst = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    found = [*docstrings()]
    texts = {
        "docs": list(pages()),
        "docstrings": [(where, prose(text)) for where, _, text in found],
    }
    everything: list[tuple[int, str, str]] = []
    for name, each in texts.items():
        read = [(words(line), where, line) for where, text in each for line in sentences(text)]
        everything += read
        shown(f"sentences over {LONGEST} words in {name}", too_long(read), len(read), worst)
    title = f"sentences over {LONGEST} words in both"
    held = shown(title, too_long(everything), len(everything), 0)
    firsts = [
        (where, text.split("\n")[0])
        for where, node, text in found
        if isinstance(node, FUNCTIONS) and not node.name.startswith("_") and not is_property(node)
    ]
    bad = [f"{where}: {first}" for where, first in firsts if not has_verb(first)]
    held &= shown("first lines of public functions without a verb", bad, len(firsts), worst)
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
