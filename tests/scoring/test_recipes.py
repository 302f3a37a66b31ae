"""The recipes of the page on scoring, by the engines that are installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

PAGE = Path(__file__).parent.parent.parent / "docs" / "scoring-files.md"
pytestmark = pytest.mark.slow


@pytest.fixture
def page() -> dict[str, Any]:
    """What the code of the page has defined, up to the recipes."""
    names: dict[str, Any] = {"__name__": "page"}
    text = PAGE.read_text(encoding="utf-8").partition("## Files into files")[0]
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
    return names


@pytest.fixture
def rows(page: dict[str, Any]) -> pd.DataFrame:
    """Rows, with their figures."""
    texts = ["the cat sat on the mat; "[: 1 + i % 20] for i in range(40)]
    return pd.DataFrame(page["scorer"]({"id": np.arange(40), "text": texts}))


def check(found: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Compare with the callable alone; engines may change the order of rows."""
    found = found.sort_values("id").reset_index(drop=True)
    pd.testing.assert_frame_equal(found[rows.columns], rows, check_dtype=False, rtol=1e-6)


def test_frames_of_any_size(page: dict[str, Any], rows: pd.DataFrame) -> None:
    """What Spark calls, without Spark."""
    table = rows[["id", "text"]]
    frames = (table[i : i + 7] for i in range(0, len(table), 7))
    check(pd.concat(page["scored_frames"](frames)), rows)


def test_datasets(page: dict[str, Any], rows: pd.DataFrame) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_pandas(rows[["id", "text"]], preserve_index=False)
    check(page["scored_by_datasets"](table).to_pandas(), rows)


def test_ray(page: dict[str, Any], rows: pd.DataFrame, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    (tmp_path / "in").mkdir()
    rows[["id", "text"]].to_parquet(tmp_path / "in" / "rows.parquet")
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        page["scored_by_ray"](str(tmp_path / "in"), str(tmp_path / "out"))
    finally:
        ray.shutdown()
    check(pd.read_parquet(tmp_path / "out"), rows)


def test_spark(page: dict[str, Any], rows: pd.DataFrame) -> None:
    sql = pytest.importorskip("pyspark.sql")
    spark = sql.SparkSession.builder.master("local[2]").getOrCreate()
    try:
        table = spark.createDataFrame(rows[["id", "text"]])
        check(page["scored_by_spark"](table).toPandas(), rows)
    finally:
        spark.stop()
