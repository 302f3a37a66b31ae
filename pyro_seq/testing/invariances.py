"""Check what must not change a density: other sequences, padding, calls, later observations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.poutine.checks import by_stem, named, sites_by_name
from pyro_seq.poutine.probe import lengthened
from pyro_seq.poutine.step_densities import by_step, has_step_log_prob
from pyro_seq.poutine.time_sites import Site
from pyro_seq.testing.probe import Failure, Probe, active_values, densities, differs

LOOKS = 8  # at most so many steps are looked at for what they know of later ones
SIDES = ("guide", "model")


def _changed(
    probe: Probe, side: str, trace: Trace, expected: dict[str, Tensor], why: str
) -> list[str]:
    """Return the sites of a side whose densities are not the expected ones, in one line."""
    found = densities(trace, len(next(iter(expected.values())))) if expected else {}
    faults = {
        name: wrong
        for name, figure in expected.items()
        if name in found and (wrong := differs(found[name], figure)).any()
    }
    if not faults:
        return []
    first, wrong = next(iter(faults.items()))
    row = int(wrong.nonzero()[0])
    difference = float((found[first] - expected[first])[row])
    return [
        (
            f"the density of {named(faults)} in the {side} changes by {difference:.3g} nats "
            "(sequence "
            f"{row}) {why}"
        )
    ]


def each_side(
    probe: Probe,
    name: str,
    batch: SequenceBatch,
    values: dict[str, Tensor],
    index: Tensor,
    why: str,
) -> Iterator[str]:
    """Evaluate both sides on another batch, and compare with the probe's densities.

    Row i should have the densities of row `index[i]` of the probe's own batch.
    """
    for side in SIDES:
        expected = {
            site: figure[index]
            for site, figure in densities(probe.trace(side), len(probe.batch)).items()
        }
        try:
            yield from _changed(probe, side, probe.run(side, batch, values), expected, why)
        except Failure as failure:
            yield f"{name}: {failure}"


def repeatable(probe: Probe) -> Iterator[str]:
    """Check that the same latents have the same density twice."""
    why = (
        "when it is evaluated again at the same latents: something is kept from call to call, "
        "or "
        "drawn outside of pyro.sample"
    )
    everything = torch.arange(len(probe.batch), device=probe.batch.device)
    yield from each_side(
        probe, "when it is evaluated again", probe.batch, probe.values, everything, why
    )


def independent_sequences(probe: Probe) -> Iterator[str]:
    """Check that a sequence has the same density in another place, beside other sequences."""
    n = len(probe.batch)
    turned = torch.arange(n, device=probe.batch.device).roll(1)
    why = "when the batch's order changes: sequences must not know their place"
    wrong = list(
        each_side(
            probe,
            "with the batch in another order",
            probe.batch.select(turned),
            probe.map_rows(turned),
            turned,
            why,
        )
    )
    why = (
        "when the other sequences change: the batch dimension must be independent (is something "
        "averaged or normalised over it?)"
    )
    for row in {0, n - 1}:
        alone = torch.full((n,), row, device=probe.batch.device)
        wrong += each_side(
            probe,
            "with copies of one sequence",
            probe.batch.select(alone),
            probe.map_rows(alone),
            alone,
            why,
        )
    yield from _once_a_side(wrong)


def padding(probe: Probe) -> Iterator[str]:
    """Check that padded steps count nowhere.

    Sites of a step are masked; more padding, and other numbers in it, change nothing.
    """
    unmasked = {side: set(_unmasked(probe, side)) for side in SIDES}
    for side, names in unmasked.items():
        for group in by_stem(name for name in sites_by_name(probe.trace(side)) if name in names):
            yield (
                f"{named(group)} in the {side} is not masked: its density counts for sequences "
                "that have ended; "
                "sample it under `with batch.active(t)`, or mask its distribution with batch.mask"
            )
    everything = torch.arange(len(probe.batch), device=probe.batch.device)
    wrong: list[str] = []
    two_longer = lengthened(lengthened(probe.batch))
    why = (
        "when more padding follows: padding must not count (mask it; turn sequences round with "
        "batch.reverse)"
    )
    wrong += each_side(
        probe, "with two more steps of padding", two_longer, probe.longer(2), everything, why
    )
    why = "when padding holds other numbers: padding must not count"
    other = active_values(probe.batch, ~probe.batch.mask, 0)
    wrong += each_side(
        probe, "with other numbers in the padding", other, _other_padding(probe), everything, why
    )
    yield from (
        line
        for line in _once_a_side(wrong)
        if not any(repr(name) in line for names in unmasked.values() for name in names)
    )


def _once_a_side(lines: list[str]) -> list[str]:
    """Return the first of several lines on each side."""
    kept = {side: next((line for line in lines if f"the {side} " in line), None) for side in SIDES}
    return [line for line in kept.values() if line]


def _unmasked(probe: Probe, side: str) -> Iterator[str]:
    """Yield sites that count at steps which are padding."""
    trace, ended = probe.trace(side), ~probe.batch.mask
    for name, figures in densities(trace, len(probe.batch)).items():
        place = probe.places[name]
        if place.step is not None:
            if (figures[ended[:, place.step]] != 0).any():
                yield name
        elif probe.is_over_time(name) if name in probe.values else False:
            site, other = sites_by_name(trace)[name], _other_padding(probe)[name]
            inner = {**site, "value": other}
            if (
                differs(site["fn"].log_prob(site["value"]), inner["fn"].log_prob(other)).any()
                and site["mask"] is None
            ):
                yield name
        elif has_step_log_prob(sites_by_name(trace)[name], place):
            steps = _steps(name, sites_by_name(trace)[name], trace, probe.batch)
            if (steps[ended] != 0).any():
                yield name


def missing_cells(probe: Probe) -> Iterator[str]:
    """Check that the densities of observations leave out cells that are missing."""
    faults = []
    for name, site in (
        sites_by_name(probe.model).items() if probe.batch.missing_cells is not None else ()
    ):
        missing = _missing_of(probe, name, site) if site["is_observed"] else None
        if missing is None or not missing.any():
            continue
        value = torch.as_tensor(site["value"])
        before = _steps(name, site, probe.model, probe.batch)
        for turned in range(1, len(value)):
            other = torch.where(missing, value.roll(turned, 0), value)
            after = _steps(name, {**site, "value": other}, probe.model, probe.batch)
            if differs(before, after).any():
                faults.append(name)
                break
    for group in by_stem(faults):
        yield (
            f"{named(group)} in the model counts cells that are missing: sample it under `with "
            "batch.active(t)`, with mask_cells(distribution, batch.seen_at(t)) for its distribution"
        )


def _missing_of(probe: Probe, name: str, site: Site) -> Tensor | None:
    """The missing cells of an observed site, in the shape of its value, if it has that of values.

    A named group's members are told by their names.
    """
    place, missing = probe.places[name], probe.batch.missing_cells
    if isinstance(missing, dict):
        member = place.stem.member if place.stem is not None else name.partition("_")[2]
        missing = missing.get(member)
    if missing is not None and place.step is not None:
        missing = missing[:, place.step]
    return missing if missing is not None and missing.shape == site["value"].shape else None


def _other_padding(probe: Probe) -> dict[str, Tensor]:
    """Return the probe's latents, with the padded steps of paths reversed."""
    values = dict(probe.values)
    for name, value in values.items():
        if probe.is_over_time(name):
            time = probe.row_dim(name) + 1
            mask = probe.batch.mask[(..., *(None,) * (value.dim() - time - 1))]
            values[name] = torch.where(mask, value, value.roll(1, time))
    return values


