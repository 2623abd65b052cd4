"""A screen as SVG whose text is text: it can be selected, searched, and read with no font of ours.

Textual's own screenshot, made by Rich, is a picture of a window: it fetches a web font when it is
viewed, and writes every space as a no-break space, so that a command copied from it does not run.
Here a line is one ``<text>`` of plain characters, which any font can show: every run of
one style, and every word behind a gap, begins where it stood on the screen and is as wide, so that
columns line up in a proportional font too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import msgspec
from rich.cells import cell_len
from rich.color import Color
from rich.style import Style
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, TerminalTheme

from qtui.textual_internals import rendered_strips

FONT = "monospace"
"""Alone: a viewer that lacks the first of several names may take a proportional font for it."""
SIZE, CELL, LEADING = 14.0, 8.43, 17.0
"""Height of the letters, width of a cell (0.602 of it, as most monospaced fonts have) and distance
between two lines, in pixels."""
MARGIN = 12.0
_GAPS = re.compile(" {2,}|(?:(?! {2}).)+", re.DOTALL)
"""Gaps of two spaces and more, and the text between them."""
_NOT_XML = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Palette(msgspec.Struct, frozen=True):
    """Colours of a picture, ``#rrggbb``."""

    background: str
    foreground: str
    dim: str
    accent: str


PAPER = Palette("#ffffff", "#1a1a1a", "#707070", "#1f6fb2")


class Run(msgspec.Struct, frozen=True):
    """Characters in one style; an empty colour is the picture's own."""

    text: str
    foreground: str = ""
    background: str = ""
    bold: bool = False
    italic: bool = False
    underline: bool = False
    strike: bool = False


Line = tuple[Run, ...]


def screen_lines(app: Any) -> tuple[Line, ...]:
    """The lines a Textual app shows, top to bottom.

    Args:
        app: a running `textual.app.App`.
    """
    width = app.size.width
    theme = getattr(app, "ansi_theme", None) or DEFAULT_TERMINAL_THEME
    strips = rendered_strips(app.screen)
    return tuple(
        lined(((segment.text, segment.style) for segment in strip.crop(0, width)), theme)
        for strip in strips
    )


def lined(
    pieces: Iterable[tuple[str, Style | None]], theme: TerminalTheme = DEFAULT_TERMINAL_THEME
) -> Line:
    """Pieces of text in Rich's styles as one line; neighbours that look the same are joined."""
    runs: list[Run] = []
    for text, style in pieces:
        if not text:
            continue
        run = _run(text, style or Style.null(), theme)
        if runs and _alike(runs[-1], run):
            runs[-1] = msgspec.structs.replace(runs[-1], text=runs[-1].text + text)
        else:
            runs.append(run)
    return tuple(runs)


def plain_lines(text: str) -> tuple[Line, ...]:
    """Text with no colours of its own."""
    return tuple((Run(line),) if line else () for line in text.split("\n"))


def text_of(lines: Sequence[Line]) -> str:
    """The characters alone, without spaces at the ends of lines."""
    return "\n".join("".join(run.text for run in line).rstrip() for line in lines)


def screen_svg(lines: Sequence[Line], *, title: str, command: str, palette: Palette = PAPER) -> str:
    """A document with one ``<text>`` a line, and below them the command in small letters.

    Args:
        lines: from top to bottom.
        title: what it shows; viewers say it where the mouse rests.
        command: what reproduces it; written in full to ``<desc>``.
        palette: colours of whatever has none.
    """
    columns = max([*(sum(cell_len(run.text) for run in line) for line in lines), 40])
    width = columns * CELL + 2 * MARGIN
    small = SIZE * 0.75
    said = folded(command, int((width - 2 * MARGIN) / (CELL * 0.75)))
    foot = MARGIN + len(lines) * LEADING
    height = foot + (len(said) + 0.5) * small * 1.35 + MARGIN
    parts = [opening(width, height, title, command, palette)]
    for number, line in enumerate(lines):
        parts += _line(line, MARGIN + number * LEADING, palette)
    parts += caption(said, MARGIN, foot + 1.5 * small, small, palette)
    return "\n".join([*parts, "</svg>", ""])


