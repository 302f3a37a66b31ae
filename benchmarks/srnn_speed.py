"""SRNN: one training step, and scoring, against Pyro and PyTorch written by hand on the same
network.

32 sequences of 100 steps over 88 piano keys; GRU 64, latent 16, hidden layers of 64, residual
posterior mean. The contestants have equal weights, and on equal noise equal losses and gradients,
which is checked before anything is timed:

- stock Pyro: a model and a guide with one `pyro.sample` a step and site, `Trace_ELBO`, `SVI.step`,
  `pyro.optim.Adam`;
- PyTorch: what one writes without Pyro, the recurrences by `nn.GRU`, a loop over the latents alone,
  everything else at once;
- pyro_seq: `SVI` over the `path` layout with the trainer's optimiser.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import common
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.nn import functional

from pyro_seq import Pair, SequenceBatch, score
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.composite import Factorised
from pyro_seq.emissions.elementary import Bernoulli
from pyro_seq.encoders import MLPEncoder
from pyro_seq.guides import SRNNGuide
from pyro_seq.models import SRNN
from pyro_seq.train.optimizer import JointOptimiser

SEQUENCES, STEPS, KEYS = 32, 100, 88
HIDDEN, LATENT = 64, 16
EPSILON = 1e-4  # added to every scale
LEARNING_RATE = 1e-3


def new_pair() -> Pair:
    """The network, as pyro_seq declares it."""
    emission, context = (
        Factorised(Bernoulli(), KEYS),
        PreviousObservation(MLPEncoder(KEYS, [HIDDEN])),
    )
    sizes = {"cell": "gru", "hidden_size": HIDDEN, "latent_sizes": [HIDDEN], "epsilon": EPSILON}
    model = SRNN(emission, context, latent_size=LATENT, decoder_sizes=[HIDDEN], **sizes)
    return Pair(model, SRNNGuide(model, MLPEncoder(KEYS, [HIDDEN]), **sizes))


class Network(nn.Module):
    """The same network in plain torch modules, with a copy of the pair's weights."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        model, guide = copy.deepcopy((pair.model, pair.guide))
        self.embed_previous: nn.Sequential = model.context.encoder.layers
        self.forwards: nn.GRU = model.recurrence.rnn
        self.prior: nn.Sequential = model.prior.mlp
        self.decoder: nn.Sequential = model.decoder
        self.embed: nn.Sequential = guide.encoder.layers
        self.backwards: nn.GRU = guide.backwards.rnn
        self.posterior: nn.Sequential = guide.network.mlp

    def history(self, x: Tensor) -> Tensor:
        """d_{1:T}, from the observations before each step."""
        previous = self.embed_previous(x[:, :-1])
        return self.forwards(functional.pad(previous, (0, 0, 1, 0)))[0]

    def future(self, x: Tensor) -> Tensor:
        """e_{1:T}, from the observations from each step on."""
        return self.backwards(self.embed(x).flip(1))[0].flip(1)


# stock Pyro


class StockPyro:
    """A page of Pyro as its tutorials write it (the deep Markov model's): a site for each step."""

    def __init__(self, pair: Pair) -> None:
        self.network = Network(pair)

    def model(self, x: Tensor) -> None:
        pyro.module("network", self.network)
        prior, decoder = self.network.prior, self.network.decoder
        d = self.network.history(x)
        z = x.new_zeros(len(x), LATENT)
        with pyro.plate("sequences", len(x), dim=-1):
            for t in pyro.markov(range(x.shape[1])):
                loc, raw_scale = prior(torch.cat([d[:, t], z], -1)).chunk(2, -1)
                z = pyro.sample(
                    f"z_{t}", dist.Normal(loc, functional.softplus(raw_scale) + EPSILON).to_event(1)
                )
                logits = decoder(torch.cat([d[:, t], z], -1))
                pyro.sample(f"x_{t}", dist.Bernoulli(logits=logits).to_event(1), obs=x[:, t])

    def guide(self, x: Tensor) -> None:
        pyro.module("network", self.network)
        prior, posterior = self.network.prior, self.network.posterior
        d, e = self.network.history(x), self.network.future(x)
        z = x.new_zeros(len(x), LATENT)
        with pyro.plate("sequences", len(x), dim=-1):
            for t in pyro.markov(range(x.shape[1])):
                shift, _ = prior(torch.cat([d[:, t], z], -1)).chunk(2, -1)
                loc, raw_scale = posterior(torch.cat([e[:, t], z], -1)).chunk(2, -1)
                z = pyro.sample(
                    f"z_{t}",
                    dist.Normal(shift + loc, functional.softplus(raw_scale) + EPSILON).to_event(1),
                )

    def score_by_traces(self, x: Tensor) -> float:
        """The ELBO from a trace of each side, for one sample."""
        with torch.no_grad():
            guide = poutine.trace(self.guide).get_trace(x)
            model = poutine.trace(poutine.replay(self.model, trace=guide)).get_trace(x)
            return float(model.log_prob_sum() - guide.log_prob_sum())


