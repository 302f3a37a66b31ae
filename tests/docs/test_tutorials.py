"""The tutorials run, from their first cell to their last, as plain Python and without Sphinx."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("[0-9][0-9]-*.md"))
QUICK = ("02-equations.md", "03-text.md")  # the cheapest; the others wait for make test-all
CELL = re.compile(r"^```\{code-cell\} ipython3\n((?::.*\n)*)(.*?)^```", re.MULTILINE | re.DOTALL)
HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
    format_version: 0.13
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# """


def cells(page: Path) -> list[str]:
    """The code of a notebook, in order."""
    return [code for _, code in CELL.findall(page.read_text(encoding="utf-8"))]


def test_there_are_twelve() -> None:
    assert [page.name[:2] for page in TUTORIALS] == [f"{n:02}" for n in range(1, 13)]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_it_is_a_notebook(page: Path) -> None:
    """It has the header of one, all its code is in cells of one kind, and it ends by showing."""
    text = page.read_text(encoding="utf-8")
    number = int(page.name[:2])
    assert text.startswith(f"{HEADER}{number}. ")
    assert len(re.findall(r"^```\{code-cell\}", text, re.MULTILINE)) == len(cells(page)) >= 5
    assert "```python" not in text
    for code in cells(page):
        ast.parse(code)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if page.name in QUICK else [pytest.mark.slow], id=page.stem)
        for page in TUTORIALS
    ],
)
def test_its_cells_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, as a kernel would run them; pictures are drawn and closed."""
    pytest.importorskip("IPython", reason="the tutorials show sounds and films by IPython")
    import matplotlib.pyplot as plt

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plt.switch_backend("agg")
    names: dict[str, object] = {"__name__": "__main__"}
    try:
        for number, code in enumerate(cells(page)):
            exec(compile(code, f"{page.name}, cell {number}", "exec"), names)
            for figure in plt.get_fignums():
                plt.figure(figure).canvas.draw()
            plt.close("all")
    finally:
        plt.close("all")
