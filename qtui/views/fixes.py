"""Fixes of layers as they are shown and taken: which format each is to better, and the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from engine.diagnosis.fixes import LayerFix, best_fix, layer_fixes
from engine.diagnosis.thresholds import thresholds
from engine.errors import FormatError
from engine.formats.alternatives import alternatives
from engine.report import wording as n
from engine.session import Session
from qtui.views.text import DOUBT, Glyphs


class Change(NamedTuple):
    """One layer's best fix."""

    layer: str
    before: str
    """The format that it is to better."""
    fix: LayerFix
    base: LayerFix
    """The layer in the format to better."""


def to_better(session: Session, layer: str, shown: str) -> str:
    """The format whose fixes are asked for: what the layer holds, else the one that is shown.

    Args:
        session: with the layer.
        layer: a name.
        shown: whose effects the table shows; empty for none yet.
    """
    row = session.index[layer]
    held = session.layers.holds[row]
    return held if held != session.kept(row) else shown or session.settings.sweep_formats[0]


def is_tried(session: Session, layer: str, format: str) -> bool:
    """Whether every alternative to a format was tried on a layer, and the best one measured."""
    tried = session.fixes.get(layer, {})
    try:
        wanted = alternatives(format, session.layers.shapes[session.index[layer]])
    except FormatError:
        return True  # it cannot hold the format: there is nothing to better
    if not all(each in tried for each in wanted):
        return False
    fixes, best = fixes_and_best(session, layer, format)
    base = next(fix for fix in fixes if fix.format == format)
    return base.measured and (best is None or best.measured)


def fixes_and_best(
    session: Session, layer: str, format: str
) -> tuple[list[LayerFix], LayerFix | None]:
    """All fixes of a layer, the smallest first, and the best of them."""
    fixes = layer_fixes(session, layer, format)
    return fixes, best_fix(fixes, format, thresholds(session).wins_back)


def changes(session: Session, layers: Sequence[str], shown: str) -> list[Change]:
    """The best fix of each layer that has one and does not hold it yet."""
    found = []
    for layer in layers:
        format = to_better(session, layer, shown)
        fixes, best = fixes_and_best(session, layer, format)
        row = session.index[layer]
        if best is None or (best.format or session.kept(row)) == session.layers.holds[row]:
            continue
        base = next(fix for fix in fixes if fix.format == format)
        found.append(Change(layer, format, best, base))
    return found


def kl_words(fix: LayerFix, glyphs: Glyphs) -> str:
    """KL·10³: plain where measured, marked where estimated, and doubted where filled in."""
    if math.isnan(fix.kl):
        return glyphs.unknown
    if fix.measured:
        return n.short(1000 * fix.kl)
    return f"{glyphs.about}{n.short(1000 * fix.kl)}{DOUBT if fix.filled else ''}"
