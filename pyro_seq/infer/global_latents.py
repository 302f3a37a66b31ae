"""Latents that all sequences share: a guide for them, and pairs given draws of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_seq._pytree import tree_map
from pyro_seq._rng import preserve_rng_state
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, whole
from pyro_seq.pairs._modules_used import modules_used_by
from pyro_seq.pairs.pair import Pair, Stochastic, no_guide
from pyro_seq.poutine.probe import trace_model
from pyro_seq.poutine.shared import (
    COPIES,
    HOW_TO_GUIDE,
    given,
    shared_latents,
    shared_sites,
    sharing,
)

Over = Callable[..., Any]


class GlobalGuide(nn.Module):
    r"""A guide of latents that all sequences share, and of each sequence's own: q(g) q(z | x, g).

    The globals g are the model's sites outside of `batch.plate()`: priors on the parameters of a
    panel, or on weights (`PyroSample`). One of Pyro's automatic guides covers them, by default
    `AutoNormal`; the pair's own guide, `local`, covers z_n of each sequence and may look at the
    globals' values, `batch.globals["mu"]`. In training `batch.of_total` says of how many sequences
    a batch is a part (`Trainer` does so by itself), and

        ELBO = sum_n E[log p(x_n | z_n, g) + log p(z_n | g) - log q(z_n | x_n, g)] - KL(q(g) | p(g))

    is estimated by the minibatch's sum times total/N.

    Draws from elsewhere, as `MCMC.get_samples()` returns them, may stand in the place of an
    automatic guide: each use takes one of them at random. Such a guide has nothing to learn.

    The parameters exist once the guide has been `prepare`d, which the first call does by itself.

    Args:
        model: any model with such latents.
        local: the guide of the other latents.
        over: an automatic guide's class or what makes one of a model, such as
            `AutoMultivariateNormal` or `functools.partial(AutoNormal, init_scale=0.01)`; or draws
            `{site: [K, *shape]}`.

    Raises `UserError` for a model without such latents, and for draws of other sites.
    """

    def __init__(
        self,
        model: Stochastic,
        local: Stochastic = no_guide,
        *,
        over: Over | Mapping[str, Tensor] = AutoNormal,
    ) -> None:
        super().__init__()
        # in tuples, so that the model's parameters are not registered a second time here
        self._model, self._over = (model,), (over,)
        self._local = (local,)
        used = modules_used_by(local) if local is not no_guide else []
        self.used = nn.ModuleList(module for module in used if module is not model)
        self.names: tuple[str, ...] = ()
        self.over: Any = None

    @property
    def model(self) -> Stochastic:
        """The model whose latents this guide infers."""
        return self._model[0]

    @property
    def local(self) -> Stochastic:
        """The guide of each sequence's own latents."""
        return self._local[0]

    @property
    def stops_at_gaps(self) -> bool:
        """Whether the guide of the sequences' own latents samples none in gaps at the end."""
        return bool(getattr(self.local, "stops_at_gaps", False))

    def prepare(self, batch: SequenceBatch) -> GlobalGuide:
        """Make the parameters for batches like this one, once."""
        if self.over is None:
            few = batch.select(slice(1)).repeat(COPIES)
            names = tuple(shared_sites(trace_model(self.model, few), COPIES))
            over = self._over[0]
            if not names:
                raise UserError(
                    "a GlobalGuide is of latents that all sequences share, outside of "
                    "batch.plate(), and this model has none"
                )
            if isinstance(over, Mapping):
                made: Any = _Draws(over, names)
            else:
                made = over(poutine.block(self.model, expose=list(names)))
                hidden: Any = poutine.block(hide_fn=lambda msg: msg["type"] != "param")
                with torch.no_grad(), preserve_rng_state(), hidden:
                    made(few)
            self.names, self.over = names, made.to(batch.device)
        return self

    def draw(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Sample the globals alone: values by site. The batch is not looked at."""
        self.prepare(batch)
        with poutine.trace() as traced:
            self.over(batch)
        nodes: Any = traced.trace.nodes
        return {name: nodes[name]["value"] for name in self.names}

    def forward(self, batch: SequenceBatch) -> object:
        """Run the guide q(g) q(z | x, g); what it returns is the local guide's."""
        return self.local(sharing(batch, self.draw(batch)))


class _Draws(nn.Module):
    """One of K draws, at random, of some sites together."""

    def __init__(self, draws: Mapping[str, Tensor], names: tuple[str, ...]) -> None:
        super().__init__()
        if wrong := sorted(draws.keys() ^ set(names)):
            there = "no site of this model's" if wrong[0] in draws else "missing from the draws"
            raise UserError(
                f"draws of latents that all sequences share must be of {', '.join(names)}: "
                f"{wrong[0]!r} is {there}"
            )
        if len({len(values) for values in draws.values()}) > 1:
            raise UserError("draws of all sites must be equally many, one beside the other")
        self.names = names
        for i, name in enumerate(names):
            self.register_buffer(f"draws_{i}", draws[name].detach().clone())

    def forward(self, batch: SequenceBatch) -> None:
        values = [getattr(self, f"draws_{i}") for i in range(len(self.names))]
        chosen = int(torch.randint(len(values[0]), ()))
        for name, of_site in zip(self.names, values, strict=True):
            value = of_site[chosen]
            pyro.sample(name, dist.Delta(value, event_dim=value.dim()))


def draw_globals(pair: Pair, batch: SequenceBatch, names: list[str]) -> dict[str, Tensor]:
    """Draw the shared latents once, by the guide: values by site, those of the model among them.

    Raises `UserError` for a guide that does not sample them.
    """
    if isinstance(pair.guide, GlobalGuide):
        return pair.guide.draw(batch)
    trace = poutine.trace(pair.guide).get_trace(batch)
    sites = shared_sites(trace, len(batch))
    if missing := [name for name in names if name not in sites]:
        raise UserError(
            f"the guide has no site {missing[0]!r}, which the model samples and all sequences "
            f"share: {HOW_TO_GUIDE}"
        )
    return {name: site["value"] for name, site in sites.items()}


def blind_globals(
    pair: Pair, batch: SequenceBatch, names: list[str], proposal: str
) -> dict[str, Tensor]:
    """Draw the shared latents without observations, from the guide's posterior or the prior.

    Raises `UserError` for a guide other than a `GlobalGuide`, which would look at observations.
    """
    if proposal == "prior":
        nodes: Any = poutine.trace(pair.model).get_trace(batch).nodes
        return {name: nodes[name]["value"] for name in names}
    if not isinstance(pair.guide, GlobalGuide):
        raise UserError(
            f"all sequences share the latent {names[0]!r}, and this guide draws it from "
            "observations: it takes a GlobalGuide(model, guide), or proposal='prior'"
        )
    return pair.guide.draw(batch)


def given_globals(pair: Pair, values: Mapping[str, Tensor]) -> Any:
    """Return a context of the pair given its globals (`poutine.shared.given`)."""
    local = pair.guide.local if isinstance(pair.guide, GlobalGuide) else None
    return given(pair, values, local)


@torch.no_grad()
def global_draws(
    pair: Pair, batch: SequenceBatch, num: int
) -> Iterator[tuple[dict[str, Tensor], Pair]]:
    """Yield (values of the shared latents by site, the pair given these), `num` draws of them.

    The draws are the guide's. A pair given globals has none, so that any tool takes it
    (`particle_filter`, say); it is good until the next one is asked for.

    Args:
        pair: a model with latents that all sequences share, and a guide that samples them.
        batch: the sequences; a `GlobalGuide` does not look at them.
        num: how many draws.

    Raises `UserError` for a pair without such latents, and a guide that does not sample them.
    """
    whole(num, "the number of draws", 1)
    names = shared_latents(pair, batch)
    if not names:
        raise UserError("all latents of this pair are the sequences' own: there is nothing to draw")
    for _ in range(num):
        with pair.scope(), pair.evaluating():
            values = draw_globals(pair, batch, names)
        with given_globals(pair, values) as local:
            yield values, local


def by_draw(pair: Pair, batch: SequenceBatch, draws: int, use: Callable[[Pair], Any]) -> Any:
    """Use the pair given each of some draws of its globals: `[N * draws, …]` of `[N, …]` each.

    The results of one sequence stand side by side.
    """
    found = [use(local) for _, local in global_draws(pair, batch, draws)]
    return tree_map(lambda *x: torch.stack(x, 1).flatten(0, 1), found[0], *found[1:])
