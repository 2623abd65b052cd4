"""The pane's tab of errors: what the format held does to a layer's outputs, and where it errs."""

from __future__ import annotations

import math

from engine import protocol as p
from engine.protocol import OUTPUT_ERROR_BOUNDS, OutputError
from engine.report import wording as n
from engine.session import Session
from qtui.views.text import Glyphs, bar, listed, printable, wrapped
from qtui.widgets.line import Words
from qtui.widgets.pane.tab import TabContext, is_running, measures_errors
from qtui.widgets.pane.weight_map import map_lines

LABEL, COUNT = 12, 8
MOST_BAR = 40
"""Cells of a bar at most."""


def error_lines(context: TabContext) -> list[Words]:
    """Errors of the layer's output channels, then the map of its weights' errors."""
    session, row = context.session, context.row
    layers = session.layers
    if layers.holds[row] == session.kept(row):
        return [[("as stored: there is no error until it holds a format", "$dim")]]
    lines = _outputs(context)
    found = session.errors.maps.get(layers.names[row])
    if found is None or found.format != layers.holds[row]:
        return [*lines, [], [("reading weights" + context.glyphs.ellipsis, "$dim")]]
    return [*lines, [], *map_lines(found, context.width, context.glyphs)]


def wanted_map(session: Session, row: int, format: str = "") -> p.AnyCommand | None:
    """The command for the map of a layer that holds a format, where it is not there."""
    del format  # that of the effects shown: the map is of the one held
    layers = session.layers
    held = layers.holds[row]
    found = session.errors.maps.get(layers.names[row])
    if held == session.kept(row) or (found is not None and found.format == held):
        return None
    return p.AskErrorMap(layers.names[row], held)


def _outputs(context: TabContext) -> list[Words]:
    session, row, glyphs = context.session, context.row, context.glyphs
    name, held = session.layers.names[row], session.layers.holds[row]
    found = session.output_error(name, held)
    if found is None:
        said = "outputs not measured yet in this format"
        if is_running(session, measures_errors):
            said = "measuring outputs" + glyphs.ellipsis
        elif session.model is not None:
            said += f": {context.key('errors')} measures the whole recipe"
        return [[(piece, "$dim")] for piece in wrapped(said, max(20, context.width))]
    if found.why:
        said = f"outputs were not compared: {printable(found.why)}"
        return [[(piece, "$dim")] for piece in wrapped(said, max(20, context.width))]
    lines: list[Words] = [
        [
            ("output error ", "$dim"),
            (n.percent(found.relative), "bold"),
            (f"  over {found.tokens:,} tokens", "$dim"),
        ],
        [
            (f"{found.channels:,} channels, above 10% ", "$dim"),
            (f"{found.over_10:,}", "bold $finding" if found.over_10 else "bold"),
            (", above 50% ", "$dim"),
            (f"{found.over_50:,}", "bold $error" if found.over_50 else "bold"),
        ],
    ]
    if found.nonfinite:
        lines.append([(f"{glyphs.finding} {found.nonfinite:,} are not finite", "$error")])
    if found.unseen_experts:
        experts = "1 expert" if found.unseen_experts == 1 else f"{found.unseen_experts} experts"
        said = f"{glyphs.finding} {experts} got no token"
        lines.append([(said, "$finding")])
    return [*lines, [], *_histogram(found, context.width, glyphs), *_worst(found, context)]


def _histogram(found: OutputError, width: int, glyphs: Glyphs) -> list[Words]:
    """Channels by their error, from the first bin that has some to the last."""
    filled = [at for at, count in enumerate(found.counts) if count]
    if not filled:
        return []
    most = max(found.counts)
    room = max(4, min(MOST_BAR, width - LABEL - COUNT - 1))
    lines: list[Words] = [[("channels by their error", "$dim")]]
    for at in range(filled[0], filled[-1] + 1):
        count = found.counts[at]
        tone = "$error" if at > _bound(0.5) else "$finding" if at > _bound(0.1) else "$primary"
        drawn = bar(count / most, room, glyphs)
        lines.append(
            [(f"{_label(at, glyphs):>{LABEL}} ", "$dim"), (drawn, tone), (f"{count:>{COUNT},}", "")]
        )
    return lines


def _bound(share: float) -> int:
    return OUTPUT_ERROR_BOUNDS.index(share)


def _label(at: int, glyphs: Glyphs) -> str:
    """A bin: ``2 - 5%``."""
    if at == 0:
        return f"< {_percent(OUTPUT_ERROR_BOUNDS[0])}%"
    low = _percent(OUTPUT_ERROR_BOUNDS[at - 1])
    if at == len(OUTPUT_ERROR_BOUNDS):
        return f"{low}% <"
    dash = "-" if glyphs.ascii else "–"
    return f"{low} {dash} {_percent(OUTPUT_ERROR_BOUNDS[at])}%"


def _percent(share: float) -> str:
    return f"{100 * share:g}".removeprefix("0")


def _worst(found: OutputError, context: TabContext) -> list[Words]:
    """The worst channels by number; of one expert, those that are its own."""
    experts: list[int | None] = [*found.worst_experts] or [None] * len(found.worst)
    each = [
        (f"{channel}" if expert is None else f"{expert}:{channel}", error)
        for channel, expert, error in zip(found.worst, experts, found.worst_errors, strict=True)
        if context.expert is None or expert == context.expert
    ]
    if not each:
        return []
    title = "worst output channels" + (" (expert:channel)" if found.worst_experts else "")
    said = [
        f"{where} {n.percent(error) if math.isfinite(error) else 'from 0'}" for where, error in each
    ]
    lines: list[Words] = [[], [(title, "$dim")]]
    return lines + [[("  " + piece, "")] for piece in listed(said, max(20, context.width - 2))]
