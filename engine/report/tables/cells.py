"""Figures of a document as table cells; non-finite ones become words."""

from __future__ import annotations

import math

from msgspec import UnsetType

from engine.report import schema as s
from engine.report.wording import perplexity, short

NOT_KNOWN = "-"


def figure(value: s.Number | UnsetType, places: int) -> str:
    """A number with this many decimal places."""
    if isinstance(value, UnsetType):
        return NOT_KNOWN
    if value is None:
        return "not finite"
    return bare(f"{value:.{places}f}") if abs(value) < 1e6 else short(value)


def bare(text: str) -> str:
    """A decimal number without the zero before its point, as the screen writes it."""
    sign = text[:1] if text[:1] in "+-" else ""
    digits = text[len(sign) :]
    if sign == "-" and not digits.strip("0.%"):
        sign = ""  # what is rounded to nothing has no sign
    return sign + digits[1:] if digits.startswith("0.") else text


def bits_per_weight(body: s.Number | UnsetType, everything: s.Number | UnsetType) -> str:
    """Bits per weight of the body, and over every layer where that differs."""
    if isinstance(everything, UnsetType) or everything is None or body is None:
        return f"{figure(body, 2)} per weight"
    if figure(body, 2) == figure(everything, 2):
        return f"{figure(body, 2)} per weight"
    return f"{figure(body, 2)} per weight of the body, {figure(everything, 2)} of all layers"


def thousandth(value: s.Number) -> str:
    """A number of nats, in thousandths."""
    return figure(None if value is None else value * 1000, 3)


def share(value: s.Number) -> str:
    """A share as a percentage."""
    if value is None:
        return "not finite"
    return bare(f"{100 * value:.{1 if abs(value) >= 0.0995 else 2}f}%")


def ppl(value: s.Number) -> str:
    """A perplexity."""
    return "not finite" if value is None else perplexity(value)


def order(value: s.Number) -> float:
    """Sort key: a value that is not finite comes first, as the worst."""
    return math.inf if value is None else value
