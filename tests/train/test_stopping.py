"""When a training ends, and which setting is said to have ended it."""

from __future__ import annotations

import pytest

from pyro_seq.seqgan.settings import AdversarialSettings
from pyro_seq.train.settings import TrainingSettings
from pyro_seq.train.stopping import fraction, stopped_by

S = TrainingSettings(num_steps=1_000, max_minutes=2.5, patience=3)


def test_whichever_is_further_counts() -> None:
    assert fraction(S, 250, 0.1) == 0.25
    assert fraction(S, 250, 1.25) == 0.5
    assert fraction(S, 2_000, 9.0) == 1.0
    assert fraction(TrainingSettings(num_steps=4), 1, 1e9) == 0.25
    assert fraction(AdversarialSettings(num_steps=0), 0, 0.0) == 1.0


@pytest.mark.parametrize(
    ("step", "minutes", "validations", "says"),
    [
        (999, 2.49, 2, None),
        (1_000, 0.0, 0, "training.num_steps is 1,000"),
        (999, 2.5, 0, "training.max_minutes is 2.5"),
        (1, 0.0, 3, "training.patience is 3, and so many validations brought nothing better"),
    ],
)
def test_the_setting_that_ends_it_is_named(
    step: int, minutes: float, validations: int, says: str | None
) -> None:
    assert stopped_by("training", S, step, minutes, validations) == says


def test_no_patience_and_no_minutes_end_nothing() -> None:
    assert stopped_by("adversarial", AdversarialSettings(), 199, 1e9, 10**6) is None
