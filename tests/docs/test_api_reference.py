"""The API reference builds without a warning, loads nothing from a network, and says what the code
says.
"""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import pyro_seq

ROOT = Path(__file__).parent.parent.parent
# what pages are made of: a formula that Markdown takes for HTML makes tags that are none of these
TAGS = re.compile(
    r"a|body|br|code|d[dlt]|div|em|footer|h[1-6r]|head|html|img|input|label|[ou]l|li|link|main|meta|nav|p|path|pre|script"
    r"|section|span|strong|style|svg|t[dhr]|table|tbody|thead|title|wbr"
)


SAMPLE = ["pyro_seq", "pyro_seq.models", "pyro_seq.models.rnn", "pyro_seq.guides.srnn"]


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.slow)])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages, of some modules or of all; a warning on the way is an error."""
    folder = tmp_path_factory.mktemp("reference") / request.param
    names = SAMPLE if request.param == "some" else []
    built = subprocess.run(
        [sys.executable, "-P", ROOT / "tools" / "api_reference.py", folder, *names],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0 and built.stderr == "", built.stderr
    return folder


def module_names() -> list[str]:
    """The modules with a page: all but the command's."""
    folders = {
        "pyro_seq": ROOT / "pyro_seq",
        "pyro_seq.models": ROOT / "models",
        "pyro_seq.guides": ROOT / "guides",
    }
    files = {
        name: [file.relative_to(folder).with_suffix("") for file in folder.rglob("*.py")]
        for name, folder in folders.items()
    }
    names = {
        ".".join((name, *file.parts)).removesuffix(".__init__")
        for name, inner in files.items()
        for file in inner
    }
    return sorted(names - {"pyro_seq.text.data"})


class Page(HTMLParser):
    """The tags of a page, what it loads, and the links to pages beside it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loaded: list[str] = []
        self.links: set[Path] = set()
        self.path = path
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        target = (given.get("href") or "").partition("#")[0]
        if tag == "a" and target and ":" not in target:
            self.links.add((self.path.parent / target).resolve())
        elif tag != "a":
            self.loaded += [
                value
                for name, value in attrs
                if name in ("href", "src", "srcset", "data") and value
            ]


def test_every_module_has_a_page(reference: Path) -> None:
    pages = {
        page.relative_to(reference).with_suffix("").as_posix().replace("/", ".")
        for page in reference.rglob("*.html")
    }
    assert pages - {"index"} == set(SAMPLE if reference.name == "some" else module_names())
    root = Page(reference / "pyro_seq.html")
    assert reference / "pyro_seq" / "models.html" in root.links


def test_pages_stand_alone(reference: Path) -> None:
    """No script, style or image of another host; links between pages lead to pages; and no formula
    has become a tag.
    """
    for path in reference.rglob("*.html"):
        page, text = Page(path), path.read_text(encoding="utf-8")
        assert not [tag for tag in page.tags if not TAGS.fullmatch(tag)], path
        assert not [source for source in page.loaded if re.match(r"(?:https?:)?//", source)], path
        assert not re.search(r"@import|url\(\W?(?:https?:)?//", text), path
        assert not [link for link in page.links if not link.is_file()], path


def test_formulas_survive(reference: Path) -> None:
    """A less-than sign is shown as one, in text as in diagrams."""
    page = (reference / "pyro_seq" / "models" / "rnn.html").read_text(encoding="utf-8")
    assert "sum_t log p(x_t | x_{&lt;t})" in page
    guide = (reference / "pyro_seq" / "guides" / "srnn.html").read_text(encoding="utf-8")
    assert "e_1 &lt;------ e_t" in guide
    assert "Initialize internal Module state" not in page + guide


def public(owner: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """(its name, what it is) of every public class, function and method that a module or class
    defines itself.
    """
    for name, value in vars(owner).items():
        value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if inspect.getmodule(value) is not (
            owner if inspect.ismodule(owner) else inspect.getmodule(owner)
        ):
            continue
        full = f"{owner.__name__}.{name}"
        yield full, value
        if inspect.isclass(value):
            yield from public(value)


def arguments(docstring: str) -> set[str] | None:
    """The names in an `Args:` section, if there is one."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    if section is None:
        return None
    names = re.findall(r"^    (\S.*?):(?:\s|$)", section[1], re.MULTILINE)
    return {name.strip("* ") for group in names for name in group.split(",")}


def parameters(value: Callable[..., Any]) -> set[str]:
    """The parameters of a function, or of a class's constructor and, where that hands keywords on,
    of those it inherits from.
    """
    if not inspect.isclass(value):
        return set(inspect.signature(value).parameters) - {"self", "cls"}
    found: set[str] = set(inspect.signature(value).parameters)
    for kind in value.__mro__:
        given = (
            inspect.signature(vars(kind)["__init__"]).parameters
            if inspect.isfunction(vars(kind).get("__init__"))
            else {}
        )
        found |= set(given) - {"self"}
        if given and not any(each.kind is each.VAR_KEYWORD for each in given.values()):
            break
    return found


@pytest.mark.parametrize("name", module_names())
def test_docstrings_say_what_signatures_say(name: str) -> None:
    module = importlib.import_module(name)
    assert inspect.getdoc(module), name
    for full, value in public(module):
        docstring = inspect.cleandoc(value.__doc__ or "")
        assert docstring, f"{full} has no docstring"
        if (named := arguments(docstring)) is not None:
            taken = parameters(value)
            assert named <= taken, (
                f"{full} has no parameter {sorted(named - taken)}, which its docstring names"
            )
            assert inspect.isclass(value) or named == taken, (
                f"the docstring of {full} leaves out {sorted(taken - named)}"
            )


@pytest.mark.parametrize("package", module_names())
def test_what_a_package_offers_is_documented(package: str) -> None:
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        assert value.__doc__ and value.__doc__.strip(), f"{package}.{name} has no docstring"


def test_the_check_sees_faults() -> None:
    def scaled(x: float, factor: float) -> float:
        """A product.

        Args:
            x: a number.
            by, *rest: of another name,
                which `it: is`.

        Raises nothing.
        """
        return x * factor

    assert arguments(inspect.getdoc(scaled) or "") == {"x", "by", "rest"}
    assert parameters(scaled) == {"x", "factor"}
    assert parameters(pyro_seq.SequenceBatch) == {
        "values",
        "lengths",
        "inputs",
        "state",
        "num_steps",
        "missing",
    }
