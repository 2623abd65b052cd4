"""Colours of an ANSI theme: the terminal's own sixteen by name, with attributes such as ``dim``.

A style sheet knows colours only, and widgets mix them or take them apart into red, green and blue.
So each colour of an ANSI theme travels as a *carrier*, an RGB colour that stands for it and for
nothing else, and becomes the terminal's colour with its attributes in the last step before the
terminal. What is left of RGB by then, a mixture that a widget made, becomes the default colour.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from rich.color import Color as RichColor
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

from qtui.textual_internals import ANSI_COLORS

ATTRIBUTES = ("bold", "dim", "underline", "reverse")
ANSI_COLOR = re.compile(
    rf"ansi_(?:default|{'|'.join(ANSI_COLORS)})(?: (?:{'|'.join(ATTRIBUTES)}))*"
)
"""``ansi_red``, ``ansi_default dim``. ``reverse`` counts where the colour lies under text, the
others where it is the colour of text."""
DEFAULT = RichColor.default()


class Meaning(NamedTuple):
    """What a carrier stands for."""

    color: RichColor
    attributes: frozenset[str]


NOTHING = Meaning(DEFAULT, frozenset())


def meaning(color: str) -> Meaning:
    """``ansi_red bold`` taken apart."""
    name, *attributes = color.split()
    name = name.removeprefix("ansi_")
    rich = DEFAULT if name == "default" else RichColor.from_ansi(ANSI_COLORS.index(name))
    return Meaning(rich, frozenset(attributes))


class Carriers:
    """The carriers of one theme, there and back."""

    def __init__(self, named: tuple[tuple[str, str], ...]) -> None:
        """
        Args:
            named: keys of the theme with their colours.
        """
        self._place = {key: place for place, (key, _) in enumerate(named)}
        self._meanings = {(1, 2, place): meaning(color) for place, (_, color) in enumerate(named)}
        self.filter = Attributes(self)
        self.style = lru_cache(maxsize=2048)(self._style)

    def shown(self, key: str) -> str:
        """The carrier of a key's colour, for the style sheets."""
        return Color(1, 2, self._place[key]).hex

    def _meaning(self, color: RichColor | None) -> Meaning | None:
        if color is None or color.triplet is None:
            return None
        red, green, blue = color.triplet
        return self._meanings.get((red, green, blue), NOTHING)

    def _style(self, style: Style) -> Style:
        """A style with carriers as the terminal is to have it."""
        ink, ground = self._meaning(style.color), self._meaning(style.bgcolor)
        bold = bool(style.bold or (ink and "bold" in ink.attributes))
        dim = bool(style.dim or (ink and "dim" in ink.attributes)) and not bold
        under = bool(style.underline or (ink and "underline" in ink.attributes))
        color = style.color if ink is None else ink.color
        back = style.bgcolor if ground is None else ground.color
        if ground is not None and "reverse" in ground.attributes:
            # A row of one tone: colours on the terminal's own ink might not be legible.
            swap = Style(color=DEFAULT, bgcolor=DEFAULT, reverse=not style.reverse)
            return style + swap + Style(bold=bold, dim=False, underline=under)
        return style + Style(color=color, bgcolor=back, bold=bold, dim=dim, underline=under)


CARRIERS = lru_cache(maxsize=64)(Carriers)
"""One object for one set of colours: drawn strips are kept by it."""


class Attributes(LineFilter):
    """Replaces carriers by the terminal's colours and attributes."""

    def __init__(self, carriers: Carriers) -> None:
        super().__init__()
        self.carriers = carriers

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments as the terminal is to have them."""
        style = self.carriers.style
        return [
            Segment(text, None if found is None else style(found), control)
            for text, found, control in segments
        ]
