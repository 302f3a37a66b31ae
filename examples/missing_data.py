"""Missing data: two sensors with holes, learnt from as they are, and filled by draws.

python examples/missing_data.py [--steps 250] [--picture holes.png]

Two sensors follow one hidden swing; a third of the cells is missing, in runs. A stochastic
recurrent network learns from what was seen: missing cells count nothing and reach no gradient. Then
`infill` draws them given all that was seen, before and after, in either sensor.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from pyro_seq import Pair, SequenceBatch, Trainer, TrainingSettings, infill, score
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions import Factorised, Normal
from pyro_seq.encoders import Flatten, WithIndicators
from pyro_seq.guides import SRNNGuide
from pyro_seq.models import SRNN

STEPS, NOISE, DRAWS = 48, 0.15, 20


def sensors(num, seed):
    """Values [N, T, 2], and which cells are missing."""
    random = torch.Generator().manual_seed(seed)
    time = torch.arange(STEPS)
    begins = 6.28 * torch.rand(num, 1, generator=random)
    pace = 0.25 + 0.1 * torch.rand(num, 1, generator=random)
    swing = torch.stack([(begins + pace * time).sin(), (begins + pace * time).cos()], -1)
    values = swing + NOISE * torch.randn(num, STEPS, 2, generator=random)
    starts = torch.rand(num, STEPS, 2, generator=random) < 0.06  # of runs of six missing steps
    missing = torch.stack([starts.roll(shift, 1) for shift in range(6)]).any(0)
    missing[:, :2] = False
    return values, missing


class Batches:
    """An endless stream of minibatches with their missing cells."""

    def __init__(self, values, missing):
        self.all = SequenceBatch(values, missing=missing)

    def draw(self):
        return self.all.select(torch.randint(len(self.all), (32,))), False

    def state(self):
        return {}

    def load_state(self, state):
        pass


def learn(values, missing, steps):
    """A pair whose encoders are told which cells were seen, so that 0 and missing differ."""
    torch.manual_seed(0)
    model = SRNN(
        Factorised(Normal(), 2),
        PreviousObservation(WithIndicators(Flatten(2))),
        hidden_size=32,
        latent_size=4,
    )
    pair = Pair(model, SRNNGuide(model, WithIndicators(Flatten(2)), hidden_size=32))
    settings = TrainingSettings(
        num_steps=steps, learning_rate=1e-2, kl_schedule="linear", kl_steps=max(1, steps // 3)
    )
    Trainer(pair, Batches(values, missing), settings, quiet=True).fit()
    return pair


def interpolated(values, missing):
    """Straight lines between the cells seen, sensor by sensor."""
    filled = values.numpy().copy()
    time = np.arange(STEPS)
    for n in range(len(filled)):
        for c in range(2):
            seen = ~missing[n, :, c].numpy()
            filled[n, :, c] = np.interp(time, time[seen], filled[n, seen, c])
    return torch.from_numpy(filled)


def draw(path, values, missing, draws):
    import matplotlib.pyplot as plt

    figure, every = plt.subplots(2, 1, figsize=(8, 4), sharex=True, layout="constrained")
    for c, axes in enumerate(every):
        gone = missing[:, c]
        axes.plot(np.where(gone, np.nan, values[:, c]), "o", ms=3, label="seen")
        axes.plot(np.where(gone, values[:, c], np.nan), "kx", ms=4, label="hidden")
        axes.plot(np.where(gone, draws[..., c], np.nan).T, "C1", alpha=0.3)
        axes.set(ylabel=f"sensor {c + 1}")
    every[0].legend()
    figure.savefig(path)


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--held-out", type=int, default=24, help="sequences to be filled")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args(words)

    pair = learn(*sensors(256, seed=0), options.steps)
    values, missing = sensors(options.held_out, seed=1)
    held_out = SequenceBatch(values, missing=missing)
    torch.manual_seed(0)
    found = score(pair, held_out, method="filter", samples=200)
    cells = (~missing).sum()
    print(
        f"{missing.float().mean():.0%} of the cells are missing; {found.total.sum() / cells:.3f} ± "
        f"{found.variance.sum().sqrt() / cells:.3f} nats a cell seen (a bound, {found.method})"
    )

    draws = infill(pair, held_out, samples=32, draws=DRAWS).view(-1, DRAWS, STEPS, 2)
    errors = {
        "mean of the draws": (draws.mean(1) - values).square(),
        "straight lines": (interpolated(values, missing) - values).square(),
    }
    means = {name: (e * missing).sum((1, 2)) / missing.sum((1, 2)) for name, e in errors.items()}
    for name, each in means.items():
        print(
            f"{name}: squared error {each.mean():.3f} ± {each.std() / len(each) ** 0.5:.3f}, "
            f"where noise alone makes {NOISE**2:.3f}"
        )
    low, high = draws.quantile(torch.tensor([0.1, 0.9]), 1)
    inside = ((low <= values) & (values <= high))[missing].float()
    print(f"hidden values inside the interval of 80 %: {inside.mean():.2f}")
    if options.picture:
        draw(options.picture, values[0].numpy(), missing[0].numpy(), draws[0].numpy())


if __name__ == "__main__":
    main()
