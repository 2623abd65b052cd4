"""The layer table's interaction: marks, scope, fused rows, the mouse."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from textual import events
from textual.message import Message

from engine.session import Layers
from qtui.views.scope import (
    Scope,
    ScopeContext,
    Shared,
    in_scope,
    index_layers,
    next_scope,
    possible,
    scope_test,
)
from qtui.views.text import UNICODE, Glyphs
from qtui.widgets.table.listing import LAYER
from qtui.widgets.table.table import Table

MARK_CELLS = 3
"""A click so far left marks a row; the cell after them folds a fused one."""


class MarkedRows(NamedTuple):
    """What a change of many marks did."""

    number: int
    """Layers that were meant."""
    left_out: tuple[str, ...] = ()
    """Head and embedding, where they were left out, by name."""


class LayerTable(Table, can_focus=False):
    """Layers with their effects, and all that can be done with rows of them.

    Marks are of layers, not of lines: they survive sorting, filtering and toggling.
    """

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
    class Marked(Message):
        """Layers were marked, or marks taken away."""

        number: int

    @dataclass
    class Expanded(Message):
        """The experts of a fused layer are to be listed; ask for them if they are not known."""

        layer: str

    def __init__(self, glyphs: Glyphs = UNICODE, *, id: str | None = None) -> None:
        super().__init__(glyphs, id=id)
        self._anchor: str | None = None
        self._scope: Scope = "layer"
        self._unmarked: Scope = "layer"
        """The scope before layers were marked."""
        self._cleared: tuple[set[str], str | None] = set(), None
        """Marks that were cleared, and the one marked last."""
        self._shared: tuple[Layers, Shared] | None = None

    # --- fused rows ---------------------------------------------------------------------------

    def expandable(self, layer: str | None) -> bool:
        """Whether a layer has experts of its own to list."""
        row = None if layer is None else self.session.row(layer)
        return row is not None and self.session.layers.roles[row] == "experts"

    def toggle_expand(self, layer: str | None = None) -> bool:
        """List the experts of a fused layer below it, or fold them; the cursor's where none is
        named.

        Returns:
            False where the layer has none.
        """
        layer = self.current if layer is None else layer
        if layer is None or not self.expandable(layer):
            return False
        line = self._screen_line()
        self._pin()
        if self._pinned is not None and self._pinned[0] == layer:
            self._pinned = layer, LAYER
        opened = self.listing.toggle(layer)
        self.no_experts.pop(layer, None)
        self._settle(line)
        self.refresh()
        if opened:
            self.post_message(self.Expanded(layer))
        return True

    # --- what a toggle acts on ----------------------------------------------------------------

    @property
    def here(self) -> ScopeContext:
        """The cursor's layer, the marks and the filtered rows."""
        layers = self.session.layers
        if self._shared is None or self._shared[0] is not layers:
            self._shared = layers, index_layers(layers)
        row = self.rows[self.cursor] if self.rows else None
        text, matching = self.filter.text, self.listing.matching if self.filter else ()
        return ScopeContext(self.session, self._shared[1], row, self.marked, text, matching)

    @property
    def scope(self) -> Scope:
        """The scope of a toggle; the cursor's layer if the chosen scope is unavailable."""
        return possible(self._scope, self.here)

    def set_scope(self, scope: Scope) -> None:
        """Set the scope; the rows in scope have a thin line at their left."""
        self._scope = scope
        self.redraw()

    def scope_test(self) -> Callable[[int], bool] | None:
        """Test of rows for being in scope; None where that is the cursor's row alone."""
        here = self.here
        scope = possible(self._scope, here)
        return None if scope == "layer" else scope_test(scope, here)

    def next_scope(self, step: int = 1) -> Scope:
        """Switch to the next available scope."""
        self.set_scope(next_scope(self.scope, self.here, step))
        return self.scope

    def layers_in_scope(self) -> tuple[str, ...]:
        """Layers in scope, in the model's order."""
        return in_scope(self.scope, self.here)

    # --- marks --------------------------------------------------------------------------------

    def chosen(self) -> tuple[str, ...]:
        """The marked layers in the order of the model, else the one under the cursor."""
        if self.marked:
            return in_scope("marks", self.here)
        return () if self.current is None else (self.current,)

    def toggle_mark(self) -> None:
        """Toggle the mark of the layer under the cursor, and move to the next."""
        if self.current is not None:
            self._mark_at(self.cursor)
            self.move_to(self.listing.next_layer(self.cursor))

    def _mark_at(self, place: int) -> None:
        name = self.session.layers.names[self.rows[place]]
        self.marked ^= {name}
        self._anchor = name
        self._marks_changed()

    def mark_range(self) -> MarkedRows:
        """Mark the layers from the one marked last to the cursor, as `mark_matching` does.

        Where none was marked, or the filter hides it, this is the cursor's alone.
        """
        if self.current is None:
            return MarkedRows(0)
        row = None if self._anchor is None else self.session.row(self._anchor)
        start = None if row is None else self.listing.place(row)
        rows = list(
            self.listing.layers_between(self.cursor if start is None else start, self.cursor)
        )
        meant, left_out = self._meant(rows) if len(rows) > 1 else ({self.current}, ())
        self.marked |= meant
        self._anchor = self.current
        self.move_to(self.cursor)
        self._marks_changed()
        return MarkedRows(len(meant), left_out)

    def mark_matching(self) -> MarkedRows:
        """Mark all layers that fit the filter.

        With no filter these are all but head and embedding, which are seldom meant.
        """
        meant, left_out = self._meant(self.listing.matching)
        self.marked |= meant
        self._marks_changed()
        return MarkedRows(len(meant), left_out)

    def invert_marks(self) -> MarkedRows:
        """Mark what fits the filter and is not marked, and take the marks of the others there away.

        Returns:
            How many layers are marked now.
        """
        meant, left_out = self._meant(self.listing.matching)
        if not self.filter:
            # A marked head loses its mark all the same.
            meant |= self.marked
        self.marked ^= meant
        self._marks_changed()
        return MarkedRows(len(self.marked), left_out)

    def clear_marks(self) -> None:
        """Clear all marks; `restore_marks` brings them back."""
        cleared = set(self.marked), self._anchor
        self.marked.clear()
        self._anchor = None
        self._marks_changed()
        self._cleared = cleared

    @property
    def cleared(self) -> bool:
        """Whether marks were cleared, and none was made since."""
        return bool(self._cleared[0])

    def restore_marks(self) -> None:
        """Mark again what was marked before all marks were cleared."""
        names, self._anchor = self._cleared
        self.marked |= names & self.session.index.keys()
        self._marks_changed()

    def _meant(self, rows: Iterable[int]) -> tuple[set[str], tuple[str, ...]]:
        """Names of rows that are meant when many are marked, and of those that are left out.

        Head and embedding are meant only where a filter shows them.
        """
        names = self.session.layers.names
        meant = {names[row] for row in rows}
        if self.filter:
            return meant, ()
        outside = [names[row] for row in self.here.shared.outside if names[row] in meant]
        left_out = tuple(name for name in outside if name not in self.marked)
        return meant - set(outside), left_out

    def _marks_changed(self) -> None:
        self._cleared = set(), None
        if self.marked and self._scope != "marks":
            # Marking layers makes the marks the scope.
            self._unmarked = self._scope
            self.set_scope("marks")
        elif not self.marked and self._scope == "marks":
            self.set_scope(self._unmarked)
        if self.filter.reads("marks"):
            self._sort_soon()
        self.redraw()
        self.post_message(self.Marked(len(self.marked)))

    # --- the mouse ----------------------------------------------------------------------------

    def on_mouse_scroll_down(self) -> None:
        """The user is moving in the table."""
        self._moved_at = time.monotonic()

    def on_mouse_scroll_up(self) -> None:
        """The user is moving in the table."""
        self._moved_at = time.monotonic()

    def on_click(self, event: events.Click) -> None:
        """Sort by a title; move the cursor; with shift or ctrl, or in the gutter, mark."""
        if event.button != 1:
            return
        if event.y == 0:
            self._click_title(event.x)
            return
        place = round(self.scroll_y) + event.y - 1
        if place >= len(self.rows):
            return
        if event.shift:
            self._anchor = self._anchor or self.current
            self.move_to(place)
            self.mark_range()
            return
        self.move_to(place)
        foldable = self.expandable(self.current) and self.current_expert is None
        if event.ctrl or event.meta or event.x < MARK_CELLS:
            self._mark_at(place)
        elif foldable and (event.chain == 2 or event.x == MARK_CELLS):
            self.toggle_expand()

    def _click_title(self, x: int) -> None:
        column = self.layout_at(self.scrollable_content_region.width).at(x)
        if column is None or not self.session.layers.names:
            return
        if column.id == self.order[0]:
            self.reverse()
        else:
            self.order_by(column.id)
