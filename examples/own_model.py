"""An own model: a rate that changes, of counts; plain Pyro, from data to forecast.

python examples/own_model.py [--steps 300] [--picture rates.png]

Buses arrive at a stop. How many in an hour is a Poisson count; its rate drifts. The model is a Pyro
function of a batch, and `AutoSequenceGuide` makes its guide.
"""

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import constraints

from pyro_seq import AutoSequenceGuide, Pair, SequenceBatch, continuation, posterior, score
from pyro_seq.testing import check_pair

HOURS = 24
DRIFT = 0.25  # the true standard deviation of an hour's change of log rate


def model(batch):
    """log r_t ~ N(log r_{t-1}, drift), r_0 = start; x_t ~ Poisson(r_t)."""
    start = pyro.param("start", torch.tensor(3.0), constraint=constraints.positive)
    drift = pyro.param("drift", torch.tensor(0.5), constraint=constraints.positive)
    with batch.plate():
        log_rate = start.log().expand(len(batch))
        for t in batch.steps():
            with batch.active(t):
                log_rate = pyro.sample(f"log_rate_{t}", dist.Normal(log_rate, drift))
                pyro.sample(f"x_{t}", dist.Poisson(log_rate.exp()), obs=batch.at(t))


def made(days, seed):
    """Days [N] of 12 to 24 hours, and the true rates."""
    torch.manual_seed(seed)
    rates = (torch.tensor(5.0).log() + (DRIFT * torch.randn(days, HOURS)).cumsum(1)).exp()
    lengths = torch.randint(HOURS // 2, HOURS + 1, (days,))
    return rates, SequenceBatch(torch.poisson(rates), lengths)


def learn(train, steps):
    """Check the pair, then train both sides by stock SVI."""
    guide = AutoSequenceGuide(model, hidden_size=16)
    check_pair(model, guide, train)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.01}), Trace_ELBO())
    for step in range(steps):
        loss = svi.step(train) / train.num_observations
        if step % 100 == 0:
            print(f"step {step}: {loss:.3f} nats a count")
    return Pair.from_param_store(model, guide, train)


def constant_rate(batch, rate):
    """Nats of each day where the rate is one number: what the model has to beat."""
    return (dist.Poisson(rate).log_prob(batch.values) * batch.mask).sum(1)


def draw(path, rates, day, found, future):
    import matplotlib.pyplot as plt

    low, high = (level[0].exp() for level in found.quantile([0.05, 0.95])["log_rate"])
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.fill_between(range(day.num_steps), low, high, alpha=0.3, label="90 % of the posterior")
    axes.plot(rates[: day.num_steps], "k", label="true rate")
    axes.plot(day.values[0], "o", ms=3, label="counted")
    hours = range(day.num_steps, day.num_steps + future.shape[1])
    axes.plot(hours, future[:40].T, "C1", alpha=0.1)
    axes.set(xlabel="hour", ylabel="buses")
    axes.legend()
    figure.savefig(path)


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args(words)

    _, train = made(64, seed=0)
    rates, held_out = made(32, seed=1)
    pyro.set_rng_seed(0)
    pair = learn(train, options.steps)

    found = score(pair, held_out, method="filter", samples=200, proposal="prior")
    rate = train.values.sum() / train.num_observations
    gain = found.total - constant_rate(held_out, rate)
    print(
        f"held out: {found.total.mean():.2f} nats a day, Monte Carlo error "
        f"{found.variance.sum().sqrt() / len(held_out):.2f}"
    )
    print(f"beside a constant rate: {gain.mean():.2f} ± {gain.std() / len(gain) ** 0.5:.2f} more")

    hours = int(held_out.lengths[0])
    day = SequenceBatch(held_out.values[:1, :hours])
    rest = continuation(pair, day, 6, samples=200, draws=200)  # [200, 6]
    few, many = rest.sum(1).quantile(torch.tensor([0.1, 0.9]))
    print(f"in the next six hours {few:.0f} to {many:.0f} buses, with probability 0.8")
    if options.picture:
        draw(options.picture, rates[0], day, posterior(pair, day, proposal="prior"), rest)


if __name__ == "__main__":
    main()
