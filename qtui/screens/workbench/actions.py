"""The workbench's actions, run by key, palette or click."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from engine import protocol as p
from engine.formats.grammar import parse_format
from qtui.actions import HOLD
from qtui.screens.shared_actions import SharedActions
from qtui.screens.workbench.screen import Workbench
from qtui.user.remembered import remember
from qtui.views import sweeps
from qtui.widgets.frame.scoreboard import running

if TYPE_CHECKING:
    from qtui.screens.workbench.prompts import Prompts

WAYS: dict[p.Direction, str] = {
    "degrade": "one layer quantised at a time",
    "restore": "all layers quantised but one",
}
"""What is measured, by direction."""
NO_LAYERS = "no layers yet"
NEEDS_LAYERS = frozenset(
    {"filter", "scope", "mark", "mark_range", "mark_shown", "mark_others", "hold", "copy"}
    | {"unmark", "sweep", "sweep_format"}
    | {"copy_table", "order", "reverse"}
)


class WorkbenchActions(SharedActions):
    """Runs the workbench's actions."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench, bench.events)
        self.bench = bench
        bench.handler = self
        self._prompts: Prompts | None = None

    HANDLERS: ClassVar[Mapping[str, Callable[[Any], None]]] = {
        **SharedActions.HANDLERS,
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
        "sweep": lambda do: do.switch_direction(),
        "sweep_format": lambda do: do.prompts.sweep(do.sweep_and_show),
        "format": lambda do: do.bench.next_format(),
        "pane": lambda do: do.bench.toggle_pane(),
        "pane_down": lambda do: do.bench.detail.scroll(3),
        "pane_up": lambda do: do.bench.detail.scroll(-3),
        "log_counts": lambda do: do.log_counts(),
        "save": lambda do: do.prompts.save(),
        "copy": lambda do: do.prompts.copy(whole=False),
        "copy_table": lambda do: do.prompts.copy(whole=True),
    }
    """What runs an action, by its id."""

    # What opens over the workbench is imported when it first opens: the first frame does not wait.

    @property
    def prompts(self) -> Prompts:
        """What is typed at the foot."""
        if self._prompts is None:
            from qtui.screens.workbench.prompts import Prompts

            self._prompts = Prompts(self.bench, self.hold)
        return self._prompts

    def perform(self, id: str) -> None:
        """Run an action, or say why that is not possible."""
        if id.startswith(HOLD) and not self.why_not(id):
            self.hold(id.removeprefix(HOLD))
        else:
            super().perform(id)

    def why_not(self, id: str) -> str:
        """Why an action is not possible now; empty where it is."""
        bench, session, table = self.bench, self.session, self.bench.table
        if (id in NEEDS_LAYERS or id.startswith(HOLD)) and not session.layers.names:
            return NO_LAYERS
        match id:
            case "expand" if table.current is None or not table.expandable(table.current):
                return "this layer has no experts"
            case "undo" if table.pending:
                return ""
            case "sweep_format" if any(job.kind == "sweep" for job in running(session)):
                return f"a sweep is already running: {bench.key('cancel')} cancels it"
            case "retry" if not bench.failed:
                if self._unfinished() is None:
                    return "nothing has failed and no sweep is unfinished"
                return ""
            case "format" if len(bench.effects.swept(session)) < 2:
                sweeps = bench.key("sweep_format")
                return f"fewer than two formats swept: {sweeps} sweeps another"
            case "pane_up" | "pane_down" if not bench.detail.can_scroll:
                return "the pane has nothing to scroll"
        return super().why_not(id)

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
        """Choose the next scope."""
        self.bench.table.next_scope()
        self.bench.message.clear()
        self.bench.show_scope()

    def mark(self, how: Callable[[], object]) -> None:
        """Change the marks; they are the scope while there are any."""
        how()
        self.bench.message.clear()
        self.bench.show_scope()

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
        """Set the format of the layers in scope."""
        bench, session = self.bench, self.session
        layers = bench.layers_in_scope()
        if not layers:
            self.say("warning", f"no layer in scope: {bench.scope_words()}")
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
            self.say("info", f"{bench.scope_words()}: already {held}")
            return
        command = p.identified(p.SetFormat(layers, format))
        bench.requested[command.ask] = changing
        bench.table.pending.update(changing)
        bench.table.redraw()
        self.say("info", bench.change(layers, [format]))
        self.app_wide("unfreeze")
        self.ask(command)

    # --- the engine ---------------------------------------------------------------------------

    def switch_direction(self) -> None:
        """Show the effects of the other direction, and measure what is not known of them."""
        bench, session = self.bench, self.session
        bench.switch_direction()
        format, direction = bench.format, bench.direction
        known = sweeps.is_complete(session, format, direction)
        after = ""
        if format and not known and sweeps.sweeping(session, format, direction) is None:
            cancels = bench.key("cancel")
            waits = any(job.kind == "sweep" for job in running(session))
            self.sweep(format)
            after = f", after the running sweep ({cancels} cancels it)" if waits else ", requested"
        self.say("info", f"{direction} {format}: {WAYS[direction]}{after}")

    def sweep_and_show(self, format: str) -> None:
        """Measure every layer in a format, and show its effects as they come."""
        self.bench.effects.wanted = format
        self.sweep(format)

    def sweep(self, format: str, direction: p.Direction | None = None) -> None:
        """Measure every layer in a format, in the direction that is shown if none is named."""
        self.say("info", f"sweep requested: {format}")
        self.ask(p.Sweep((format,), direction or self.bench.direction))

    def _unfinished(self) -> tuple[str, p.Direction] | None:
        return sweeps.unfinished(self.session, self.bench.format, self.bench.direction)

    def retry(self) -> None:
        """Retry what failed, else resume an unfinished sweep."""
        left = None if self.bench.failed else self._unfinished()
        if left is None:
            super().retry()
        else:
            self.sweep(*left)

    # --- the view -----------------------------------------------------------------------------

    def log_counts(self) -> None:
        """Change the histogram's heights."""
        histogram = self.bench.detail.histogram
        histogram.toggle_log()
        remember(log_counts=histogram.by_log)
        shown = "log of the counts" if histogram.by_log else "counts"
        self.say("info", f"histogram: {shown}")
