"""Training on piano rolls, figures in the literature's types, and what the model plays."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.music.data.piano_rolls import KEYS
from pyro_seq.music.evaluation import scoring as music_scoring
from pyro_seq.music.evaluation.markov import MarkovKeys
from pyro_seq.music.model.model import new_pair, timing_of
from pyro_seq.music.model.presets import PRESETS
from pyro_seq.music.model.training import (
    MusicModel,
    MusicSettings,
    Pieces,
    evaluate,
    generate,
    music_settings,
    nats_per_frame,
    previews,
)
from pyro_seq.music.program import MusicData, music_program
from pyro_seq.programs.program import Request
from pyro_seq.runs.checkpoint import load_tree
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.tensorboard import Audio, Image

TINY = {
    "model.hidden_size": 6,
    "training.num_steps": 6,
    "training.valid_every": 3,
    "training.learning_rate": 0.05,
    "training.sample_every": 0,
    "rolls.batch_size": 2,
    "frames.emission": "bernoulli",
    "frames.hidden_size": 5,
}


def train(
    pieces: Pieces,
    settings: MusicSettings,
    run: RunFolder | None = None,
    *,
    start_from: Path | None = None,
    resume: bool = False,
) -> MusicModel:
    data = MusicData(pieces, MarkovKeys.fit(pieces.train), start_from)
    with tempfile.TemporaryDirectory() as folder:
        run = run or RunFolder(folder, "midi")
        return music_program.train(data, Request(settings, {}, run, quiet=True), resume=resume)


def pieces(*lengths: int) -> list[Tensor]:
    return [(torch.rand(length, KEYS) < 0.05).to(torch.uint8) for length in lengths]


def untrained(*changes: dict[str, Any], data: list[Tensor] | None = None) -> MusicModel:
    settings, data = music_settings(TINY, *changes), data or pieces(20)
    pair = new_pair(settings, data)
    pair.train(False)
    return MusicModel(
        pair, settings, timing_of(settings.rolls, 90.0), MarkovKeys.fit(data), torch.device("cpu")
    )


@pytest.fixture
def data() -> Pieces:
    return Pieces(pieces(5, 9, 3), pieces(4, 2))


@pytest.mark.parametrize("emission", ["bernoulli", "nade"])
def test_a_new_model_starts_from_how_often_keys_sound(emission: str) -> None:
    """With its last weights at zero, its likelihood is that of independent keys, of the training
    pieces' own frequencies.
    """
    roll = torch.zeros(8, KEYS, dtype=torch.uint8)
    roll[:4, 40], roll[:2, 50] = 1, 1
    music = untrained({"frames.emission": emission}, data=[roll])
    with torch.no_grad():
        music.pair.model.decoder[-1].weight.zero_()
        if emission == "nade":
            music.pair.model.emission.outward.zero_()
    rare = 86 * -math.log1p(-1e-4)
    entropy = -(math.log(0.5) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert nats_per_frame(music, [roll], method="exact") == pytest.approx(entropy + rare, rel=1e-5)


def test_figures_are_sums_over_frames() -> None:
    data = pieces(6, 3, 11)
    music = untrained(data=data)
    each = [float(score(music.pair, SequenceBatch(piece.unsqueeze(0))).total) for piece in data]
    assert nats_per_frame(music, data, method="exact") == pytest.approx(-sum(each) / 20, rel=1e-5)
    scored = evaluate(music, [*data, *pieces(0)])
    assert (scored.pieces, scored.frames, scored.method, scored.standard_error) == (
        3,
        20,
        "exact",
        0.0,
    )
    assert scored.log_likelihood == pytest.approx(sum(each), rel=1e-5)
    assert scored.bits_per_frame == pytest.approx(scored.nats_per_frame / math.log(2))
    assert scored.markov_nats_per_frame == pytest.approx(music.markov.nats_per_frame(data))
    for function in (nats_per_frame, evaluate):
        with pytest.raises(UserError, match="no frames to score"):
            function(music, pieces(0))


def test_estimates_tell_their_error_and_their_particles() -> None:
    music = untrained({"model.name": "srnn", "model.latent_size": 2, "model.latent_sizes": (3,)})
    scored = evaluate(music, pieces(7, 4), samples=5)
    assert (scored.method, scored.samples) == ("importance", 5)
    assert scored.standard_error is not None and scored.standard_error > 0
    assert scored.effective_samples is not None and 1 <= scored.effective_samples <= 5
    assert evaluate(music, pieces(3), method="elbo", samples=1).standard_error is None


def test_long_pieces_are_scored_in_windows_as_they_are_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    music, data = untrained(), pieces(23, 4)
    whole = evaluate(music, data)
    monkeypatch.setattr(music_scoring, "CHUNK_FRAMES", 5)
    assert evaluate(music, data).log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-5)


def test_what_is_not_finite_is_said() -> None:
    music = untrained()
    with torch.no_grad():
        music.pair.model.decoder[-1].bias.fill_(-3e38)
    with pytest.raises(UserError, match="not finite: its weights are too large"):
        evaluate(music, pieces(6))
    with pytest.raises(UserError, match="probabilities are not finite: its weights are too large"):
        with torch.no_grad():
            music.pair.model.decoder[-1].bias.fill_(torch.nan)
        list(generate(music, 4))


def test_training_keeps_the_best_and_goes_on(data: Pieces, tmp_path: Path) -> None:
    assert train(data, music_settings(TINY)).step == 6
    run = RunFolder(tmp_path / "run", "midi")
    with run.locked():
        run.create({}, {})
    first = music_settings(TINY, {"training.num_steps": 4, "training.schedule": "constant"})
    longer = music_settings(TINY, {"training.schedule": "constant", "training.warmup": 0.0})
    train(data, first, run)
    music = train(data, longer, run, resume=True)
    assert music.step == 6
    best = load_tree(run.best)["weights"]["model"]
    assert all(
        torch.equal(best[name], weight) for name, weight in music.pair.model.state_dict().items()
    )


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_settings_and_train(name: str, data: Pieces) -> None:
    small = {
        "training.num_steps": 1,
        "training.max_minutes": None,
        "training.valid_every": 1,
        "training.sample_every": 0,
    }
    music = train(data, music_settings(PRESETS[name], small))
    assert music.step == 1 and math.isfinite(nats_per_frame(music, data.valid, samples=2))


@pytest.mark.parametrize("emission", ["bernoulli", "nade", "beta"])
@pytest.mark.parametrize("kind", ["rnn", "srnn"])
def test_every_emission_trains_scores_and_plays(emission: str, kind: str, data: Pieces) -> None:
    changes: dict[str, Any] = {
        "frames.emission": emission,
        "model.name": kind,
        "frames.context": "last",
        "frames.context_frames": 3,
    }
    changes |= {"frames.encoder_sizes": (7,), "frames.combiner_sizes": (6,)}
    if kind == "srnn":
        changes |= {"model.latent_size": 2, "model.latent_sizes": (3,)}
    music = train(data, music_settings(TINY, changes))
    scored = evaluate(music, data.valid, samples=2)
    assert math.isfinite(scored.nats_per_frame)
    assert (scored.markov_nats_per_frame is None) == (emission == "beta")
    primer = data.train[0]
    for options in ({}, {"primer": primer}):
        rolls = list(generate(music, 4, num_samples=3, **options))
        assert len(rolls) == 3 and all(
            roll.shape == (4, KEYS) and roll.dtype == torch.uint8 and roll.max() <= 1
            for roll in rolls
        )


def test_a_primer_is_what_the_model_goes_on_from() -> None:
    """A model that holds each key as it was a frame ago holds the primer's last frame."""
    music = untrained({"model.name": "rnn", "model.hidden_size": KEYS, "model.skip": False})
    model: Any = music.pair.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        cell = dict(model.recurrence.named_parameters())
        weight, bias = (
            next(cell[name] for name in cell if name.endswith(end))
            for end in ("weight_ih_l0", "bias_ih_l0")
        )
        # the LSTM's candidate: what the frame before was
        weight[2 * KEYS : 3 * KEYS] = 20 * torch.eye(KEYS)
        # input and output gates open, forget gate closed
        bias[:KEYS], bias[KEYS : 2 * KEYS], bias[3 * KEYS :] = 20, -20, 20
        model.decoder[-1].weight.copy_(40 * torch.eye(KEYS))
        model.decoder[-1].bias.fill_(-15)
    (primer,) = pieces(9)
    (roll,) = generate(music, 5, primer=primer)
    assert torch.equal(roll, primer[-1].expand(5, -1))


