"""Which rows the layer table lists, and in what order: filtered, sorted, fused rows opened."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from math import inf
from typing import Any

from engine.diagnosis.serving import Serving
from engine.protocol import Direction, EffectKey, ExpertsReady
from engine.report.figures import Context
from engine.report.figures.effects import kl_reader
from engine.session import MAX_EXPERTS, Session
from qtui.views.filter import Filter
from qtui.widgets.table.columns import table_column

LAYER = -1
"""In place of an expert's number: the line of the layer itself."""
NOT_YET = -2
"""In place of an expert's number: the line that says that experts are being read."""


class Listing:
    """Lines of the table. A line is a layer, or an expert of a layer that is open."""

    def __init__(self) -> None:
        self.session = Session()
        self.format = ""
        """Whose effects and errors are shown."""
        self.direction: Direction = "degrade"
        """Which effects are shown."""
        self.filter = Filter()
        self.column = "kl"
        self.falling = True
        self.opened: dict[str, None] = {}
        """Fused layers whose experts are listed, the oldest first."""
        self.rows: list[int] = []
        """The session's row of every line; experts stand under the row of their layer."""
        self.experts: Sequence[int] | None = None
        """Number of every line's expert, or `LAYER`, or `NOT_YET`; None where all are layers."""
        self.matching: Sequence[int] = ()
        """Rows that fit the filter, in the model's order."""
        self.layers = self.session.layers
        """The listing that rows are of; a session has another when the model corrects it."""
        self.serving: Serving | None = None
        """What may be advised; None for what some serving kernel takes."""
        self.worst = 0.0
        """The largest finite KL of all layers."""
        self.by_later = False
        """Whether no row has the figure to sort by, so that its column's ``then_by`` sorts all."""
        self.arranged = 0
        """How often rows were filtered and sorted."""
        self._order: list[int] = []
        self._listed: tuple[ExpertsReady | None, ...] = ()

    def arrange(self, marked: Collection[str]) -> None:
        """Filter and sort anew."""
        session, self.layers = self.session, self.session.layers
        everything = range(len(session.layers.names))
        key = EffectKey(self.direction, self.format)
        context = Context(session, key, marked, self.serving)
        kl = kl_reader(session, context.key)
        self.worst = max(
            (each for row in everything if (each := kl(row)) is not None and each < inf),
            default=0.0,
        )
        self.matching = self.filter.rows(context) if self.filter else everything
        column = table_column(self.column)
        keys = column.keys(context)
        if self.column == "layer":
            self._order = list(self.matching if not self.falling else reversed(self.matching))
            self.by_later = False
        else:
            known, unknown = sorted_by(self.matching, keys, falling=self.falling)
            self.by_later = False
            if unknown and (later := column.later_keys(context)) is not None:
                second, rest = sorted_by(unknown, later, falling=True)
                self.by_later = bool(second) and not known
                unknown = second + rest
            self._order = known + unknown
        self.arranged += 1
        self.unfold()

    @property
    def shown_order(self) -> tuple[str, bool]:
        """The column that sorts the rows in fact, and whether its largest value comes first."""
        then_by = table_column(self.column).column.then_by
        return (then_by, True) if self.by_later else (self.column, self.falling)

    def unfold(self) -> None:
        """List the experts of open rows, the order of layers left as it is."""
        self.opened = {name: None for name in self.opened if name in self.session.index}
        self._listed = self._known()
        self.rows, self.experts = self._order, None
        if not self.opened:
            return
        by_row = {
            self.session.index[name]: self._numbers(ready)
            for name, ready in zip(self.opened, self._listed, strict=True)
        }
        rows: list[int] = []
        experts: list[int] = []
        for row in self._order:
            rows.append(row)
            experts.append(LAYER)
            if (numbers := by_row.get(row)) is not None:
                rows += [row] * len(numbers)
                experts += numbers
        self.rows, self.experts = rows, experts

    def stale(self) -> bool:
        """Whether experts came, or were dropped, since they were listed."""
        now = self._known()
        return len(now) != len(self._listed) or any(
            new is not old for new, old in zip(now, self._listed, strict=True)
        )

    def _known(self) -> tuple[ExpertsReady | None, ...]:
        return tuple(self.session.experts.get(name) for name in self.opened)

    def _numbers(self, ready: ExpertsReady | None) -> list[int]:
        if ready is None:
            return [NOT_YET]
        numbers = range(len(ready.std))
        figures = table_column(self.column).of_experts(ready, self.format)
        if len(figures) != len(ready.std):
            return list(numbers)
        return unknown_last(numbers, figures.__getitem__, falling=self.falling)

    def toggle(self, layer: str) -> bool:
        """Open a fused layer, or fold it; whether it is open now.

        No more are open than a session keeps the experts of: the oldest is folded.
        """
        if layer in self.opened:
            del self.opened[layer]
        else:
            self.opened[layer] = None
            while len(self.opened) > MAX_EXPERTS:
                del self.opened[next(iter(self.opened))]
        self.unfold()
        return layer in self.opened

    def expert(self, place: int) -> int:
        """Number of the expert on a line, `LAYER` or `NOT_YET`."""
        return LAYER if self.experts is None else self.experts[place]

    def place(self, row: int, expert: int = LAYER) -> int | None:
        """Line of a layer, or of its expert if it is listed; None where the filter hides it."""
        try:
            first = self.rows.index(row)
        except ValueError:
            return None
        if self.experts is None or expert == LAYER:
            return first
        for place in range(first + 1, len(self.rows)):
            if self.rows[place] != row:
                break
            if self.experts[place] == expert:
                return place
        return first

    def layers_between(self, one: int, other: int) -> Iterable[int]:
        """Rows of the layers on the lines from one place to another, both included."""
        low, high = sorted((one, other))
        return dict.fromkeys(self.rows[low : high + 1])

    def next_layer(self, place: int) -> int:
        """The line of the next layer, experts passed over; the last line where there is none."""
        row = self.rows[place]
        while place < len(self.rows) - 1 and self.rows[place] == row:
            place += 1
        return place


def unknown_last(rows: Sequence[int], keys: Callable[[int], Any], *, falling: bool) -> list[int]:
    """Rows by their keys; equal ones stay in order, those without one (None, nan) end the list."""
    known, unknown = sorted_by(rows, keys, falling=falling)
    return known + unknown


def sorted_by(
    rows: Sequence[int], keys: Callable[[int], Any], *, falling: bool
) -> tuple[list[int], list[int]]:
    """Rows that have a key, by it, and the others (None, nan); equal ones stay in order."""
    by_row = {row: key for row in rows if (key := keys(row)) is not None and key == key}
    known = sorted(by_row, key=by_row.__getitem__, reverse=falling)
    return known, [] if len(known) == len(rows) else [row for row in rows if row not in by_row]
