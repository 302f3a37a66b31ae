"""The shipped pairs by name: every setting reaches the part that it is about."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from pyro_seq import Pair
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import Chain, PreviousObservation, SideInputs
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import Embedding
from pyro_seq.guides import ISEQGuide, SRNNGuide, no_guide
from pyro_seq.models import ISEQ, RNN, SRNN
from pyro_seq.nn.dropout import SequenceDropout
from pyro_seq.nn.gaussian import NormalNet
from pyro_seq.nn.recurrent import Recurrence

PARTS = PairComponents(
    Categorical(4),
    lambda: Embedding(4, 3),
    lambda encoder: Chain(PreviousObservation(encoder), SideInputs(2)),
    num_inputs=2,
)


def make(kind: str, **settings: Any) -> Pair:
    return make_pair(model_settings(kind, settings), PARTS)


def all_of(pair: Pair, kind: type) -> list[Any]:
    return [
        module
        for side in pair.modules().values()
        for module in side.modules()
        if isinstance(module, kind)
    ]


def test_kinds() -> None:
    rnn, iseq, srnn = make("rnn"), make("iseq"), make("srnn")
    assert type(rnn.model) is RNN and rnn.guide is no_guide
    assert (
        type(iseq.model) is ISEQ
        and type(iseq.guide) is ISEQGuide
        and iseq.guide.model is iseq.model
    )
    assert type(srnn.model) is SRNN and type(srnn.guide) is SRNNGuide and srnn.guide.residual
    assert not make("srnn", residual=False).guide.residual


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r"unknown pair 'srn'; did you mean 'srnn'\?"):
        make("srn")


@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("kind", ["rnn", "iseq", "srnn"])
def test_settings_reach_their_parts(kind: str, layout: str) -> None:
    pair = make(
        kind,
        cell="gru",
        hidden_size=7,
        num_layers=2,
        dropout=0.1,
        input_dropout=0.2,
        output_dropout=0.3,
        decoder_sizes=(6, 5),
        latent_size=3,
        latent_sizes=(8,),
        activation="silu",
        positive="exp",
        epsilon=0.01,
        layout=layout,
    )
    assert pair.model.layout == layout
    recurrences = all_of(pair, Recurrence)
    assert len(recurrences) == {"rnn": 1, "iseq": 3, "srnn": 2}[kind]
    assert all(
        (r.kind, r.hidden_size, r.rnn.num_layers, r.rnn.dropout) == ("gru", 7, 2, 0.1)
        for r in recurrences
    )
    assert sorted(d.p for d in all_of(pair, SequenceDropout)) == (
        [0.2, 0.3] if kind == "rnn" else [0.2, 0.2, 0.3]
    )
    decoder = [layer.out_features for layer in pair.model.decoder if isinstance(layer, nn.Linear)]
    assert decoder == [6, 5, 4]
    assert len(all_of(pair, nn.SiLU)) == 2 + {"rnn": 0, "iseq": 1, "srnn": 2}[kind]
    for network in all_of(pair, NormalNet):
        assert (network.size, network.positive.kind, network.positive.epsilon) == (3, "exp", 0.01)
        assert network.mlp[0].out_features == 8
    assert pair.model.latent_size == (0 if kind == "rnn" else 3)


@pytest.mark.parametrize("kind", ["iseq", "srnn"])
def test_model_and_guide_have_encoders_of_their_own(kind: str) -> None:
    assert len({id(table) for table in all_of(make(kind), nn.Embedding)}) == 2


def test_unknown_layout() -> None:
    with pytest.raises(ValueError, match="layout must be 'path' or 'steps', got 'walk'"):
        make("rnn", layout="walk")
