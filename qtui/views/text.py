"""Words and figures as they are drawn: foreign text made harmless, numbers made short."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size


class Glyphs(NamedTuple):
    """Characters the interface draws with: Unicode, or `PLAIN` where only ASCII is safe."""

    changed: str = "●"
    pending: str = "○"
    finding: str = "▲"
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


UNICODE = Glyphs()
PLAIN = Glyphs(
    changed="*", pending="o", finding="!", cursor=">", marked="+", about="~", plus_minus="+-",
    arrow="->", sigma="sd", unknown=".", ellipsis="..", times="x", rule="-", kilo="*1e3", full="#",
    eighths="", rising=".:-=+*%#", bar="#", bar_left=".", ascii=True,
)  # fmt: skip


COERCED = ("C.UTF-8", "C.utf8", "UTF-8")


def only_ascii(environ: Mapping[str, str]) -> bool:
    """Whether the terminal can be trusted with ASCII alone: a locale without UTF-8, a bare console.

    Where nothing is said about a locale, as in most containers, terminals draw UTF-8.
    """
    told = {key: environ[key] for key in ("LC_ALL", "LC_CTYPE", "LANG") if environ.get(key)}
    if told.get("LANG") in ("C", "POSIX") and told.get("LC_CTYPE") in COERCED:
        # Python sets it so by itself where the locale is C (PEP 538): nobody said it.
        del told["LC_CTYPE"]
    named = next(iter(told.values()), "")
    utf8 = not named or "utf" in named.lower()
    return not utf8 or environ.get("TERM") in ("linux", "dumb")


@lru_cache(maxsize=8192)
def printable(text: str) -> str:
    """Text from a checkpoint with everything that could steer a terminal written out.

    Control characters, line and paragraph separators, marks that reverse the direction of writing,
    lone surrogates and unassigned code points become ``\\x1b`` and the like; combining marks that
    could pile up on what stands before them are written out too. Markup needs no escaping: nothing
    drawn here is ever read as markup.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char
        if unicodedata.category(char)[0] not in "CM"
        and unicodedata.category(char) not in ("Zl", "Zp")
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


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


def decimals(value: float, places: int) -> str:
    """A number without the zero before its point: ``.088``."""
    shown = f"{abs(value):.{places}f}"
    shown = shown.removeprefix("0") if shown.startswith("0.") else shown
    return f"-{shown}" if value < 0 and shown.strip("0.") else shown


def short(value: float, *, small: int = 2) -> str:
    """A number of at most five characters where possible; ``small`` places below ten.

    What would be nothing but zeros in so many places is told by its power of ten: ``3e-4``.
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


def percent(share: float) -> str:
    """A share as a percentage."""
    if 0 < abs(share) < 5e-5:
        return "<.01%"
    return short(100 * share, small=2 if abs(share) < 0.00995 else 1) + "%"


def instead(holds: str) -> str:
    """What a layer does that cannot hold a format: it holds another, or is kept."""
    return f"holds {printable(holds)}" if holds else "is kept"


def perplexity(value: float) -> str:
    """A perplexity, two places below a thousand."""
    if not math.isfinite(value):
        return short(value)
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"


def margin(half: float) -> str:
    """Half an interval of a perplexity: two figures, not finer than a hundredth by much."""
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
    """Bytes in a unit that reads well: ``2.6 MB``, powers of a thousand."""
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= step * 0.9995:
            scaled = number / step
            return f"{scaled:.1f} {unit}" if scaled < 99.95 else f"{scaled:.0f} {unit}"
    return f"{number:.0f} B"


def clock(seconds: float) -> str:
    """Seconds as ``0:12`` or ``1:02:03``; empty when not known."""
    if not math.isfinite(seconds) or seconds < 0:
        return ""
    whole = math.ceil(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
