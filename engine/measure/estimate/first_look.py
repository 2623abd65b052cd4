"""A first look: the layers of a sweep ranked by its first windows, before all of them are run.

A whole estimate takes several forwards of all windows, after the reference has run them. The first
micro-batch alone gives a ranking with wide bars in a fraction of that, in the formats that are to
be measured; whatever is found is replaced by the estimates of all windows.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import msgspec

from engine import protocol as p
from engine.formats.grammar import Format, needs_calibration
from engine.formats.storage import why_not_held
from engine.measure.calibration.approximate import why_not_given
from engine.measure.counts import JobCounts
from engine.measure.estimate.backward_pass import BackwardPass
from engine.measure.estimate.estimate import (
    estimate_key,
    fact_of,
    known_estimates,
    together_with,
)
from engine.measure.estimate.first_order import drawn_windows
from engine.measure.evaluation.reference import reference_of
from engine.workspace import Loaded

LEAST = 6
"""Micro-batches below which all windows are there nearly as soon."""


def first_look(
    loaded: Loaded,
    formats: Sequence[Format],
    estimated: Sequence[Format],
    counts: JobCounts,
    job: str,
) -> Generator[p.AnyEvent | None, None, None]:
    """Estimate every layer on the first micro-batch, for degrade.

    Nothing is done where it would not be sooner. Where any estimate of all windows is known, the
    other layers have what an earlier look found, if there was one.

    Args:
        loaded: the model.
        formats: those that are to be measured; of these, formats that need inputs are left out.
        estimated: all formats that are estimated afterwards.
        counts: of the job.
        job: id, for progress.

    Yields:
        `Learned` with `Estimate` facts, and `Progress`.
    """
    network, reference = loaded.network, reference_of(loaded)
    seen = len(reference.batches[0])
    drawn = int(drawn_windows(reference.windows.count)[:seen].sum())
    if len(reference.batches) < LEAST or drawn < 2 or network.streamed or not network.resumable:
        return
    wanted = [
        (name, format)
        for format in formats
        for name, layer in network.layers.items()
        if not needs_calibration(format)
        and why_not_held(format, layer.shape) is None
        and why_not_given(loaded, name, format) is None
    ]
    groups = together_with(loaded, estimated)
    final = {
        (name, format): estimate_key(
            loaded, name, format, next(group for group in groups if format in group), "degrade"
        )
        for name, format in wanted
    }
    if not wanted:
        return
    have, missing = known_estimates(loaded, final)
    addresses = {
        at: msgspec.structs.replace(
            final[at], together=(str(at[1]),), effort=f"{seen} windows"
        ).address
        for at in missing
    }
    known = loaded.known(list(addresses.values()))
    if have or len(known) == len(addresses):
        # A sweep that was interrupted goes on: its first look serves until all windows are there.
        yield from counts.found(list(known), list(known.values()))
        return
    each = [[one for one in wanted if one[1] == format] for format in formats]
    backward = BackwardPass(
        loaded, formats, "degrade", counts, job, [group for group in each if group],
        batches=range(1),
    )  # fmt: skip
    for event in backward.run():
        if not isinstance(event, dict):
            yield event
            continue
        facts = {
            addresses[name, format]: fact_of(loaded, backward, name, format, sums, seen)
            for name, of_layer in event.items()
            for format, sums in of_layer.items()
        }
        if facts:
            yield p.Learned(tuple(facts), tuple(facts.values()))