# PyTorch


def torch_loss(network: Network, x: Tensor) -> Tensor:
    """The negative ELBO without Pyro: a loop over the latents, the densities of all steps at
    once.
    """
    prior, posterior = network.prior, network.posterior
    d, e = network.history(x), network.future(x)
    noise = torch.randn(*x.shape[:2], LATENT)
    z = x.new_zeros(len(x), LATENT)
    path, priors, posteriors = [], [], []
    for d_t, e_t, noise_t in zip(d.unbind(1), e.unbind(1), noise.unbind(1), strict=True):
        p_loc, p_raw = prior(torch.cat([d_t, z], -1)).chunk(2, -1)
        shift, q_raw = posterior(torch.cat([e_t, z], -1)).chunk(2, -1)
        q_loc, q_scale = p_loc + shift, functional.softplus(q_raw) + EPSILON
        z = q_loc + q_scale * noise_t
        path.append(z)
        priors.append((p_loc, p_raw))
        posteriors.append((q_loc, q_scale))
    zs = torch.stack(path, 1)
    p_loc, p_raw = (torch.stack(parts, 1) for parts in zip(*priors, strict=True))
    q_loc, q_scale = (torch.stack(parts, 1) for parts in zip(*posteriors, strict=True))
    divergence = normal_log_prob(zs, q_loc, q_scale) - normal_log_prob(
        zs, p_loc, functional.softplus(p_raw) + EPSILON
    )
    logits = network.decoder(torch.cat([d, zs], -1))
    return functional.binary_cross_entropy_with_logits(logits, x, reduction="sum") + divergence


