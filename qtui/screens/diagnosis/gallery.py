"""The gallery's state: its kind and cursor, the histograms it has, and what it asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from engine import protocol as p
from engine.session import Session
from qtui.views.gallery import Gallery, Tiling, about, gallery_lines, gallery_of, shown, tiling
from qtui.views.maps import visible
from qtui.views.text import Glyphs, Words


class GalleryView:
    """Histograms of a kind; those that are visible are asked for, a few at a time."""

    AT_ONCE: ClassVar[int] = 6
    """Requests without an answer."""

    def __init__(
        self, glyphs: Glyphs, ask: Callable[[p.AnyCommand], None], session: Callable[[], Session]
    ) -> None:
        """
        Args:
            glyphs: what to draw with.
            ask: sends a command.
            session: what is shown.
        """
        self.glyphs = glyphs
        self._ask, self._session = ask, session
        self._found = Gallery("", (), ())
        self._at = self._top = 0
        self._across = 1
        self._counts: dict[str, list[int]] = {}
        self._asked: set[str] = set()
        self.on = False
        """Whether it is shown."""

    @property
    def row(self) -> int:
        """The layer under the cursor."""
        return self._found.rows[self._at]

    @property
    def on_top(self) -> bool:
        """Whether the cursor is in the first line."""
        return self._at < self._across

    @property
    def kind(self) -> str:
        """Whose layers are shown."""
        return self._found.kind

    def open(self, session: Session, kind: str, row: int | None) -> None:
        """Show a kind, with the cursor on a layer."""
        self._show(gallery_of(session, kind), row)

    def _show(self, gallery: Gallery, row: int | None) -> None:
        self._found = gallery
        self._at = gallery.rows.index(row) if row in gallery.rows else 0
        self._top, self.on = 0, bool(gallery.rows)

    def close(self) -> None:
        """Show the map again."""
        self.on = False

    def next_kind(self, session: Session) -> None:
        """Show the next kind, with the cursor in the same block if there is one."""
        kinds = list(dict.fromkeys(session.layers.kinds))
        block = session.layers.blocks[self.row]
        kind = kinds[(kinds.index(self.kind) + 1) % len(kinds)]
        found = gallery_of(session, kind)
        alike = (row for row in found.rows if session.layers.blocks[row] == block)
        self._show(found, next(alike, None))

    def move(self, down: int, right: int) -> None:
        """Move the cursor by lines and histograms."""
        place = self._at + right + down * self._across
        if 0 <= place < len(self._found.rows):
            self._at = place

    def keep(self, event: p.HistogramReady) -> bool:
        """Keep an answer; whether it is one that is waited for."""
        self._counts[event.layer] = event.counts
        waited = event.layer in self._asked
        self._asked.discard(event.layer)
        return waited

    def forget(self) -> None:
        """Nothing that was asked for is answered any more."""
        self._asked.clear()

    def draw(
        self, session: Session, width: int, lines: int, *, here: bool
    ) -> tuple[list[Words], Words]:
        """The lines that are visible, and one about the layer under the cursor; asks for others.

        Args:
            session: whose layers they are.
            width: cells there are.
            lines: lines there are.
            here: whether the cursor is in the gallery.
        """
        if self._found.rows and self._found.rows[-1] >= len(session.layers.names):
            self.open(session, self.kind, None)  # the layers were listed anew
        tiles = tiling(self._found, width)
        self._across = tiles.across
        count = -(-len(self._found.rows) // tiles.across)
        self._top = visible(self._at // tiles.across, self._top, count, lines)
        self._request(session, tiles, lines)
        names = session.layers.names
        counts = {
            row: known
            for place in shown(self._found, tiles, self._top, lines)
            if (known := self._counts.get(names[row := self._found.rows[place]])) is not None
        }
        drawn = gallery_lines(
            self._found, tiles, counts, self._at if here else None, self._top, lines, self.glyphs
        )
        read = sum(names[row] in self._counts for row in self._found.rows)
        return drawn, about(self._found, self._at, session, read, width)

    def _request(self, session: Session, tiles: Tiling, lines: int) -> None:
        names = session.layers.names
        for place in shown(self._found, tiles, self._top, lines):
            name = names[self._found.rows[place]]
            if (known := session.histograms.get(name)) is not None:
                self._counts.setdefault(name, known.counts)
            if name not in self._counts and name not in self._asked:
                if len(self._asked) >= self.AT_ONCE:
                    return
                self._asked.add(name)
                self._ask(p.AskHistogram(name))
