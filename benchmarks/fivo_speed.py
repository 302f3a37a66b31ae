"""A training step by the particle filter's bound, `FIVO_ELBO`, over one by `Trace_ELBO`, of as many
particles.

    python benchmarks/fivo_speed.py [--pair vrnn] [--particles 16]

32 sequences of 60 steps over 88 piano keys, 16 particles of each; a VRNN with its filtering guide
(LSTM 64, latent 16, hidden layers of 64), and an SRNN (GRU 64, its guide smoothing, the posterior's
mean a residual). `Trace_ELBO` has its particles vectorised, in layout `path`. Both have the
trainer's optimiser and the same weights; they take turns.
"""

from __future__ import annotations

from collections.abc import Callable

import common
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_seq import Pair, SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.composite import Factorised
from pyro_seq.emissions.elementary import Bernoulli
from pyro_seq.encoders import MLPEncoder
from pyro_seq.guides import SRNNGuide, VRNNGuide
from pyro_seq.infer import FIVO_ELBO
from pyro_seq.models import SRNN, VRNN
from pyro_seq.train.optimizer import JointOptimiser

SEQUENCES, STEPS, KEYS = 32, 60, 88
HIDDEN, LATENT = 64, 16


def vrnn() -> Pair:
    """A VRNN whose posterior of z_t sees x_t and what came before."""
    model = VRNN(*parts(), latent_size=LATENT, decoder_sizes=[HIDDEN], hidden_size=HIDDEN)
    encoder = MLPEncoder(KEYS, [HIDDEN])
    return Pair(model, VRNNGuide(model, encoder, smoothing=False, hidden_size=HIDDEN))


def srnn() -> Pair:
    """An SRNN with the guide of the paper."""
    sizes = {"cell": "gru", "hidden_size": HIDDEN}
    model = SRNN(*parts(), latent_size=LATENT, decoder_sizes=[HIDDEN], **sizes)
    return Pair(model, SRNNGuide(model, MLPEncoder(KEYS, [HIDDEN]), **sizes))


def parts() -> tuple[Factorised, PreviousObservation]:
    """88 keys, and the frame before as a network sees it."""
    return Factorised(Bernoulli(), KEYS), PreviousObservation(MLPEncoder(KEYS, [HIDDEN]))


PAIRS: dict[str, Callable[[], Pair]] = {"vrnn": vrnn, "srnn": srnn}


def ratio(name: str, particles: int, rounds: int) -> float:
    """The median step of FIVO over that of the ELBO, in turns."""
    torch.manual_seed(0)
    x = (torch.rand(SEQUENCES, STEPS, KEYS) < 0.05).float()
    pair = PAIRS[name]()
    pair.train()
    objectives = {
        "fivo": FIVO_ELBO(particles),
        "trace": Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1),
    }
    with pair.scope():
        for objective in objectives.values():  # which registers the parameters
            objective.loss(pair.model, pair.guide, SequenceBatch(x).with_cache())
        names = {
            f"{side}.{name}": p
            for side, module in pair.modules().items()
            for name, p in module.named_parameters()
        }
        steps: dict[str, Callable[[], object]] = {}
        for kind, objective in objectives.items():
            optimiser = JointOptimiser(names, learning_rate=1e-4, clip_norm=1.0)
            svi = SVI(pair.model, pair.guide, optimiser, objective)
            steps[kind] = lambda svi=svi: svi.step(SequenceBatch(x).with_cache())
        spent = common.medians(common.in_turns(steps, rounds=rounds, warm_up=2))
    return spent["fivo"] / spent["trace"]


def main() -> None:
    """Time both pairs, or one."""
    parser = common.parser_of(__doc__)
    parser.add_argument("--pair", choices=sorted(PAIRS), help="both if not given")
    parser.add_argument("--particles", type=int, default=16)
    options = common.parsed(parser)
    pyro.enable_validation(False)
    for name in [options.pair] if options.pair else PAIRS:
        found = ratio(name, options.particles, 3 if options.quick else 15)
        title = f"{name.upper()} training step, {options.particles} particles, fivo over trace"
        common.report(title, found, at_most=1.5)


if __name__ == "__main__":
    main()
