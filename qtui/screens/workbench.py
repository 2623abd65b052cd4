"""The one screen: the score above, the layers below it, and all about one of them beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.message import Message as TextualMessage
from textual.screen import Screen
from textual.timer import Timer

from engine import protocol as p
from engine.profiles import Profile
from engine.session import Dirty, Session
from qtui.keys import WORKBENCH, toggles
from qtui.screens.help import Help, NoticeLog
from qtui.text import UNICODE, Glyphs, printable, short_name
from qtui.widgets.banner import Banner
from qtui.widgets.detail import Detail
from qtui.widgets.layer_table import ORDERS, LayerTable, Order
from qtui.widgets.line import Lines
from qtui.widgets.scoreboard import Scoreboard, running
from qtui.widgets.status import KeyBar, Message, Notices, notices

LEAST = (60, 18)
"""Columns and lines below which nothing is drawn but a request for more."""
WIDE, TALL, ROOMY = 140, 34, 40
"""From so many columns the pane stands beside the table; from so many lines there is a log; from so
many the pane below the table has its histogram too."""
ORDER_NAMES: dict[Order, str] = {
    "effect": "largest KL first",
    "weights": "largest weight error first",
    "model": "the model's own order",
}


class Workbench(Screen[None]):
    """Layers, their effects, and the recipe that is being made of them."""

    REST: ClassVar[float] = 0.08
    """Seconds the cursor rests on a layer before its histogram is asked for."""

    DEFAULT_CSS = """
    Workbench { background: $background; }
    #main { height: 1fr; border-top: solid $panel; border-bottom: solid $panel; }
    #detail { width: 1fr; }
    #notices { display: none; }
    #too-small { display: none; height: 1fr; padding: 1 2; }

    Workbench.-narrow #main { layout: vertical; }
    Workbench.-narrow #detail { border-top: solid $panel; height: 4; }
    Workbench.-roomy #detail { height: 12; layout: horizontal; }
    Workbench.-roomy #detail > #about { dock: top; }
    Workbench.-roomy #detail > #figures { width: 54; margin-left: 2; }
    Workbench.-roomy #detail > Histogram { width: 1fr; }
    Workbench.-narrow.-pane #table { display: none; }
    Workbench.-narrow.-pane #detail { border-top: none; height: 1fr; }
    Workbench.-wide #table { width: 5fr; }
    Workbench.-wide #detail { width: 3fr; min-width: 55; max-width: 72; border-left: solid $panel; }
    Workbench.-wide.-folded #detail { display: none; }
    Workbench.-tall #notices { display: block; border-top: none; }

    Workbench.-tiny > * { display: none; }
    Workbench.-tiny #too-small { display: block; }

    Workbench.-ascii #main { border-top: ascii $panel; border-bottom: ascii $panel; }
    Workbench.-ascii #detail { border-top: ascii $panel; }
    Workbench.-ascii.-wide #detail { border-top: none; border-left: ascii $panel; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [*WORKBENCH]

    @dataclass
    class Ask(TextualMessage):
        """A person wants something of the engine."""

        command: p.AnyCommand

    class Retry(TextualMessage):
        """A person wants another try at what failed."""

    class Leave(TextualMessage):
        """A person wants to go."""

    def __init__(self, source: str, profile: Profile, glyphs: Glyphs = UNICODE) -> None:
        super().__init__()
        self.glyphs = glyphs
        self.session = Session()
        self.profile = profile
        self.scoreboard = Scoreboard(source, glyphs, id="scoreboard")
        self.table = LayerTable(glyphs, id="table")
        self.detail = Detail(glyphs, id="detail")
        self.notices = Notices(glyphs, id="notices")
        self.message = Message(glyphs, id="message")
        self.keybar = KeyBar(id="keys")
        self.banner = Banner(id="banner")
        self.format = ""
        self._asked: set[str] = set()
        self._fallbacks = 0
        self._heard: p.Notice | None = None
        self._rest: Timer | None = None
        self.refused_keys: list[str] = []
        if glyphs.ascii:
            self.add_class("-ascii")
        self._bind_toggles()

    def _bind_toggles(self) -> None:
        for binding in toggles(self.profile.keys):
            if binding.key in self._bindings.key_to_bindings:
                self.refused_keys.append(binding.key)
            else:
                self._bindings.key_to_bindings[binding.key] = [binding]

    def compose(self) -> ComposeResult:
        """The widgets from top to bottom."""
        yield Lines(id="too-small")
        yield self.scoreboard
        with Horizontal(id="main"):
            yield self.table
            yield self.detail
        yield self.banner
        yield self.notices
        yield self.message
        yield self.keybar

    def on_mount(self) -> None:
        """Show an empty table: the engine comes later."""
        self.table.empty = "reading" + self.glyphs.ellipsis
        self.scoreboard.show(self.session)
        for key in self.refused_keys:
            self.message.say(
                "warning", f"profile: the key {key!r} is taken, its format is left out"
            )

    def on_resize(self, event: events.Resize) -> None:
        """Choose the arrangement for the new size."""
        width, height = event.size
        tiny = width < LEAST[0] or height < LEAST[1]
        self.set_class(tiny, "-tiny")
        self.set_class(width < WIDE, "-narrow")
        self.set_class(width >= WIDE, "-wide")
        self.set_class(height >= TALL and width >= 100, "-tall")
        self.set_class(height >= ROOMY and 100 <= width < WIDE, "-roomy")
        if tiny:
            wanted = f"qtui needs {LEAST[0]} columns and {LEAST[1]} lines."
            here = f"This terminal has {width} and {height}."
            line = self.query_one("#too-small", Lines)
            line.set_lines([[(wanted, "bold")], [(here, "$dim")]])
        self._fold()

    def _fold(self) -> None:
        narrow, pane = self.has_class("-narrow"), self.has_class("-pane")
        self.detail.set_class(narrow and not pane and not self.has_class("-roomy"), "-small")
        self._detail()

    # --- drawing ------------------------------------------------------------------------------

    def show(self, session: Session, dirty: frozenset[Dirty]) -> None:
        """Draw the parts of the session that changed."""
        before, self.session = self.session, session
        self.format = self._shown_format()
        if session is not before:
            self.table.pending.clear()
            # What an earlier run was told stands in the log; it is no news.
            self._fallbacks = len(session.fallbacks)
            self._heard = session.notices[-1] if session.notices else None
        if dirty - {"histogram", "notices"}:
            self.scoreboard.show(session, dirty)
        if dirty & {"layers", "holds", "weights", "measured", "jobs", "checkpoint", "model"}:
            self.table.empty = self._empty()
            effects = bool(dirty & {"layers", "weights", "measured", "model"})
            self.table.show(session, self.format, reorder=effects)
        if dirty & {"layers", "holds", "weights", "measured", "histogram", "notices"}:
            self._detail()
        if dirty & {"layers", "model"}:
            self._ask_soon()
        if "notices" in dirty:
            self._hear()

    def _shown_format(self) -> str:
        measured = [key.removeprefix("degrade/") for key in self.session.measured]
        wanted = self.session.settings.sweep_formats
        if self.format in measured:
            return self.format
        return next((f for f in wanted if f in measured), (measured or list(wanted) or [""])[0])

    def _empty(self) -> str:
        failed = [job for job in self.session.jobs.values() if job.status == "failed"]
        if failed and self.session.checkpoint is None:
            return f"{printable(failed[0].message)}\nr tries again, q quits"
        return "reading" + self.glyphs.ellipsis

    def _detail(self) -> None:
        self.detail.show(self.session, self.table.current)

    def hear(self, event: p.AnyEvent) -> bool:
        """Take notice of an event before it is folded; false where it is not to be folded."""
        match event:
            case p.Refused(command="AskHistogram"):
                # Asked for too early, or of a layer that cannot be read: nobody pressed a key.
                self._asked.clear()
                return False
            case p.Refused(layers=layers):
                for layer in layers or tuple(self.table.pending):
                    self.table.pending.pop(layer, None)
                self.table.redraw()
            case p.RecipeChanged():
                for layer in event.layers:
                    self.table.pending.pop(layer, None)
                if event.how != "set":
                    done = {"undo": "undone", "redo": "done again"}[event.how]
                    self.message.say("info", f"{done}: {self._change(event.layers, event.after)}")
            case p.JobEnded():
                self._ended(event)
        return True

    def _ended(self, event: p.JobEnded) -> None:
        """Say what became of a job, where the rest of the screen does not show it."""
        job = self.session.jobs.get(event.job)
        if event.kind == "open":
            self.scoreboard.state = "ready" if event.status == "done" else "not open"
        if event.status == "cancelled" or (event.status == "done" and event.kind == "sweep"):
            title = event.kind if job is None else job.title
            known = f", {event.resumed} results were known before" if event.resumed else ""
            self.message.say("info", f"{title}: {event.status}{known}")

    def _change(self, layers: Sequence[str], formats: Sequence[str]) -> str:
        """Layers with the formats they hold now, in few words."""
        row = self.session.row(layers[0]) if layers else None
        if row is None or len(layers) > 1:
            who = f"{len(layers)} layers"
        else:
            who = short_name(layers[0], self.session.layers.blocks[row], 0).strip()
        shown = formats[0] if len(set(formats)) == 1 else "what they held"
        return f"{who} {self.glyphs.arrow} {shown}"

    def _hear(self) -> None:
        fallbacks, said = self.session.fallbacks, self.session.notices
        newest = None
        if len(fallbacks) > self._fallbacks:
            newest = notices(self.session)[len(fallbacks) - 1]
        if said and said[-1] is not self._heard:
            newest = said[-1].level, said[-1].message
        self._fallbacks, self._heard = len(fallbacks), said[-1] if said else None
        if newest is not None and (newest[0] != "info" or not self.has_class("-tall")):
            self.message.say(*newest)
        self.notices.show(self.session)

    # --- the layer under the cursor -----------------------------------------------------------

    def on_layer_table_moved(self) -> None:
        """Show the layer, and ask for its histogram once the cursor rests."""
        self._detail()
        self._ask_soon()

    def _ask_soon(self) -> None:
        if self._rest is not None:
            self._rest.stop()
        self._rest = self.set_timer(self.REST, self._ask_histogram)

    def _ask_histogram(self) -> None:
        layer = self.table.current
        if layer is None or layer in self.session.histograms or layer in self._asked:
            return
        self._asked.add(layer)
        self.post_message(self.Ask(p.AskHistogram(layer)))

    def forget_questions(self) -> None:
        """A new engine knows nothing of what the one before was asked."""
        self._asked.clear()
        self.table.pending.clear()
        self._ask_soon()

    # --- keys ---------------------------------------------------------------------------------

    def action_move(self, rows: int) -> None:
        """Move the cursor."""
        self.table.move_to(self.table.cursor + rows)

    def action_page(self, pages: int) -> None:
        """Move the cursor by what is on the screen."""
        self.table.move_to(self.table.cursor + pages * self.table.page)

    def action_first(self) -> None:
        """Move the cursor to the first row."""
        self.table.move_to(0)

    def action_last(self) -> None:
        """Move the cursor to the last row."""
        self.table.move_to(len(self.table.rows) - 1)

    def action_mark(self) -> None:
        """Mark the layer under the cursor."""
        self.table.toggle_mark()

    def action_unmark(self) -> None:
        """Take all marks away."""
        self.table.marked.clear()
        self.table.redraw()

    def action_hold(self, format: str) -> None:
        """Let the marked layers, or the one under the cursor, hold a format."""
        layers = self.table.chosen()
        if not layers:
            return
        self.table.move_to(self.table.cursor)
        for layer in layers:
            row = self.session.index[layer]
            shown = self.session.kept(row) if format == "kept" else format
            if shown != self.session.layers.holds[row]:
                self.table.pending[layer] = shown
        self.table.marked.clear()
        self.table.redraw()
        self.message.say("info", self._change(layers, [format]))
        self.post_message(self.Ask(p.SetFormat(layers, format)))

    def action_undo(self) -> None:
        """Take back the last change of the recipe."""
        self.post_message(self.Ask(p.Undo()))

    def action_redo(self) -> None:
        """Make the change again that was taken back."""
        self.post_message(self.Ask(p.Redo()))

    def action_sweep(self) -> None:
        """Measure every layer."""
        self.message.say("info", "sweep asked for")
        self.post_message(self.Ask(p.Sweep()))

    def action_cancel(self) -> None:
        """End the job that is shown."""
        jobs = running(self.session)
        if not jobs:
            self.message.say("info", "nothing is running")
            return
        self.message.say("info", f"cancelling {jobs[0].title}")
        self.post_message(self.Ask(p.Cancel(jobs[0].id)))

    def action_order(self) -> None:
        """Show rows in the next order."""
        order = ORDERS[(ORDERS.index(self.table.ordering) + 1) % len(ORDERS)]
        self.table.order_by(order)
        self.message.say("info", f"order: {ORDER_NAMES[order]}")

    def action_format(self) -> None:
        """Show the effects of the next format that was swept."""
        measured = [key.removeprefix("degrade/") for key in self.session.measured]
        if self.format in measured:
            self.format = measured[(measured.index(self.format) + 1) % len(measured)]
            self.table.show(self.session, self.format)
        self.message.say("info", f"effects of {self.format or 'nothing yet'}")

    def action_log_counts(self) -> None:
        """Change the histogram's heights."""
        self.detail.histogram.toggle_log()
        shown = "logarithm of the counts" if self.detail.histogram.by_log else "counts"
        self.message.say("info", f"histogram: {shown}")

    def action_pane(self) -> None:
        """Show the pane, or fold it."""
        self.toggle_class("-pane" if self.has_class("-narrow") else "-folded")
        self._fold()

    def action_notices(self) -> None:
        """Show all notices."""
        self.app.push_screen(NoticeLog(notices(self.session), self.glyphs))

    def action_help(self) -> None:
        """List the keys."""
        self.app.push_screen(Help(self, self.glyphs))

    def action_retry(self) -> None:
        """Try again what failed."""
        self.post_message(self.Retry())

    def action_leave(self) -> None:
        """Quit."""
        self.post_message(self.Leave())
