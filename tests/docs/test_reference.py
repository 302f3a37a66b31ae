"""The reference has an entry for every public name, option and setting, and the site builds."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from pyro_seq.cli import pyroseq
from pyro_seq.config.fields import flatten
from pyro_seq.config.registry import SHIPPED

ROOT = Path(__file__).parent.parent.parent
EXTENSIONS = ROOT / "docs" / "_ext"
TOOLS = ROOT / "tools"


def imported(name: str, folder: Path) -> ModuleType:
    """Import a module of a folder, with those beside it."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def extension() -> Any:
    """The modules that write the reference, by name."""
    return lambda name: imported(name, EXTENSIONS)


def test_every_public_name_has_an_entry(extension: Any) -> None:
    pages = extension("api_pages").pages()
    names = extension("public_names")
    assert len(names.homes()) > 180
    for (package, name), home in names.homes().items():
        entry = rf"^\.\. auto(class|exception|function|data):: {re.escape(f'{home}.{name}')}$"
        assert re.search(entry, pages[f"api/{home}"], re.MULTILINE), f"{home}.{name}"
        assert f"{name} <{home}.{name}>" in pages[f"api/{package}"]
        assert f"   api/{home}\n" in pages["api"]
    for full in extension("named_types").named_types():
        assert sum(f".. autoclass:: {full}\n" in page for page in pages.values()) == 1, full


def test_every_option_has_a_line(extension: Any) -> None:
    module = extension("command_pages")
    pages = module.pages()
    seen = 0
    for path, command in module.commands():
        words = path.split()
        if len(words) == 1:
            continue
        section = pages[f"commands/{words[1]}"].split(f".. program:: {path}\n")[1]
        section = section.partition(".. program::")[0]
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                line = rf"^\.\. option:: (.*, )?{re.escape(max(option.opts, key=len))}\b"
                assert re.search(line, section, re.MULTILINE), f"{path} {option.opts}"
                seen += 1
    assert seen > 250
    assert set(pyroseq.commands) == {
        name.removeprefix("commands/") for name in pages if "/" in name
    }


def test_every_setting_has_a_line(extension: Any) -> None:
    module = extension("setting_pages")
    pages = module.pages()
    for program in module.PROGRAMS:
        page = pages[f"settings/{program.kind}"]
        for name, _ in flatten(program.settings()):
            assert f"\n.. describe:: {name} = " in page, f"{program.kind}: {name}"
    sections = re.split(r"\n-+\n", pages["settings/pairs"])[1:]
    for section, entry in zip(sections, SHIPPED.values(), strict=True):
        for field in dataclasses.fields(entry.settings()):
            assert f"\n.. describe:: model.{field.name} = " in section, f"{entry.kind}: {field}"
            assert field.metadata["text"]


@pytest.mark.parametrize(
    ("markdown", "rst"),
    [
        ("p(x_t | x_{<t}) of *some* `a * b`.", r"p(x_t \| x\_{<t}) of *some* ``a * b``."),
        ("A `Pair`s' 2 * 3.", r"A :py:obj:`Pair <pyro_seq.Pair>`\ s' 2 \* 3."),
        ("Drawn:\n\n    z -> x\n\nEnd.", "Drawn:\n\n::\n\n        z -> x\n\n\nEnd."),
        ("Of:\n- one `x_`\n- two_", "Of:\n\n- one ``x_``\n- two\\_"),
        (
            "Args:\n    a_, *b: what_ `c_`,\n        or *.",
            "Args:\n    a_, *b: what\\_ ``c_``,\n        or \\*.",
        ),
    ],
)
def test_docstrings_are_read_as_markdown(extension: Any, markdown: str, rst: str) -> None:
    assert extension("docstrings").as_rst(markdown) == rst


def test_links_to_files_lead_to_their_pages(extension: Any) -> None:
    lead = extension("repository_links").lead
    text = "[a](../CHANGELOG.md) [b](pairs.md#emissions) [c](../examples/topic.py)"
    assert (
        lead(text, "docs") == "[a](changelog.md) [b](pairs.md#emissions) [c](../examples/topic.py)"
    )
    assert lead("[a](docs/pairs.md#x)", "") == "[a](pairs.md#x)"
    assert lead("[a](../../SECURITY.md) [b](../text.md)", "docs/tutorials", "../") == (
        "[a](../security.md) [b](../text.md)"
    )


def test_faults_of_a_site_are_seen(tmp_path: Path) -> None:
    faults = imported("check_site", TOOLS).faults
    page = '<p id="here"><a href="#here">1</a><a href="b.html#there">2</a><img src="c.png">'
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.html").write_text('<a href="a.html#here">1</a>')
    (tmp_path / "c.png").touch()
    (tmp_path / "searchindex.js").touch()
    assert [*faults(tmp_path)] == ["a.html links to b.html#there, an anchor that is not there"]
    (tmp_path / "b.html").write_text(
        '<script src="https://cdn.example/a.js"></script><img src="d.png"><a href="d.html">'
    )
    (tmp_path / "s.css").write_text("@import url('//fonts.example/a.css');")
    assert [*faults(tmp_path)][1:] == [
        "b.html loads https://cdn.example/a.js",
        "b.html loads d.png, which is not there",
        "b.html links to d.html, which is not there",
        "s.css loads //fonts.example/a.css",
    ]


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    """All but its notebooks, which `make docs` runs, and without a broken link or anchor."""
    pytest.importorskip("furo", reason="the documentation's packages are not here")
    build = [sys.executable, "-P", "-m", "sphinx", "--fail-on-warning", "--quiet"]
    build += ["-D", "nb_execution_mode=off", "-d", str(tmp_path / "doctrees")]
    built = subprocess.run(
        [*build, str(ROOT / "docs"), str(tmp_path / "site")], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    assert [*imported("check_site", TOOLS).faults(tmp_path / "site")] == []
