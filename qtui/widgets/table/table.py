"""How the layer table shows rows: sorting, cursor, and redrawing only what changed.

Only the rows on the screen are drawn, and of these only the ones that changed are sent to the
terminal, so that fifty thousand experts cost what fifty layers cost.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.timer import Timer

from engine.protocol import Direction, EffectKey, Estimate, Sensitivity
from engine.report.figures import Context, Reader, figure
from engine.report.figures.effects import effects
from engine.session import Session
from qtui.textual_internals import call_after
from qtui.views.filter import Filter
from qtui.views.text import UNICODE, Glyphs, printable
from qtui.widgets.line import PlainScrollBar
from qtui.widgets.table.cells import LayerRow, TableStyle
from qtui.widgets.table.columns import (
    ColumnLayout,
    block_digits,
    fit_columns,
    header,
    table_column,
)
from qtui.widgets.table.listing import LAYER, Listing
from qtui.widgets.table.rows import ExpertRow, Line, expert_row, layer_row, line_pieces

NO_FIGURES = TableStyle(UNICODE, "", 0.0, 0.0, 0, "")
"""Of a line with no figures in it: such a line stays as it is whatever the others show."""


class Frame(NamedTuple):
    """What all lines of one repaint have in common."""

    layout: ColumnLayout
    style: TableStyle
    base: Style
    top: int
    """Place of the first line below the head."""
    in_scope: Callable[[int], bool] | None
    effect: Callable[[int], Sensitivity | Estimate | None]
    """What is shown of a row's effect."""
    readers: list[tuple[str, Reader]]
    """Of the figures without a drawer of their own."""


