"""What a frame is to a pair: observed values and the rolls that sampled values stand for, by each
emission.
"""

from __future__ import annotations

import pytest
import torch

from pyro_seq.batch import SequenceBatch
from pyro_seq.config.build import make_pair, model_settings
from pyro_seq.contexts import LastObservations, PreviousObservation
from pyro_seq.emissions.composite import Joint
from pyro_seq.emissions.nade import NADE
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.music.model.parts import (
    MOST_NOTES,
    FrameSettings,
    decode_frames,
    encode_frames,
    frame_parts,
    start_from_frequencies,
)

BETA = FrameSettings(emission="beta")


def rolls(*lengths: int, keys: int = 12) -> SequenceBatch:
    return SequenceBatch.from_sequences(
        [(torch.rand(length, keys) < 0.3).to(torch.uint8) for length in lengths]
    )


def test_scores_and_a_count_stand_for_a_roll_and_back() -> None:
    batch = rolls(6, 4)
    values = encode_frames(BETA, batch).values
    assert isinstance(values, dict) and isinstance(batch.values, torch.Tensor)
    assert values["notes"][0].unique().tolist() == pytest.approx([0.05, 0.95])
    assert torch.equal(values["count"], batch.values.sum(-1, dtype=torch.long))
    assert not values["notes"][1, 4:].any()  # padding
    assert torch.equal(decode_frames(BETA, values) * batch.mask.unsqueeze(-1), batch.values)


def test_as_many_keys_sound_as_were_counted_those_with_the_highest_scores() -> None:
    values = {
        "notes": torch.tensor([[0.2, 0.9, 0.6, 0.7], [0.9, 0.8, 0.7, 0.6]]),
        "count": torch.tensor([2, 0]),
    }
    assert decode_frames(BETA, values).tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]


def test_a_frame_of_more_notes_than_can_be_counted_counts_as_many_as_can() -> None:
    batch = SequenceBatch(torch.ones(1, 1, 12, dtype=torch.uint8))
    assert encode_frames(BETA, batch).values["count"].item() == MOST_NOTES  # type: ignore[index]


@pytest.mark.parametrize("emission", ["bernoulli", "nade"])
def test_other_emissions_observe_the_roll_itself_as_numbers(emission: str) -> None:
    batch = rolls(3)
    settings = FrameSettings(emission=emission)
    values = encode_frames(settings, batch).values
    assert isinstance(values, torch.Tensor) and isinstance(batch.values, torch.Tensor)
    assert values.dtype == torch.get_default_dtype() and batch.values.dtype == torch.uint8
    assert torch.equal(values, batch.values.float())
    assert torch.equal(decode_frames(settings, values), batch.values)


def test_parts_are_what_the_settings_say() -> None:
    assert isinstance(frame_parts(BETA, 12).emission, Joint)
    parts = frame_parts(FrameSettings(emission="nade", hidden_size=5, dropout=0.2), 12)
    assert isinstance(parts.emission, NADE) and (
        parts.emission.hidden_size,
        parts.emission.dropout,
    ) == (5, 0.2)
    assert isinstance(parts.context(parts.encoder()), PreviousObservation)
    wide = frame_parts(
        FrameSettings(
            emission="beta",
            context="last",
            context_frames=4,
            combiner_sizes=(9, 7),
            encoder_sizes=(6,),
        ),
        12,
    )
    context = wide.context(wide.encoder())
    assert isinstance(context, LastObservations) and (context.count, context.num_features) == (4, 7)
    assert context.encoder.num_features == 6 + MOST_NOTES + 1


@pytest.mark.parametrize("sizes", [(), (5,)])
@pytest.mark.parametrize("emission", ["bernoulli", "nade", "beta"])
def test_a_new_model_starts_from_frequencies_where_it_can(
    emission: str, sizes: tuple[int, ...]
) -> None:
    settings = FrameSettings(emission=emission, hidden_size=3)
    pair = make_pair(
        model_settings("rnn", {"hidden_size": 4, "decoder_sizes": sizes}), frame_parts(settings, 3)
    )
    start_from_frequencies(pair.model, settings, torch.tensor([0.5, 0.0, 0.25]))
    with torch.no_grad():
        pair.model.decoder[-1].weight.zero_()
        if emission == "nade":
            pair.model.emission.outward.zero_()
    silent = encode_frames(settings, SequenceBatch(torch.zeros(1, 1, 3, dtype=torch.uint8)))
    found = float(score(pair, silent).total)
    assert (
        found == pytest.approx(torch.tensor([0.5, 1 - 1e-4, 0.75]).log().sum().item(), rel=1e-5)
    ) == (emission != "beta")


def test_a_pair_of_ones_own_starts_as_it_was_made() -> None:
    start_from_frequencies(lambda batch: None, FrameSettings(), torch.rand(3))
