"""What is said of errors."""

from __future__ import annotations

import pytest

from pyro_seq.errors import said


@pytest.mark.parametrize("indent", ["", "    ", " \t"])
def test_pyros_table_of_shapes_is_left_out(indent: str) -> None:
    assert (
        said(ValueError(f"the scale is negative\n{indent}Trace Shapes:\n Param Sites:\n w 3"))
        == "the scale is negative"
    )
    assert said(ValueError("two\nlines")) == "two\nlines"