class Table(ScrollView, can_focus=False):
    """Rows of layers with their effects, in an order of their own, under a cursor.

    The cursor stays on its layer, and on its line of the screen, when new figures rearrange the
    rows. Rows are not rearranged for `HOLD` seconds after the user moved the cursor. Until then,
    the cursor stays in the first row: the worst layer. When the user sorts, the first row is shown
    and under the cursor again; `go_back` returns to the layer that was there before.
    """

    ALLOW_SELECT: ClassVar[bool] = False
    HOLD: ClassVar[float] = 2.0
    """Seconds after a movement of the cursor during which rows are left where they are."""

    @dataclass
    class Moved(Message, namespace="layer_table"):
        """The cursor stands on another line."""

        layer: str
        expert: int | None = None

    @dataclass
    class Sorted(Message, namespace="layer_table"):
        """The user changed the order: ``column`` is the id of a column."""

        column: str
        falling: bool

    def __init__(self, glyphs: Glyphs = UNICODE, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.glyphs = glyphs
        self.listing = Listing()
        self.marked: set[str] = set()
        self.pending: dict[str, str] = {}
        """Formats asked for by a key and not yet confirmed by the engine."""
        self.refused: Mapping[str, bool] = {}
        """Layers that the export target cannot hold, or (False) that something is to be said of."""
        self.empty = ""
        """What stands in place of rows while there are none."""
        self.way_out = "/ changes the filter, escape clears it"
        """What to do where a filter fits no layer."""
        self.cursor = 0
        """Place of the cursor among `rows`."""
        self.no_experts: dict[str, str] = {}
        """Why the experts of a fused layer cannot be listed."""
        self._position = 0
        self._before: tuple[str, int] | None = None
        """What was under the cursor before the last jump."""
        self._order_before: tuple[str, bool] | None = None
        self._pinned: tuple[str, int] | None = None
        """What stays under the cursor when rows change places; None for the first row."""
        self._under: tuple[str | None, int | None] = (None, None)
        """What was under the cursor when `Moved` was last posted."""
        self._moved_at = float("-inf")
        self._sort_cost = 0.0
        self._sorted_at = float("-inf")
        self._later: Timer | None = None
        self._layout_: ColumnLayout | None = None
        self._held: tuple[object, int] | None = None
        """The layers and the recipe that the columns were laid out for."""
        self._digits = 1
        self._drawn: dict[int, Line] = {}

    # --- what is shown ------------------------------------------------------------------------

    def on_mount(self) -> None:
        """Draw the scroll bar with what there is to draw with."""
        if self.glyphs.ascii:
            self.vertical_scrollbar.renderer = PlainScrollBar  # type: ignore[misc]

    @property
    def session(self) -> Session:
        """What is shown."""
        return self.listing.session

    @property
    def format(self) -> str:
        """Whose effects are shown."""
        return self.listing.format

    @property
    def context(self) -> Context:
        """What figures are read in: session, effects and marks that are shown."""
        key = EffectKey(self.listing.direction, self.listing.format)
        return Context(self.session, key, self.marked, self.listing.serving)

    @property
    def rows(self) -> list[int]:
        """The session's row of every line, in the order they are shown; experts have their
        layer's."""
        if self.listing.layers is not self.session.layers:
            # Layers were listed again, and a key or a repaint came before `show`.
            self._forget_old_layers()
            self._arrange()
        return self.listing.rows

    @property
    def filter(self) -> Filter:
        """What rows are chosen by."""
        return self.listing.filter

    @property
    def shown_of_all(self) -> tuple[int, int]:
        """Layers that the filter shows, and layers there are."""
        return len(self.listing.matching), len(self.session.layers.names)

    @property
    def current(self) -> str | None:
        """The layer under the cursor, or the one whose expert is."""
        return self.session.layers.names[self.rows[self.cursor]] if self.rows else None

    @property
    def current_expert(self) -> int | None:
        """Number of the expert under the cursor."""
        expert = self.listing.expert(self.cursor) if self.rows else LAYER
        return expert if expert >= 0 else None

    def show(
        self,
        session: Session,
        format: str,
        direction: Direction = "degrade",
        *,
        reorder: bool = True,
    ) -> None:
        """Draw what changed in the session; ``reorder`` where effects or rows may have moved."""
        listing = self.listing
        listed_again = session.layers is not listing.layers
        shown = listing.session, listing.format, listing.direction
        relisted = listed_again or session is not shown[0] or (format, direction) != shown[1:]
        listing.session, listing.format, listing.direction = session, format, direction
        if listed_again:
            self._forget_old_layers()
        if relisted:
            self._layout_ = None
            self._arrange()
        else:
            if listing.stale():
                self._unfold()
            holds_changed = session.position != self._position and (
                table_column(listing.column).figure.read.changes == "holds"
                or self.filter.reads("holds")
            )
            if reorder or holds_changed:
                self._sort_soon()
        self.redraw()

    def _forget_old_layers(self) -> None:
        """Drop marks and state of layers that no longer exist."""
        self._layout_ = None
        self._digits = block_digits(self.session)
        index = self.session.index
        self.marked &= index.keys()
        for name in [name for name in self.pending if name not in index]:
            del self.pending[name]

    def set_filter(self, filter: Filter | None) -> None:
        """Show the rows that fit; None shows all."""
        self.listing.filter = filter or Filter()
        self._arrange()
        self.refresh()

    # --- order --------------------------------------------------------------------------------

    @property
    def order(self) -> tuple[str, bool]:
        """Id of the column that rows are sorted by, and whether the largest come first."""
        return self.listing.column, self.listing.falling

    @property
    def order_words(self) -> str:
        """What rows are sorted by, in words."""
        column = table_column(self.listing.column)
        words = column.figure.title
        if self.listing.falling != column.column.falling:
            words += f", {column.first(falling=self.listing.falling)} first"
        if self.by_weight_error:
            words += f": not known yet, so by {figure(column.column.then_by).title}"
        return words

    @property
    def by_weight_error(self) -> bool:
        """Whether no row has the figure to sort by yet, so that the weight error sorts them."""
        return self.listing.by_later

    @property
    def order_before(self) -> tuple[str, bool]:
        """The order before this one: column and direction; the usual one at first."""
        return self._order_before or ("kl", table_column("kl").column.falling)

    def order_by(self, column: str, descending: bool | None = None) -> None:
        """Sort by a column, and show the top.

        Args:
            column: the id of a column.
            descending: None takes what the column usually has: the worst first.
        """
        if column != self.listing.column:
            self._order_before = self.order
        self.listing.column = column
        self.listing.falling = (
            table_column(column).column.falling if descending is None else descending
        )
        self._layout_ = None
        self._leave()
        self._pinned = None
        self._moved_at = time.monotonic()
        self._arrange()
        self.scroll_to(y=0, animate=False, immediate=True)
        self.refresh()
        self.post_message(self.Sorted(*self.order))

    def reverse(self) -> None:
        """Turn the order round, and show the top; what is not known stays last."""
        self.order_by(self.listing.column, not self.listing.falling)

    def _sort_soon(self) -> None:
        now = time.monotonic()
        wait = max(
            self._moved_at + self.HOLD - now,
            # A long table is sorted less often: a tenth of the time at most goes into it.
            self._sorted_at + 10 * self._sort_cost - now,
        )
        if wait <= 0:
            self._arrange()
        elif self._later is None:
            self._later = call_after(self, wait, self._sort_late)

    def _sort_late(self) -> None:
        self._later = None
        self._sort_soon()
        self.redraw()

    def _arrange(self) -> None:
        """Filter and sort now."""
        began = time.perf_counter()
        line = self._screen_line()
        self.listing.arrange(self.marked)
        self._position = self.session.position
        self._sort_cost = time.perf_counter() - began
        self._sorted_at = time.monotonic()
        self._settle(line)

    def _unfold(self) -> None:
        line = self._screen_line()
        self.listing.unfold()
        self._settle(line)

    def _screen_line(self) -> int:
        return self.cursor - round(self.scroll_y)

    def _settle(self, line: int) -> None:
        """Put the cursor on its layer again, on the line of the screen where it was."""
        self.virtual_size = Size(self.size.width, len(self.rows) + 1)
        last = max(len(self.rows) - 1, 0)
        if self._pinned is None:
            self.cursor = 0
        else:
            row = self.session.row(self._pinned[0])
            place = None if row is None else self.listing.place(row, self._pinned[1])
            self.cursor = min(self.cursor, last) if place is None else place
            if 0 <= line < self.page:
                self.scroll_to(y=self.cursor - line, animate=False, immediate=True)
        self._post_moved()

    def _post_moved(self) -> None:
        before, self._under = self._under, (self.current, self.current_expert)
        if self._under != before and self.current is not None:
            self.post_message(self.Moved(self.current, self.current_expert))

    # --- the cursor ---------------------------------------------------------------------------

    def move_to(self, place: int) -> None:
        """Move the cursor, as the user does."""
        if not self.rows:
            return
        old, self.cursor = self.cursor, max(0, min(place, len(self.rows) - 1))
        self._pin()
        first, height = round(self.scroll_y), self.page
        if not first <= self.cursor < first + height:
            top = self.cursor if self.cursor < first else self.cursor - height + 1
            self.scroll_to(y=top, animate=False, immediate=True)
        if self.scope_test() is not None:
            self.redraw()
        for place in (old, self.cursor):
            self.refresh(Region(0, place - round(self.scroll_y) + 1, self.size.width, 1))
        self._post_moved()

    def _leave(self) -> None:
        """Remember the layer under the cursor: a jump leaves it."""
        if self.current is not None:
            self._before = self.current, self.listing.expert(self.cursor)

    def jump_to(self, place: int) -> None:
        """Move the cursor far away, to come back with `go_back`."""
        self._leave()
        self.move_to(place)

    def go_to(self, layer: str) -> bool:
        """Jump to a layer; false if it is not shown."""
        row = self.session.row(layer)
        place = None if row is None else self.listing.place(row)
        if place is None:
            return False
        self.jump_to(place)
        return True

    def go_back(self) -> bool:
        """Move the cursor to the layer that the last jump left; false if it is not shown."""
        row = None if self._before is None else self.session.row(self._before[0])
        place = None if row is None else self.listing.place(row, self._before[1])  # type: ignore[index]
        if place is None:
            return False
        self._leave()
        self.move_to(place)
        return True

    def stay(self) -> None:
        """Keep the cursor on its row from now on, as if the user had moved it there."""
        self._pin()

    def _pin(self) -> None:
        """The user is on this row: keep the cursor on it."""
        self._moved_at = time.monotonic()
        if self.current is not None:
            self._pinned = self.current, self.listing.expert(self.cursor)

    @property
    def page(self) -> int:
        """Rows that fit below the head."""
        return max(1, self.size.height - 1)

    def scope_test(self) -> Callable[[int], bool] | None:
        """Test of rows for being in scope; None where that is the cursor's row alone."""
        return None

    # --- drawing ------------------------------------------------------------------------------

    def on_resize(self) -> None:
        """Lay the columns out for the new width."""
        self._layout_ = None
        self.virtual_size = Size(self.size.width, len(self.rows) + 1)
        if self._pinned is not None:
            first = round(self.scroll_y)
            if not first <= self.cursor < first + self.page:
                top = max(0, self.cursor - self.page // 2)
                self.scroll_to(y=top, animate=False, immediate=True)

    def redraw(self) -> None:
        """Send the visible lines that changed."""
        frame = self._frame()
        for y in range(self.size.height):
            if self._drawn.get(y) != self._line(y, frame):
                self.refresh(Region(0, y, self.size.width, 1))

    def render_line(self, y: int) -> Strip:
        """One line of the screen: the head, a row, or nothing."""
        line = self._drawn[y] = self._line(y, self._frame())
        return self._paint(line)

    def notify_style_update(self) -> None:
        """Forget lines drawn in another theme's colours."""
        super().notify_style_update()
        self._drawn.clear()

    def layout_at(self, width: int) -> ColumnLayout:
        """The columns that a width has room for."""
        held = self.session.layers, self.session.position
        if self._layout_ is None or self._layout_.width != width or self._held != held:
            self._held = held
            self._layout_ = fit_columns(width, self.session, self._digits, self.listing.column)
        return self._layout_

    def _frame(self) -> Frame:
        """What all lines of one repaint have in common."""
        listing, width = self.listing, self.scrollable_content_region.width
        sigma = self.session.settings.sigma
        shown = "/".join(map(str, self.shown_of_all)) if self.filter else ""
        layout = self.layout_at(width)
        context = self.context
        return Frame(
            layout=layout,
            style=TableStyle(
                self.glyphs,
                listing.format,
                listing.worst,
                sigma,
                self._digits,
                shown,
                listing.direction,
            ),
            base=self.rich_style,
            top=round(self.scroll_y),
            in_scope=self.scope_test(),
            effect=effects(self.session, context.key),
            readers=layout.plain_readers(context),
        )

    def _line(self, y: int, frame: Frame) -> Line:
        """All that a line of the screen is drawn from: the head, a row, or nothing."""
        listing, layout, style = self.listing, frame.layout, frame.style
        if y == 0 and self.session.layers.names:
            return Line(
                header(layout, style, *self.listing.shown_order),
                "head",
                False,
                layout,
                style,
                frame.base,
            )
        if not self.rows:
            text = self._sentence(y, max(20, layout.width - 4))
            return Line(f"  {text}", "dim", False, layout, NO_FIGURES, frame.base)
        place = frame.top + y - 1
        if place >= len(self.rows):
            return Line("", "", False, layout, NO_FIGURES, frame.base)
        row, expert = self.rows[place], listing.expert(place)
        in_scope = frame.in_scope is not None and frame.in_scope(row)
        content: LayerRow | ExpertRow
        if expert == LAYER:
            effect = frame.effect(row)
            content = layer_row(
                listing,
                row,
                effect,
                self.marked,
                self.pending,
                in_scope,
                self.refused.get(self.session.layers.names[row]),
                frame.readers,
            )
        else:
            content = expert_row(listing, row, expert, self.no_experts, in_scope)
        return Line(content, "", place == self.cursor, layout, style, frame.base)

    def _paint(self, line: Line) -> Strip:
        base = line.base + self._style("cursor") if line.here else line.base
        pieces = line_pieces(line)
        segments = [Segment(t, base + self._style(name) if name else base) for t, name in pieces]
        return Strip(segments, line.layout.width)

    def _sentence(self, y: int, room: int) -> str:
        """A line of what stands in place of rows."""
        said = self.empty
        if self.session.layers.names:
            said = f"no layer matches the filter: {printable(self.filter.text)}\n{self.way_out}"
        lines = [part for line in said.split("\n") for part in textwrap.wrap(line, room)]
        at = y - min(2, self.size.height - 1)
        return lines[at] if 0 <= at < len(lines) else ""

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(f"table--{name}", partial=True)
