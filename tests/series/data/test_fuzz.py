"""Tables with faults put in: the tool that reads a thousand of them, on a few."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path

import pytest

from pyro_seq.series.data.reading import ReadOptions

TOOL = Path(__file__).parent.parent.parent.parent / "tools" / "fuzz_series.py"


@pytest.mark.slow
def test_tables_with_faults(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("fuzz_series", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_series"] = tool
    spec.loader.exec_module(tool)
    outcomes = set()
    for _, data in tool._mutants(40, random.Random(11).randrange(10**6)):
        path = tmp_path / "table.csv"
        path.write_bytes(data)
        outcomes.add(tool.check(path, ReadOptions()))
    assert outcomes == {"read", "refused"}