def _steps(name: str, site: Site, trace: Trace, batch: SequenceBatch) -> Tensor:
    """Divide a site's log-density over the steps that it belongs to, `[N, T]`."""
    return by_step(
        name,
        site,
        trace,
        torch.zeros(len(batch), batch.num_steps, dtype=torch.double, device=batch.device),
    )


def causal(probe: Probe) -> Iterator[str]:
    """Check that a step's distribution depends on no observation of that step or later.

    The observations from step s on are exchanged. The model's distributions of the latents and
    observations up to s must stay the same, which shows in their densities at the old values. At
    step s itself only the exchanged observations and the sites before them are compared, since
    later sites may depend on them.
    """
    batch = probe.batch
    if batch.num_steps > LOOKS:
        looks = torch.linspace(0, batch.num_steps - 1, LOOKS).round().long().tolist()
    else:
        looks = list(range(batch.num_steps))
    members: list[str | None] = [*batch.values] if isinstance(batch.values, dict) else [None]
    for member in members:
        for s in looks:
            where = batch.mask & (torch.arange(batch.num_steps, device=batch.device) >= s)
            other = active_values(batch, where, s, member)
            try:
                found = _looks_ahead(probe, probe.run("model", other), s)
            except Failure as failure:
                found = f"with other observations: {failure}"
            if found:
                yield found
                break


def _looks_ahead(probe: Probe, trace: Trace, s: int) -> str | None:
    """Name the first site that depends on observations from step s on."""
    old, new = sites_by_name(probe.model), sites_by_name(trace)
    exchanged_before = False
    for name, site in old.items():
        if name not in new or name in probe.shared:
            continue
        own = bool(site["is_observed"]) and not torch.equal(
            torch.as_tensor(site["value"]), torch.as_tensor(new[name]["value"])
        )
        place = probe.places[name]
        at_step = has_step_log_prob(site, place) or place.step == s
        upto = s if own or not exchanged_before else s - 1
        before = _steps(name, site, probe.model, probe.batch)
        after = _steps(
            name,
            {**site, "fn": new[name]["fn"], "mask": new[name]["mask"]},
            probe.model,
            probe.batch,
        )
        wrong = differs(before, after)[:, : upto + 1]
        if wrong.any():
            row, t = wrong.nonzero()[0].tolist()
            return (
                f"the model looks ahead: what it says of site {name!r} at step {t} (sequence "
                f"{row}) depends on observations of "
                f"step {s} or later, which it must not know yet"
            )
        exchanged_before |= own and at_step
    return None