def opening(width: float, height: float, title: str, command: str, palette: Palette) -> str:
    """The head of a document: its size, what it is, its font and its ground."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_px(width)}" height="{_px(height)}" '
        f'viewBox="0 0 {_px(width)} {_px(height)}" font-family={quoteattr(FONT)} '
        f'font-size="{_px(SIZE)}">\n'
        f"<title>{written(title)}</title>\n<desc>{written(command)}</desc>\n"
        f'<rect width="100%" height="100%" fill="{palette.background}"/>'
    )


def caption(
    said: Sequence[str], left: float, top: float, size: float, palette: Palette
) -> list[str]:
    """Small lines in a quiet colour."""
    return [
        f'<text class="caption" xml:space="preserve" x="{_px(left)}" '
        f'y="{_px(top + number * size * 1.35)}" font-size="{_px(size)}" fill="{palette.dim}">'
        f"{written(line)}</text>"
        for number, line in enumerate(said)
    ]


def folded(command: str, width: int) -> list[str]:
    """A command in lines that a shell reads as one: broken between words, with a backslash."""
    words = re.findall(r"""(?:\$'(?:\\.|[^'\\])*'|'[^']*'|"[^"]*"|\S)+""", command)
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) + 2 <= max(width, 20):
            lines[-1] += f" {word}"
        else:
            lines.append(("  " if lines else "") + word)
    return [line + " \\" for line in lines[:-1]] + lines[-1:]


def written(text: str) -> str:
    """Text as XML holds it: escaped, and without the characters XML has no way to write."""
    return escape(_NOT_XML.sub("\ufffd", text))


def _line(line: Line, top: float, palette: Palette) -> list[str]:
    grounds, spans, column = [], [], 0
    for run in line:
        cells = cell_len(run.text)
        left, wide = MARGIN + column * CELL, cells * CELL
        column += cells
        if run.background and run.background != palette.background:
            grounds.append(
                f'<rect x="{_px(left)}" y="{_px(top)}" width="{_px(wide)}" '
                f'height="{_px(LEADING + 0.3)}" fill="{run.background}"/>'
            )
        for found in _GAPS.finditer(run.text):
            here = left + cell_len(run.text[: found.start()]) * CELL
            spans.append(
                f'<tspan x="{_px(here)}" textLength="{_px(cell_len(found[0]) * CELL)}" '
                f'lengthAdjust="spacingAndGlyphs"{_style(run, palette)}>{written(found[0])}</tspan>'
            )
    if not spans:
        return grounds
    text = f'<text xml:space="preserve" y="{_px(top + LEADING * 0.76)}">{"".join(spans)}</text>'
    return [*grounds, text]


def _style(run: Run, palette: Palette) -> str:
    style = f' fill="{run.foreground or palette.foreground}"'
    if run.bold:
        style += ' font-weight="bold"'
    if run.italic:
        style += ' font-style="italic"'
    lines = [
        name for name, on in (("underline", run.underline), ("line-through", run.strike)) if on
    ]
    return style + (f' text-decoration="{" ".join(lines)}"' if lines else "")


def _run(text: str, style: Style, theme: TerminalTheme) -> Run:
    front, back = _hex(style.color, theme, front=True), _hex(style.bgcolor, theme, front=False)
    if style.reverse:
        front, back = (
            back or _triplet(theme.background_color),
            front or _triplet(theme.foreground_color),
        )
    if style.dim:
        front = _between(
            front or _triplet(theme.foreground_color), back or _triplet(theme.background_color)
        )
    return Run(
        text, front, back, bool(style.bold), bool(style.italic), bool(style.underline),
        bool(style.strike),
    )  # fmt: skip


def _alike(left: Run, right: Run) -> bool:
    """Whether two neighbours can be one: spaces have no colour of their own."""
    if left.background != right.background or (left.underline, left.strike) != (
        right.underline,
        right.strike,
    ):
        return False
    same = (left.foreground, left.bold, left.italic) == (
        right.foreground,
        right.bold,
        right.italic,
    )
    return same or not (right.text.strip() or right.underline or right.strike)


def _hex(color: Color | None, theme: TerminalTheme, *, front: bool) -> str:
    if color is None or color.is_default:
        return ""
    return _triplet(color.get_truecolor(theme, foreground=front))


def _triplet(color: Sequence[int]) -> str:
    red, green, blue = color
    return f"#{red:02x}{green:02x}{blue:02x}"


def _between(front: str, back: str) -> str:
    pairs = zip(bytes.fromhex(front[1:]), bytes.fromhex(back[1:]), strict=True)
    return _triplet([(one + other) // 2 for one, other in pairs])


def _px(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
