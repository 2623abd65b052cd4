"""The pane's tab of group sizes and clipped ranges."""

from __future__ import annotations

import math

import msgspec

from engine import protocol as p
from engine.diagnosis.group_effects import GroupEffect, group_effects
from engine.formats.grammar import Format, parse_format
from engine.report import wording as n
from engine.session import Session
from qtui.views.text import DOUBT, Glyphs, printable, wrapped
from qtui.widgets.line import Words
from qtui.widgets.pane.tab import TabContext

USUAL = "int4-g128"
"""Where no integer format is held or shown."""
NAME = 16
WITH_ERROR = 60
"""Columns from which on the relative error is beside the RMSE."""


def range_lines(context: TabContext) -> list[Words]:
    """Group sizes side by side, then ratios of the range."""
    session, glyphs = context.session, context.glyphs
    found = session.ranges.get(session.layers.names[context.row])
    if found is None or found.format != _format(session, context.row):
        return [[("reading weights" + glyphs.ellipsis, "$dim")]]
    held = session.layers.holds[context.row]
    weights = math.prod(session.layers.shapes[context.row])
    error = context.width >= WITH_ERROR
    titles = f"{'groups':<{NAME}}{'RMSE':>9}" + (f"{'error':>8}" if error else "")
    titles += f"{'bits':>6}{'size':>10}{f'KL{glyphs.kilo}':>11}"
    lines: list[Words] = [[(titles, "$dim")]]
    for each in group_effects(session, found):
        lines.append(_group(each, weights, held, glyphs, error=error))
    said = f"{glyphs.about} estimated, ? filled in from another format by the weight error"
    lines += [[(piece, "$dim")] for piece in wrapped(said, max(20, context.width))]
    best = min(found.clips, key=lambda clip: clip.total)
    head = f"{'range of ' + printable(found.format):<{NAME + 9}}"
    lines += [
        [],
        [(f"{head}{'beyond':>8}{'within':>8}{'both':>8}{'clipped':>10}", "$dim")],
        *(_clip(clip, glyphs, best=clip is best) for clip in found.clips),
    ]
    said = "errors of weights beyond the range, within it, and both, of the weight's norm"
    return [*lines, *([(piece, "$dim")] for piece in wrapped(said, max(20, context.width)))]


def wanted_ranges(session: Session, row: int, format: str = "") -> p.AnyCommand | None:
    """The command for a layer's group sizes and ranges, where they are not there."""
    name, format = session.layers.names[row], _format(session, row)
    found = session.ranges.get(name)
    if found is not None and found.format == format:
        return None
    return p.AskRanges(name, format)


def _format(session: Session, row: int) -> str:
    """The integer format whose groups and ranges are shown: the layer's own, or the usual one."""
    swept = session.settings.sweep_formats
    for text in (session.layers.holds[row], *swept[:1], USUAL):
        fmt = parse_format(text)
        if fmt.family == "integer" and fmt.strategy in ("group", "channel"):
            return str(_plain(fmt))
    return USUAL


def _plain(fmt: Format) -> Format:
    return msgspec.structs.replace(fmt, methods=())


def _group(each: GroupEffect, weights: int, held: str, glyphs: Glyphs, *, error: bool) -> Words:
    group = each.group
    kl = glyphs.unknown
    if not math.isnan(each.kl):
        kl = n.short(1000 * each.kl)
        if not each.measured:
            kl = f"{glyphs.about}{kl}{DOUBT if each.filled else ''}"
    style = "bold $held" if group.format == held else ""
    name = printable(group.format) + (f" {glyphs.changed}" if style else "")
    return [
        (f"{name:<{NAME}}", style),
        (f"{n.short(group.rmse, small=4):>9}", ""),
        (f"{n.percent(group.relative):>8}" if error else "", ""),
        (f"{group.bits / weights:>6.2f}{n.size(group.bits / 8):>10}{kl:>11}", ""),
    ]


def _clip(clip: p.ClipRatio, glyphs: Glyphs, *, best: bool) -> Words:
    errors = "".join(
        f"{n.percent(value):>8}" for value in (clip.clipping, clip.rounding, clip.total)
    )
    mark = "  least" if best else ""
    name = f"{glyphs.times}{clip.ratio:g}".replace("0.", ".")
    return [(f"{name:<{NAME + 9}}{errors}{clip.clipped:>10,}{mark}", "bold" if best else "")]
