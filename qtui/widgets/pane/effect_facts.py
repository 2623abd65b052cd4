"""The effects of one layer, a line per format: measured, or estimated and marked so."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from engine.errors import FormatError
from engine.formats.grammar import parse_format
from engine.formats.storage import stored_bits
from engine.protocol import Direction, EffectKey, Estimate, Sensitivity
from engine.report import wording as n
from engine.report.figures import Figure, PaneLine
from engine.report.figures.effects import below_floor, delta_ppl_margin
from engine.report.figures.registry import pane_figures
from engine.session import Session, expected
from qtui.views.text import BELOW, DOUBT, Glyphs, fit, printable, signed_change, wrapped
from qtui.widgets.line import Words

LABEL = 10
"""Cells of a format's name, at least."""


class Effect(NamedTuple):
    """What one layer changed alone does, measured or estimated."""

    format: str
    direction: Direction
    bits: float
    """Stored bits per weight; nan where not known."""
    kl: float
    kl_half: float
    """Half its 95% interval."""
    dppl: float
    dppl_half: float
    measured: bool
    fact: Sensitivity | Estimate
    raw: float = math.nan
    """The KL as estimated, where it is corrected by what was measured; else nan."""
    doubt: str = ""
    """Why an estimate may not hold."""
    below_floor: bool = False
    """Whether what was measured is less than the dtype's arithmetic can tell."""

    @property
    def label(self) -> str:
        """``restore int4-g128`` is told from ``int4-g128``, the effect of that format alone."""
        return self.format if self.direction == "degrade" else f"{self.direction} {self.format}"


@lru_cache(maxsize=4096)
def bits_per_weight(format: str, shape: tuple[int, ...]) -> float:
    """Stored bits per weight of a layer in a format; nan where that is not known."""
    try:
        return stored_bits(parse_format(format), shape) / math.prod(shape)
    except (FormatError, ZeroDivisionError):
        return math.nan


def effects(session: Session, row: int) -> list[Effect]:
    """Measured effects of a layer, and the estimated ones of what is not measured.

    Degrade comes before restore; within each, the fewest bits come first.
    """
    found = []
    for key in session.effects.known():
        effect = session.sensitivity(row, key) or expected(session, row, key)
        if effect is not None:
            found.append(_effect(session, row, effect))
    return sorted(found, key=_place)


def _place(effect: Effect) -> tuple[bool, bool, float, float]:
    unknown = math.isnan(effect.bits)
    bits = 0.0 if unknown else effect.bits
    return effect.direction != "degrade", unknown, bits, -effect.kl


def _effect(session: Session, row: int, effect: Sensitivity | Estimate) -> Effect:
    dppl, half = delta_ppl_margin(session, effect)
    found = Effect(
        effect.format, effect.direction,
        bits_per_weight(effect.format, session.layers.shapes[row]),
        effect.kl, session.interval_factor * effect.kl_se, dppl, half,
        measured=isinstance(effect, Sensitivity), fact=effect,
        below_floor=below_floor(session, effect),
    )  # fmt: skip
    if isinstance(effect, Sensitivity):
        return found
    raw = session.estimate(row, effect.key)
    corrected = raw is not None and raw.kl != effect.kl
    return found._replace(
        doubt=effect.doubt, raw=raw.kl if raw is not None and corrected else math.nan
    )


def delta(glyphs: Glyphs) -> str:
    """Title of a change of perplexity."""
    return "dPPL" if glyphs.ascii else "ΔPPL"


def change(effect: Effect, glyphs: Glyphs) -> str:
    """``+ .088 ± .031``, a change of perplexity; ``≈`` before it where it is estimated."""
    if math.isnan(effect.dppl):
        return ""
    return signed_change(effect.dppl, effect.dppl_half, glyphs, estimated=not effect.measured)


def divergence(effect: Effect, glyphs: Glyphs) -> tuple[str, str]:
    """KL in thousandths of a nat and half its interval: ``8.38`` and ``± .91``.

    ``<floor`` stands in place of the interval of what is too small to be measured.
    """
    kl = n.short(1000 * effect.kl)
    if effect.below_floor:
        return kl, BELOW
    half = n.short(1000 * effect.kl_half) if math.isfinite(effect.kl_half) else "?"
    gap = "" if glyphs.ascii else " "
    return ("" if effect.measured else glyphs.about) + kl, f"{glyphs.plus_minus}{gap}{half}"


