"""A layer's weights as a histogram, drawn by plotext."""

from __future__ import annotations

import math
from typing import ClassVar

from rich.console import RenderableType
from rich.text import Text
from textual.widget import Widget

from engine.protocol import HistogramReady
from qtui.text import UNICODE, Glyphs, rebinned, short


class Histogram(Widget):
    """Counts of a layer's weights, with lines at ±σ; drawn anew only when what it shows changed."""

    DEFAULT_CSS = """
    Histogram {
        height: 1fr;
        color: $dim;
        background: $background;
    }
    Histogram > .histogram--line { color: $finding; }
    Histogram > .histogram--bar { color: $primary; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"histogram--line", "histogram--bar"}

    def __init__(self, glyphs: Glyphs = UNICODE, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.glyphs = glyphs
        self.found: HistogramReady | None = None
        self.sigma = 4.0
        self.by_log = True
        """Whether heights go with the logarithm of the counts, so that outliers can be seen."""
        self.waiting = ""
        self._plot: tuple[object, Text] | None = None

    def show(self, found: HistogramReady | None, sigma: float, waiting: str = "") -> None:
        """Draw these counts; ``waiting`` stands in their place while there are none."""
        if (found, sigma, waiting) != (self.found, self.sigma, self.waiting):
            self.found, self.sigma, self.waiting = found, sigma, waiting
            self.refresh()

    def toggle_log(self) -> None:
        """Change between counts and their logarithm."""
        self.by_log = not self.by_log
        self.refresh()

    def render(self) -> RenderableType:
        """The plot, out of store where nothing changed."""
        width, height = self.size.width, self.size.height
        if self.found is None or not self.found.counts or width < 12 or height < 4:
            return Text(self.waiting)
        key = (self.found, self.sigma, self.by_log, width, height, self.app.theme)
        if self._plot is None or self._plot[0] != key:
            self._plot = key, self._draw(self.found, width, height)
        return self._plot[1]

    def _draw(self, found: HistogramReady, width: int, height: int) -> Text:
        # Imported when the first plot is drawn: the first frame does not wait for it.
        import plotext as plt

        counts = rebinned(found.counts, 2 * width)
        # The last bin may be joined of fewer: the others say how wide one is.
        joined = -(-len(found.counts) // len(counts))
        step = (found.high - found.low) / len(found.counts) * joined or 1.0
        centres = [found.low + (i + 0.5) * step for i in range(len(counts))]
        heights = [math.log10(1 + n) if self.by_log else float(n) for n in counts]
        top = max(heights) or 1.0
        color = self.get_component_styles("histogram--bar").color.rgb
        plt.clear_figure()
        plt.limit_size(False, False)
        plt.plot_size(width, height)
        plt.theme("clear")
        plt.xaxes(not self.glyphs.ascii, False)
        plt.yaxes(False, False)
        # A bin with nothing in it goes below the axis, so that a single weight can be told from it.
        plt.plot(
            centres,
            [h if h > 0 else -top for h in heights],
            marker="#" if self.glyphs.ascii else "hd",
            fillx=True,
            color=color,
        )
        plt.ylim(0, top * 1.05)
        plt.xlim(found.low - step / 2, found.high + step / 2)
        plt.yticks([], [])
        ticks = [(found.low, short(found.low, small=3)), (found.high, short(found.high, small=3))]
        line = self.get_component_styles("histogram--line").color.rgb
        for sign in (-1, 1):
            at = found.mean + sign * self.sigma * found.std
            if found.low < at < found.high:
                plt.vline(at, line)
                label = f"{'-' if sign < 0 else '+'}{short(self.sigma, small=0)}{self.glyphs.sigma}"
                if min(at - found.low, found.high - at) > 0.14 * (found.high - found.low):
                    ticks.append((at, label))
        ticks.sort()
        plt.xticks([at for at, _ in ticks], [label for _, label in ticks])
        drawn = plt.build().rstrip("\n")
        if self.glyphs.ascii:
            drawn = drawn.replace("│", "|")
        plot = Text.from_ansi(drawn, no_wrap=True, end="")
        plt.clear_figure()
        return plot
