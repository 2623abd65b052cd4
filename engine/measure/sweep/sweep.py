"""Sweeps: every layer, block, kind or group changed alone, estimated first, then measured.

A control comes first: a layer swapped for itself must measure nothing (exactly 0 on a CPU). Then
every layer is estimated, and those asked for are measured, the worst estimate first. At the end all
body layers are changed together: the ratio of that effect to the sum of the single ones shows how
far single effects add up. Results in the store are not measured again.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from typing import cast

import msgspec

from engine import protocol as p
from engine.formats.grammar import Format, parse_built
from engine.measure.calibration.calibration import calibration_key, with_scales
from engine.measure.counts import JobCounts
from engine.measure.estimate.estimate import all_estimated, estimate
from engine.measure.estimate.first_look import first_look
from engine.measure.evaluation.evaluate import (
    baseline,
    forward_seconds,
    score,
    whole_reference,
)
from engine.measure.sharing import crew_of, joined
from engine.measure.sweep.agreement import AgreementTracker
from engine.measure.sweep.candidates import (
    Candidate,
    CandidateMeasurement,
    SweepTable,
    body_holding,
    figure_key,
)
from engine.measure.sweep.control import control
from engine.measure.sweep.exactness import Exactness, parse_exactness
from engine.measure.sweep.measured import measure_all, said_if_not_finite
from engine.measure.sweep.passes import said_of_passes
from engine.measure.sweep.progress import SweepProgress, before_ranked
from engine.measure.sweep.shared import SharedTable
from engine.measure.sweep.stored import from_store
from engine.measure.sweep.top_k import Evidence, outside, well_known
from engine.service.jobs import Steps
from engine.store import keys
from engine.workers.crew import Crew
from engine.workspace import Loaded

Found = Generator[p.AnyEvent | None, None, None]
Estimates = Mapping[str, Mapping[str, p.Estimate]]
"""By format, by layer."""


def sweep(
    loaded: Loaded,
    formats: Sequence[str],
    direction: p.Direction,
    job: str,
    *,
    exact: str = "all",
    by: p.By = "layer",
    only: bool = False,
) -> Steps:
    """Estimate every layer in every format, and measure those asked for, each alone.

    Args:
        loaded: the model.
        formats: formats to measure. For degrade, the settings' ``estimate_formats`` are estimated
            in addition.
        direction: whether one layer is changed, or one restored while all others are changed.
        job: id, for progress.
        exact: see `protocol.Sweep`.
        by: what is changed at once.
        only: estimate no other formats.

    Yields:
        `Learned` with `Baseline`, `Control`, `Estimate`, `Sensitivity` and `Additivity` facts,
        `Fallback` for layers a format cannot hold, `Agreement` and `Progress`.

    Raises:
        UsageError: ``exact`` is not valid, or the settings' workers cannot be had.
        FormatError: a format does not parse or is not built.
    """
    exactness = parse_exactness(exact)
    parsed = [parse_built(text) for text in formats]
    needed = True
    if loaded.settings.workers:
        needed = yield from _unknown(loaded, parsed, direction, exactness, by, only=only)
    with ExitStack() as held:
        cluster = (yield from joined(loaded, held)) if needed else None
        crew = held.enter_context(crew_of(loaded, cluster, needed=needed))
        return (yield from _swept(loaded, parsed, direction, job, exactness, by, crew, only=only))


def _unknown(
    loaded: Loaded,
    parsed: Sequence[Format],
    direction: p.Direction,
    exactness: Exactness,
    by: p.By,
    *,
    only: bool,
) -> Generator[p.AnyEvent | None, None, bool]:
    """Whether something that workers take part in is not in the store."""
    estimated = _to_estimate(parsed, _beside(loaded, direction, only=only))
    if not (yield from all_estimated(loaded, estimated, direction)):
        return True
    if exactness.top is not None:  # the engine measures these alone
        return False
    for format in parsed:
        table = SweepTable(format, direction, by)
        table.calibration = yield from calibration_key(loaded, [format], "reference")
        for _ in from_store(loaded, table, "", JobCounts()):
            yield None
        if table.todo:
            return True
    return False


def _beside(loaded: Loaded, direction: p.Direction, *, only: bool) -> Sequence[str]:
    """Formats that are estimated besides those that are swept."""
    return () if only or direction == "restore" else loaded.settings.estimate_formats


def _swept(
    loaded: Loaded,
    parsed: Sequence[Format],
    direction: p.Direction,
    job: str,
    exactness: Exactness,
    by: p.By,
    crew: Crew,
    *,
    only: bool,
) -> Steps:
    """Steps of a sweep that workers, if there are any, take part in."""
    network = loaded.network
    counts = JobCounts(
        timings={"load_s": loaded.load_s, "quantize_s": 0.0, "estimate_s": 0.0}, job=job
    )
    estimated = _to_estimate(parsed, _beside(loaded, direction, only=only))
    if direction == "degrade":
        yield from first_look(loaded, parsed, estimated, counts, job)
    ranking = before_ranked(loaded, len(estimated))
    nll = (yield from baseline(loaded, counts, ranking)).nll
    floor = (yield from control(loaded, counts, ranking)).floor_kl

    tables = [SweepTable(format, direction, by) for format in parsed]
    for table in tables:
        table.calibration = yield from calibration_key(loaded, [table.format], "reference")
        yield from from_store(loaded, table, str(exactness) if exactness.top else "", counts)
    estimates = yield from _estimated(loaded, estimated, direction, counts, job, crew)
    for table in tables:
        _sort(table, estimates.get(str(table.format), {}))
    # Units other than layers have no estimates to compare with.
    comparing = AgreementTracker(direction, estimates if by == "layer" else {}, floor)
    todo = [] if exactness.top == 0 else [each.unit for table in tables for each in table.todo]
    known = sum(len(table.found) for table in tables)
    if todo and exactness.top is None:
        yield from whole_reference(loaded, counts)
    progress = SweepProgress(counts, network, todo, len(todo) + known)
    for table in tables:
        if todo and table.todo:
            measuring = CandidateMeasurement(loaded, table, nll, counts)
            top = exactness.top is not None
            yield said_of_passes(network, measuring, table.todo, str(table.format), top=top)
            try:
                if exactness.top is None:
                    yield from measuring.prepare()
                    progress.begin()
                    if crew:
                        shared = SharedTable(
                            table, crew, measuring, counts, progress, comparing, nll
                        )
                        yield from shared.measure()
                    else:
                        yield from measure_all(
                            table, table.todo, measuring, counts, progress, comparing
                        )
                else:
                    progress.begin()
                    yield from _measure_top(
                        loaded, table, exactness.top, measuring, counts, progress, comparing
                    )
            finally:
                measuring.close()
        yield from comparing.now(str(table.format), table.found)
        if exactness.top != 0 and by == "layer" and table.body & set(table.found):
            yield from _additivity(loaded, table, nll, counts)
    if counts.measured:
        forward = counts.forward  # of a streamed model, it is not worth reading all blocks again
        if not (network.streamed and math.isfinite(forward)):
            forward = yield from forward_seconds(loaded, job)
        counts.timings["forward_s"] = forward
    return counts.outcome()


def _estimated(
    loaded: Loaded,
    formats: Sequence[Format],
    direction: p.Direction,
    counts: JobCounts,
    job: str,
    crew: Crew,
) -> Generator[p.AnyEvent | None, None, Estimates]:
    """Estimates of all layers, with the time left until all are there."""
    steps = estimate(loaded, formats, direction, counts, job, crew)
    begun: tuple[float, float] | None = None
    while True:
        try:
            event = next(steps)
        except StopIteration as stop:
            return cast(Estimates, stop.value)
        if isinstance(event, p.Progress) and math.isnan(event.seconds_left) and event.done:
            # The pace is counted from the first part on: before it, states are gathered.
            if begun is None or event.done < begun[0]:
                begun = event.done, counts.computed
            pace = (counts.computed - begun[1]) / max(event.done - begun[0], 1e-9)
            left = (event.total - event.done) * pace
            if event.done > begun[0]:
                event = msgspec.structs.replace(event, seconds_left=max(left, 0.0))
        yield event


def _to_estimate(formats: Sequence[Format], beside: Sequence[str]) -> list[Format]:
    """The swept formats, after those that are estimated beside them."""
    chosen = {str(f): f for f in map(parse_built, beside)}
    return list((chosen | {str(format): format for format in formats}).values())


def _sort(table: SweepTable, estimates: Mapping[str, p.Estimate]) -> None:
    """Sort by the worst estimate; without estimates by cost, so that the table fills quickly."""
    if not estimates:
        table.todo.sort(key=lambda each: -each.unit.start)
        return

    def effect(candidate: Candidate) -> float:
        known = [estimates[name].kl for name in candidate.unit.layers if name in estimates]
        total = math.fsum(known) if known else -math.inf
        return -math.inf if math.isnan(total) else total

    table.todo.sort(key=effect, reverse=True)


def _measure_top(
    loaded: Loaded,
    table: SweepTable,
    top: int,
    measuring: CandidateMeasurement,
    counts: JobCounts,
    progress: SweepProgress,
    comparing: AgreementTracker,
) -> Found:
    """Measure all candidates a micro-batch at a time, until each is precise or ruled out.

    Each has a first figure after two windows, and its final one once it is decided.
    """
    exactness, text = f"top:{top}", str(table.format)
    seen: dict[str, Evidence] = {name: measuring.known(f) for name, f in table.found.items()}
    undecided = list(table.todo)
    for candidate in undecided:
        progress.advance(
            candidate.unit, len(candidate.tallies) / measuring.micro_batches, known=True
        )
    for turn in range(measuring.micro_batches):
        for group in measuring.groups(undecided):
            for due in measuring.turns(group, turn + 1):
                yield from measuring.measure(due, keep=False)
                for candidate in due:
                    progress.advance(candidate.unit, 1 / measuring.micro_batches)
                    yield progress.event(candidate.unit, text)
            for candidate in group:
                name = candidate.unit.name
                before = seen.get(name)
                seen[name] = measuring.seen(candidate)
                if seen[name].windows < 2 or (before is not None and before.windows > 1):
                    continue
                first = table.found[name] = measuring.figure(candidate)
                count = f"{seen[name].windows} windows"
                # For display only, replaced later: not stored.
                yield p.Learned((figure_key(loaded, candidate.unit, table, count),), (first,))
                yield from comparing.growing(text, table.found)
        gone = outside(seen, measuring.windows, top, measuring.micro_batches)
        left: list[Candidate] = []
        for candidate in undecided:
            name = candidate.unit.name
            whole = seen[name].windows == measuring.windows
            if not (whole or name in gone or well_known(seen[name])):
                left.append(candidate)
                continue
            fact = table.found[name] = measuring.figure(candidate)
            key = candidate.key if whole else figure_key(loaded, candidate.unit, table, exactness)
            measuring.drop(candidate)
            progress.finish(candidate.unit)
            yield from said_if_not_finite(measuring.loaded, fact)
            yield counts.learnt(key, fact)
            yield from comparing.growing(text, table.found)
        undecided = left


def _additivity(loaded: Loaded, table: SweepTable, nll: float, counts: JobCounts) -> Found:
    """Change all body layers at once: the uniform recipe, whose score is stored too."""
    layers = {name: str(table.format) for name in body_holding(loaded, table.format)}
    body = [table.found[name] for name in layers if name in table.found]
    together = yield from score(loaded, layers, nll, counts, stage="together")
    sum_kl = math.fsum(fact.kl for fact in body)
    sum_dnll = math.fsum(fact.dnll for fact in body)
    fact = p.Additivity(
        format=str(table.format),
        direction=table.direction,
        layers=len(body),
        kl=together.kl / sum_kl if sum_kl else math.nan,
        dnll=together.dnll / sum_dnll if sum_dnll else math.nan,
        together_kl=together.kl,
        sum_kl=sum_kl,
    )
    whole = loaded.windows.count * loaded.windows.targets
    part = yield from calibration_key(loaded, [table.format], "sequential")
    key = keys.Additivity(
        on=loaded.evaluation,
        recipe=layers,
        scale_dtype=loaded.scale_dtype,
        direction=table.direction,
        fewer=sum(each.tokens for each in body if each.tokens != whole),
        calibration=with_scales(loaded, part, dict.fromkeys(layers, table.format)),
    ).address
    if key in loaded.known([key]):
        yield from counts.found([key], [fact])
    else:
        yield counts.learnt(key, fact)
