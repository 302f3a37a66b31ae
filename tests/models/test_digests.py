"""Every shipped pair computes what it did when the table was made: densities, gradients, samples.

The table holds numbers of float64 by seed, so that moving code changes none of them unseen. Where a
number is meant to change, `python tests/test_digests.py` makes the table anew.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_seq import Pair, SequenceBatch, emissions, sample, score
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import PreviousObservation
from pyro_seq.encoders import Embedding, Flatten

TABLE = Path(__file__).with_name("digests.json")
N, T = 3, 5
SMALL = {
    "hidden_size": 4,
    "latent_size": 3,
    "latent_sizes": (5,),
    "activation": "tanh",
    "num_states": 3,
}
CONDITIONAL = {"conditional": True, "cell": "gru"}
PAIRS: dict[str, dict[str, Any]] = {
    "rnn": {},
    "rnn skip": {"skip": True},
    "iseq": {},
    "srnn": {},
    "srnn gru": {"cell": "gru", "num_layers": 2},
    "srnn plain": {"residual": False},
    "vrnn": {},
    "dmm": CONDITIONAL,
    "dmm flows": CONDITIONAL | {"num_flows": 2, "flow_sizes": (6,)},
    "hmm": {},
    "hmm order": {"order": 2},
    "hmm durations": {"max_duration": 3},
}
CASES = [
    f"{pair}, {layout}, {kind}"
    for pair in PAIRS
    for layout in ("path", "steps")
    for kind in ("symbols", "chords", "numbers")
]


def parts_and_batch(kind: str) -> tuple[PairComponents, SequenceBatch]:
    """What a pair is made of, and three ragged sequences, by a seed of their own."""
    rng = torch.Generator().manual_seed(7)
    if kind == "symbols":
        parts = PairComponents(
            emissions.Categorical(4), lambda: Embedding(4, 3), PreviousObservation
        )
        values = torch.randint(0, 4, (N, T), generator=rng)
    elif kind == "chords":
        parts = PairComponents(
            emissions.Factorised(emissions.Bernoulli(), 3), lambda: Flatten(3), PreviousObservation
        )
        values = torch.randint(0, 2, (N, T, 3), generator=rng).double()
    else:
        parts = PairComponents(emissions.Normal(), lambda: Flatten(()), PreviousObservation)
        values = torch.rand(N, T, generator=rng) * 4 - 2
    return parts, SequenceBatch(values, [5, 3, 1])


def summed(values: Any) -> float:
    """A sum in which every entry has a weight of its own."""
    flat = torch.as_tensor(values).double().flatten()
    return float(flat @ torch.linspace(1.0, 2.0, len(flat)))


def scatter(pair: Pair) -> None:
    """Give each parameter values that depend on nothing but its place and size, the same on every
    machine.
    """
    with torch.no_grad():
        for index, parameter in enumerate(pair.parameters().values()):
            place = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
            parameter.copy_(0.4 * torch.sin(1.7 * place + index))


def digest(case: str) -> dict[str, float]:
    """The loss, its gradients, a score and samples of a pair in a layout over a kind of
    observations.
    """
    name, layout, kind = case.split(", ")
    parts, batch = parts_and_batch(kind)
    pyro.set_rng_seed(0)
    pair = make_pair(
        model_settings(name.split()[0], SMALL | PAIRS[name] | {"layout": layout}), parts
    )
    scatter(pair)
    pair.train(False)
    found = {}
    if not name.startswith("hmm") or layout == "path":
        pyro.set_rng_seed(1)
        loss = Trace_ELBO().differentiable_loss(pair.model, pair.guide, batch)
        loss.backward()
        gradients = [p.grad for p in pair.parameters().values() if p.grad is not None]
        found |= {"loss": float(loss.detach()), "gradient": sum(summed(g) for g in gradients)}
        found |= {"gradient norm": math.sqrt(sum(float(g.square().sum()) for g in gradients))}
    pyro.set_rng_seed(2)
    found["score"] = summed(score(pair, batch, samples=4).log_likelihood)
    pyro.set_rng_seed(3)
    found["samples"] = summed(sample(pair, 4, 3))
    return found


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES)
def test_same_numbers(case: str) -> None:
    assert digest(case) == pytest.approx(json.loads(TABLE.read_text())[case], rel=1e-9)


def test_every_number_is_told_apart() -> None:
    """Numbers that were equal for two pairs would hold neither; the layouts of one pair have one
    density.
    """
    table = json.loads(TABLE.read_text())
    losses = {round(entry["loss"], 9) for case, entry in table.items() if "path" in case}
    assert len(losses) == len(PAIRS) * 3


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    table = {}
    for each in CASES:
        pyro.clear_param_store()
        table[each] = digest(each)
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
