"""Importance scoring of the JSB chorales' test pieces with K = 1,000: `score` beside a loop of
single-particle passes; time and memory.

    python benchmarks/importance_scoring.py [--pair srnn|vrnn|dmm|iseq] [--samples 1000] [--passes
    5]

Each pass of the loop draws one path for all pieces at once and keeps their log-weights; the time of
the loop is that of a few passes times K. The weights are untrained: no figure here depends on them.
Memory is the process's peak, interpreter and torch included.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import time
from typing import Any

import torch
from common import data_file, machine, report
from torch import Tensor

from pyro_seq import Pair, SequenceBatch, score
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.composite import Factorised
from pyro_seq.emissions.elementary import Bernoulli
from pyro_seq.encoders import MLPEncoder
from pyro_seq.guides import DMMGuide, ISEQGuide, SRNNGuide, VRNNGuide
from pyro_seq.models import DMM, ISEQ, SRNN, VRNN
from pyro_seq.music.data.piano_rolls import KEYS, read_polyphonic

MAKERS: dict[str, tuple[Any, Any]] = {
    "iseq": (ISEQ, ISEQGuide),
    "srnn": (SRNN, SRNNGuide),
    "vrnn": (VRNN, VRNNGuide),
    "dmm": (DMM, DMMGuide),
}


def new_pair(kind: str, hidden_size: int, latent_size: int) -> Pair:
    """A pair over 88 keys, of the sizes usual for this data."""
    of_model, of_guide = MAKERS[kind]
    options = {} if kind == "dmm" else {"hidden_size": hidden_size, "cell": "gru"}
    encoders = [MLPEncoder(KEYS, [100]) for _ in range(2)]
    model = of_model(
        Factorised(Bernoulli(), KEYS),
        PreviousObservation(encoders[0]),
        latent_size=latent_size,
        **options,
    )
    return Pair(model, of_guide(model, encoders[1], hidden_size=hidden_size, cell="gru"))


def loop(pair: Pair, batch: SequenceBatch, passes: int) -> tuple[list[float], Tensor]:
    """(seconds of each pass, log-weights `[passes, N]`) of single-particle passes over all
    pieces.
    """
    seconds, weights = [], []
    for _ in range(passes):
        began = time.perf_counter()
        weights.append(score(pair, batch, method="importance", samples=1).total)
        seconds.append(time.perf_counter() - began)
    return seconds, torch.stack(weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pair", choices=sorted(MAKERS), default="srnn")
    parser.add_argument("--samples", type=int, default=1_000)
    parser.add_argument(
        "--passes",
        type=int,
        default=5,
        help="single-particle passes whose median time stands for each of the loop's",
    )
    parser.add_argument("--hidden-size", type=int, default=600)
    parser.add_argument("--latent-size", type=int, default=100)
    options = parser.parse_args()
    print(machine(), flush=True)
    batch = SequenceBatch.from_sequences(
        read_polyphonic(data_file("polyphonic/jsb_chorales.npz"))["test"]
    )
    torch.manual_seed(0)
    pair = new_pair(options.pair, options.hidden_size, options.latent_size)
    print(
        f"{options.pair}, RNN {options.hidden_size}, latent {options.latent_size}; {len(batch)} "
        f"pieces, {batch.num_observations:,} frames"
    )
    loop(pair, batch, 1)
    seconds, _ = loop(pair, batch, options.passes)
    single = statistics.median(seconds)
    began = time.perf_counter()
    scored = score(pair, batch, method="importance", samples=options.samples)
    took = time.perf_counter() - began
    seconds += loop(pair, batch, options.passes)[0]
    single = statistics.median(seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    nats = float(scored.total.sum()) / batch.num_observations
    error = math.sqrt(float(scored.variance.sum())) / batch.num_observations
    print(
        f"one pass {single:.2f} s (median of {len(seconds)}); K = {options.samples:,} at once "
        f"{took:.1f} s"
    )
    print(f"{nats:.3f} ± {error:.3f} nats a frame", flush=True)
    report(
        f"{options.samples:,} passes one by one (extrapolated) over all at once",
        single * options.samples / took,
        at_least=10,
    )
    report("peak memory, GiB", peak, at_most=2)


if __name__ == "__main__":
    main()
