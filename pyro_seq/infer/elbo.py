"""Objectives beside Pyro's own: free bits, and a record of an ELBO's terms."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.util import torch_item
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_seq.batch import PLATE
from pyro_seq.distributions.path import MarkovPath, step_kl
from pyro_seq.errors import UserError
from pyro_seq.infer.multi_sample import (
    IWAE_ELBO,
    STL_ELBO,
    DReG_ELBO,
    ReweightedWakeSleep,
    SequenceRenyiELBO,
)
from pyro_seq.infer.smc.fivo import FIVO_ELBO
from pyro_seq.poutine.step_densities import is_enumerated

OBJECTIVES = ("trace", "mean_field", "enum", "stl", "iwae", "dreg", "renyi", "rws", "fivo")


class FreeBits_ELBO(Trace_ELBO):
    """E[log p(x | z)] - sum_l max(nats n_l, KL_l): the first `nats` of divergence are free.

    They are counted per step and sequence.

    (Kingma et al. 2016, arXiv 1606.04934, sec. C.8.) A group of latents l is one latent of one
    step, over the whole minibatch: a site `z_t`, or step t of a `MarkovPath`, so both layouts have
    the same bound. n_l is the number of sequences that have that step; a divergence below the
    threshold has no gradient, so the latents are not pushed into the prior before they have become
    useful.

    KL_l is analytic given the step before, where there is a closed form: each step's own noise is
    integrated out, as `TraceMeanField_ELBO` does. Without a closed form, as after flows, KL_l is
    the Monte Carlo estimate log q - log p. Either is averaged over the sequences and all particles
    before it is compared with the threshold. The noise that is left makes the maximum too large,
    since E max(nats, KL) is at least max(nats, E KL). The excess is nothing where the closed form
    is exact, and a lot for an estimate from few sequences and particles.

    Latents that all sequences share (`GlobalGuide`) have no free bits.

    Raises `ValueError` for latents that are not reparameterised, or that only one of model and
    guide samples.

    Args:
        nats: the free nats per step.
        analytic_kl: whether to use closed forms where there are any; without, all divergences are
            Monte Carlo estimates.
    """

    # adds figures up over the processes that share a minibatch; `None`: there is one
    over_ranks: Callable[[Tensor], Tensor] | None = None

    def __init__(self, nats: float, *, analytic_kl: bool = True, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if not nats >= 0 or not math.isfinite(nats):
            raise ValueError(f"free bits must be a finite number of nats, at least 0, got {nats}")
        self.nats, self.analytic_kl = nats, analytic_kl

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: object, **kwargs: object
    ) -> Tensor:
        """Return the negative of the bound, as a tensor."""
        value: Tensor = torch.zeros(())
        groups: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            value = value + sum(
                (site["log_prob_sum"] for site in _observed(model_trace)), torch.zeros(())
            )
            p_sites, q_sites = dict(_latent(model_trace)), dict(_latent(guide_trace))
            value = value - _free_of_bits(p_sites, q_sites)
            if alone := sorted(p_sites.keys() ^ q_sites.keys()):
                raise ValueError(
                    f"free bits need every latent in both model and guide, and site {alone[0]!r} "
                    "is in one of them alone"
                )
            for name, q_site in q_sites.items():
                if not q_site["fn"].has_rsample:
                    raise ValueError(
                        f"free bits need reparameterised latents, and site {name!r} is not"
                    )
                groups.setdefault(name, []).append(self._groups(q_site, p_sites[name]))
        for of_particles in groups.values():
            kl, covered = (torch.stack(parts).sum(0) for parts in zip(*of_particles, strict=True))
            value = value - self._counted(kl, self.nats * covered).sum()
        return -value / self.num_particles

    def _counted(self, kl: Tensor, free: Tensor) -> Tensor:
        """Return what counts of each group: its divergence, or what of it is free.

        Of a minibatch over several processes, this one's share of what counts.
        """
        if self.over_ranks is None:
            return torch.maximum(kl, free)
        whole, whole_free = self.over_ranks(torch.stack([kl, free.to(kl)]))
        return torch.where(whole > whole_free, kl, free)

    def _groups(self, q_site: dict[str, Any], p_site: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return (divergence, number of sequences) of each group of a site's latents.

        They are scaled and masked: `[T]` for a path, else `[]`.
        """
        q, p, path = q_site["fn"], p_site["fn"], q_site["value"]
        of_path = isinstance(q, MarkovPath) and isinstance(p, MarkovPath)
        scale, mask = (
            x.unsqueeze(-1) if of_path and isinstance(x, Tensor) and x.dim() else x
            for x in (q_site["scale"], q_site["mask"])
        )
        kl: Tensor | None = None
        if self.analytic_kl:
            with suppress(NotImplementedError):  # as of a normal that has passed through flows
                kl = step_kl(q, p).sum(-1) if of_path else kl_divergence(q, p)
        if kl is None and of_path:
            kl = q.step_log_prob(path) - p.step_log_prob(path)
        elif kl is None:
            kl = q_site["unscaled_log_prob"] - p_site["unscaled_log_prob"]

        def total(x: Tensor) -> Tensor:
            x = scale_and_mask(x, scale, mask)
            return q.masked(x).reshape(-1, q.num_steps).sum(0) if of_path else x.sum()

        return total(kl), total(torch.ones_like(kl))

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: object, **kwargs: object
    ) -> float:
        """Return the negative of the bound, as a number."""
        with torch.no_grad():
            return torch_item(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: object, **kwargs: object
    ) -> float:
        """Return the negative of the bound, and accumulate its gradient on the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return torch_item(loss)


def _free_of_bits(p_sites: dict[str, Any], q_sites: dict[str, Any]) -> Tensor:
    """Take the sites that belong to no step out of both sides; return their log q - log p.

    These are what a guide samples besides (`is_auxiliary`), and latents outside of the batch's
    plate, which all sequences share.
    """
    in_plate = any(_is_of_sequences(site) for site in q_sites.values())
    kl: Tensor = torch.zeros(())
    for name, q_site in list(q_sites.items()):
        auxiliary = (q_site["infer"] or {}).get("is_auxiliary") and name not in p_sites
        shared = name in p_sites and in_plate and not _is_of_sequences(p_sites[name])
        if auxiliary or shared:
            kl = kl + q_sites.pop(name)["log_prob_sum"]
            kl = kl - p_sites.pop(name)["log_prob_sum"] if shared else kl
    return kl


def _is_of_sequences(site: dict[str, Any]) -> bool:
    return any(frame.name == PLATE for frame in site["cond_indep_stack"])


def _observed(trace: Any) -> list[dict[str, Any]]:
    return [
        site for site in trace.nodes.values() if site["type"] == "sample" and site["is_observed"]
    ]


def _latent(trace: Any) -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"]
    ]


def make_elbo(
    kind: str,
    *,
    num_particles: int = 1,
    free_bits: float = 0.0,
    renyi_alpha: float = 0.5,
    resample_below: float = 0.5,
) -> ELBO:
    """Return an objective by name.

    - `trace`: `Trace_ELBO`, a Monte Carlo divergence; `mean_field`: `TraceMeanField_ELBO`, analytic
      at each step; with free bits both are `FreeBits_ELBO`.
    - `enum`: `TraceEnum_ELBO`, which sums over all latents that are marked to be enumerated.
    - `stl`: `STL_ELBO`. Of `num_particles` weighted draws of each sequence are `iwae`: `IWAE_ELBO`,
      `dreg`: `DReG_ELBO`, `renyi`: `SequenceRenyiELBO`, `rws`: `ReweightedWakeSleep`; of a filter
      of so many particles, resampled as `resample_below` says, `fivo`: `FIVO_ELBO`.

    Raises `UserError` for free bits of an objective whose latents have no divergence, and for a
    single draw where draws are weighed.
    """
    if kind not in OBJECTIVES:
        raise ValueError(f"the objective must be one of {', '.join(OBJECTIVES)}, got {kind!r}")
    if free_bits > 0 and kind not in ("trace", "mean_field"):
        why = (
            "latents that enum sums out have none"
            if kind == "enum"
            else f"{kind} has no divergence of its own"
        )
        raise UserError(
            f"free bits are of a divergence, and {why}: training.free_bits=0, or the objective "
            "trace or mean_field"
        )
    if free_bits > 0:
        return FreeBits_ELBO(free_bits, num_particles=num_particles)
    if kind == "enum":
        return TraceEnum_ELBO(num_particles=num_particles, strict_enumeration_warning=False)
    if kind == "fivo":
        if num_particles < 2:
            raise UserError(
                f"fivo weighs several particles of each sequence, and with num_particles="
                f"{num_particles} is the ELBO: training.num_particles of at least 2, or the "
                "objective trace"
            )
        return FIVO_ELBO(num_particles, resample_below=resample_below)
    if kind == "renyi":
        return SequenceRenyiELBO(num_particles, renyi_alpha)
    made: dict[str, Callable[..., ELBO]] = {
        "trace": Trace_ELBO,
        "mean_field": TraceMeanField_ELBO,
        "stl": STL_ELBO,
        "iwae": IWAE_ELBO,
        "dreg": DReG_ELBO,
        "rws": ReweightedWakeSleep,
    }
    return made[kind](num_particles=num_particles)


@dataclass
class ElboTerms:
    """Terms of a bound, in nats: E[log p(x | z)] and E[log q(z) - log p(z)].

    The log-likelihood and the divergence are not scaled, but for those of a minibatch, which count
    for the data set that it is of (`SequenceBatch.of_total`).

    Their difference is the evidence lower bound; latents that only one side has count in the
    divergence.
    """

    log_likelihood: float
    kl: float

    def per(self, n: float) -> dict[str, float]:
        """Return the terms and the bound for each of `n` observations, by name."""
        return {
            "log_likelihood": self.log_likelihood / n,
            "kl": self.kl / n,
            "elbo": (self.log_likelihood - self.kl) / n,
        }


class Recorder:
    """Record an ELBO's terms at every evaluation, and its first non-finite value."""

    def __init__(self, elbo: ELBO) -> None:
        self._sums: list[tuple[Tensor, Tensor]] = []
        # of one pair of traces
        self._particles = elbo.num_particles if getattr(elbo, "vectorize_particles", False) else 1
        self._traces: tuple[Any, Any] | None = None
        if hasattr(elbo, "_get_trace"):
            inner = elbo._get_trace

            def recorded(model: object, guide: object, args: object, kwargs: object) -> Any:
                traces = inner(model, guide, args, kwargs)
                self._record(*traces)
                return traces

            elbo._get_trace = recorded  # type: ignore[method-assign]

    def _record(self, model_trace: Trace, guide_trace: Trace) -> None:
        self._traces = model_trace, guide_trace
        if any(
            is_enumerated(site)
            for trace in (model_trace, guide_trace)
            for _, site in _latent(trace)
        ):
            return
        with torch.no_grad():
            zero = torch.zeros(())
            likelihood = sum((_unscaled(site) for site in _observed(model_trace)), zero)
            kl = sum((_unscaled(site) for _, site in _latent(guide_trace)), zero)
            kl = sum((-_unscaled(site) for _, site in _latent(model_trace)), kl)
        self._sums.append((likelihood / self._particles, kl / self._particles))

    def take(self) -> ElboTerms | None:
        """Return the terms, averaged over all evaluations since the last call.

        Graphs are let go of.

        `None` where there was no such evaluation, and where latents are enumerated: their densities
        are those of every state.
        """
        sums, self._sums, self._traces = self._sums, [], None
        if not sums:
            return None
        return ElboTerms(*(sum(float(part[i]) for part in sums) / len(sums) for i in range(2)))

    def first_non_finite(self) -> str | None:
        """Name the first site of the last evaluation whose value or density is not finite.

        The guide's sites come first.
        """
        model_trace, guide_trace = self._traces or (None, None)
        for trace, side in ((guide_trace, "guide"), (model_trace, "model")):
            if trace is None:
                return None
            for name, site in trace.nodes.items():
                if site["type"] != "sample":
                    continue
                for what in ("value", "log_prob"):
                    tensor = site.get(what)
                    if isinstance(tensor, Tensor) and not tensor.isfinite().all():
                        return f"the {what.replace('_', ' ')} of site {name!r} in the {side}"
        return None


def _unscaled(site: dict[str, Any]) -> Tensor:
    """Sum a site's log-densities; a minibatch's count for all data, other scales count nothing."""
    log_prob: Tensor = scale_and_mask(site["unscaled_log_prob"].detach(), mask=site["mask"])
    whole = 1.0
    for frame in site["cond_indep_stack"]:
        whole *= frame.full_size / frame.size if frame.full_size and frame.size > 0 else 1.0
    return log_prob.sum() * whole
