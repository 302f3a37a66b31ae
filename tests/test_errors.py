"""What is said of errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_seq.errors import UserError, finite_probabilities, said


@pytest.mark.parametrize("indent", ["", "    ", " \t"])
def test_pyros_table_of_shapes_is_left_out(indent: str) -> None:
    assert (
        said(ValueError(f"the scale is negative\n{indent}Trace Shapes:\n Param Sites:\n w 3"))
        == "the scale is negative"
    )
    assert said(ValueError("two\nlines")) == "two\nlines"


@pytest.mark.parametrize("draw", [torch.poisson, torch.bernoulli])
def test_what_torch_says_of_nan_is_said_in_words(draw: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UserError, match="not finite"), finite_probabilities():
        draw(torch.tensor([float("nan")]))
