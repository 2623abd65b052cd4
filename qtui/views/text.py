"""Text and numbers as they are drawn: glyphs, fitting, bars, short names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from rich.cells import cell_len, set_cell_size

from engine.report.characters import printable as printable
from engine.report.wording import decimals, short

Words: TypeAlias = list[tuple[str, str]]
"""Pieces of text with a style each, such as ``$dim`` or ``bold $error``; never read as markup."""


class Glyphs(NamedTuple):
    """Characters the interface draws with: Unicode, or `PLAIN` where only ASCII is safe."""

    changed: str = "●"
    pending: str = "○"
    finding: str = "▲"
    frontier: str = "◆"
    refused: str = "✗"
    unserved: str = "≠"
    cursor: str = "▌"
    marked: str = "+"
    about: str = "≈"
    plus_minus: str = "±"
    arrow: str = "→"
    sigma: str = "σ"
    unknown: str = "·"
    ellipsis: str = "…"
    times: str = "×"
    rule: str = "─"
    kilo: str = "·10³"
    full: str = "█"
    eighths: str = " ▏▎▍▌▋▊▉"
    rising: str = "▁▂▃▄▅▆▇█"
    bar: str = "━"
    bar_left: str = "─"
    ascii: bool = False


DOUBT = "?"
"""Stands behind an estimate that may not hold."""
BELOW = "<floor"
"""Shown instead of a bar for effects too small to be measured."""

UNICODE = Glyphs()
PLAIN = Glyphs(
    changed="*", pending="o", finding="!", frontier="^", refused="x", unserved="/", cursor=">",
    marked="+", about="~",
    plus_minus="+-", arrow="->", sigma="sd", unknown=".", ellipsis="..", times="x", rule="-",
    kilo="*1e3", full="#", eighths="", rising=".:-=+*%#", bar="#", bar_left=".", ascii=True,
)  # fmt: skip


COERCED = ("C.UTF-8", "C.utf8", "UTF-8")


def only_ascii(environ: Mapping[str, str]) -> bool:
    """Whether the terminal can be trusted with ASCII alone: a locale without UTF-8, a bare console.

    Where nothing is said about a locale, as in most containers, terminals draw UTF-8.
    """
    locales = {key: environ[key] for key in ("LC_ALL", "LC_CTYPE", "LANG") if environ.get(key)}
    if locales.get("LANG") in ("C", "POSIX") and locales.get("LC_CTYPE") in COERCED:
        # Python sets it by itself if the locale is C (PEP 538); the user did not.
        del locales["LC_CTYPE"]
    named = next(iter(locales.values()), "")
    utf8 = not named or "utf" in named.lower()
    return not utf8 or environ.get("TERM") in ("linux", "dumb")


def fit(text: str, width: int, glyphs: Glyphs = UNICODE, *, end: bool = True) -> str:
    """``text`` in exactly ``width`` cells; what is too long loses its end, or its beginning."""
    if width <= 0:
        return ""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    mark = glyphs.ellipsis[:width]
    if end:
        return set_cell_size(text, width - len(mark)) + mark
    room = width - len(mark)
    while text and cell_len(text) > room:
        text = text[max(1, cell_len(text) // 2 - room) if cell_len(text) > 4 * width else 1 :]
    return mark + set_cell_size(text, room)


def wrapped(text: str, room: int) -> list[str]:
    """Words in lines of so many characters; a word that is longer has a line of its own."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines


def listed(items: Sequence[str], room: int) -> list[str]:
    """Items with commas between them, in lines of at most so many cells; no item is broken."""
    lines: list[str] = []
    for at, item in enumerate(items):
        word = item + ("," if at + 1 < len(items) else "")
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= room:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def short_name(name: str, block: int, digits: int = 1) -> str:
    """A layer's name as the table shows it: its block and what follows, or its last part.

    ``model.layers.0.mlp.down_proj`` in block 0 is ``0 mlp.down_proj``.
    """
    if block < 0:
        return f"{'':{digits}} {name.rsplit('.', 1)[-1]}"
    _, found, rest = name.partition(f".{block}.")
    return f"{block:{digits}} {rest if found and rest else name}"


def bar(share: float, width: int, glyphs: Glyphs = UNICODE) -> str:
    """A bar of ``share`` of ``width`` cells, in eighths of a cell; a share above 0 always shows."""
    if not share > 0 or width <= 0:
        return " " * max(width, 0)
    share = min(share, 1.0)
    if glyphs.ascii:
        return (glyphs.full * max(1, round(share * width))).ljust(width)
    whole, eighth = divmod(max(1, round(share * width * 8)), 8)
    return (glyphs.full * whole + (glyphs.eighths[eighth] if eighth else "")).ljust(width)


def sparkline(counts: list[int], width: int, glyphs: Glyphs = UNICODE) -> str:
    """Counts in one line, at most ``width`` cells; heights go with the logarithm."""
    if not counts or width <= 0:
        return ""
    values = [math.log1p(count) for count in rebinned(counts, min(width, len(counts)))]
    top = max(values) or 1.0
    steps = len(glyphs.rising) - 1
    return "".join(
        " " if value == 0 else glyphs.rising[round(value / top * steps)] for value in values
    )


def rebinned(counts: list[int], bins: int) -> list[int]:
    """The same counts in at most ``bins`` bins, each as many of the given ones joined."""
    joined = -(-len(counts) // max(1, bins))
    return [sum(counts[i : i + joined]) for i in range(0, len(counts), joined)]


def signed_change(dppl: float, half: float, glyphs: Glyphs, *, estimated: bool = False) -> str:
    """``+ .088 ± .031``, or ``≈+.088 ± .031``: a change of perplexity and half its interval."""
    if not math.isfinite(dppl):
        return short(dppl)
    spread = half if math.isfinite(half) else 0.0
    fine = max(abs(dppl), spread) < 0.9995
    value = decimals(abs(dppl), 3) if fine else short(abs(dppl))
    sign = "-" if dppl < 0 and value.strip("0.") else "+"
    shown = f"{glyphs.about}{sign}{value}".rjust(6) if estimated else f"{sign}{value:>5}"
    if not math.isfinite(half):
        return shown
    error = decimals(half, 3) if fine else short(half)
    return f"{shown} {glyphs.plus_minus}{error if glyphs.ascii else ' ' + error}"


def ago(seconds: float, *, short: bool = False) -> str:
    """How long something is past: ``5 min ago``, ``2 h ago``, ``3 days ago``; ``short`` is ``3 d``.

    Less than a minute, and what is still to come, is ``now``.
    """
    if not seconds >= 60:
        return "now"
    day = 86400
    spans = (
        (3600, 60, "min", "min"),
        (day, 3600, "h", "h"),
        (14 * day, day, "day", "d"),
        (61 * day, 7 * day, "week", "w"),
        (730 * day, 30.44 * day, "month", "mo"),
    )
    years = (math.inf, 365.25 * day, "year", "y")
    _, step, unit, brief = next((span for span in spans if seconds < span[0]), years)
    number = int(min(seconds, 1e11) // step)
    if short:
        return f"{number} {brief}"
    many = number > 1 and unit not in ("min", "h")
    return f"{number} {unit}{'s' if many else ''} ago"
