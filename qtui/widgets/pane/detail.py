"""The pane: all that is known about the layer under the cursor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.timer import Timer

from engine.diagnosis.serving import Serving
from engine.diagnosis.thresholds import thresholds
from engine.protocol import AnyCommand, Direction, EffectKey
from engine.report import wording as n
from engine.report.figures import Context
from engine.session import Session
from qtui.textual_internals import call_after
from qtui.views import text as t
from qtui.views.text import DOUBT, UNICODE, Glyphs, fit, printable, wrapped
from qtui.widgets.line import Lines, Words, cells
from qtui.widgets.pane import effect_facts, layer_facts
from qtui.widgets.pane.histogram import Histogram
from qtui.widgets.pane.past import LayerHistory
from qtui.widgets.pane.rested_advice import RestedAdvice
from qtui.widgets.pane.tab import TabContext
from qtui.widgets.pane.tabs import LAYER, tab, title_line

LEAST_PLOT, MOST_PLOT = 7, 18
"""Lines that the histogram has."""
LEAST_FIGURES = 5
"""Lines of figures below which there is no histogram above them."""
BESIDE = (90, 28)
"""From so many columns, up to so many lines, figures stand beside the histogram."""


class Detail(Vertical):
    """The layer's name and shape, histogram, effects, errors and history.

    With the class ``-small`` it shows the most important in three lines. If the terminal is too
    small for everything, the histogram shrinks, and the figures below it can be scrolled.
    """

    WHEEL: ClassVar[int] = 3
    """Lines that a turn of the mouse wheel moves."""

    DEFAULT_CSS = """
    Detail { background: $background; padding: 0 1; }
    Detail > #about { height: auto; }
    Detail > #figures { height: auto; }
    Detail.-beside { layout: horizontal; }
    Detail.-beside > #about { dock: top; }
    Detail.-beside > Histogram { width: 1fr; }
    Detail.-beside > #figures { width: 62; margin-left: 2; }
    Detail.-small { height: 3; layout: vertical; }
    Detail.-small > #figures { display: none; }
    Detail.-small > Histogram { display: none; }
    """

    def __init__(self, glyphs: Glyphs = UNICODE, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.glyphs = glyphs
        self.session = Session()
        self.row: int | None = None
        self.expert: int | None = None
        self.shown: tuple[str, Direction] = "", "degrade"
        """Format and direction of the effects in the table."""
        self.tab = LAYER
        """The tab that is shown."""
        self.key: Callable[[str], str] = str
        """The key of an action by its id."""
        self.cannot: tuple[str, str] = "", ""
        """What the export target says of the layer, with the sign before it; empty for nothing."""
        self.top = 0
        """Lines of the figures that were scrolled away."""
        self.about = Lines(id="about")
        self.histogram = Histogram(glyphs, id="histogram")
        self.figures = Lines(id="figures")
        self._history = LayerHistory()
        self._advice = RestedAdvice()
        self.serving: Serving | None = None
        """What may be advised; None for what some serving kernel takes."""
        self._groups: tuple[list[int], dict[int, list[int]]] = [], {}
        self._lines: list[Words] = []
        self._room = 0
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """The three parts."""
        yield self.about
        yield self.histogram
        yield self.figures

    def show(
        self,
        session: Session,
        layer: str | None,
        expert: int | None = None,
        shown: tuple[str, Direction] = ("", "degrade"),
    ) -> None:
        """Draw what is known about a layer, or about one expert of a fused layer.

        Args:
            session: what is known.
            layer: under the cursor; None where there is none.
            expert: its number.
            shown: format and direction of the effects in the table.
        """
        row = None if layer is None else session.row(layer)
        if (row, expert) != (self.row, self.expert) or session is not self.session:
            self.top = 0
        self.session, self.row, self.expert, self.shown = session, row, expert, shown
        self._write()

    def show_tab(self, id: str) -> None:
        """Show another tab of the same layer.

        Raises:
            KeyError: if there is none of this name.
        """
        self.tab, self.top = tab(id).id, 0
        self._write()

    def wanted(self) -> AnyCommand | None:
        """What the tab on the screen needs for this layer and does not have."""
        if self.row is None or not self.display or self.has_class("-small"):
            return None
        return tab(self.tab).request(self.session, self.row, self.shown[0])

    @property
    def can_scroll(self) -> bool:
        """Whether there are more figures than there is room for."""
        return len(self._lines) > self._room

    def scroll(self, lines: int) -> None:
        """Move the figures up by so many lines, or down by fewer than none."""
        most = max(0, len(self._lines) - self._room + 1) if len(self._lines) > self._room else 0
        before, self.top = self.top, min(max(self.top + lines, 0), most)
        if self.top != before:
            self._place()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Move on through the figures."""
        event.stop()
        self.scroll(self.WHEEL)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Move back through the figures."""
        event.stop()
        self.scroll(-self.WHEEL)

    def on_resize(self) -> None:
        """Make use of the new room."""
        self._write()

    def on_unmount(self) -> None:
        """Nothing is to be drawn any more."""
        self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer = None

    # --- laying out ---------------------------------------------------------------------------

    def _write(self, *, rested: bool = False) -> None:
        self._stop()
        if self.row is None:
            self._lines = []
            self.about.set_lines([])
            self.figures.set_lines([])
            self.histogram.show(None, 4.0)
            return
        if self.has_class("-small"):
            self.about.set_lines(self._small(self.row))
            return
        width, height = self.content_size
        close = height < 30
        about = [title_line(self.tab, width, self.glyphs), *self._about(self.row, width)]
        if self.tab != LAYER:
            self._write_tab(self.row, about)
            return
        beside = width >= BESIDE[0] and height <= BESIDE[1]
        self.set_class(beside, "-beside")
        self.about.set_lines(about if close else [*about, []])
        room = max(0, height - len(about) - (not close))
        within = 62 if beside else width
        lines = self._figures(self.row, within, rested)
        self._lines = [line for line in lines if line or not close]
        plotted = room if beside else min(max(room - len(self._lines), LEAST_PLOT), MOST_PLOT)
        plotted = min(plotted, room) if beside or room - plotted >= LEAST_FIGURES else 0
        self._room = room if beside else room - plotted
        self.histogram.styles.height = plotted
        self.figures.styles.height = self._room
        self._plot(self.row)
        self._place()
        if self._history.pending:
            self._timer = call_after(self, Histogram.REST, lambda: self._write(rested=True))

    def _write_tab(self, row: int, about: list[Words]) -> None:
        """A tab other than the first: lines alone, below the layer's name."""
        width, height = self.content_size
        self.set_class(False, "-beside")
        self.about.set_lines([*about, []])
        self._room = max(0, height - len(about) - 1)
        self.histogram.styles.height, self.figures.styles.height = 0, self._room
        shown = EffectKey(self.shown[1], self.shown[0])
        context = TabContext(
            self.session, row, self.expert, shown, width, self._room, self.glyphs, self.key
        )
        self._lines = tab(self.tab).lines(context)
        self._place()

    def _plot(self, row: int) -> None:
        session, layers = self.session, self.session.layers
        self.histogram.show(
            session.histograms.get(layers.names[row]),
            session.settings.sigma,
            "reading weights",
            held=layers.holds[row],
            note="all experts" if self.expert is not None else "",
        )

    def _place(self) -> None:
        """Show the figures from `top` on; the last line says how many more there are."""
        lines, room = self._lines, self._room
        if len(lines) <= room:
            self.top = 0
            self.figures.set_lines(lines)
            return
        self.top = min(self.top, max(0, len(lines) - room + 1))
        shown = lines[self.top : self.top + max(0, room - 1)]
        below = len(lines) - self.top - len(shown)
        more = "1 more line" if below == 1 else f"{below} more lines"
        said = f"{self.glyphs.ellipsis} {more}" if below else "the end"
        if self.top:
            said += f", {self.top} above"
        self.figures.set_lines([*shown, [(said, "$dim")]][: max(room, 0)])

    # --- words --------------------------------------------------------------------------------

    def _shape(self, row: int) -> str:
        layers = self.session.layers
        sizes = layers.shapes[row] if self.expert is None else layers.shapes[row][1:]
        shape = f" {self.glyphs.times} ".join(str(size) for size in sizes)
        return f"[{shape}] {printable(layers.dtypes[row])}"

    def _role(self, row: int) -> str:
        layers, model = self.session.layers, self.session.model
        role: str = layers.roles[row]
        if role == "experts":
            many = layers.shapes[row][0]
            role = "1 expert" if many == 1 else f"{many} experts"
            if self.expert is not None:
                role = f"expert {self.expert} (of 0-{many - 1})"
        elif role in ("head", "embedding") and model is not None and model.tied:
            role += ", tied"
        return role if layers.blocks[row] < 0 else f"{role}  block {layers.blocks[row]}"

    def _about(self, row: int, width: int) -> list[Words]:
        layers, glyphs = self.session.layers, self.glyphs
        weights, held = math.prod(layers.shapes[row]), self.session.shown(row)
        name, bits = printable(layers.names[row]), float(layers.bits[row])
        if self.expert is not None:
            name += f"[{self.expert}]"
            # All experts of a layer are of one shape, and hold one format.
            many = max(1, layers.shapes[row][0])
            weights, bits = weights // many, bits / many
        price = f"{bits / max(1, weights):.2f} bit/w  {n.size(bits / 8)}"
        lines: list[Words] = [
            [(fit(name, width, glyphs, end=False), "bold")],
            [(f"{self._shape(row)}  {n.count(weights)} weights  {self._role(row)}", "$dim")],
            [
                ("holds ", "$dim"),
                (printable(held), self._holds_style(row)),
                (f"  {price}", ""),
            ],
        ]
        self._add_partners(lines, row, width)
        if self.cannot[1]:
            said = wrapped(" ".join(self.cannot), width)
            lines += [[(line, "$finding")] for line in said]
        return lines

    def _add_partners(self, lines: list[Words], row: int, width: int) -> None:
        """The rest of a fused group: beside the price, or below it where there is no room."""
        layers = self.session.layers
        partners = self._partners(row)
        if not partners:
            return
        kinds = ", ".join(printable(layers.kinds[other]) for other in partners[:4])
        kinds += f" and {len(partners) - 4} more" if len(partners) > 4 else ""
        unlike = [other for other in partners if layers.holds[other] != layers.holds[row]]
        words: Words = [("fused with ", "$dim"), (kinds, "")]
        if unlike:
            other = unlike[0]
            held = f"{printable(layers.kinds[other])} holds {printable(layers.holds[other])}"
            words = [
                ("fused with ", "$dim"),
                (kinds, ""),
                (f": {held}" + (f" and {len(unlike) - 1} more differ" if unlike[1:] else ""),
                 "$warning"),
            ]  # fmt: skip
        if cells(lines[-1]) + 2 + cells(words) <= width:
            lines[-1] += [("  ", ""), *words]
        else:
            lines.append(words)

    def _partners(self, row: int) -> list[int]:
        groups = self.session.layers.groups
        if self._groups[0] is not groups:
            rows: dict[int, list[int]] = {}
            for other, group in enumerate(groups):
                if group >= 0:
                    rows.setdefault(group, []).append(other)
            self._groups = groups, rows
        return [other for other in self._groups[1].get(groups[row], []) if other != row]

    def _holds_style(self, row: int) -> str:
        changed = self.session.layers.holds[row] != self.session.kept(row)
        return "bold $held" if changed else "$dim"

    def _small(self, row: int) -> list[Words]:
        layers, width = self.session.layers, self.content_size.width
        found, known = self.session.histograms.get(layers.names[row]), layers.weights[row]
        shape = self._shape(row)
        spark = t.sparkline(found.counts, 20, self.glyphs) if found is not None else ""
        room = width - len(shape) - 24
        name = printable(layers.names[row])
        if self.expert is not None:
            name += f"[{self.expert}]"
        name = fit(name, min(room, len(name)), self.glyphs, end=False)
        first: Words = [(name, "bold"), (f"  {shape}  ", "$dim"), (spark, "$primary")]
        if self.expert is not None:
            return [first, *self._small_expert(row, self.expert)]
        second: Words = []
        if known is not None:
            second += layer_facts.findings(known, thresholds(self.session), self.glyphs, brief=True)
            for format, error in known.errors.items():
                second += [
                    ("  " if second else "", ""),
                    (f"{printable(format)} ", "$dim"),
                    (n.percent(error.relative), ""),
                ]
        third: Words = []
        for effect in self._effects_by_priority(row):
            value, half = effect_facts.divergence(effect, self.glyphs)
            sign = DOUBT if effect.doubt else ""
            said: Words = [
                ("   " if third else "", ""),
                (f"{printable(effect.label)} ", "$dim"),
                (f"KL{self.glyphs.kilo} ", "$dim"),
                (value, ""),
                (sign, "$finding"),
                (f" {half}  ", ""),
            ]
            if change := effect_facts.change(effect, self.glyphs):
                said += [(f"{effect_facts.delta(self.glyphs)} ", "$dim"), (change, "")]
            if third and cells(third) + cells(said) > width:
                break
            third += said
        return [first, second, third or [("effect not measured yet", "$dim")]]

    def _effects_by_priority(self, row: int) -> list[effect_facts.Effect]:
        """Effects of a layer: as the table has them, of what it holds, then the largest."""
        held = self.session.layers.holds[row]
        return sorted(
            effect_facts.effects(self.session, row),
            key=lambda each: (
                each.direction != self.shown[1],
                each.format != self.shown[0],
                each.format != held,
                -each.kl,
            ),
        )

    def _small_expert(self, row: int, expert: int) -> list[Words]:
        lines = self._expert_lines(row, expert, self.content_size.width)
        return lines[:1] if len(lines) == 1 else [lines[1], lines[-1]]

    def _expert_lines(self, row: int, expert: int, width: int) -> list[Words]:
        session = self.session
        found = session.experts.get(session.layers.names[row])
        return layer_facts.expert_lines(found, expert, session.settings.sigma, width, self.glyphs)

    def _figures(self, row: int, width: int, rested: bool) -> list[Words]:
        """The most important first; an empty line is left out where room is scarce."""
        session, glyphs = self.session, self.glyphs
        known, name = session.layers.weights[row], session.layers.names[row]
        total, steps = self._history.steps(session, name, rested=rested)
        history = layer_facts.past_lines(session, total, steps, width, glyphs)
        if self.expert is not None:
            return [[], *self._expert_lines(row, self.expert, width), [], *history]
        lines: list[Words] = [[], *effect_facts.effect_lines(session, row, width, glyphs)]
        if known is not None and (
            found := layer_facts.findings(known, thresholds(session), glyphs)
        ):
            lines.append(found)
        key = EffectKey(self.shown[1], self.shown[0])
        context = Context(session, key, serving=self.serving)
        advice = self._advice.of(context, row)
        lines += layer_facts.advice_lines(context, row, advice, width, glyphs)
        lines += [[], *layer_facts.error_lines(session, row, width, glyphs)]
        if weights := layer_facts.weight_lines(context, row, glyphs):
            lines += [[], *weights]
        if history:
            lines += [[], *history]
        if control := layer_facts.control_lines(session):
            lines += [[], *control]
        return lines
