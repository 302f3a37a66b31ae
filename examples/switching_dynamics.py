"""Switching dynamics: a motion of two regimes, whose law and whose switches are found together.

python examples/switching_dynamics.py [--steps 120] [--picture regimes.png]

A point turns on a circle, or rests; at each step it may switch. A switching linear dynamical system
(`SLDS`, Ghahramani & Hinton 2000) has a linear-Gaussian motion for each regime. Its states are
integrated out by Kalman filters, and only the regimes are drawn. Beside it stands `LGSSM`, a single
linear-Gaussian motion with an exact likelihood.
"""

import argparse
from pathlib import Path

import torch

from pyro_seq import Pair, SequenceBatch, Trainer, TrainingSettings, score
from pyro_seq.emissions import Factorised, Normal
from pyro_seq.guides import SLDSGuide
from pyro_seq.models import LGSSM, SLDS
from pyro_seq.train import PieceBatches

STEPS, STAY, NOISE = 40, 0.95, 0.1


def motions(num, seed):
    """Regimes [N, T] and places [N, T, 2]: regime 1 turns half a radian a step, 0 comes to rest."""
    random = torch.Generator().manual_seed(seed)
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.5], [0.5, 0.0]]))
    regime = torch.randint(2, (num,), generator=random)
    place = torch.randn(num, 2, generator=random)
    regimes, seen = [], []
    for _ in range(STEPS):
        switch = torch.rand(num, generator=random) > STAY
        regime = torch.where(switch, 1 - regime, regime)
        turned = 0.99 * place @ turn.T + 0.1 * torch.randn(num, 2, generator=random)
        resting = torch.tensor([1.0, -0.5]) + 0.5 * (place - torch.tensor([1.0, -0.5]))
        resting = resting + 0.3 * torch.randn(num, 2, generator=random)
        place = torch.where(regime[:, None] == 1, turned, resting)
        regimes.append(regime)
        seen.append(place + NOISE * torch.randn(num, 2, generator=random))
    return torch.stack(regimes, 1), torch.stack(seen, 1)


def learn(pair, places, steps):
    """Train by the bound (of `LGSSM` the likelihood itself), from weights set by the data."""
    pair.model.start_from(SequenceBatch(places))
    settings = TrainingSettings(num_steps=steps, learning_rate=0.03, precision="float32")
    Trainer(pair, PieceBatches(list(places), batch_size=16), settings, quiet=True).fit()


def draw(path, truth, places, found):
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 4), sharex=True, layout="constrained")
    above.plot(places.numpy())
    above.set(ylabel="place")
    below.fill_between(range(len(truth)), truth.numpy(), step="mid", alpha=0.3, label="true")
    below.plot(found.numpy(), "C3", label="p(turns | all places)")
    below.set(xlabel="step", ylim=(-0.05, 1.05))
    below.legend()
    figure.savefig(path)


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--num", type=int, default=48, help="motions to learn from")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args(words)

    _, train = motions(options.num, seed=0)
    truth, places = motions(16, seed=1)
    held_out = SequenceBatch(places)
    torch.manual_seed(0)
    switching = SLDS(Factorised(Normal(), 2), num_states=2, state_size=2)
    pairs = {
        "one motion (LGSSM)": Pair(LGSSM(Factorised(Normal(), 2), latent_size=4)),
        "two regimes (SLDS)": Pair(switching, SLDSGuide(switching)),
    }
    totals = []
    for name, pair in pairs.items():
        learn(pair, train, options.steps)
        found = score(pair, held_out, method="filter", samples=32)
        totals.append(found.total / STEPS)  # of each motion, a step
        error = totals[-1].std() / len(truth) ** 0.5
        print(f"{name}: {totals[-1].mean():.3f} ± {error:.3f} nats a step, {found.method}")
    gain = totals[1] - totals[0]
    print(f"regimes gain {gain.mean():.3f} ± {gain.std() / len(gain) ** 0.5:.3f}")

    turns = switching.posterior(held_out, samples=32).regimes[..., 1]
    right = ((turns > 0.5) == (truth == 1)).float().mean(1)
    if right.mean() < 0.5:  # which number a regime has means nothing
        turns, right = 1 - turns, 1 - right
    print(f"regimes found: {right.mean():.3f} ± {right.std() / len(right) ** 0.5:.3f} of the steps")
    if options.picture:
        draw(options.picture, truth[0], places[0], turns[0])


if __name__ == "__main__":
    main()
