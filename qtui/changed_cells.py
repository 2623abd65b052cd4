"""What a terminal shows, cell by cell, so that only cells that change are sent.

Textual sends every line of a widget that was refreshed, and the whole screen when one is pushed or
removed. Over a slow line that is what a person waits for: a screen of 80 × 24 is 8 kB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from rich.cells import get_character_cell_size

Piece: TypeAlias = tuple[int, int, Sequence[tuple[str, str]]]
"""Line, column, and texts with their SGR codes (``1;38;2;255;0;0``; empty for none)."""

UNKNOWN = "\0"
"""A cell of which nobody knows what it shows."""
BRIDGE = 4
"""Unchanged cells that are sent again where moving the cursor over them takes more bytes."""
DRAWN_ON_BLANKS = frozenset({"4", "7", "9", "21", "51", "52", "53"})
"""Attributes that are seen on a space as well: underlined, reversed, struck through, framed."""


class Pen(NamedTuple):
    """What SGR codes set."""

    attributes: frozenset[str] = frozenset()
    color: str = ""
    background: str = ""


NO_PEN = Pen()


class Row:
    """One line: a character and its style for each cell.

    The second cell of a wide character is empty; a combining one shares the cell before it.
    """

    def __init__(self, width: int) -> None:
        self.texts = [UNKNOWN] * width
        self.styles = [""] * width
        self.uneven = False
        """Whether it has characters of another width than one cell, of which terminals disagree:
        such a row is sent whole."""


class Picture:
    """What the terminal shows; makes the shortest output that turns it into what it should show."""

    def __init__(self) -> None:
        self.size = 0, 0
        """Columns and lines; 0 while nothing is known of it."""
        self._rows: list[Row] = []

    def forget(self) -> None:
        """Nobody knows what the terminal shows: send everything again."""
        self._rows = []
        self.size = 0, 0

    def changes(self, size: tuple[int, int], pieces: Iterable[Piece]) -> str:
        """Output that shows these pieces, and the cursor somewhere; empty where nothing changes.

        Args:
            size: columns and lines of the terminal; everything is sent again if it is another one.
            pieces: what to show; whatever lies outside the terminal is cut off.
        """
        if size != self.size:
            self.size = size
            self._rows = [Row(size[0]) for _ in range(size[1])]
        drawn: dict[int, Row] = {}
        for y, x, texts in pieces:
            if 0 <= y < size[1]:
                _draw(drawn.setdefault(y, _copy(self._rows[y])), x, texts)
        pen, output = NO_PEN, list[str]()
        for y, row in sorted(drawn.items()):
            pen = _send(output, y, self._rows[y], row, pen)
            self._rows[y] = row
        if pen != NO_PEN:
            output.append("\x1b[m")
        return "".join(output)


def _copy(row: Row) -> Row:
    copied = Row(0)
    copied.texts, copied.styles, copied.uneven = row.texts[:], row.styles[:], row.uneven
    return copied


def _draw(row: Row, x: int, texts: Sequence[tuple[str, str]]) -> None:
    """Write texts into a row, from a column on."""
    width = len(row.texts)
    if row.uneven and row.texts[x : x + 1] == [""]:
        row.texts[x - 1] = " "  # half of a wide character was there
    for text, style in texts:
        cells = text if text.isascii() else _cells(text)
        row.uneven |= cells is not text and any(len(cell) != 1 for cell in cells)
        room = max(0, width - x)
        row.texts[x : x + len(cells)] = cells[:room]
        row.styles[x : x + len(cells)] = [style] * min(len(cells), room)
        x += len(cells)
    if row.uneven and row.texts[x : x + 1] == [""]:
        row.texts[x] = " "


@lru_cache(4096)
def _cells(text: str) -> tuple[str, ...]:
    """The characters of a text by cells."""
    found: list[str] = []
    for character in text:
        size = get_character_cell_size(character)
        if size:
            found += [character, *[""] * (size - 1)]
        elif found:
            found[-1] += character
    return tuple(found)


def _send(output: list[str], y: int, before: Row, after: Row, pen: Pen) -> Pen:
    """Append what turns a row into another; return the style that the terminal is left in."""
    if before.texts == after.texts and before.styles == after.styles:
        return pen
    if after.uneven:
        after.uneven = any(len(text) != 1 for text in after.texts)
    runs = [(0, len(after.texts))] if before.uneven or after.uneven else _runs(before, after)
    at = -1
    for start, end in runs:
        if 0 <= at < start:
            output.append(f"\x1b[{start - at}C")
        elif at != start:
            output.append(f"\x1b[{y + 1};{start + 1}H")
        for text, style in zip(after.texts[start:end], after.styles[start:end], strict=True):
            wanted = _pen(style)
            if wanted != pen and not (text == " " and _alike(pen, wanted)):
                output.append(_change(pen, wanted))
                pen = wanted
            output.append(" " if text == UNKNOWN else text)
        at = end
    return pen


def _runs(before: Row, after: Row) -> list[tuple[int, int]]:
    """Columns between which a row changes; runs that are close are one."""
    runs: list[tuple[int, int]] = []
    cells = zip(before.texts, after.texts, before.styles, after.styles, strict=True)
    for x, (old, new, old_style, new_style) in enumerate(cells):
        if old == new and (
            old_style == new_style or (new == " " and _alike(_pen(old_style), _pen(new_style)))
        ):
            continue
        if runs and x - runs[-1][1] <= BRIDGE:
            runs[-1] = runs[-1][0], x + 1
        else:
            runs.append((x, x + 1))
    return runs


def _alike(one: Pen, other: Pen) -> bool:
    """Whether a space looks the same with both pens."""
    return (
        one.background == other.background
        and not (one.attributes | other.attributes) & DRAWN_ON_BLANKS
    )


@lru_cache(4096)
def _pen(style: str) -> Pen:
    """What SGR codes set after a reset."""
    color, background, attributes = "", "", set[str]()
    codes = [code for code in style.split(";") if code]
    while codes:
        code = codes.pop(0)
        number = int(code)
        if number in (38, 48):
            count = 4 if codes[0] == "2" else 2
            code, codes = ";".join([code, *codes[:count]]), codes[count:]
        if number in (38, 39) or 30 <= number <= 37 or 90 <= number <= 97:
            color = code.removeprefix("39")
        elif number in (48, 49) or 40 <= number <= 47 or 100 <= number <= 107:
            background = code.removeprefix("49")
        else:
            attributes.add(code)
    return Pen(frozenset(attributes), color, background)


@lru_cache(4096)
def _change(before: Pen, after: Pen) -> str:
    """The shortest sequence from one style to another."""
    whole = [*sorted(after.attributes), after.color, after.background]
    anew = "\x1b[" + ";".join(["0", *(code for code in whole if code)]) + "m"
    if after == NO_PEN:
        return "\x1b[m"
    if not before.attributes <= after.attributes:
        return anew
    codes = sorted(after.attributes - before.attributes)
    if before.color != after.color:
        codes.append(after.color or "39")
    if before.background != after.background:
        codes.append(after.background or "49")
    return min(anew, f"\x1b[{';'.join(codes)}m", key=len)
