"""The diagnosis: the verdict, a map of blocks and kinds, and the findings."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Protocol

from textual import events
from textual.app import ComposeResult

from engine import protocol as p
from engine.diagnosis.finding import Finding
from engine.diagnosis.findings import by_order, findings_by_check
from engine.report.figures import Context
from engine.report.figures.declaration import Figure
from engine.report.figures.effects import effects
from engine.session import Dirty, Session
from qtui.screens.diagnosis.gallery import GalleryView
from qtui.screens.session_screen import ActionHandler, SessionScreen
from qtui.screens.verdict_taking import VerdictTaking
from qtui.screens.workbench.effects import ShownEffects
from qtui.sliced import Sliced
from qtui.textual_internals import call_after, calling_after
from qtui.views.export_marks import ExportMarks
from qtui.views.findings import FindingLines, severity_mark
from qtui.views.maps import (
    Map,
    map_lines,
    map_of,
    mapped_figures,
    scale_line,
    visible,
)
from qtui.views.text import DOUBT, UNICODE, Glyphs, printable, short_name
from qtui.widgets.frame.verdict import LEAST, REST, VerdictLine
from qtui.widgets.line import Lines, Words

BY_EFFECT = frozenset({"kl", "kl_per_mb"})
"""Figures that may be estimates, which their sign says."""
SHOWN: frozenset[Dirty] = frozenset(
    {"layers", "weights", "measured", "recipe", "baseline", "errors"}
)
OTHER_LINES = 6
"""Lines that are neither map nor findings: verdict, two borders, scale, foot."""


class DiagnosisHandler(ActionHandler, Protocol):
    """Runs the diagnosis's actions."""

    @property
    def verdict(self) -> VerdictTaking:
        """The cursor on the verdict's line."""


