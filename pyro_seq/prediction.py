"""The posterior predictive distribution of any pair, with the semantics of `pyro.infer.Predictive`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

from pyro.infer import Predictive
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.pair import Pair, Stochastic
from pyro_seq.sequence_model import SequenceModel, in_one_path
from pyro_seq.site_checks import named
from pyro_seq.site_densities import is_enumerated
from pyro_seq.trees import concatenated


def posterior_predictive(
    pair: Pair,
    batch: SequenceBatch,
    num_samples: int,
    *,
    replicate: bool = False,
    return_sites: Collection[str] | None = None,
    parallel: bool = True,
    chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """Samples of all sites `[num_samples, *site]` of the model, its latents drawn by the guide, in evaluation mode and without gradients.

    The same as `Predictive(pair.model, guide=pair.guide, num_samples=num_samples, parallel=parallel)(batch)` under the same seed, to the
    bit, inside the pair's own parameters. Steps that the batch leaves to be sampled (`batch.continued(H)`, `batch.with_missing(steps)`)
    are predicted; observed ones are returned as they are. With `replicate` all observations are drawn anew, from latents that the guide
    has inferred from the batch: for posterior predictive checks.

    In parallel, which is the default, guide and model run three times each, however many samples there are (once is for the samples;
    Pyro looks for their sites in the other two, which use up random numbers, so leaving them out would change the samples). One after
    the other, each runs num_samples + 2 times: that is for functions whose plates do not take a dimension to the left.

    Args:
        pair: any model and guide that take a `SequenceBatch`.
        batch: the sequences, observed at least in part.
        num_samples: K.
        replicate: whether observations are drawn anew.
        return_sites: names of the sites to return; all by default.
        parallel: whether samples are a dimension of one run (which needs the batch's plate) or drawn one after the other.
        chunk_size: at most so many samples at once, which bounds the memory, but makes them others than `Predictive`'s.

    Raises `UserError` for a batch without values, numbers below 1, and for names of sites that are not there. Latents that are
    marked to be enumerated come from the prior, since no guide infers them: that is warned of.
    """
    if batch.values is None:
        raise UserError(
            "the guide infers latents from observations, and the batch has none: for samples of the model alone there is ancestral"
        )
    for what, number in (("samples", num_samples), ("samples of a chunk", chunk_size)):
        if number is not None and number < 1:
            raise UserError(f"the number of {what} must be at least 1, got {number}")
    size = min(num_samples, chunk_size or num_samples)
    sizes = [min(size, num_samples - start) for start in range(0, num_samples, size)]
    inferred, marked = _Names(lambda site: True), _Names(is_enumerated)

    def guide(batch: SequenceBatch) -> Any:
        with inferred:
            return pair.guide(batch)

    with pair.scope(), pair.evaluating(), marked:
        parts = [(_replicated if replicate else _predicted)(pair, guide, batch, k, parallel) for k in sizes]
    if left := sorted(marked.found - inferred.found):
        drawn = "it was drawn from the prior, whatever is observed, as Predictive does (a shipped hmm is summed out by continuation)"
        warnings.warn(f"{named(left)} is marked to be enumerated and not in the guide: {drawn}", stacklevel=2)
    samples: dict[str, Tensor] = concatenated(parts)
    if return_sites is None:
        return samples
    if absent := [name for name in return_sites if name not in samples]:
        raise UserError(f"there is no site {absent[0]!r}; the sites are {', '.join(samples)}")
    return {name: samples[name] for name in return_sites}


class _Names(Messenger):
    """The names of the sites that are sampled inside and are of a kind."""

    def __init__(self, of_kind: Callable[[Any], bool]) -> None:
        super().__init__()
        self.of_kind, self.found = of_kind, set[str]()

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.of_kind(msg) and not msg["is_observed"]:
            self.found.add(msg["name"])


def _predicted(pair: Pair, guide: Stochastic, batch: SequenceBatch, num_samples: int, parallel: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = Predictive(pair.model, guide=guide, num_samples=num_samples, parallel=parallel)(batch)
    return found


def _replicated(pair: Pair, guide: Stochastic, batch: SequenceBatch, num_samples: int, parallel: bool) -> dict[str, Tensor]:
    """Latents drawn from the guide with the observations in sight, observations by the model without them."""
    latents = Predictive(guide, num_samples=num_samples, parallel=parallel)(batch)
    by_site = by_steps(latents) if isinstance(pair.model, SequenceModel) and in_one_path(pair.model, batch) else latents
    found = Predictive(pair.model, posterior_samples=by_site, num_samples=num_samples, parallel=parallel)(batch.without_values())
    return latents | found


def by_steps(latents: dict[str, Any]) -> dict[str, Any]:
    """A path's site `z` `[…, T, Z]` as the sites `z_0, z_1, …` that a declared model has where it samples observations."""
    steps = {f"z_{t}": z for t, z in enumerate(latents["z"].unbind(-2))} if "z" in latents else {}
    return {name: value for name, value in latents.items() if name != "z"} | steps