def test_samples_follow_the_seed_and_the_temperature() -> None:
    music = untrained()
    with torch.no_grad():
        music.pair.model.decoder[-1].bias.fill_(-1.0)

    def drawn(seed: int, **options: Any) -> list[Tensor]:
        torch.manual_seed(seed)
        return list(generate(music, 30, num_samples=2, **options))

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert torch.equal(torch.stack(first), torch.stack(again)) and not torch.equal(
        torch.stack(first), torch.stack(other)
    )
    assert (
        float(torch.stack(drawn(1, temperature=0.1)).float().mean())
        < 0.01
        < float(torch.stack(first).float().mean())
    )
    with pytest.raises(UserError, match="at least 1"):
        next(generate(music, 0))
    with pytest.raises(UserError, match="temperature does not apply to a Beta"):
        next(generate(untrained({"frames.emission": "beta"}), 3, temperature=0.5))


def test_many_samples_are_drawn_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_seq.music.model.training.SAMPLED", 2 * 3 * KEYS)
    assert len(list(generate(untrained(), 3, num_samples=5))) == 5


def test_previews_can_be_seen_and_heard() -> None:
    shown = previews(untrained({"rolls.rate": 4.0}), pieces(40, 3))
    assert set(shown) == {"observed/roll", "observed/sound", "generated/roll", "generated/sound"}
    assert all(isinstance(shown[name], Image if name.endswith("roll") else Audio) for name in shown)


def test_settings_out_of_range() -> None:
    with pytest.raises(UserError, match=r"rolls\.keys must be one of 88, 128, got 61"):
        music_settings({"rolls.keys": "61"})
    with pytest.raises(UserError, match="did you mean 'nade'"):
        music_settings({"frames.emission": "nada"})
