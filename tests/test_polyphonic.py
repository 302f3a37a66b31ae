"""Training on piano rolls, and figures in the literature's types."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.domains.piano_rolls import KEYS
from pyro_seq.domains.polyphonic import PRESETS, nats_per_frame, new_pair, polyphonic_settings, train
from pyro_seq.errors import UserError
from pyro_seq.runs import RunFolder, load_tree
from pyro_seq.scoring import score

TINY = {
    "model.hidden_size": 6,
    "training.num_steps": 6,
    "training.valid_every": 3,
    "training.learning_rate": 0.05,
    "rolls.batch_size": 2,
}


def pieces(*lengths: int) -> list[Tensor]:
    return [(torch.rand(length, KEYS) < 0.05).to(torch.uint8) for length in lengths]


@pytest.fixture
def splits() -> dict[str, list[Tensor]]:
    return {"train": pieces(5, 9, 3), "valid": pieces(4, 2)}


def test_a_new_model_starts_from_how_often_keys_sound() -> None:
    """With its last weights at zero, its likelihood is that of independent keys, of the training pieces' own frequencies."""
    settings = polyphonic_settings({"model.kind": "rnn", **TINY})
    roll = torch.zeros(8, KEYS, dtype=torch.uint8)
    roll[:4, 40], roll[:2, 50] = 1, 1
    pair = new_pair(settings, [roll])
    with torch.no_grad():
        pair.model.decoder[-1].weight.zero_()
    rare = 86 * -math.log1p(-1e-4)
    entropy = -(math.log(0.5) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert nats_per_frame(pair, [roll], method="exact") == pytest.approx(entropy + rare, rel=1e-5)


def test_figures_are_sums_over_frames() -> None:
    pair, data = new_pair(polyphonic_settings({"model.kind": "rnn", **TINY})), pieces(6, 3, 11)
    each = [float(score(pair, SequenceBatch(piece.unsqueeze(0))).total) for piece in data]
    assert nats_per_frame(pair, data, method="exact") == pytest.approx(-sum(each) / 20, rel=1e-5)
    with pytest.raises(UserError, match="no frames to score"):
        nats_per_frame(pair, pieces(0))


def test_training_keeps_the_best_and_goes_on(splits: dict[str, list[Tensor]], tmp_path: Path) -> None:
    settings = polyphonic_settings({"model.kind": "rnn", **TINY})
    assert train(splits, settings, quiet=True)[1] == 6
    run = RunFolder(tmp_path / "run", "polyphonic")
    with run.locked():
        run.create({}, {})
    first = polyphonic_settings({"model.kind": "rnn", **TINY, "training.num_steps": 4, "training.schedule": "constant"})
    longer = polyphonic_settings({"model.kind": "rnn", **TINY, "training.schedule": "constant", "training.warmup": 0.0})
    train(splits, first, run=run, quiet=True)
    pair, steps = train(splits, longer, run=run, resume=True, quiet=True)
    assert steps == 6
    best = load_tree(run.best)["weights"]["model"]
    assert all(torch.equal(best[name], weight) for name, weight in pair.model.state_dict().items())


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_settings_and_train(name: str, splits: dict[str, list[Tensor]]) -> None:
    small = {"training.num_steps": 1, "training.max_minutes": None, "training.valid_every": 1}
    settings = polyphonic_settings(PRESETS[name], small)
    pair, steps = train(splits, settings, quiet=True)
    assert steps == 1 and math.isfinite(nats_per_frame(pair, splits["valid"], method="auto", samples=2))
