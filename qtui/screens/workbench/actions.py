"""What the workbench does when a key is pressed, an entry of the palette chosen, a word clicked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine import protocol as p
from engine.formats.grammar import parse_format
from engine.session import Session
from qtui.actions import HOLD
from qtui.screens.workbench.screen import Want, Workbench
from qtui.user.remembered import remember
from qtui.views import sweeps
from qtui.widgets.frame.scoreboard import running
from qtui.widgets.frame.status import key_names

if TYPE_CHECKING:
    from qtui.screens.workbench.prompts import Prompts

WAYS: dict[p.Direction, str] = {
    "degrade": "a layer quantised alone",
    "restore": "a layer kept alone, the others quantised",
}
"""What is measured, by direction."""
NO_LAYERS = "there are no layers yet"
NEEDS_LAYERS = frozenset(
    {"filter", "scope", "mark", "mark_range", "mark_shown", "mark_others", "hold", "copy"}
    | {"unmark", "sweep", "sweep_format"}
    | {"copy_table", "order", "reverse"}
)


class Deeds:
    """Carries out actions by their ids; one that cannot be done says why."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        bench.hands = self
        self._prompts: Prompts | None = None

    # What opens over the workbench is imported when it first opens: the first frame does not wait.

    @property
    def prompts(self) -> Prompts:
        """What is typed at the foot."""
        if self._prompts is None:
            from qtui.screens.workbench.prompts import Prompts

            self._prompts = Prompts(self.bench, self.hold)
        return self._prompts

    @property
    def session(self) -> Session:
        """What is known."""
        return self.bench.session

    def perform(self, id: str) -> None:
        """Do what an action says, or say why it cannot be done."""
        if why := self.why_not(id):
            self.say("warning", why)
        elif id.startswith(HOLD):
            self.hold(id.removeprefix(HOLD))
        else:
            DEEDS[id](self)

    def why_not(self, id: str) -> str:
        """Why an action makes no sense now; empty where it does."""
        bench, session, table = self.bench, self.session, self.bench.table
        if (id in NEEDS_LAYERS or id.startswith(HOLD)) and not session.layers.names:
            return NO_LAYERS
        match id:
            case "expand" if table.current is None or not table.expandable(table.current):
                return "this layer is not made of experts"
            case "undo" if session.position == 0 and not table.pending:
                return "there is no change to take back"
            case "redo" if session.position == len(session.history):
                return "there is no change to make again"
            case "sweep_format" if any(job.kind == "sweep" for job in running(session)):
                return f"a sweep is running already: {bench.key('cancel')} cancels it"
            case "cancel" if not running(session):
                return "nothing is running"
            case "retry" if not bench.failed and self._unfinished() is None:
                return "nothing has failed, and no sweep was left unfinished"
            case "format" if len(bench.swept()) < 2:
                sweeps = bench.key("sweep_format")
                return f"no more than one format was swept: {sweeps} sweeps another"
            case "pane_up" | "pane_down" if not bench.detail.can_scroll:
                return "the pane shows all there is"
        return ""

    def say(self, level: p.Level, words: str) -> None:
        """Show a message at the foot."""
        self.bench.message.say(level, words)

    def ask(self, command: p.AnyCommand) -> None:
        """Want something of the engine."""
        self.bench.post_message(self.bench.Ask(command))

    def want(self, what: Want) -> None:
        """Want something of the app."""
        self.bench.post_message(self.bench.Wanted(what))

    # --- moving and choosing ------------------------------------------------------------------

    def move(self, rows: int) -> None:
        """Move the cursor."""
        self.bench.table.move_to(self.bench.table.cursor + rows)

    def order(self, *, reverse: bool = False) -> None:
        """Sort by the next column, or the other way round."""
        table = self.bench.table
        if reverse:
            table.reverse()
        else:
            table.next_order()

    def scope(self) -> None:
        """Let toggles touch the next kind of set."""
        self.bench.table.next_scope()
        self.bench.message.clear()
        self.bench.show_touched()

    def mark(self, how: Callable[[], object]) -> None:
        """Change the marks; toggles touch them while there are any."""
        how()
        self.bench.message.clear()
        self.bench.show_touched()

    def expand(self) -> None:
        """Show the experts of a fused row, or fold them."""
        self.bench.table.toggle_expand()

    def unmark(self) -> None:
        """Take all marks away; where there are none, the filter."""
        if self.bench.table.marked:
            self.mark(self.bench.table.clear_marks)
        else:
            self.bench.set_filter(None)

    # --- the recipe ---------------------------------------------------------------------------

    def hold(self, format: str) -> None:
        """Let the layers in scope hold a format."""
        bench, session = self.bench, self.session
        layers = bench.touched()
        if not layers:
            self.say("warning", f"a toggle would touch nothing: {bench.scope_words()}")
            return
        bench.table.stay()
        shown = format if format == "kept" else str(parse_format(format))
        changing = {}
        for layer in layers:
            row = session.index[layer]
            after = session.kept(row) if format == "kept" else shown
            if after != bench.table.pending.get(layer, session.layers.holds[row]):
                changing[layer] = after
        if not changing:
            held = "as stored" if format == "kept" else shown
            self.say("info", f"{bench.scope_words()}: {held} already")
            return
        bench.table.pending.update(changing)
        bench.table.redraw()
        self.say("info", bench.change(layers, [format]))
        self.want("thaw")
        self.ask(p.SetFormat(layers, format))

    def step(self, command: p.Undo | p.Redo) -> None:
        """Go back or forth in the recipe's history."""
        self.want("thaw")
        self.ask(command)

    # --- the engine ---------------------------------------------------------------------------

    def turn(self) -> None:
        """Show the effects of the other direction, and measure what is not known of them."""
        bench, session = self.bench, self.session
        bench.turn()
        format, direction = bench.format, bench.direction
        known = sweeps.whole(session, format, direction)
        after = ""
        if format and not known and sweeps.sweeping(session, format, direction) is None:
            cancels = bench.key("cancel")
            waits = any(job.kind == "sweep" for job in running(session))
            self.sweep(format)
            after = f", after the sweep that runs ({cancels} ends it)" if waits else ", asked for"
        self.say("info", f"{direction} {format}: {WAYS[direction]}{after}")

    def sweep_and_show(self, format: str) -> None:
        """Measure every layer in a format, and show its effects as they come."""
        self.bench.asked_format = format
        self.sweep(format)

    def sweep(self, format: str, direction: p.Direction | None = None) -> None:
        """Measure every layer in a format, in the direction that is shown if none is named."""
        self.bench.asked_sweep = True
        self.say("info", f"sweep asked for: {format}")
        self.ask(p.Sweep((format,), direction or self.bench.direction))

    def _unfinished(self) -> tuple[str, p.Direction] | None:
        return sweeps.unfinished(self.session, self.bench.format, self.bench.direction)

    def retry(self) -> None:
        """Try again what failed, else go on with a sweep that was left unfinished."""
        left = None if self.bench.failed else self._unfinished()
        if left is None:
            self.want("retry")
        else:
            self.sweep(*left)

    def cancel(self) -> None:
        """End the job that is shown."""
        job = running(self.session)[0]
        self.say("info", f"cancelling {job.title}")
        self.ask(p.Cancel(job.id))

    # --- the view -----------------------------------------------------------------------------

    def log_counts(self) -> None:
        """Change the histogram's heights."""
        histogram = self.bench.detail.histogram
        histogram.toggle_log()
        remember(log_counts=histogram.by_log)
        shown = "logarithm of the counts" if histogram.by_log else "counts"
        self.say("info", f"histogram: {shown}")

    def palette(self) -> None:
        """Offer every action by name."""
        from qtui.screens.palette import Palette, PaletteEntry

        bench = self.bench
        entries = [
            PaletteEntry(
                id=action.id,
                title=action.title,
                key=" ".join(key_names(bench.app, action)),
                group=action.group,
                why_not=self.why_not(action.id),
            )
            for action in bench.actions
        ]

        def chosen(id: str | None) -> None:
            if id is not None:
                self.perform(id)

        bench.app.push_screen(Palette(entries, bench.glyphs), chosen)

    def help(self) -> None:
        """List the keys."""
        from qtui.screens.help import Help

        self.bench.app.push_screen(Help(self.bench))

    def log(self) -> None:
        """Show all that happened."""
        from qtui.screens.help import LogScreen

        bench = self.bench
        bench.app.push_screen(LogScreen(bench.events.lines(bench.glyphs), bench.glyphs))


