"""The workbench: score at the top, layer table below, details of one layer in the side pane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.geometry import Size

from engine import protocol as p
from engine.client import EngineGoneError
from engine.export.target import targets
from engine.formats.grammar import parse_format
from engine.session import Dirty, Session, is_opening
from qtui.screens.session_screen import SessionScreen
from qtui.screens.spec import ScreenContext
from qtui.screens.workbench.effects import ShownEffects
from qtui.screens.workbench.layout import CSS, apply_layout
from qtui.screens.workbench.pane_requests import PaneRequests
from qtui.textual_internals import calling_after
from qtui.user.remembered import remember
from qtui.views.scope import Scope, describe
from qtui.views.text import printable, short_name
from qtui.widgets.frame.banner import Banner
from qtui.widgets.frame.log_pane import LogPane
from qtui.widgets.frame.scoreboard import Scoreboard
from qtui.widgets.frame.verdict import VerdictLine
from qtui.widgets.line import Lines, Words, content
from qtui.widgets.pane.detail import Detail
from qtui.widgets.pane.tabs import LAYER
from qtui.widgets.table.caption import caption
from qtui.widgets.table.layer_table import LayerTable

if TYPE_CHECKING:
    from qtui.screens.workbench.handler import WorkbenchHandler
    from qtui.views.filter import Filter
    from qtui.widgets.prompt.prompt import Prompt

TABLE: frozenset[Dirty] = frozenset(
    {
        "layers", "holds", "weights", "measured", "jobs", "checkpoint", "model", "experts",
        "errors",
    }
)  # fmt: skip
DETAIL: frozenset[Dirty] = frozenset(
    {
        "layers", "holds", "weights", "measured", "baseline", "recipe", "histogram", "experts",
        "notices", "errors", "ranges", "fixes",
    }
)  # fmt: skip
"""Parts of a session that the table, and the pane, draw."""
MEASURED_TABS = frozenset({"activations", "errors", "fixes", "drift"})
"""Tabs that say whether a job measures what they show."""
QUESTIONS = frozenset({"AskHistogram", "AskErrorMap", "AskRanges", "AskFixes"})
"""Commands that the pane sends by itself."""


class Workbench(SessionScreen):
    """Layers, their effects, and the recipe that is being made of them."""

    DEFAULT_CSS = CSS

    handler: WorkbenchHandler
    """Runs the actions: set by `WorkbenchActions`, which knows this screen."""

    def __init__(self, context: ScreenContext) -> None:
        """
        Args:
            context: what the screen is made from.
        """
        glyphs, source = context.glyphs, context.source
        super().__init__(glyphs)
        self.source = source
        self.scoreboard = Scoreboard(source, glyphs, id="scoreboard")
        self.verdict = VerdictLine(glyphs, id="verdict")
        self.table: LayerTable = LayerTable(glyphs, id="table")
        self.detail: Detail = Detail(glyphs, id="detail")
        self.events = context.events
        self.log_pane = LogPane(self.events, glyphs, id="log")
        self.banner = Banner(id="banner")
        self.effects = ShownEffects()
        self.marks = context.marks
        """What the export target cannot hold."""
        self._tuned_for: p.TunedFor | None = None
        """What the session's recipe was tuned for when it was shown last."""
        self._caption: Words = []
        """What is said above the table."""
        self.requested: dict[str, dict[str, str]] = {}
        """Pending formats by layer, for the ``ask`` of each unconfirmed command."""
        self.pane_requests = PaneRequests(
            lambda: (self.session, self.table.current),
            lambda command: self.post_message(self.Ask(command)),
            calling_after(self),
            self.detail.wanted,
        )
        # As in an earlier run.
        self.detail.histogram.by_log = context.remembered.log_counts
        self.set_class(context.remembered.pane is False, "-folded")
        self.set_class(context.remembered.log is False, "-no-log")

    def compose(self) -> ComposeResult:
        """The widgets from top to bottom."""
        yield Lines(id="too-small")
        yield self.scoreboard
        yield self.verdict
        with Horizontal(id="main"):
            yield self.table
            yield self.detail
        yield self.banner
        yield self.log_pane
        yield from self.foot()

    def on_mount(self) -> None:
        """Show an empty table: the engine comes later."""
        self._lay_out(self.app.size)
        self.table.empty = "reading" + self.glyphs.ellipsis
        self.scoreboard.freeze_key = self.key("freeze")
        self.scoreboard.retry_key = self.key("retry")
        self.verdict.take_key = self.key("verdict")
        self.verdict.enter_key = self.key("expand")
        self.detail.key = self.key
        change, clear = self.key("filter"), self.key("unmark")
        self.table.way_out = f"{change} changes the filter, {clear} clears it"
        self.scoreboard.show(self.session)
        for key in self.refused_keys:
            self.say_and_log(
                "warning", f"profile: key {key!r} is already taken; its format gets no key"
            )

    def on_resize(self, event: events.Resize) -> None:
        """Choose the layout for the new size."""
        self._lay_out(event.size)
        self._show_caption()

    def _lay_out(self, size: Size) -> None:
        if tiny := apply_layout(self, size):
            self.query_one("#too-small", Lines).set_lines(tiny)
        self._fold()

    def _fold(self) -> None:
        narrow, pane = self.has_class("-narrow"), self.has_class("-pane")
        self.detail.set_class(narrow and not pane and not self.has_class("-roomy"), "-small")
        self.keybar.show_alone(narrow and pane and not self.has_class("-folded"))
        self._detail()

    # --- what the engine's link says -----------------------------------------------------------

    def connecting(self) -> None:
        """An engine is being started."""
        self.banner.hide()
        self.scoreboard.state = "starting the engine"

    def waiting(self, sentence: str) -> None:
        """Say it where it was said that the engine is gone."""
        self.banner.wait(sentence)
        self.events.say("info", sentence)

    def connected(self) -> None:
        """There is an engine; it knows nothing of what the one before was asked."""
        self.banner.hide()
        self.scoreboard.state = "opening"
        self.pane_requests.forget()
        self.table.pending.clear()
        self.pane_requests.soon()

    def lost(self, error: EngineGoneError) -> None:
        """The engine is gone."""
        self.scoreboard.state = "no engine"
        self.table.pending.clear()
        self.message.clear()
        self.events.say("error", error.reason)
        self.banner.show(error, self.key("retry"), self.key("quit"))

    def refused(self, why: str = "") -> None:
        """A command went nowhere."""
        self.table.pending.clear()
        self.table.redraw()
        super().refused(why)

    def freeze(self, frozen: bool) -> None:
        """The display is frozen, or follows the session again."""
        self.scoreboard.frozen = frozen

    def say_and_log(self, level: p.Level, words: str) -> None:
        """Show a message at the bottom, and log it."""
        self.events.say(level, words)
        self.message.say(level, words)
        self.log_pane.show()

    # --- drawing ------------------------------------------------------------------------------

    def show(self, session: Session, dirty: frozenset[Dirty], *, whole: bool = False) -> None:
        """Draw the parts of the session that changed; ``whole`` if all of it was replaced."""
        self.session = session
        self.effects.update(session)
        if dirty & {"layers", "holds", "recipe", "checkpoint"} or whole:
            self._mark()
        self.scoreboard.shown = self.format, self.direction
        if whole:
            self.table.pending.clear()
            self.events.add_earlier(session)
            if session.model is not None and not is_opening(session):
                self.scoreboard.state = "ready"
        if dirty - {"histogram", "notices", "experts", "errors", "ranges", "fixes"}:
            self.scoreboard.show(session, dirty)
        if dirty & {"measured", "recipe", "baseline", "layers"}:
            self._judge()
        said = session.tuned_for
        if said is not None and said is not self._tuned_for:
            self._tuned_for = said
            self._follow_target(said.target)
        if dirty & TABLE:
            self.table.empty = self._empty()
            self.table.listing.serving = self.marks.serving(session)
            moved = bool(dirty & {"layers", "weights", "measured", "model", "experts", "errors"})
            self.table.show(session, self.format, self.direction, reorder=moved)
            self._show_caption()
            self.show_scope()
        if dirty & DETAIL or ("jobs" in dirty and self.detail.tab in MEASURED_TABS):
            self._detail()
        if dirty & {"layers", "model", "holds"}:
            self.pane_requests.soon()
        self.log_pane.show()

    @property
    def current(self) -> str | None:
        """The layer under the table's cursor."""
        return self.table.current

    def choose_target(self, name: str) -> None:
        """Mark what an export target cannot hold; an empty name marks nothing."""
        self.marks.choose(name)
        self._mark()
        self._judge()
        self.table.listing.serving = self.marks.serving(self.session)
        self.table.redraw()
        self._detail()
        self._show_caption()

    def _follow_target(self, name: str) -> None:
        """Mark for the session's target: chosen earlier, or in another terminal."""
        known = not name or any(each.name == name for each in targets())
        if known and (name != self.marks.name or not self.marks.chosen):
            self.choose_target(name)

    def _mark(self) -> None:
        if self.marks.update(self.session):
            self.table.refused = {
                layer: mark.kind == "refused" for layer, mark in self.marks.by_layer.items()
            }

    @property
    def format(self) -> str:
        """The format whose effects are shown."""
        return self.effects.format

    @property
    def direction(self) -> p.Direction:
        """The direction of the effects that are shown."""
        return self.effects.direction

    def next_format(self) -> None:
        """Show the effects of the next format that was swept."""
        self.effects.next_format(self.session)
        self._show_effects()
        self.message.say("info", f"showing effects of {printable(self.format)}")

    def switch_direction(self) -> None:
        """Show the effects of the other direction: of quantising a layer alone, of keeping it."""
        back = self.effects.switch_direction()
        self.keybar.show(
            [each._replace(word=back) if each.id == "sweep" else each for each in self.actions]
        )
        self._show_effects()

    def _judge(self) -> None:
        # Of a restore view too: what the format costs everywhere is the same.
        kept = not self.format or parse_format(self.format).kept
        self.verdict.follow(
            self.session, "" if kept else self.format, self.marks.serving(self.session)
        )

    def _show_effects(self) -> None:
        self._judge()
        self.table.show(self.session, self.format, self.direction)
        self.scoreboard.shown = self.format, self.direction
        self.scoreboard.show(self.session, frozenset({"jobs"}))
        self._detail()
        self._show_caption()

    def _empty(self) -> str:
        failed = [job for job in self.session.jobs.values() if job.status == "failed"]
        if failed and self.session.checkpoint is None:
            keys = f"{self.key('retry')} retries, {self.key('quit')} quits"
            return f"{printable(failed[0].message)}\n{keys}"
        return "reading" + self.glyphs.ellipsis

    def _detail(self) -> None:
        where = self.table.current, self.table.current_expert
        self.detail.cannot = "", ""
        if (said := self.marks.said_of(where[0])) is not None:
            self.detail.cannot = self.glyphs.refused if said[0] else self.glyphs.unserved, said[1]
        self.detail.serving = self.marks.serving(self.session)
        self.detail.show(self.session, *where, (self.format, self.direction))

    def before_fold(self, event: p.AnyEvent) -> bool:
        """Handle an event before it is folded; false if it must not be folded."""
        if isinstance(event, p.HistogramReady):
            self.pane_requests.answered(event.layer, event.format)
        if isinstance(event, p.ErrorMapReady):
            self.pane_requests.tab_answered(p.AskErrorMap(event.layer, event.format))
        if isinstance(event, p.Refused) and event.command in QUESTIONS:
            # Requested too early, or for a layer that cannot be read; no key was pressed.
            self.pane_requests.forget()
            return False
        if isinstance(event, p.Refused) and event.command == "AskExperts":
            for layer in event.layers:
                self.table.no_experts[layer] = event.message
            self.table.redraw()
            return False
        heard = self.events.version
        self.events.add(event, self.session)
        if self.events.version != heard:
            self._say(event)
        match event:
            case p.Refused(ask=ask):
                for layer, format in self.requested.pop(ask, {}).items():
                    # A later command may have requested another format.
                    if self.table.pending.get(layer) == format:
                        del self.table.pending[layer]
                self.table.redraw()
            case p.RecipeChanged():
                for layer in event.layers:
                    self.table.pending.pop(layer, None)
                if not self.table.pending:
                    self.requested.clear()
                if event.how != "set":
                    done = {"undo": "undone", "redo": "redone"}[event.how]
                    self.message.say("info", f"{done}: {self.change(event.layers, event.after)}")
            case p.JobEnded(kind="fixes", status="done"):
                self.message.say("info", f"fixes tried: {self.key('fixes')} takes the best")
            case p.JobEnded(kind="open", status=status):
                self.scoreboard.state = "ready" if status == "done" else "not open"
        return True

    def _say(self, event: p.AnyEvent) -> None:
        """Show a logged event at the bottom, unless the screen shows it elsewhere."""
        last = self.events.last
        ended = isinstance(event, p.JobEnded) and (
            event.status == "cancelled" or event.kind == "sweep"
        )
        shown = self.has_class("-tall")
        if last is not None and (
            last.level != "info" or ended or (isinstance(event, p.Notice) and not shown)
        ):
            self.message.say(last.level, last.text)

    def change(self, layers: Sequence[str], formats: Sequence[str]) -> str:
        """A short description of layers and their new formats."""
        row = self.session.row(layers[0]) if layers else None
        if row is None or len(layers) > 1:
            who = f"{len(layers)} layers"
        else:
            who = short_name(layers[0], self.session.layers.blocks[row], 0).strip()
        shown = formats[0] if len(set(formats)) == 1 else "their earlier formats"
        return f"{who} {self.glyphs.arrow} {shown}"

    # --- the scope of a toggle ----------------------------------------------------------------

    def set_scope(self, scope: Scope) -> None:
        """Choose another scope."""
        self.table.set_scope(scope)
        self.show_scope()

    def set_filter(self, filter: Filter | None) -> None:
        """Show matching rows only; None shows all."""
        self.table.set_filter(filter)
        self._show_caption()
        self.show_scope()

    def _show_caption(self) -> None:
        """Say above the table what is filtered, what is swept, and how far estimates hold."""
        shown, of = self.table.shown_of_all
        filter = self.table.filter
        filtered = f"{printable(filter.text)}: {shown} of {of} layers" if filter else ""
        width = self.app.size.width - 2
        way = self.format, self.direction
        ranked = not self.table.by_weight_error
        words = caption(
            self.session,
            *way,
            filtered,
            width,
            self.glyphs,
            ranked=ranked,
            target=self.marks.summary(),
        )
        if words != self._caption:
            # Setting a title resends everything below it to the terminal.
            self._caption = words
            self.query_one("#main").border_title = content(words)

    def go_to(self, layer: str) -> None:
        """Move the cursor to a layer; a filter that hides it is cleared."""
        if not self.table.go_to(layer):
            self.set_filter(None)
            self.table.go_to(layer)

    def layers_in_scope(self) -> tuple[str, ...]:
        """Layers that a toggle would change now, in the order of the model."""
        return self.table.layers_in_scope()

    def here(self) -> tuple[str, bool]:
        """What a format's key would change now, for the help, and whether it would at all."""
        if self.table.current is None:
            return "no layers yet", False
        return f"a format's key changes {self.scope_words()}", True

    def scope_words(self) -> str:
        """The scope of a toggle, in words."""
        return describe(self.table.scope, self.table.here, self.glyphs)

    def show_scope(self) -> None:
        """Show the scope at the bottom."""
        words = self.scope_words() if self.session.layers.names else ""
        self.message.show_scope(words, self.table.scope != "layer")

    # --- the layer under the cursor -----------------------------------------------------------

    def on_layer_table_moved(self) -> None:
        """Show the layer, and ask for its histogram once the cursor rests."""
        self._detail()
        self.show_scope()
        self.pane_requests.soon()

    def on_verdict_line_clicked(self) -> None:
        """The verdict was clicked."""
        self.handler.verdict.clicked()

    def on_click(self, event: events.Click) -> None:
        """A click elsewhere than on the verdict takes the cursor from there."""
        if event.widget is not self.verdict:
            self.verdict.put_cursor(here=False)

    def on_layer_table_marked(self) -> None:
        """The scope is other layers now."""
        self.show_scope()

    def on_layer_table_sorted(self) -> None:
        """Say how rows are sorted now, by key or by a click."""
        self.message.say("info", f"sorted by {self.table.order_words}")

    def on_layer_table_expanded(self, expanded: LayerTable.Expanded) -> None:
        """Request the experts of an expanded row."""
        if expanded.layer not in self.session.experts:
            self.post_message(self.Ask(p.AskExperts(expanded.layer)))

    # --- keys ---------------------------------------------------------------------------------

    def on_prompt_changed(self, event: Prompt.Changed) -> None:
        """The value of the open prompt changed."""
        self.handler.prompts.changed(event)

    def on_prompt_submitted(self, event: Prompt.Submitted) -> None:
        """The prompt was submitted."""
        self.handler.prompts.submitted(event)

    def on_prompt_cancelled(self, event: Prompt.Cancelled) -> None:
        """The prompt was cancelled."""
        self.handler.prompts.cancelled(event)

    def toggle_pane(self) -> None:
        """Show or hide the side pane; where it is below the table, show it alone in between."""
        if self.has_class("-narrow") and not self.has_class("-folded"):
            if not self.has_class("-pane"):
                self.add_class("-pane")
                self._fold()
                return
            self.remove_class("-pane")
        self.toggle_class("-folded")
        remember(pane=not self.has_class("-folded"))
        self._fold()

    def show_tab(self, id: str) -> None:
        """Show a tab of the pane; the pane with it, where it was hidden."""
        if self.has_class("-folded") or self.detail.has_class("-small"):
            self.remove_class("-folded")
            self.add_class("-pane")
            self._fold()
        self.table.stay()  # what the tab asks for moves rows, not the cursor
        self.detail.show_tab(id)
        self.set_class(self.detail.tab != LAYER, "-tabbed")  # no histogram beside its lines
        self.pane_requests.soon()

    def toggle_log(self) -> bool:
        """Show or hide the log; whether it is hidden now."""
        self.toggle_class("-no-log")
        hidden = self.has_class("-no-log")
        remember(log=not hidden)
        return hidden
