"""The tutorials run, from their first cell to their last, as plain Python and without Sphinx."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pyro_seq.infer.likelihood.score import UnreliableEstimate

ROOT = Path(__file__).parent.parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("[0-9][0-9]-*.md"))
# two of them, with what makes them small: the whole ones take minutes, and wait for make test-all
SMALL = {
    "02-equations.md": {
        "num_steps=200": "num_steps=2",
        "samples=2000": "samples=20",
        '"samples": 2000': '"samples": 20',
        "repeats=20": "repeats=1",
    },
    "03-text.md": {
        '"training.num_steps": 1200': '"training.num_steps": 20',
        '"training.valid_every": 100': '"training.valid_every": 10',
        "length=220": "length=20",
        '("after four", counted(4))': '("after two", counted(2))',
    },
}
CELL = re.compile(r"^```\{code-cell\} ipython3\n((?::.*\n)*)(.*?)^```", re.MULTILINE | re.DOTALL)
UNRELIABLE = f"ignore::{UnreliableEstimate.__module__}.{UnreliableEstimate.__name__}"
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


def run(page: Path, codes: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run cells in one process, as a kernel would; pictures are drawn and closed."""
    pytest.importorskip("IPython", reason="the tutorials show sounds and films by IPython")
    import matplotlib.pyplot as plt

    monkeypatch.setattr("tempfile.tempdir", str(folder))
    plt.switch_backend("agg")
    names: dict[str, object] = {"__name__": "__main__"}
    try:
        for number, code in enumerate(codes):
            exec(compile(code, f"{page.name}, cell {number}", "exec"), names)
            for figure in plt.get_fignums():
                plt.figure(figure).canvas.draw()
            plt.close("all")
    finally:
        plt.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_its_cells_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(page, cells(page), tmp_path, monkeypatch)


@pytest.mark.filterwarnings(UNRELIABLE)  # 20 particles are too few, and are told so
@pytest.mark.parametrize("name", SMALL)
def test_cells_run_with_fewer_steps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs" / "tutorials" / name
    whole = "\0".join(cells(page))
    for text, smaller in SMALL[name].items():
        assert text in whole, f"{name} has no {text} any more"
        whole = whole.replace(text, smaller)
    run(page, whole.split("\0"), tmp_path, monkeypatch)
