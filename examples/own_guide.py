"""An own guide for a shipped model: two recurrences, one each way, beside the automatic one.

python examples/own_guide.py [--steps 300]

A pendulum swings with friction, and is seen through noise. The model is the deep Markov model `DMM`
of the package. Its own guide reads backwards from the last step; the one below reads forwards as
well, and corrects the model's own prediction of z_t.
"""

import argparse
import warnings

import pyro.distributions as dist
import torch
from torch import nn

from pyro_seq import (
    Pair,
    Recurrence,
    SequenceBatch,
    SequenceGuide,
    Trainer,
    TrainingSettings,
    score,
)
from pyro_seq.contexts import NoContext
from pyro_seq.emissions import Factorised, Normal
from pyro_seq.encoders import Flatten
from pyro_seq.guides import DMMGuide
from pyro_seq.infer import UnreliableEstimate
from pyro_seq.models import DMM
from pyro_seq.nn.feedforward import concatenate
from pyro_seq.testing import check_pair
from pyro_seq.train import PieceBatches

STEPS = 30


class BothWays(SequenceGuide):
    """f_t = GRU(f_{t-1}, x_t); b_t = GRU(b_{t+1}, x_t); q(z_t | f_t, b_t, z_{t-1}) about the prior.

    q = N(p.loc + W h, positive scale), h = tanh(U [f_t, b_t, z_{t-1}]), p the model's own
    p(z_t | z_{t-1}).
    """

    def __init__(self, model, encoder, *, hidden_size=32):
        super().__init__(model)
        self.encoder = encoder
        self.forwards = Recurrence(encoder.num_features, hidden_size, kind="gru")
        self.backwards = Recurrence(encoder.num_features, hidden_size, kind="gru")
        size = model.latent_size
        self.network = nn.Sequential(
            nn.Linear(2 * hidden_size + size, hidden_size),
            nn.Tanh(),
            nn.Linear(hidden_size, 2 * size),
        )

    def initial_rnn_state(self, *lead):
        """The forward recurrence goes on from window to window."""
        return self.forwards.initial(*lead)

    def encode(self, batch, rnn_state):
        """All that is seen, for all steps at once: f_t and b_t side by side."""
        seen = self.encoded_batch(batch)
        f, rnn_state = self.forwards(seen, rnn_state)
        b, _ = self.backwards(batch.reverse(seen))
        return (torch.cat([f, batch.reverse(b)], -1),), rnn_state

    def posterior(self, evidence, previous):
        prior = self.model.transition(evidence[0][..., :0], previous)
        move, raw_scale = self.network(concatenate(evidence[0], previous)).chunk(2, -1)
        return dist.Normal(prior.loc + move, nn.functional.softplus(raw_scale - 2) + 1e-3)


def swings(num, seed):
    """Places [N, T, 2] of a pendulum, and the noise they are seen through."""
    random = torch.Generator().manual_seed(seed)
    angle = 2 * torch.rand(num, generator=random) - 1
    speed = torch.randn(num, generator=random)
    seen = []
    for _ in range(STEPS):
        speed = 0.98 * speed - 0.4 * angle.sin() + 0.05 * torch.randn(num, generator=random)
        angle = angle + 0.4 * speed
        place = torch.stack([angle.sin(), -angle.cos()], -1)
        seen.append(place + 0.1 * torch.randn(num, 2, generator=random))
    return torch.stack(seen, 1)


def learnt(make_guide, train, steps):
    """A model and a guide of a kind, trained together."""
    torch.manual_seed(0)
    model = DMM(
        Factorised(Normal(), 2),
        NoContext(),
        latent_size=3,
        transition_sizes=(32,),
        emission_sizes=(32,),
    )
    pair = Pair(model, make_guide(model))
    check_pair(pair.model, pair.guide, SequenceBatch(train[:4]))
    settings = TrainingSettings(
        num_steps=steps, learning_rate=1e-2, kl_schedule="linear", kl_steps=max(1, steps // 3)
    )
    Trainer(pair, PieceBatches(list(train), batch_size=32), settings, quiet=True).fit()
    return pair


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--draws", type=int, default=500, help="of each sequence, weighted")
    options = parser.parse_args(words)

    train, held_out = swings(128, seed=0), SequenceBatch(swings(48, seed=1))
    guides = {
        "backwards (DMMGuide)": lambda model: DMMGuide(
            model, Flatten(2), cell="gru", hidden_size=32
        ),
        "both ways (ours)": lambda model: BothWays(model, Flatten(2)),
    }
    bounds = []
    for name, make_guide in guides.items():
        pair = learnt(make_guide, train, options.steps)
        torch.manual_seed(0)
        bound = score(pair, held_out, method="elbo", samples=20).total
        with warnings.catch_warnings():  # a guide that is far off is what is looked for
            warnings.simplefilter("ignore", UnreliableEstimate)
            closer = score(pair, held_out, method="importance", samples=options.draws)
        bounds.append(bound)
        print(
            f"{name}: bound {bound.mean():.2f} nats a swing; {options.draws} weighted draws "
            f"{closer.total.mean():.2f}, of which {closer.effective_samples.median():.1f} count"
        )
    gain = bounds[1] - bounds[0]
    print(f"ours beside the other: {gain.mean():.2f} ± {gain.std() / len(gain) ** 0.5:.2f} nats")


if __name__ == "__main__":
    main()
