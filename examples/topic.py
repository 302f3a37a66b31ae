"""A pair of one's own in a file: a model with a latent for each step, and no guide.

Each step has a topic z_t, a vector that drifts; what follows the last observation depends on it.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_seq.emissions import observe


class Topic(nn.Module):
    """z_t ~ N(a z_{t-1}, s); x_t ~ p(x_t | f(enc(x_{t-1}), z_t))."""

    def __init__(self, emission, encoder, latent_size=4, hidden_size=32, drift=0.1):
        super().__init__()
        self.emission, self.encoder, self.latent_size = emission, encoder, latent_size
        self.keep = nn.Parameter(torch.tensor(0.9))
        self.log_scale = nn.Parameter(torch.tensor(drift).log())
        self.features = nn.Sequential(
            nn.Linear(encoder.num_features + latent_size, hidden_size),
            nn.Tanh(),
            nn.Linear(hidden_size, emission.num_features),
        )

    def forward(self, batch):
        pyro.module("topic", self)
        z = self.keep.new_zeros(len(batch), self.latent_size)
        last = self.keep.new_zeros(len(batch), self.encoder.num_features)
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    z = pyro.sample(
                        f"z_{t}", dist.Normal(self.keep * z, self.log_scale.exp()).to_event(1)
                    )
                    features = self.features(torch.cat([last.expand(*z.shape[:-1], -1), z], -1))
                    x = observe(f"x_{t}", self.emission(features), obs=batch.at(t))
                last = self.encoder(x)