def effect_lines(session: Session, row: int, width: int, glyphs: Glyphs) -> list[Words]:
    """The cost of each format, what keeping the layer regains, and explanations of the signs."""
    found = effects(session, row)
    ways = (
        ("effect of", [each for each in found if each.direction == "degrade"]),
        ("regained", [each for each in found if each.direction == "restore"]),
    )
    lines: list[Words] = []
    held = session.layers.holds[row]
    for title, each in ways:
        if each or title == "effect of":
            lines += _table(session, title, each, held, width, glyphs)
    if not found:
        lines.append([("not measured yet", "$dim")])
    return lines + _explained(session, found, width, glyphs)


def _table(
    session: Session, title: str, found: list[Effect], held: str, width: int, glyphs: Glyphs
) -> list[Words]:
    kl = "KL" + glyphs.kilo
    # What there is room for, the most wanted first; the rest is in the table of the layers.
    raw = any(not math.isnan(each.raw) for each in found)
    room = width - LABEL - 1 - 6 - 14 - 15 - 7 * raw
    more = _columns(room)
    room -= sum(pane.width for _, pane in more)
    label = max(LABEL, min(max((len(x.format) for x in found), default=0), LABEL + room))
    head = f"{title:<{label}} {'bit/w':>5} {f'   {kl}':<14}{'raw':>5}  "
    head = head if raw else head[:-7]
    head += f"{delta(glyphs):<15}" + "".join(f"{pane.label:>{pane.width}}" for _, pane in more)
    lines: list[Words] = [[(head, "$dim")]]
    for each in found:
        value, half = divergence(each, glyphs)
        sign = DOUBT if each.doubt else " "
        style = "$dim" if each.below_floor else "bold" if each.measured else ""
        words: Words = [
            (fit(printable(each.format), label, glyphs), here(each.format, held)),
            (f" {'?' if math.isnan(each.bits) else f'{each.bits:.2f}':>5} ", ""),
            (f"{value:>6}", style),
            (sign, "$finding"),
            (f"{half:<7}", style),
        ]
        if raw:
            shown = "" if math.isnan(each.raw) else n.short(1000 * each.raw)
            words.append((f"{shown:>5}  ", "$dim"))
        words.append((f"{change(each, glyphs):<15}", ""))
        for figure, pane in more:
            said = _text(figure, pane, each.fact, session)
            words.append((f"{said:>{pane.width}}", "$dim" if pane.quiet else ""))
        lines.append(words)
    return lines


def _columns(room: int) -> list[tuple[Figure, PaneLine]]:
    """Further figures of an effect that there is room for."""
    found = []
    for figure in pane_figures("effect"):
        if figure.pane is None or figure.pane.width > room:
            break
        room -= figure.pane.width
        found.append((figure, figure.pane))
    return found[::-1]


def _text(figure: Figure, pane: PaneLine, fact: Sensitivity | Estimate, session: Session) -> str:
    value = None if figure.read.value is None else figure.read.value(fact, session)
    return "" if value is None or value != value else (pane.text or figure.quantity.text)(value)


def _explained(session: Session, found: list[Effect], width: int, glyphs: Glyphs) -> list[Words]:
    """What the signs in the table mean: doubts, the floor, a correction."""
    said: list[tuple[str, str]] = []
    doubts: dict[str, list[str]] = {}
    for each in found:
        if each.doubt:
            doubts.setdefault(each.doubt, []).append(each.label)
    for doubt, labels in doubts.items():
        said.append((DOUBT, f"{', '.join(labels)}: {' '.join(doubt.split())}"))
    if any(each.below_floor for each in found) and session.control is not None:
        floor = n.short(1000 * session.control.floor_kl)
        said.append((BELOW, f"below {floor}, which rounding alone can cause: no measurable effect"))
    corrected = [each for each in found if not math.isnan(each.raw)]
    if corrected:
        keys = (EffectKey(each.direction, each.format) for each in corrected)
        layers = max(session.effects.agreement[key].layers for key in keys)
        said.append((glyphs.about, f"corrected by measuring {layers} layers; raw: estimated"))
    lines: list[Words] = []
    for sign, text in said:
        for at, piece in enumerate(wrapped(printable(text), max(20, width - len(sign) - 1))):
            lead = sign if at == 0 else " " * len(sign)
            lines.append([(f"{lead} ", "$finding"), (piece, "$dim")])
    return lines


def here(format: str, held: str) -> str:
    """Style of a format's name: the one that the layer holds stands out."""
    return "bold $held" if format == held else ""
