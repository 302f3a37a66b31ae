"""An epoch of training a deep Markov model on JSB chorales: Pyro's own example `dmm.py` over
pyro_seq, of the same sizes and weights.

    python benchmarks/dmm_speed.py --example PYRO/examples/dmm.py

The example is a file of Pyro's repository (https://github.com/pyro-ppl/pyro) and not installed with
Pyro, so its path is asked for.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import common
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor, nn

from pyro_seq import Pair, SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.composite import Factorised
from pyro_seq.emissions.elementary import Bernoulli
from pyro_seq.encoders import Flatten
from pyro_seq.guides import DMMGuide
from pyro_seq.models import DMM
from pyro_seq.music.data.piano_rolls import KEYS, read_polyphonic
from pyro_seq.train.minibatches import PieceBatches
from pyro_seq.train.optimizer import JointOptimiser

BATCH, LEARNING_RATE = 20, 3e-4


def load_example(path: Path) -> tuple[ModuleType, ModuleType]:
    """(the example, Pyro's loader of polyphonic music) as modules."""
    # Pyro's loaders import it for pictures of digits
    if importlib.util.find_spec("torchvision") is None:
        sys.modules |= {
            name: mock.MagicMock()
            for name in ("torchvision", "torchvision.datasets", "torchvision.transforms")
        }
    specification = importlib.util.spec_from_file_location("example_dmm", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module, importlib.import_module("pyro.contrib.examples.polyphonic_data_loader")


def same_weights(example: Any, pair: Pair) -> None:
    """Give the pair the example's weights; its scales have no smallest value, so that the pair's
    must be tiny.
    """
    model: Any = pair.model
    guide: Any = pair.guide
    linear = [(example.emitter.lin_z_to_hidden, model.decoder[0])]
    linear += [
        (example.emitter.lin_hidden_to_hidden, model.decoder[2]),
        (example.emitter.lin_hidden_to_input, model.decoder[4]),
    ]
    trans, prior = example.trans, model.prior
    linear += [
        (trans.lin_gate_z_to_hidden, prior.gate[0]),
        (trans.lin_gate_hidden_to_z, prior.gate[2]),
    ]
    linear += [
        (trans.lin_proposed_mean_z_to_hidden, prior.proposed[0]),
        (trans.lin_proposed_mean_hidden_to_z, prior.proposed[2]),
    ]
    linear += [
        (trans.lin_sig, prior.scale),
        (trans.lin_z_to_loc, prior.linear),
        (example.combiner.lin_z_to_hidden, guide.combiner.latent),
    ]
    halves = [example.combiner.lin_hidden_to_loc, example.combiner.lin_hidden_to_scale]
    with torch.no_grad():
        for source, target in linear:
            target.load_state_dict(source.state_dict())
        for name in ("weight", "bias"):
            getattr(guide.combiner.output, name).copy_(
                torch.cat([getattr(half, name) for half in halves])
            )
    guide.backwards.rnn.load_state_dict(example.rnn.state_dict())


def check_equal(example: Any, pair: Pair, theirs: Any, ours: SequenceBatch) -> None:
    """On equal noise the two losses agree to 1e-4 relative: the example clamps probabilities."""
    noise = torch.randn(len(ours), ours.num_steps, example.z_0.numel())
    steps = iter(noise.unbind(1))
    with mock.patch(
        "torch.distributions.normal._standard_normal", lambda *arguments, **options: next(steps)
    ):
        their_loss = Trace_ELBO().loss(example.model, example.guide, *theirs)
    with pair.scope(), mock.patch("torch.randn", lambda *shape, **options: noise):
        our_loss = Trace_ELBO().loss(pair.model, pair.guide, ours)
    assert abs(our_loss - their_loss) < 1e-4 * their_loss, (our_loss, their_loss)
    print(
        f"equal on equal noise: loss {our_loss:.1f} nats of {ours.num_observations} frames",
        flush=True,
    )


def main() -> None:
    """Check, then time epochs in turns."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--example", type=Path)
    chosen, rest = parser.parse_known_args()
    if chosen.example is None or not chosen.example.is_file():
        print(
            "skipped: needs --example, the path of examples/dmm.py in a checkout of Pyro, got "
            f"{chosen.example}"
        )
        return
    with mock.patch("sys.argv", ["dmm_speed.py", *rest]):
        options = common.parse_arguments(__doc__)
    pieces = read_polyphonic(common.data_file("polyphonic/jsb_chorales.npz"))["train"]
    sequences = nn.utils.rnn.pad_sequence([piece.float() for piece in pieces], batch_first=True)
    lengths = torch.tensor([len(piece) for piece in pieces])
    torch.manual_seed(0)
    pyro.enable_validation(False)

    source, loader = load_example(chosen.example)
    example = source.DMM(
        input_dim=KEYS, z_dim=100, emission_dim=100, transition_dim=200, rnn_dim=600
    )
    model = DMM(Factorised(Bernoulli(), KEYS), PreviousObservation(Flatten(KEYS)), epsilon=1e-12)
    pair = Pair(model, DMMGuide(model, Flatten(KEYS), epsilon=1e-12))
    same_weights(example, pair)

    def minibatch(index: Tensor) -> Any:
        return loader.get_mini_batch(index, sequences, lengths)

    first = torch.arange(BATCH)
    batch = SequenceBatch.from_sequences([pieces[i] for i in minibatch_order(lengths, first)])
    check_equal(example, pair, minibatch(first), batch)

    # the example's
    adam = {
        "lr": LEARNING_RATE,
        "betas": (0.96, 0.999),
        "clip_norm": 10.0,
        "lrd": 0.99996,
        "weight_decay": 2.0,
    }
    their_svi = SVI(example.model, example.guide, ClippedAdam(adam), Trace_ELBO())
    pair.train()
    with pair.scope():
        names = {
            f"{side}.{name}": p
            for side, module in pair.modules().items()
            for name, p in module.named_parameters()
        }
        our_svi = SVI(
            pair.model,
            pair.guide,
            JointOptimiser(names, learning_rate=LEARNING_RATE, clip_norm=10.0),
            Trace_ELBO(),
        )
        stream = PieceBatches(pieces, batch_size=BATCH)
        number = -(-len(pieces) // BATCH)

        def their_epoch() -> None:
            for index in torch.randperm(len(pieces)).split(BATCH):
                their_svi.step(*minibatch(index))

        def our_epoch() -> None:
            for _ in range(number):
                our_svi.step(stream.draw()[0].with_cache())

        rounds = 1 if options.quick else 7
        spent = common.medians(
            common.in_turns({"Pyro's example": their_epoch, "pyro_seq": our_epoch}, rounds=rounds)
        )
    common.report(
        "DMM epoch on JSB, Pyro's example over pyro_seq",
        spent["Pyro's example"] / spent["pyro_seq"],
        at_least=2.5,
    )


def minibatch_order(lengths: Tensor, index: Tensor) -> list[int]:
    """The pieces of a minibatch in the order in which the loader puts them: the longest first."""
    return [int(i) for i in index[lengths[index].sort(descending=True)[1]]]


if __name__ == "__main__":
    main()