class Diagnosis(SessionScreen):
    """What stands out, and where."""

    handler: DiagnosisHandler
    """Runs the actions: set by `DiagnosisActions`, which knows this screen."""

    CSS = """
    Diagnosis { layout: vertical; }
    #map { height: auto; padding: 0 1; border-top: solid $panel; }
    #scale { height: 1; padding: 0 1; }
    #findings { height: 1fr; padding: 0 1; border-top: solid $panel; }
    Diagnosis.-ascii #map, Diagnosis.-ascii #findings { border-top: ascii $panel; }
    """

    def __init__(self, glyphs: Glyphs = UNICODE, marks: ExportMarks | None = None) -> None:
        super().__init__(glyphs)
        self._marks = marks or ExportMarks()
        self.verdict = VerdictLine(glyphs, id="verdict")
        self.map, self.scale = Lines(id="map"), Lines(id="scale")
        self.list = Lines(id="findings", wrap=False)
        self.message.legend = (
            *(f"{severity_mark(each, glyphs)} {each}" for each in ("alert", "warning")),
            f"{glyphs.about} estimated",
        )
        self.effects = ShownEffects()
        self.findings = FindingLines(glyphs)
        self.gallery = GalleryView(glyphs, self._ask, lambda: self.session)
        self.found: list[Finding] = []
        """All findings."""
        self._figure = 0
        self._mapped: list[Figure] = []
        """Figures that can be mapped."""
        self._maps: dict[str, Map] = {}
        """Those that were drawn, by the ids of their figures."""
        self._drawn: Map | None = None
        self._at = (0, 0)
        """Block and kind of the cursor in the map, by their places."""
        self._from: str | None = None
        """The layer under the table's cursor when the map was shown last."""
        self._arriving = False
        """Whether the map's cursor is to go there, once it is drawn."""
        self._on = 0
        """Finding under the cursor."""
        self._in_map = True
        self._next = 0.0
        self._waits = False
        self._looking: Sliced[list[Finding]] = Sliced(calling_after(self))
        self._top = 0

    def compose(self) -> ComposeResult:
        """The verdict, the map and its scale, the findings, the foot."""
        yield self.verdict
        yield self.map
        yield self.scale
        yield self.list
        yield from self.foot()

    def on_mount(self) -> None:
        """Name the keys that take the verdict."""
        self.verdict.take_key = self.key("diagnosis.verdict")
        self.verdict.enter_key = self.key("diagnosis.show")

    def on_verdict_line_clicked(self) -> None:
        """The verdict was clicked."""
        self.handler.verdict.clicked()

    def on_resize(self, event: events.Resize) -> None:
        """Lay everything out for the new size."""
        self.call_after_refresh(self._write)

    def show(self, session: Session, dirty: frozenset[Dirty], *, whole: bool = False) -> None:
        """Draw what changed."""
        self.session = session
        if not whole and not dirty & SHOWN:
            return
        left = 0.0 if whole else self._next - time.monotonic()
        if left <= 0:
            self._look()
        elif not self._waits:
            self._waits = True
            call_after(self, left, self._look)

    def _ask(self, command: p.AnyCommand) -> None:
        self.post_message(SessionScreen.Ask(command))

    def before_fold(self, event: p.AnyEvent) -> bool:
        """Keep histograms for the gallery: a session keeps fewer than a screen has room for."""
        if isinstance(event, p.HistogramReady) and self.gallery.keep(event) and self.is_current:
            self.call_later(self._write)
        return True

    def connected(self) -> None:
        """A new engine knows nothing of what was asked for."""
        self.gallery.forget()

    def _look(self) -> None:
        """Look at the session as it is now; not again before most of the time was free for keys."""
        self._waits = False
        begun = time.monotonic()
        session = self.session
        self.effects.update(session)
        self.verdict.follow(session, self.format, self._marks.serving(session))
        self._draw_map()
        self._write()
        self._next = begun + max(LEAST, REST * (time.monotonic() - begun))
        if session.layers.names:
            self._looking.begin(self._find(session), self._found)
        else:
            self._found([])

    def _find(self, session: Session) -> Generator[None, None, list[Finding]]:
        """All findings, one check a step; none where the layers are listed anew meanwhile."""
        layers, found = session.layers, []
        for some in findings_by_check(session, self.format or "int4-g128"):
            found += some
            yield
            if layers is not session.layers:
                return []
        return by_order(found)

    def _found(self, found: list[Finding]) -> None:
        self._next = max(self._next, time.monotonic() + REST * self._looking.took)
        if found != self.found:
            self.found = found
            self._on = max(0, min(self._on, len(found) - 1))
            self._write()

    @property
    def format(self) -> str:
        """The format whose effects are shown."""
        return self.effects.format

    def _draw_map(self) -> None:
        self._mapped, self._maps = self.figures(), {}
        self._choose_map()

        self._to_table_s_layer()

    def arrive(self, layer: str | None) -> None:
        """Begin at the table's layer, where that is another one than the last time."""
        self._arriving = layer is not None and layer != self._from
        self._from = layer
        self._to_table_s_layer()

    def _to_table_s_layer(self) -> None:
        """Put the map's cursor on the layer that the table's is on."""
        row = self.session.row(self._from) if self._arriving and self._from else None
        if row is not None and self._drawn is not None:
            self._at = self._drawn.place(self.session, row) or self._at
            self._arriving = False

    def _choose_map(self) -> None:
        """Show the map of the chosen figure, drawn once until something changes."""
        if not self._mapped:
            self._drawn = None
            return
        self._figure %= len(self._mapped)
        figure = self._mapped[self._figure]
        if figure.id not in self._maps:
            self._maps[figure.id] = map_of(self._shown(), figure)
        self._drawn = self._maps[figure.id]

    def _shown(self) -> Context:
        return Context(self.session, p.EffectKey("degrade", self.effects.format))

    def figures(self) -> list[Figure]:
        """Figures that can be mapped now."""
        return mapped_figures(self._shown()) if self.session.layers.names else []

    # --- the cursor ---------------------------------------------------------------------------

    @property
    def on_top(self) -> bool:
        """Whether there is nothing above the cursor but the verdict."""
        if not self._in_map:
            return self._on == 0
        return self.gallery.on_top if self.gallery.on else self._at[0] == 0

    @property
    def current(self) -> str | None:
        """The layer under the cursor; None for a finding about several."""
        if self._in_map and self.gallery.on:
            return self.session.layers.names[self.gallery.row]
        if self._in_map:
            row = self._drawn.layer(self._at) if self._drawn is not None else None
            return None if row is None else self.session.layers.names[row]
        finding = self.found[self._on] if self._on < len(self.found) else None
        return finding.layer or None if finding is not None else None

    def move(self, down: int, right: int) -> None:
        """Move the cursor in the map, or in the list."""
        if self._in_map and self.gallery.on:
            self.gallery.move(down, right)
        elif self._in_map and self._drawn is not None:
            self._at = self._drawn.moved(self._at, down, right)
        elif not self._in_map:
            self._on = max(0, min(self._on + down, len(self.found) - 1))
            self._follow_finding()
        self._write()

    def _follow_finding(self) -> None:
        """The cell of a finding's layer is the map's too."""
        layer = self.current
        if layer is None or self._drawn is None:
            return
        place = self._drawn.place(self.session, self.session.index[layer])
        self._at = place or self._at

    def other_side(self) -> None:
        """Move between the map and the findings."""
        self._in_map = not self._in_map or not self.found
        if not self._in_map:
            self._follow_finding()
        self._write()

    def toggle_gallery(self) -> None:
        """Change between the map and the histograms of the kind under its cursor."""
        if self.gallery.on:
            self.gallery.close()
        elif self._drawn is not None:
            row = self._drawn.layer(self._at)
            self.gallery.open(self.session, self._drawn.kinds[self._at[1]], row)
        self._in_map = True
        self._write()
        self.call_after_refresh(self._write)  # findings have another number of lines now

    def next_figure(self) -> None:
        """Map another figure, or show the histograms of another kind."""
        if self.gallery.on:
            self.gallery.next_kind(self.session)
            self._write()
            return
        self._figure += 1
        self._choose_map()
        self._write()

    def here(self) -> tuple[str, bool]:
        """What the keys act on now."""
        return printable(self.current or "no layer"), bool(self.session.layers.names)

    # --- drawing ------------------------------------------------------------------------------

    def _write(self) -> None:
        width, both = self.app.size.width - 2, self.app.size.height - OTHER_LINES
        if self.gallery.on:
            room = max(4, both * 3 // 5)
            tiles, about = self.gallery.draw(self.session, width, room, here=self._in_map)
            self.map.set_lines(tiles)
            self.scale.set_lines([about])
        elif self._drawn is None:
            self.map.set_lines([[("nothing is known of the layers yet", "$dim")]])
            self.scale.set_lines([])
        else:
            listed = self.findings.count(self.found, self.session, width - 2, both)
            most = max(4, both * 3 // 5, both - max(1, listed))
            room = min(len(self._drawn.blocks) + 1, most)
            self._top = visible(self._at[0], self._top, len(self._drawn.blocks), room - 1)
            self.map.set_lines(
                map_lines(self._drawn, self._at, self._top, width, room, self.glyphs)
            )
            self.scale.set_lines([self._under_cursor(self._drawn)])
        room = max(1, both - len(self.map.lines))  # its size is not that yet
        lines = self.findings.draw(
            self.found, self.session, width - 2, room, None if self._in_map else self._on
        )
        none = "no findings so far" if self.session.layers.names else ""
        self.list.set_lines(lines or [[(none, "$dim")]])

    def _under_cursor(self, drawn: Map) -> Words:
        row = drawn.layer(self._at)
        if row is None:
            return scale_line(drawn, self.glyphs)
        layers = self.session.layers
        name = printable(short_name(layers.names[row], layers.blocks[row], 2)).strip()
        value = drawn.cells[drawn.blocks[self._at[0]], drawn.kinds[self._at[1]]][0]
        said = drawn.figure.quantity.text(value) if value == value else self.glyphs.unknown
        if drawn.figure.id in BY_EFFECT and value == value:
            effect = effects(self.session, self._shown().key)(row)
            if isinstance(effect, p.Estimate):
                said = self.glyphs.about + said + (DOUBT if effect.doubt else "")
        return [(f"{name}: {said}  ", "bold"), *scale_line(drawn, self.glyphs)]
