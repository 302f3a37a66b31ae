"""Several modules of one class in one session, in plain SVI loops: each of them learns, or it is
said why not.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.contrib.autoname import scope
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_seq import AutoSequenceGuide, Pair, SequenceBatch, UserError, no_guide, score
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.composite import Factorised
from pyro_seq.emissions.elementary import Categorical, Normal
from pyro_seq.emissions.nade import NADE
from pyro_seq.encoders import Embedding, Flatten
from pyro_seq.guides import SRNNGuide
from pyro_seq.models import RNN, SRNN

BATCH = SequenceBatch(
    torch.randint(5, (4, 6), generator=torch.Generator().manual_seed(0)), [6, 6, 3, 2]
)


def rnn(size: int = 4) -> RNN:
    return RNN(Categorical(5), PreviousObservation(Embedding(5, 3)), hidden_size=size)


def srnn(size: int = 4) -> tuple[SRNN, SRNNGuide]:
    model = SRNN(
        Categorical(5),
        PreviousObservation(Embedding(5, 3)),
        hidden_size=size,
        latent_size=2,
        latent_sizes=(3,),
    )
    return model, SRNNGuide(model, Embedding(5, 3), hidden_size=size, latent_sizes=(3,))


def unmoved(parameters: Iterable[Tensor], svi: SVI, batch: SequenceBatch = BATCH) -> int:
    """How many of some parameters two steps leave as they are."""
    parameters = list(parameters)
    before = [parameter.detach().clone() for parameter in parameters]
    for _ in range(2):
        svi.step(batch)
    return sum(p.equal(q) for p, q in zip(parameters, before, strict=True))


def training(model: Any, guide: Any = no_guide) -> SVI:
    return SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())


def titles() -> set[str]:
    return {name.partition("$$$")[0] for name, _ in pyro.get_param_store().named_parameters()}


@pytest.mark.parametrize("sizes", [(4, 4), (4, 6), (6, 4)])
def test_a_cell_that_is_run_twice(sizes: tuple[int, int]) -> None:
    """The first model is gone, and nothing of it is left in the store."""
    for size in sizes:
        model = rnn(size)
        assert unmoved(model.parameters(), training(model)) == 0
        gc.collect()
        assert titles() == {"RNN"}
    assert {id(p) for _, p in pyro.get_param_store().named_parameters()} == {
        id(p) for p in model.parameters()
    }


def test_models_side_by_side_learn_in_turn() -> None:
    models = [rnn(4), rnn(4), rnn(6)]
    loops = [training(model) for model in models]
    for _ in range(2):
        for model, svi in zip(models, loops, strict=True):
            assert unmoved(model.parameters(), svi) == 0
    assert titles() == {"RNN", "RNN_2", "RNN_3"}


def test_two_models_in_one_function() -> None:
    models = rnn(), rnn()

    def both(batch: SequenceBatch) -> None:
        for i, model in enumerate(models):
            with scope(prefix=f"part{i}"):
                model(batch)

    assert unmoved([p for model in models for p in model.parameters()], training(both)) == 0


@pytest.mark.parametrize("keep", [True, False])
def test_pairs_of_model_and_guide(keep: bool) -> None:
    kept = []
    for size in (4, 6, 4):
        model, guide = srnn(size)
        assert unmoved([*model.parameters(), *guide.parameters()], training(model, guide)) == 0
        kept += [model, guide] if keep else []


def test_a_new_guide_for_the_same_model() -> None:
    model, guide = srnn()
    for _ in range(2):
        assert unmoved([*model.parameters(), *guide.parameters()], training(model, guide)) == 0
        guide = SRNNGuide(model, Embedding(5, 3), hidden_size=6)
    found = [
        AutoSequenceGuide(model, hidden_size=3, latent_sizes=(3,)).prepare(BATCH) for _ in range(2)
    ]
    for auto in found:
        assert unmoved(auto.parameters(), training(model, auto)) == 0


def test_emissions_with_weights() -> None:
    batch = SequenceBatch(torch.randint(2, (3, 4, 5)).float())
    for _ in range(2):
        model = RNN(NADE(5, 3), PreviousObservation(Flatten(5)), hidden_size=4)
        assert unmoved(model.parameters(), training(model), batch) == 0


def test_copies_and_exchanged_parts() -> None:
    model = rnn()
    assert unmoved(model.parameters(), training(model)) == 0
    other = copy.deepcopy(model)
    assert unmoved(other.parameters(), training(other)) == 0
    assert unmoved(model.parameters(), training(model)) == 0
    model.decoder = type(model.decoder)(4, (), 5)
    assert unmoved(model.parameters(), training(model)) == 0
    assert unmoved(model.parameters(), training(model.double())) == 0
    assert titles() == {"RNN", "RNN_2"}


def test_parameters_that_a_conversion_replaces() -> None:
    """As `torch.__future__` makes it, and devices of another kind do."""
    model = rnn()
    training(model).step(BATCH)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
    assert unmoved(model.parameters(), training(model)) == 0


def test_a_pair_beside_it() -> None:
    """Inside a pair's scope the store is the pair's own, and afterwards it is what it was."""
    outside, inside = rnn(), rnn()
    assert unmoved(outside.parameters(), training(outside)) == 0
    pair = Pair(inside)
    before = score(pair, BATCH).total
    with pair.scope():
        assert unmoved(inside.parameters(), training(inside)) == 0
        assert titles() == {"RNN"}
    assert not score(pair, BATCH).total.equal(before)
    assert {id(p) for _, p in pyro.get_param_store().named_parameters()} == {
        id(p) for p in outside.parameters()
    }
    assert unmoved(outside.parameters(), training(outside)) == 0


def loaded(folder: Path, model: nn.Module) -> None:
    store = pyro.get_param_store()
    store.save(str(folder / "store"))
    store.clear()
    store.load(str(folder / "store"))


def another(folder: Path, model: nn.Module) -> None:
    pyro.clear_param_store()
    pyro.module("RNN", rnn())


@pytest.mark.parametrize("change", [loaded, another])
def test_a_strangers_parameters_are_said_in_words(
    change: Callable[[Path, nn.Module], None], tmp_path: Path
) -> None:
    model = rnn()
    svi = training(model)
    svi.step(BATCH)
    change(tmp_path, model)
    says = (
        r"store holds 'RNN\$\$\$context.encoder.table.weight', which is not this RNN's own, so "
        r"that training would not move it"
    )
    with pytest.raises(UserError, match=says):
        svi.step(BATCH)
    pyro.module("RNN", model, update_module_params=True)
    assert unmoved(model.parameters(), training(model)) == 0
    change(tmp_path, model)
    pyro.clear_param_store()
    assert unmoved(model.parameters(), training(model)) == 0


def test_what_is_only_scored_beside_another_leaves_no_parameters_behind() -> None:
    model = rnn()
    training(model).step(BATCH)
    with torch.no_grad():
        rnn()(BATCH)
        other = copy.deepcopy(model)
        other(BATCH)
    assert titles() == {"RNN"} and unmoved(other.parameters(), training(other)) == 0


def test_a_frozen_part_stays() -> None:
    model = RNN(Factorised(Normal(), 2), PreviousObservation(Flatten(2)), hidden_size=4)
    model.decoder.requires_grad_(False)
    model.eval()
    for _ in range(2):
        assert (
            unmoved(model.parameters(), training(model), SequenceBatch(torch.randn(2, 3, 2))) == 2
        )
