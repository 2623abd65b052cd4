"""The layer table: one line a layer, drawn straight from the session's columns.

Only the rows on the screen are drawn, and of these only the ones that changed are sent to the
terminal, so that fifty thousand experts cost what fifty layers cost.
"""

from __future__ import annotations

import textwrap
import time
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.timer import Timer

from engine.session import Session
from qtui.text import UNICODE, Glyphs, fit
from qtui.widgets.line import PlainScrollBar
from qtui.widgets.rows import Columns, Row, cells, fit_columns, header

Order: TypeAlias = Literal["effect", "weights", "model"]
ORDERS: tuple[Order, ...] = ("effect", "weights", "model")


class LayerTable(ScrollView, can_focus=False):
    """Rows of layers with their effects, in an order of their own, under a cursor.

    The cursor stays on its layer, and on its line of the screen, when rows change places. Rows do
    not change places for `HOLD` seconds after a hand moved the cursor. Until one does, the cursor
    stays in the first row: the layer that hurts most.
    """

    HOLD: ClassVar[float] = 2.0
    """Seconds after a movement of the cursor during which the order is left alone."""

    DEFAULT_CSS = """
    LayerTable {
        height: 1fr;
        scrollbar-size-vertical: 1;
        scrollbar-color: $panel;
        scrollbar-color-hover: $dim;
        scrollbar-color-active: $dim;
        scrollbar-background: $background;
        scrollbar-background-hover: $background;
        scrollbar-background-active: $background;
        overflow-x: hidden;
        background: $background;
        color: $foreground;
    }
    LayerTable > .table--head { color: $dim; }
    LayerTable > .table--dim { color: $dim; }
    LayerTable > .table--strong { text-style: bold; }
    LayerTable > .table--cursor { background: $cursor; }
    LayerTable > .table--mark { color: $primary; text-style: bold; }
    LayerTable > .table--held { color: $held; }
    LayerTable > .table--finding { color: $finding; }
    LayerTable > .table--better { color: $better; }
    LayerTable > .table--heat-1 { color: $heat-1; }
    LayerTable > .table--heat-2 { color: $heat-2; }
    LayerTable > .table--heat-3 { color: $heat-3; }
    LayerTable > .table--heat-4 { color: $heat-4; }
    LayerTable > .table--heat-5 { color: $heat-5; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"table--{name}"
        for name in (
            "head", "dim", "strong", "cursor", "mark", "held", "finding", "better",
            "heat-1", "heat-2", "heat-3", "heat-4", "heat-5",
        )
    }  # fmt: skip

    @dataclass
    class Moved(Message):
        """The cursor stands on another layer."""

        layer: str

    def __init__(self, glyphs: Glyphs = UNICODE, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.glyphs = glyphs
        self.session = Session()
        self.format = ""
        """Whose effects are shown."""
        self.ordering: Order = "effect"
        self.marked: set[str] = set()
        self.pending: dict[str, str] = {}
        """Formats asked for by a key and not yet confirmed by the engine."""
        self.empty = ""
        """What stands in place of rows while there are none."""
        self.rows: list[int] = []
        """Rows of the session in the order they are shown."""
        self.cursor = 0
        """Place of the cursor among `rows`."""
        self._pinned: str | None = None
        """The layer that stays under the cursor when rows change places; None for the first row."""
        self._under: str | None = None
        """The layer under the cursor when it was last told of."""
        self._worst = 0.0
        self._moved_at = float("-inf")
        self._sort_cost = 0.0
        self._sorted_at = float("-inf")
        self._later: Timer | None = None
        self._columns: Columns | None = None
        self._drawn: dict[int, Strip] = {}

    # --- what is shown ------------------------------------------------------------------------

    def on_mount(self) -> None:
        """Draw the scroll bar with what there is to draw with."""
        if self.glyphs.ascii:
            self.vertical_scrollbar.renderer = PlainScrollBar  # type: ignore[misc]

    @property
    def current(self) -> str | None:
        """The layer under the cursor."""
        if not self.rows:
            return None
        return self.session.layers.names[self.rows[self.cursor]]

    def chosen(self) -> tuple[str, ...]:
        """The marked layers in the order of the model, else the one under the cursor."""
        if self.marked:
            return tuple(name for name in self.session.layers.names if name in self.marked)
        return () if self.current is None else (self.current,)

    def show(self, session: Session, format: str, *, reorder: bool = True) -> None:
        """Draw what changed in the session; ``reorder`` where effects or rows may have moved."""
        rows_changed = (
            session is not self.session
            or format != self.format
            or len(self.rows) != len(session.layers.names)
        )
        self.session, self.format = session, format
        if rows_changed:
            self._columns = None
            self._sort()
        elif reorder:
            self._sort_soon()
        self.redraw()

    def order_by(self, ordering: Order) -> None:
        """Show rows in another order, the cursor's layer still under it."""
        self.ordering = ordering
        self._columns = None
        self._sort()
        self.refresh()

    def redraw(self) -> None:
        """Send the visible lines that are not what they were."""
        width = self.scrollable_content_region.width
        for y in range(self.size.height):
            if self._drawn.get(y) != self._line(y, width):
                self.refresh(Region(0, y, self.size.width, 1))

    def _sort_soon(self) -> None:
        now = time.monotonic()
        wait = max(
            self._moved_at + self.HOLD - now,
            # A long table is sorted less often: a tenth of the time at most goes into it.
            self._sorted_at + 10 * self._sort_cost - now,
        )
        if wait <= 0:
            self._sort()
        elif self._later is None:
            self._later = self.set_timer(wait, self._sort_late)

    def _sort_late(self) -> None:
        self._later = None
        self._sort_soon()
        self.redraw()

    def _sort(self) -> None:
        began = time.perf_counter()
        layers, held, before = self.session.layers, self._pinned, self._under
        effects = self.session.measured.get(f"degrade/{self.format}")
        self._worst = max((fact.kl for fact in effects or () if fact is not None), default=0.0)
        order = range(len(layers.names))
        if self.ordering == "effect" and effects is not None:
            keys = [-float("inf") if fact is None else fact.kl for fact in effects]
            self.rows = sorted(order, key=keys.__getitem__, reverse=True)
        elif self.ordering == "weights":
            errors = [
                -1.0 if fact is None or self.format not in fact.errors
                else fact.errors[self.format].relative
                for fact in layers.weights
            ]  # fmt: skip
            self.rows = sorted(order, key=errors.__getitem__, reverse=True)
        else:
            self.rows = list(order)
        self.virtual_size = Size(self.size.width, len(self.rows) + 1)
        self._place(held)
        self._under = self.current
        self._sort_cost = time.perf_counter() - began
        self._sorted_at = time.monotonic()
        if self.current is not None and self.current != before:
            self.post_message(self.Moved(self.current))

    def _place(self, held: str | None) -> None:
        """Put the cursor on its layer again, on the line of the screen where it was."""
        line = self.cursor - round(self.scroll_y)
        row = None if held is None else self.session.row(held)
        if row is None:
            self.cursor = min(self.cursor if held is not None else 0, max(len(self.rows) - 1, 0))
        else:
            self.cursor = self.rows.index(row)
        if held is not None and 0 <= line < self.page:
            self.scroll_to(y=self.cursor - line, animate=False, immediate=True)

    # --- the hand -----------------------------------------------------------------------------

    def move_to(self, place: int) -> None:
        """Set the cursor, by hand."""
        if not self.rows:
            return
        old, self.cursor = self.cursor, max(0, min(place, len(self.rows) - 1))
        self._pinned = self._under = self.current
        self._moved_at = time.monotonic()
        first, height = round(self.scroll_y), self.page
        if not first <= self.cursor < first + height:
            top = self.cursor if self.cursor < first else self.cursor - height + 1
            self.scroll_to(y=top, animate=False, immediate=True)
        for place in (old, self.cursor):
            self.refresh(Region(0, place - round(self.scroll_y) + 1, self.size.width, 1))
        if self.current is not None and old != self.cursor:
            self.post_message(self.Moved(self.current))

    @property
    def page(self) -> int:
        """Rows that fit below the head."""
        return max(1, self.size.height - 1)

    def toggle_mark(self) -> None:
        """Mark the layer under the cursor, or take its mark away, and go on to the next."""
        if self.current is not None:
            self.marked ^= {self.current}
            self.move_to(self.cursor + 1)
            self.redraw()

    def on_mouse_scroll_down(self) -> None:
        """A hand is on the table."""
        self._moved_at = time.monotonic()

    def on_mouse_scroll_up(self) -> None:
        """A hand is on the table."""
        self._moved_at = time.monotonic()

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the row that was clicked."""
        if event.y > 0 and (place := round(self.scroll_y) + event.y - 1) < len(self.rows):
            self.move_to(place)

    def on_resize(self) -> None:
        """Lay the columns out for the new width."""
        self._columns = None
        self.virtual_size = Size(self.size.width, len(self.rows) + 1)
        if self._pinned is not None:
            first = round(self.scroll_y)
            if not first <= self.cursor < first + self.page:
                top = max(0, self.cursor - self.page // 2)
                self.scroll_to(y=top, animate=False, immediate=True)

    # --- drawing ------------------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        """One line of the screen: the head, a row, or nothing."""
        strip = self._drawn[y] = self._line(y, self.scrollable_content_region.width)
        return strip

    def notify_style_update(self) -> None:
        """Forget lines drawn in another theme's colours."""
        super().notify_style_update()
        self._drawn.clear()

    def _line(self, y: int, width: int) -> Strip:
        base = self.rich_style
        if self._columns is None or self._columns.width != width:
            self._columns = fit_columns(width, self.session, self.format, self.glyphs)
        if not self.rows:
            room = max(20, width - 4)
            lines = [part for line in self.empty.split("\n") for part in textwrap.wrap(line, room)]
            at = y - min(2, self.size.height - 1)
            text = fit(f"  {lines[at] if 0 <= at < len(lines) else ''}", width, self.glyphs)
            return Strip([Segment(text, base + self._style("dim"))], width)
        if y == 0:
            text = header(self._columns, self.ordering, self.glyphs)
            return Strip([Segment(text, base + self._style("head"))], width)
        place = round(self.scroll_y) + y - 1
        if place >= len(self.rows):
            return Strip.blank(width, base)
        row = self._row(self.rows[place])
        if here := place == self.cursor:
            base += self._style("cursor")
        parts = cells(row, self._columns, self._worst, here, self.glyphs)
        return Strip(
            [Segment(text, base + self._style(name) if name else base) for text, name in parts],
            width,
        )

    def _row(self, row: int) -> Row:
        layers = self.session.layers
        name = layers.names[row]
        return Row(
            name=name,
            block=layers.blocks[row],
            holds=self.pending.get(name, layers.holds[row]),
            changed=layers.holds[row] != self.session.kept(row),
            pending=name in self.pending,
            marked=name in self.marked,
            effect=self.session.sensitivity(row, self.format),
            weights=layers.weights[row],
        )

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(f"table--{name}", partial=True)