DEEDS: dict[str, Callable[[Deeds], None]] = {
    "up": lambda do: do.move(-1),
    "down": lambda do: do.move(1),
    "page_up": lambda do: do.move(-do.bench.table.page),
    "page_down": lambda do: do.move(do.bench.table.page),
    "first": lambda do: do.bench.table.move_to(0),
    "last": lambda do: do.bench.table.move_to(len(do.bench.table.rows) - 1),
    "order": lambda do: do.order(),
    "reverse": lambda do: do.order(reverse=True),
    "expand": lambda do: do.expand(),
    "filter": lambda do: do.prompts.filter(),
    "scope": lambda do: do.scope(),
    "mark": lambda do: do.mark(do.bench.table.toggle_mark),
    "mark_range": lambda do: do.mark(do.bench.table.mark_range),
    "mark_shown": lambda do: do.mark(do.bench.table.mark_matching),
    "mark_others": lambda do: do.mark(do.bench.table.invert_marks),
    "unmark": lambda do: do.unmark(),
    "hold": lambda do: do.prompts.format(),
    "undo": lambda do: do.step(p.Undo()),
    "redo": lambda do: do.step(p.Redo()),
    "sweep": lambda do: do.turn(),
    "sweep_format": lambda do: do.prompts.sweep(do.sweep_and_show),
    "cancel": lambda do: do.cancel(),
    "retry": lambda do: do.retry(),
    "format": lambda do: do.bench.next_format(),
    "pane": lambda do: do.bench.toggle_pane(),
    "pane_down": lambda do: do.bench.detail.scroll(3),
    "pane_up": lambda do: do.bench.detail.scroll(-3),
    "log_counts": lambda do: do.log_counts(),
    "log": lambda do: do.log(),
    "freeze": lambda do: do.want("freeze"),
    "theme": lambda do: do.want("theme"),
    "palette": lambda do: do.palette(),
    "help": lambda do: do.help(),
    "suspend": lambda do: do.want("suspend"),
    "quit": lambda do: do.want("leave"),
    "save": lambda do: do.prompts.save(),
    "copy": lambda do: do.prompts.copy(whole=False),
    "copy_table": lambda do: do.prompts.copy(whole=True),
}
