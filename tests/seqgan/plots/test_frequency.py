"""Pictures of frequencies: the shares that they show, and that they are pictures for anything that
may be generated.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_seq.seqgan.plots.frequency import frequencies_png, shares_by_rank


def test_shares_by_rank() -> None:
    assert shares_by_rank(torch.tensor([[7, 7, 0], [7, 0, 3]])).tolist() == pytest.approx(
        [1 / 2, 1 / 3, 1 / 6]
    )


@pytest.mark.parametrize(
    ("generated", "real"),
    [
        (torch.randint(50, (30, 8)), torch.randint(80, (40, 8))),
        (torch.zeros(5, 8).long(), torch.randint(80, (40, 8))),
        (torch.zeros(1, 1).long(), torch.zeros(1, 1).long()),
    ],
)
def test_a_picture_of_anything(generated: Tensor, real: Tensor) -> None:
    picture = frequencies_png({"real": real, "generated": generated})
    assert picture.startswith(b"\x89PNG") and 5_000 < len(picture) < 60_000
    assert picture == frequencies_png({"real": real[: len(generated)], "generated": generated}), (
        "as many real ones as generated ones"
    )
