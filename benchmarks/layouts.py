"""The two layouts of the shipped pairs, `steps` over `path`: a training step and scoring, for rnn,
iseq and srnn.

32 sequences of 100 steps over 88 piano keys, LSTM 64, latent 16. Both layouts have equal weights
and equal densities, which is checked on the same latents; so a figure is what the path layout
saves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import common
import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from pyro_seq import Pair, SequenceBatch, score
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.composite import Factorised
from pyro_seq.emissions.elementary import Bernoulli
from pyro_seq.encoders import MLPEncoder
from pyro_seq.guides import ISEQGuide, SRNNGuide
from pyro_seq.models import ISEQ, RNN, SRNN
from pyro_seq.train.optimizer import JointOptimiser

SEQUENCES, STEPS, KEYS = 32, 100, 88
HIDDEN, LATENT = 64, 16


def new_pair(kind: str) -> Pair:
    """A pair of the given kind in the path layout."""
    emission, context, encoder = (
        Factorised(Bernoulli(), KEYS),
        PreviousObservation(MLPEncoder(KEYS, [HIDDEN])),
        MLPEncoder(KEYS, [HIDDEN]),
    )
    if kind == "rnn":
        return Pair(RNN(emission, context, hidden_size=HIDDEN, decoder_sizes=[HIDDEN]))
    if kind == "iseq":
        iseq = ISEQ(
            emission, context, hidden_size=HIDDEN, latent_size=LATENT, decoder_sizes=[HIDDEN]
        )
        return Pair(iseq, ISEQGuide(iseq, encoder, hidden_size=HIDDEN))
    srnn = SRNN(emission, context, hidden_size=HIDDEN, latent_size=LATENT, decoder_sizes=[HIDDEN])
    return Pair(srnn, SRNNGuide(srnn, encoder, hidden_size=HIDDEN))


def in_steps(pair: Pair) -> Pair:
    """A copy of the pair in the steps layout."""
    # together, since the guide refers to the model
    model, guide = copy.deepcopy((pair.model, pair.guide))
    model.layout = "steps"
    return Pair(model, guide)


def check_equal(path: Pair, steps: Pair, batch: SequenceBatch) -> None:
    """The model's log-density is equal in both layouts, at latents drawn by the path layout's
    guide.
    """
    with torch.no_grad():
        with path.scope():
            drawn = poutine.trace(path.guide).get_trace(batch)
            expected = (
                poutine.trace(poutine.replay(path.model, trace=drawn))
                .get_trace(batch)
                .log_prob_sum()
            )
        latents = (
            {f"z_{t}": drawn.nodes["z"]["value"][:, t] for t in range(STEPS)}
            if "z" in drawn
            else {}
        )
        with steps.scope():
            actual = (
                poutine.trace(poutine.condition(steps.model, data=latents))
                .get_trace(batch)
                .log_prob_sum()
            )
    assert torch.allclose(actual, expected, rtol=1e-4), (actual, expected)


def training_step(pair: Pair, x: torch.Tensor) -> Callable[[], object]:
    """A call that takes one step of training."""
    with pair.scope():
        pair.train()
        names = {
            f"{side}.{name}": p
            for side, module in pair.modules().items()
            for name, p in module.named_parameters()
        }
        svi = SVI(pair.model, pair.guide, JointOptimiser(names, learning_rate=1e-3), Trace_ELBO())

    def step() -> None:
        with pair.scope():
            svi.step(SequenceBatch(x).with_cache())

    return step


def scoring(pair: Pair, x: torch.Tensor) -> Callable[[], object]:
    """A call that scores the batch."""

    def run() -> None:
        with pair.scope():
            pair.train(False)
            score(pair, SequenceBatch(x))

    return run


def main() -> None:
    """For each pair: check, then a training step, then scoring."""
    options = common.parse_arguments(__doc__)
    rounds = 3 if options.quick else 20
    torch.manual_seed(0)
    pyro.enable_validation(False)
    x = (torch.rand(SEQUENCES, STEPS, KEYS) < 0.05).float()
    for kind in ("rnn", "iseq", "srnn"):
        path = new_pair(kind)
        steps = in_steps(path)
        check_equal(path, steps, SequenceBatch(x))
        for work, make in (("training step", training_step), ("scoring", scoring)):
            print(f"{kind}, {work}")
            spent = common.medians(
                common.in_turns(
                    {"steps": make(steps, x), "path": make(path, x)}, rounds=rounds, warm_up=2
                )
            )
            common.report(f"{kind}, {work}: steps over path", spent["steps"] / spent["path"])


if __name__ == "__main__":
    main()
