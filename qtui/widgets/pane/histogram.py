"""The histogram of the layer under the cursor, redrawn only when its content changed."""

from __future__ import annotations

import time
from typing import ClassVar

from textual.content import Content
from textual.timer import Timer
from textual.widget import Widget

from engine.protocol import HistogramReady
from qtui.textual_internals import call_after
from qtui.views.text import UNICODE, Glyphs, printable, sparkline
from qtui.widgets.line import Words, content
from qtui.widgets.pane.plot import LEAST, plot


class Histogram(Widget):
    """Counts of a layer's weights, with lines at ±3σ and ±σ of the settings, and a format's grid.

    A plot costs some hundredths of a second: it is drawn once the cursor rests on its layer, and
    plots drawn before are kept.
    """

    REST: ClassVar[float] = 0.08
    """Seconds a layer is shown before its plot is drawn."""
    PERIOD: ClassVar[float] = 0.4
    """Seconds from one plot to the next."""
    KEPT: ClassVar[int] = 64
    """Plots that are kept."""

    DEFAULT_CSS = """
    Histogram { height: 1fr; color: $dim; background: $background; }
    """

    def __init__(self, glyphs: Glyphs = UNICODE, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.glyphs = glyphs
        self.found: HistogramReady | None = None
        self.sigma = 4.0
        self.held = ""
        self.note = ""
        self.by_log = True
        """Whether heights go with the logarithm of the counts, so that outliers can be seen."""
        self.waiting = ""
        self.plots = 0
        """Plots drawn so far."""
        self._plots: dict[tuple[object, ...], tuple[HistogramReady, list[Words]]] = {}
        self._since = self._last = float("-inf")
        self._timer: Timer | None = None

    def show(
        self,
        found: HistogramReady | None,
        sigma: float,
        waiting: str = "",
        *,
        held: str = "",
        note: str = "",
    ) -> None:
        """Draw these counts, at once where they were drawn before.

        Args:
            found: the counts; None while there are none.
            sigma: the settings' own.
            waiting: stands in their place while there are none.
            held: the format the layer holds; the grid of another is not drawn.
            note: stands before the caption.
        """
        if found is self.found and (sigma, waiting, held, note) == (
            self.sigma, self.waiting, self.held, self.note,
        ):  # fmt: skip
            return
        layer = None if self.found is None else self.found.layer
        if found is None or found.layer != layer or waiting != self.waiting:
            self._since = time.monotonic()
        self.found, self.sigma, self.waiting, self.held, self.note = (
            found, sigma, waiting, held, note,
        )  # fmt: skip
        self._draw_soon()

    def toggle_log(self) -> None:
        """Change between counts and their logarithm."""
        self.by_log = not self.by_log
        self._draw_now()

    def on_resize(self) -> None:
        """Draw for the new size, once it stays."""
        self._draw_soon(self._last + self.REST)

    def on_unmount(self) -> None:
        """Nothing is to be drawn any more."""
        if self._timer is not None:
            self._timer.stop()

    @property
    def drawn(self) -> list[Words]:
        """The lines of the plot; empty while it is not drawn yet."""
        known = self._plots.get(self._key())
        return [] if known is None else known[1]

    @property
    def text(self) -> str:
        """What is shown, without its styles."""
        return "\n".join("".join(text for text, _ in line) for line in self.drawn)

    def render(self) -> Content:
        """The plot, or what stands in its place."""
        if self.drawn:
            return Content("\n").join([content(line) for line in self.drawn])
        if self._has_room() or self.found is None or not self.found.counts:
            return Content("" if self.found is not None and self.found.counts else self.waiting)
        return Content(sparkline(self.found.counts, max(1, self.size.width), self.glyphs))

    def _has_room(self) -> bool:
        return self.size.width >= LEAST[0] and self.size.height >= LEAST[1]

    def _grid(self) -> bool:
        """Whether the grid is that of what the layer holds now."""
        return self.found is not None and bool(self.found.format) and self.found.format == self.held

    def _key(self) -> tuple[object, ...]:
        # The counts are kept beside the plot: their identity is theirs as long as it is a key.
        shape = self.size.width, self.size.height
        return id(self.found), self.sigma, self.by_log, self._grid(), self.note, *shape

    def _draw_soon(self, earliest: float | None = None) -> None:
        """Draw once it is time; never before the figures around it are on the screen."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        self.refresh()
        if self.found is None or not self.found.counts or not self._has_room() or self.drawn:
            return
        if earliest is None:
            earliest = max(self._since + self.REST, self._last + self.PERIOD)
        wait = earliest - time.monotonic()
        if wait <= 0 or not self._plots:
            self.call_after_refresh(self._draw_now)
        else:
            self._timer = call_after(self, wait, self._draw_now)

    def _draw_now(self) -> None:
        found = self.found
        if found is not None and found.counts and self._has_room() and not self.drawn:
            lines = plot(
                found,
                self.size.width,
                self.size.height,
                sigma=self.sigma,
                by_log=self.by_log,
                grid=self._grid(),
                note=printable(self.note),
                glyphs=self.glyphs,
            )
            self._last = time.monotonic()
            self.plots += 1
            while len(self._plots) >= self.KEPT:
                self._plots.pop(next(iter(self._plots)))
            self._plots[self._key()] = found, lines
        self.refresh()