def normal_log_prob(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log N(x; loc, scale), summed; its constant cancels in a divergence."""
    return -(0.5 * ((x - loc) / scale).square() + scale.log()).sum()


# that all three compute the same


@contextmanager
def fixed_noise() -> Iterator[None]:
    """Inside, the latents' noise is the same for all: drawn at once, or a step at a time by Pyro's
    normals.
    """
    noise = torch.randn(SEQUENCES, STEPS, LATENT)
    steps = iter(noise.unbind(1))
    with (
        mock.patch("torch.randn", lambda *shape, **options: noise),
        mock.patch(
            "torch.distributions.normal._standard_normal", lambda *arguments, **options: next(steps)
        ),
    ):
        yield


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """The gradients that stand on the parameters, which are then without."""
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


def check_equal(pair: Pair, stock: StockPyro, network: Network, x: Tensor) -> None:
    """On equal noise the three losses agree to 1e-5 relative, and the three gradients to 1e-4."""
    torch.manual_seed(1)
    with fixed_noise():
        stock_loss = Trace_ELBO().loss_and_grads(stock.model, stock.guide, x)
    stock_gradients = gradients(stock.network)
    torch.manual_seed(1)
    with fixed_noise():
        loss = torch_loss(network, x)
        loss.backward()
    torch_gradients, torch_value = gradients(network), loss.item()
    torch.manual_seed(1)
    with pair.scope(), fixed_noise():
        our_loss = Trace_ELBO().loss_and_grads(
            pair.model, pair.guide, SequenceBatch(x).with_cache()
        )
    shared = Network(pair)  # a copy that gives our gradients the names of the others'
    for p, source in zip(shared.parameters(), _in_order(pair), strict=True):
        p.grad = source.grad
    our_gradients = gradients(shared)
    pair.model.zero_grad()
    pair.guide.zero_grad()
    assert abs(stock_loss - torch_value) < 1e-5 * torch_value, (stock_loss, torch_value)
    assert abs(our_loss - torch_value) < 1e-5 * torch_value, (our_loss, torch_value)
    assert common.relative_difference(stock_gradients, torch_gradients) < 1e-4
    assert common.relative_difference(our_gradients, torch_gradients) < 1e-4
    print(
        f"equal on equal noise: loss {our_loss:.1f} nats, {len(our_gradients)} gradients",
        flush=True,
    )


def _in_order(pair: Pair) -> list[nn.Parameter]:
    """The pair's own parameters in the order of `Network`'s."""
    model, guide = pair.model, pair.guide
    parts = [
        model.context.encoder,
        model.recurrence,
        model.prior,
        model.decoder,
        guide.encoder,
        guide.backwards,
        guide.network,
    ]
    return [p for part in parts for p in part.parameters()]


def main() -> None:
    """Check, then time training steps, then scoring."""
    options = common.parse_arguments(__doc__)
    rounds = 5 if options.quick else 60
    torch.manual_seed(0)
    pyro.enable_validation(False)
    x = (torch.rand(SEQUENCES, STEPS, KEYS) < 0.05).float()
    pair = new_pair()
    stock, network = StockPyro(pair), Network(pair)
    check_equal(pair, stock, network, x)

    print(f"a training step: {SEQUENCES} sequences of {STEPS} steps")
    stock_svi = SVI(stock.model, stock.guide, pyro.optim.Adam({"lr": LEARNING_RATE}), Trace_ELBO())
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)

    def torch_step() -> None:
        optimiser.zero_grad()
        loss = torch_loss(network, x)
        loss.backward()
        optimiser.step()
        loss.item()  # SVI.step returns the loss too

    pair.train()
    with pair.scope():
        names = {
            f"{side}.{name}": p
            for side, module in pair.modules().items()
            for name, p in module.named_parameters()
        }
        svi = SVI(
            pair.model,
            pair.guide,
            JointOptimiser(names, learning_rate=LEARNING_RATE, clip_norm=0.0),
            Trace_ELBO(),
        )

        def our_step() -> None:
            svi.step(SequenceBatch(x).with_cache())

        steps: dict[str, Callable[[], object]] = {
            "stock Pyro": lambda: stock_svi.step(x),
            "PyTorch": torch_step,
            "pyro_seq": our_step,
        }
        spent = common.medians(common.in_turns(steps, rounds=rounds, warm_up=3))
    common.report(
        "SRNN training step, stock Pyro over pyro_seq",
        spent["stock Pyro"] / spent["pyro_seq"],
        at_least=2.5,
    )
    common.report(
        "SRNN training step, pyro_seq over hand-written PyTorch",
        spent["pyro_seq"] / spent["PyTorch"],
        at_most=1.15,
    )

    print("scoring the same batch, one sample")
    pair.train(False)
    with pair.scope():
        scorers: dict[str, Callable[[], object]] = {
            "stock Pyro, SVI.evaluate_loss": lambda: stock_svi.evaluate_loss(x),
            "stock Pyro, two traces": lambda: stock.score_by_traces(x),
            "pyro_seq": lambda: score(pair, SequenceBatch(x)),
        }
        spent = common.medians(common.in_turns(scorers, rounds=rounds, warm_up=3))
    stock_seconds = min(seconds for name, seconds in spent.items() if name != "pyro_seq")
    common.report(
        "SRNN scoring, stock Pyro (the faster way) over pyro_seq",
        stock_seconds / spent["pyro_seq"],
        at_least=3.5,
    )


if __name__ == "__main__":
    main()
