"""The pane's tab of fixes: a layer in every format that was tried on it."""

from __future__ import annotations

import math

from engine import protocol as p
from engine.diagnosis.fixes import LayerFix, verdict_of
from engine.formats.kernels import kernel_named
from engine.report import wording as n
from engine.session import Session
from qtui.views.fixes import fixes_and_best, is_tried, kl_words, to_better
from qtui.views.text import Glyphs, fit, printable, wrapped
from qtui.widgets.line import Words
from qtui.widgets.pane.tab import TabContext, is_running

NAME, MOST_NAME = 16, 30
"""Columns of a format's name and the mark before it, at least and at most."""
FIGURES = (("KL{kilo}", 9), ("output", 8), ("bits", 7), ("won", 7))
"""Columns of figures, each with its width."""
LEAST_WON = -9.99
"""A share won back below which it says nothing more."""
KERNELS = 30
"""Columns from which on kernels are beside the figures."""


def fix_lines(context: TabContext) -> list[Words]:
    """The best fix in words, then all of them, the smallest first."""
    session, glyphs = context.session, context.glyphs
    layer = session.layers.names[context.row]
    format = to_better(session, layer, context.shown.format)
    lines = _state(session, layer, format, context)
    if layer not in session.fixes:
        return lines
    fixes, best = fixes_and_best(session, layer, format)
    if best is not None:
        lines += _best(session, context.row, best, context.width, glyphs)
    figures = sum(width for _, width in FIGURES)
    name = max(NAME, min(MOST_NAME, context.width - figures))
    beside = context.width - name - figures >= KERNELS
    titles = "".join(f"{title.format(kilo=glyphs.kilo):>{width}}" for title, width in FIGURES)
    lines.append([(f"{'  format':<{name}}{titles}{'  verdict' if beside else ''}", "$dim")])
    for fix in fixes:
        if not fix.refused:
            lines.append(_row(session, context.row, fix, format, best, name, beside, context))
    for fix in fixes:
        if fix.refused:
            said = f"not {printable(fix.format)}: {printable(fix.refused)}"
            lines += [[(piece, "$dim")] for piece in wrapped(said, max(20, context.width))]
    marks = f"{glyphs.changed} held, " + (f"{glyphs.frontier} best, " if best is not None else "")
    legend = f"{marks}{glyphs.about} estimated, ? filled in from another format by the output error"
    return [*lines, *([(piece, "$dim")] for piece in wrapped(legend, max(20, context.width)))]


def wanted_fixes(session: Session, row: int, format: str) -> p.AnyCommand | None:
    """The command for what any run tried on a layer before, where not all of it is there."""
    layer = session.layers.names[row]
    better = to_better(session, layer, format)
    if session.model is None or is_tried(session, layer, better):
        return None
    return p.AskFixes((layer,), better)


def _state(session: Session, layer: str, format: str, context: TabContext) -> list[Words]:
    """Which format is to be bettered, and how to try more."""
    key = context.key("fixes")
    said = f"instead of {printable(format)}"
    if _is_trying(session, layer):
        said += ": trying, the quick ones first"
    elif layer not in session.fixes:
        said = f"nothing was tried {said} yet: {key} tries everything"
    elif not is_tried(session, layer, format):
        said += f": not all were tried, {key} goes on"
    else:
        said += f": {key} takes one"
    return [[(piece, "$dim")] for piece in wrapped(said, max(20, context.width))]


def _is_trying(session: Session, layer: str) -> bool:
    """Whether a running job tries fixes of a layer; one that names no layers may reach it."""
    return is_running(
        session,
        lambda command: (
            isinstance(command, p.TryFixes) and (not command.layers or layer in command.layers)
        ),
    )


def _best(session: Session, row: int, best: LayerFix, width: int, glyphs: Glyphs) -> list[Words]:
    name = best.format or session.kept(row)
    kernels = ", ".join(kernel_named(each).title for each in best.kernels) or "no kernel"
    about = "" if best.measured else glyphs.about
    won = f"wins back {about}{best.recovered:.0%}, runs on: {kernels}"
    first: Words = [("best ", "$dim"), (printable(name), "bold $held")]
    return [first, *([(f"  {piece}", "")] for piece in wrapped(won, max(20, width - 2)))]


def _row(
    session: Session,
    row: int,
    fix: LayerFix,
    format: str,
    best: LayerFix | None,
    name: int,
    beside: bool,
    context: TabContext,
) -> Words:
    glyphs = context.glyphs
    weights = math.prod(session.layers.shapes[row])
    shown = printable(fix.format or session.kept(row))
    held = session.layers.holds[row] == (fix.format or session.kept(row))
    chosen = best is not None and fix.format == best.format
    style = "bold" if chosen else "" if fix.better is None else "$dim"
    won = glyphs.unknown
    if not math.isnan(fix.recovered) and fix.format != format:
        won = f"{fix.recovered:.0%}" if fix.recovered > LEAST_WON else "worse"
    figures = (
        kl_words(fix, glyphs),
        glyphs.unknown if math.isnan(fix.output_error) else n.percent(fix.output_error),
        f"{fix.bits / weights:.2f}",
        won,
    )
    mark = glyphs.changed if held else glyphs.frontier if chosen else " "
    words: Words = [
        (fit(f"{mark} {shown}", name, glyphs), "bold $held" if held else style),
        *((f"{text:>{width}}", style) for text, (_, width) in zip(figures, FIGURES, strict=True)),
    ]
    if beside:
        room = context.width - name - sum(width for _, width in FIGURES) - 2
        said = verdict_of(fix, format, best)
        if fix.kernels and fix.format and fix.better is None:
            said += f" ({', '.join(fix.kernels)})"
        words.append(("  " + fit(printable(said), room, glyphs), "$dim"))
    return words
