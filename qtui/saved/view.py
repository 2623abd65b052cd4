"""`View`, what is shown and can be saved, and `SavedTable`, the table made from it."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import msgspec

from engine import protocol as p
from engine.diagnosis.serving import Serving
from engine.session import Session
from qtui.saved.svg import PAPER, Line, Palette
from qtui.views.eventlog import Entry

Subject: TypeAlias = Literal[
    "table", "histogram", "layer", "experts", "log", "screen", "recipe", "report"
]
SUBJECTS: tuple[Subject, ...] = get_args(Subject)
Cell: TypeAlias = str | int | float | bool | tuple[int, ...] | None
"""One entry of a table; a shape is a tuple, None is what is not known."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown just now."""

    session: Session
    source: str
    """``demo``, a folder, or a hub id, as the commands take it."""
    format: str = ""
    """Whose effects are shown."""
    direction: p.Direction = "degrade"
    rows: tuple[int, ...] = ()
    """Rows of the session that the filter leaves, in the order they are shown."""
    columns: tuple[str, ...] = ()
    """Columns that are shown, ids of `widgets.table.columns`; empty for every figure."""
    layer: str | None = None
    """The layer under the cursor."""
    marked: frozenset[str] = frozenset()
    order: str = ""
    """The order, in words."""
    filter: str = ""
    """The filter, as it was typed."""
    screen: tuple[Line, ...] = ()
    """The lines of the screen, as `qtui.saved.svg.screen_lines` gives them."""
    log: tuple[Entry, ...] = ()
    """What happened, oldest first; without it a saved log has what the session keeps of it."""
    palette: Palette = PAPER
    """Colours of pictures."""
    serving: Serving | None = None
    """What layers may be advised, as in the table; None for what some serving kernel takes."""


class SavedTable(msgspec.Struct, frozen=True, kw_only=True):
    """Figures that belong together, with where they come from."""

    schema: str
    title: str
    """What they are, in a few words."""
    command: str
    """Measures them again."""
    columns: tuple[str, ...]
    """Names, with the unit where there is one: ``kl_nats_per_token``."""
    rows: list[tuple[Cell, ...]]
    weights_command: str = ""
    """Reads the weights' part of them again, where that is another command."""
    notes: dict[str, str] = {}
    """What else has to be known to read them, by what it is about."""
