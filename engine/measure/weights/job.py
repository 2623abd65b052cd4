"""Jobs on weights alone: triage, a layer's histogram, its experts, its groups and ranges."""

from __future__ import annotations

import time

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.formats.grammar import parse_built, parse_format
from engine.recipes.changes import canonical
from engine.service.jobs import Context, JobSpec, Outcome, Steps
from engine.session import Session
from engine.workspace import Loaded, Opened, Workspace, needs


def _triage_accepted(context: Context[Workspace], command: p.Triage) -> p.Triage:
    formats = canonical(command.formats or context.session.settings.formats, alone=True)
    return msgspec.structs.replace(command, formats=formats)


def _triage(context: Context[Workspace], command: p.Triage) -> Steps:
    from engine.measure.weights.triage import triage

    begun = time.perf_counter()
    read = yield from triage(context.workspace.need(Opened), command.formats, context.job)
    if not command.activations:
        return msgspec.structs.replace(read, timings=read.timings | _since(begun))
    from engine.measure.activations.gather import activations
    from engine.measure.counts import JobCounts

    counts = JobCounts(job=context.job)
    yield from activations(context.workspace.need(Loaded), counts)
    return Outcome(
        measured=read.measured + counts.measured,
        resumed=read.resumed + counts.known,
        timings=read.timings | counts.timings | _since(begun),
    )


def _since(begun: float) -> dict[str, float]:
    """Seconds that a whole job took, without loading."""
    return {"total_s": time.perf_counter() - begun}


TRIAGE = JobSpec(
    command=p.Triage,
    kind="triage",
    title=lambda command: " ".join(
        ["activations and triage" if command.activations else "triage", *command.formats]
    ),
    needs=lambda command: "model" if command.activations else "checkpoint",
    lane="compute",
    urgency=2,
    accept=_triage_accepted,
    memory=needs.of_either(lambda command: command.activations, needs.of_passes(layers=0)),
    steps=_triage,
)


def _row(session: Session, layer: str) -> int:
    row = session.row(layer)
    if row is None:
        raise UsageError(f"the checkpoint has no layer {layer!r}")
    return row


def _histogram_accepted(context: Context[Workspace], command: p.AskHistogram) -> p.AskHistogram:
    _row(context.session, command.layer)
    if command.bins < 1:
        raise UsageError(f"a histogram needs at least one bin, not {command.bins}")
    if command.format in ("", "kept"):
        return command
    return msgspec.structs.replace(command, format=str(parse_format(command.format)))


def _histogram(context: Context[Workspace], command: p.AskHistogram) -> Steps:
    from engine.measure.weights.histogram import draw_histogram

    opened = context.workspace.need(Opened)
    layer = opened.row(command.layer)
    return (yield from draw_histogram(opened, layer, command.bins, command.format))


HISTOGRAM = JobSpec(
    command=p.AskHistogram,
    kind="histogram",
    title=lambda command: f"histogram of {command.layer}",
    needs="checkpoint",
    lane="questions",
    urgency=0,
    newest_first=True,  # the layer under the cursor is drawn first
    announced="never",
    accept=_histogram_accepted,
    steps=_histogram,
)


def _experts_accepted(context: Context[Workspace], command: p.AskExperts) -> p.AskExperts:
    session = context.session
    row = _row(session, command.layer)
    if session.layers.roles[row] != "experts":
        shape = list(session.layers.shapes[row])
        raise UsageError(f"{command.layer} has no experts: it is one weight of shape {shape}")
    return command


def _experts(context: Context[Workspace], command: p.AskExperts) -> Steps:
    from engine.measure.weights.experts import survey_experts

    opened = context.workspace.need(Opened)
    return (yield from survey_experts(opened, opened.row(command.layer)))


EXPERTS = JobSpec(
    command=p.AskExperts,
    kind="experts",
    title=lambda command: f"experts of {command.layer}",
    needs="checkpoint",
    lane="questions",
    urgency=1,
    announced="never",
    repeated="join",  # every client receives the answer
    accept=_experts_accepted,
    steps=_experts,
)


def _ranges_accepted(context: Context[Workspace], command: p.AskRanges) -> p.AskRanges:
    _row(context.session, command.layer)
    fmt = parse_built(command.format)
    if fmt.family != "integer" or fmt.strategy == "tensor":
        raise UsageError(
            f"{fmt} has no groups to vary: ask with an integer format by groups or channels"
        )
    plain = msgspec.structs.replace(fmt, methods=())
    return msgspec.structs.replace(command, format=str(plain))


def _ranges(context: Context[Workspace], command: p.AskRanges) -> Steps:
    from engine.measure.weights.ranges import layer_ranges

    opened = context.workspace.need(Opened)
    return (yield from layer_ranges(opened, opened.row(command.layer), command.format))


RANGES = JobSpec(
    command=p.AskRanges,
    kind="ranges",
    title=lambda command: f"groups and ranges of {command.layer}",
    needs="checkpoint",
    lane="questions",
    urgency=0,
    newest_first=True,
    announced="never",
    repeated="join",
    accept=_ranges_accepted,
    steps=_ranges,
)
