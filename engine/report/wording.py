"""Numbers for display in a table or a line: short, with a unit where it helps."""

from __future__ import annotations

import math


def decimals(value: float, places: int) -> str:
    """A number without the zero before its point: ``.088``."""
    shown = f"{abs(value):.{places}f}"
    shown = shown.removeprefix("0") if shown.startswith("0.") else shown
    return f"-{shown}" if value < 0 and shown.strip("0.") else shown


def short(value: float, *, small: int = 2) -> str:
    """A number of at most five characters where possible; ``small`` places below ten.

    A number that would show as zeros only is written with a power of ten: ``3e-4``.
    """
    size = abs(value)
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if 0 < size < 0.5 * 10**-small:
        return f"{value:.0e}".replace("e-0", "e-")
    if size < 9.995:
        return decimals(value, small)
    if size < 99.95:
        return decimals(value, 1)
    if size < 9999.5:
        return f"{value:.0f}"
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def significant(value: float) -> str:
    """A number with three figures and no zero before its point: ``.0412``, ``1.93``, ``3.1e-5``."""
    if not math.isfinite(value):
        return short(value)
    mantissa, e, exponent = f"{value:.3g}".partition("e")
    sign, digits = ("-", mantissa[1:]) if mantissa.startswith("-") else ("", mantissa)
    digits = digits.removeprefix("0") if digits.startswith("0.") else digits
    return f"{sign}{digits}" + (f"e{int(exponent)}" if e else "")


def percent(share: float) -> str:
    """A share as a percentage."""
    if 0 < abs(share) < 5e-5:
        return "<.01%"
    return short(100 * share, small=2 if abs(share) < 0.00995 else 1) + "%"


def bits_more(bits: float) -> str:
    """What a change costs: ``for .34 bits per weight more``; a difference that shows as zero is
    none."""
    if abs(bits) < 0.005:
        return "at the same size"
    return f"for {short(abs(bits))} bits per weight {'more' if bits > 0 else 'less'}"


def perplexity(value: float) -> str:
    """A perplexity, two places below a thousand."""
    if not math.isfinite(value):
        return short(value)
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"


def margin(half: float) -> str:
    """Half an interval of a perplexity: two digits, rarely finer than a hundredth."""
    if not math.isfinite(half):
        return short(half)
    places = 3 if half < 0.0095 else 2 if half < 9.995 else 1 if half < 99.95 else 0
    return decimals(half, places)


def count(number: float) -> str:
    """``16384`` as ``16k``, ``4100000`` as ``4.1M``."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * 0.9995:
            scaled = number / size
            return (
                f"{scaled:.1f}{unit}".replace(".0", "") if scaled < 9.95 else f"{scaled:.0f}{unit}"
            )
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes in a suitable unit: ``2.6 MB``, powers of a thousand; a decrease has its sign."""
    if number < 0:
        return f"-{size(-number)}"
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= step * 0.9995:
            scaled = number / step
            return f"{scaled:.1f} {unit}" if scaled < 99.95 else f"{scaled:.0f} {unit}"
    return f"{number:.0f} B"


def bits_per_weight(body: float, everything: float = 0.0) -> str:
    """``4.16 bits per weight (6.02 with head and embedding)``, where these change it."""
    shown = f"{body:.2f} bits per weight"
    if not everything or f"{body:.2f}" == f"{everything:.2f}":
        return shown
    return f"{shown} ({everything:.2f} with head and embedding)"


def additivity(ratio: float) -> str:
    """The effect of all layers together over the sum of single ones, and what that says."""
    if abs(ratio - 1) <= 0.1:
        says = "effects add up"
    else:
        says = f"together {'more' if ratio > 1 else 'less'} than the sum of single effects"
    return f"additivity {ratio:.2f} ({says})"


def clock(seconds: float) -> str:
    """Seconds as ``0:12`` or ``1:02:03``; empty when not known."""
    if not math.isfinite(seconds) or seconds < 0:
        return ""
    whole = math.ceil(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def counted(number: int, noun: str) -> str:
    """So many of something: `1 prompt`, `2 prompts`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
