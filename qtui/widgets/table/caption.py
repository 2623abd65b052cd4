"""The line above the table: the filter, what is swept, how well estimates agree."""

from __future__ import annotations

import math

from engine.diagnosis.thresholds import thresholds
from engine.protocol import Direction, EffectKey
from engine.report.figures.effects import finding
from engine.report.wording import decimals
from engine.session import Session, correction
from qtui.views.text import Glyphs, printable
from qtui.widgets.line import Words, cells

MOST_COUNTED = 20_000
"""Layers whose findings are counted at every repaint."""


def caption(
    session: Session,
    format: str,
    direction: Direction,
    filter: str,
    width: int,
    glyphs: Glyphs,
    *,
    ranked: bool = True,
    target: str = "",
) -> Words:
    """What stands above the table, the most important first; what has no room is left out.

    Args:
        session: what is known.
        format: whose effects are shown.
        direction: which effects are shown.
        filter: what is said of the filter; empty without one.
        width: cells there are.
        glyphs: what to draw with.
        target: what the export target cannot hold; empty without one.
        ranked: whether rows are sorted by effects yet; until then, how many layers have findings.
    """
    pieces: list[tuple[str, ...]] = []
    if filter:
        pieces.append((filter,))
    if target:
        pieces.append((target,))
    if format and session.layers.names:
        if not ranked:
            pieces.append(_findings(session, glyphs))
        pieces.append(_sweep_text(format, direction))
        pieces.append(_agreement(session, format, direction, glyphs))
    words: Words = []
    for piece in pieces:
        for text in piece:
            between = f" {glyphs.rule} " if words else " "
            if cells(words) + len(between) + len(text) + 1 <= width or (filter and not words):
                style = "bold $held" if text is filter else "$dim"
                words += [(between, "$panel"), (text, style)]
                break
    return [*words, (" ", "")] if words else []


def _findings(session: Session, glyphs: Glyphs) -> tuple[str, ...]:
    """How many layers triage found something in, while nothing better is known."""
    weights = session.layers.weights
    if len(weights) > MOST_COUNTED:
        return ()
    limits = thresholds(session)
    number = sum(finding(known, limits) for known in weights)
    layers = "layer has" if number == 1 else "layers have"
    return (f"{glyphs.finding} {number} {layers} findings",) if number else ()


def _sweep_text(format: str, direction: Direction) -> tuple[str, ...]:
    """What was done to a layer, in a few words and in fewer."""
    shown = printable(format)
    if direction == "degrade":
        return f"each layer alone in {shown}", f"each in {shown}"
    return (
        f"restore: all layers in {shown}, each kept in turn", f"restore: each kept from {shown}",
    )  # fmt: skip


def _agreement(
    session: Session, format: str, direction: Direction, glyphs: Glyphs
) -> tuple[str, ...]:
    """How well estimates and measurements agree so far, in words and in fewer."""
    found = session.effects.agreement.get(EffectKey(direction, format))
    if found is None or not math.isfinite(found.rank_kl):
        return ()
    layers = "1 layer" if found.layers == 1 else f"{found.layers} layers"
    rank = decimals(found.rank_kl, 2)
    said = f"estimates: rank correlation {rank} over {layers}"
    few = f"estimates: rank {rank} over {found.layers}"
    least = f"rank {rank} over {found.layers}"
    if not math.isfinite(found.ratio):
        return said, few, least
    ratio = f"{said}, measured/estimated {decimals(found.ratio, 2)}"
    if correction(session, found.key) is not None and _any_left(session, found.key):
        return f"{ratio}, the rest corrected", ratio, said, few, least
    return ratio, said, few, least


def _any_left(session: Session, key: EffectKey) -> bool:
    """Whether a layer is estimated that was not measured."""
    none = [None] * len(session.layers.names)
    effects = session.effects
    pairs = zip(effects.estimated.get(key, none), effects.measured.get(key, none), strict=True)
    return any(guess is not None and known is None for guess, known in pairs)
