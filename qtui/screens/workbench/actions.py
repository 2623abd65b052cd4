"""The workbench's actions, run by key, palette or click."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from engine import protocol as p
from engine.export.target import targets
from engine.formats.grammar import parse_format
from engine.session import recipe_hash, running
from qtui.actions import HOLD, Choice
from qtui.screens.shared_actions import Chooser, SharedActions
from qtui.screens.verdict_taking import VerdictTaking
from qtui.screens.workbench.fixes import Fixes
from qtui.screens.workbench.screen import Workbench
from qtui.user.commands import Command
from qtui.user.remembered import remember
from qtui.views import sweeps
from qtui.views.scope import SCOPE_TITLES, SCOPES
from qtui.views.scope import why_not as why_not_scope
from qtui.widgets.pane.tabs import TABS, beside
from qtui.widgets.table.columns import table_column, table_columns
from qtui.widgets.table.layer_table import MarkedRows

if TYPE_CHECKING:
    from qtui.screens.workbench.prompts import Prompts

WAYS: dict[p.Direction, str] = {
    "degrade": "one layer quantised at a time",
    "restore": "all layers quantised but one",
}
"""What is measured, by direction."""
NO_LAYERS = "no layers yet"
NO_TARGET = "none"
"""The choice of no export target."""
NEEDS_LAYERS = frozenset(
    {
        "filter",
        "scope",
        "scope_before",
        "mark",
        "mark_range",
        "mark_shown",
        "mark_others",
        "hold",
        "copy",
    }
    | {"hold", "copy", "unmark", "sweep", "sweep_format"}
    | {"copy_table", "order", "reverse"}
)


class WorkbenchActions(SharedActions):
    """Runs the workbench's actions."""

    def __init__(self, bench: Workbench, commands: Sequence[Command] = ()) -> None:
        super().__init__(bench, bench.events)
        self.commands = {command.id: command for command in commands}
        self.bench = bench
        bench.handler = self
        self.verdict = VerdictTaking(self, bench.verdict, up="up", enter="expand", leaving="down")
        self._prompts: Prompts | None = None
        self._unmarked_at = -1
        """The place in the history of recipes when marks were cleared last."""

    HANDLERS: ClassVar[Mapping[str, Callable[[Any], None]]] = {
        **SharedActions.HANDLERS,
        "up": lambda do: do.move(-1),
        "down": lambda do: do.move(1),
        "page_up": lambda do: do.move(-do.bench.table.page),
        "page_down": lambda do: do.move(do.bench.table.page),
        "first": lambda do: do.bench.table.jump_to(0),
        "last": lambda do: do.bench.table.jump_to(len(do.bench.table.rows) - 1),
        "back": lambda do: do.back(),
        "order": lambda do: do.list_choices("order", do.bench.table.order_before[0]),
        "reverse": lambda do: do.bench.table.reverse(),
        "expand": lambda do: do.expand(),
        "filter": lambda do: do.prompts.filter(),
        "scope": lambda do: do.scope(1),
        "scope_before": lambda do: do.scope(-1),
        "mark": lambda do: do.mark(do.bench.table.toggle_mark),
        "mark_range": lambda do: do.mark_many(do.bench.table.mark_range),
        "mark_shown": lambda do: do.mark_many(do.bench.table.mark_matching),
        "mark_others": lambda do: do.mark_many(do.bench.table.invert_marks),
        "undo": lambda do: do.undo(),
        "unmark": lambda do: do.unmark(),
        "target": lambda do: do.list_choices("target", do.bench.marks.name),
        "context": lambda do: do.prompts.context(do.tune_for),
        "verdict": lambda do: do.verdict.take(),
        "hold": lambda do: do.prompts.format(),
        "sweep": lambda do: do.switch_direction(),
        "sweep_format": lambda do: do.prompts.sweep(do.sweep_and_show),
        "activations": lambda do: do.activations(),
        "errors": lambda do: do.errors(),
        "fixes": lambda do: do.fixes.ask(),
        "fixes_worst": lambda do: do.fixes.ask_worst(),
        "format": lambda do: do.bench.next_format(),
        "pane": lambda do: do.bench.toggle_pane(),
        "log_pane": lambda do: do.log_pane(),
        "pane_down": lambda do: do.bench.detail.scroll(3),
        "pane_up": lambda do: do.bench.detail.scroll(-3),
        "tab": lambda do: do.bench.show_tab(beside(do.bench.detail.tab, 1)),
        "tab_before": lambda do: do.bench.show_tab(beside(do.bench.detail.tab, -1)),
        "log_counts": lambda do: do.log_counts(),
        "save": lambda do: do.prompts.save(),
        "copy": lambda do: do.prompts.copy(whole=False),
        "copy_table": lambda do: do.prompts.copy(whole=True),
    }
    """What runs an action, by its id."""
    CHOOSERS: ClassVar[Mapping[str, Chooser]] = {
        **SharedActions.CHOOSERS,
        "fixes": Chooser(
            "Take the fix {}",
            "fixes of this layer: enter takes one",
            lambda do: do.fixes.choices(),
            lambda do, id: do.fixes.take(id),
        ),
        "order": Chooser(
            "Sort by {}",
            "sort by: type a column, enter sorts",
            lambda do: do.columns(),
            lambda do, id: do.bench.table.order_by(id),
        ),
        "target": Chooser(
            "Export target: {}",
            "what an export target cannot hold is marked",
            lambda do: do.targets(),
            lambda do, id: do.choose_target(id),
        ),
        "scope": Chooser(
            "Scope: {}",
            "choose a scope",
            lambda do: do.scopes(),
            lambda do, id: do.bench.set_scope(id),
        ),
        "tab": Chooser(
            "Pane: {}",
            "choose what the pane shows",
            lambda do: [Choice(each.id, each.id, each.title) for each in TABS],
            lambda do, id: do.bench.show_tab(id),
        ),
    }

    @cached_property
    def fixes(self) -> Fixes:
        """Other formats tried on layers."""
        return Fixes(self)

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
        if self.verdict.took(id, first=self.bench.table.cursor == 0):
            return
        if id.startswith(HOLD) and not self.why_not(id):
            self.hold(id.removeprefix(HOLD))
        elif id in self.commands and not self.why_not(id):
            from qtui.screens.workbench.shell import run_command

            run_command(self.bench, self.commands[id], self.prompts.view())
        else:
            super().perform(id)

    def why_not(self, id: str) -> str:
        """Why an action is not possible now; empty where it is."""
        bench, session, table = self.bench, self.session, self.bench.table
        if (id in NEEDS_LAYERS or id.startswith(HOLD)) and not session.layers.names:
            return NO_LAYERS
        if (command := self.commands.get(id)) is not None:
            if "layer" in command.needs and table.current is None:
                return NO_LAYERS
            if "recipe" in command.needs and not session.changed:
                return "no layer is changed: there is no recipe"
            return ""
        match id:
            case "expand" if table.current is None or not table.expandable(table.current):
                return "this layer has no experts"
            case "undo" if table.pending or self._marks_to_restore():
                return ""
            case "fixes" | "fixes_worst":
                return self.fixes.why_not(id)
            case "errors" if not session.changed:
                return "no layer is changed: there is no error until one holds a format"
            case "errors" if session.model is None and not self._errors_known():
                return "the model is not loaded yet"
            case "activations" if session.model is None:
                return "the model is not loaded yet"
            case "verdict":
                return self.verdict.why_not()
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

    def back(self) -> None:
        """Return to the layer that the last jump left: to either end, or by sorting."""
        if not self.bench.table.go_back():
            self.say("warning", "there is no layer to go back to")

    def columns(self) -> Sequence[Choice]:
        """Every column to sort by; enter at once takes the one before."""
        column, falling = self.bench.table.order
        before = self.bench.table.order_before[0]
        first = table_column(column).first(falling=falling)
        return [
            Choice(
                each.id,
                each.figure.title,
                f"now, {first} first".removesuffix(", first first")
                if each.id == column
                else "before"
                if each.id == before
                else "",
            )
            for each in table_columns()
        ]

    def targets(self) -> Sequence[Choice]:
        """Every export target, and none."""
        shown = self.bench.marks.name
        return [
            Choice(NO_TARGET, NO_TARGET, "" if shown else "now"),
            *(
                Choice(each.name, each.name, "now" if each.name == shown else each.help)
                for each in targets()
            ),
        ]

    def tune_for(self, **said: Any) -> None:
        """Have the session remember what the recipe is tuned for; see `TuneFor`."""
        now = self.session.tuning
        known = {"target": now.target, "context": now.context, "batch": now.batch}
        self.ask(p.TuneFor(**{**known, **said}))

    def choose_target(self, name: str) -> None:
        """Mark what a target cannot hold, and say how much that is."""
        chosen = "" if name == NO_TARGET else name
        self.bench.choose_target(chosen)
        self.tune_for(target=chosen)
        if name == NO_TARGET:
            self.say("info", "no export target: nothing is marked")
        else:
            marks, key = self.bench.marks, self.bench.key
            then = (
                f"{key('hold')} gives others"
                if marks.refuses
                else f"{key('save')} export writes it"
            )
            self.say("info", f"{marks.summary()}; {then}")

    def scope(self, step: int) -> None:
        """Choose the next scope, or the one before."""
        table = self.bench.table
        before = table.scope
        if table.next_scope(step) == before:
            self.say("info", "no other scope here: nothing is marked or filtered")
        else:
            self.bench.message.clear()
        self.bench.show_scope()

    def scopes(self) -> Sequence[Choice]:
        """Every scope, with what it has here."""
        table = self.bench.table
        return [
            Choice(
                each,
                SCOPE_TITLES[each],
                "now" if each == table.scope else "",
                why_not_scope(each, table.here),
            )
            for each in SCOPES
        ]

    def mark(self, how: Callable[[], object]) -> None:
        """Change the marks; they are the scope while there are any."""
        how()
        self.bench.message.clear()
        self.bench.show_scope()

    def mark_many(self, how: Callable[[], MarkedRows]) -> None:
        """Change many marks at once, and say what was left out."""
        self.mark(lambda: None)
        said = how()
        self.bench.show_scope()
        number = f"{said.number} layer{'' if said.number == 1 else 's'} marked"
        left = f"; not {' and '.join(said.left_out)}: space marks it" if said.left_out else ""
        self.say("info", number + left)

    def expand(self) -> None:
        """Show the experts of a fused row, or fold them."""
        self.bench.table.toggle_expand()

    def unmark(self) -> None:
        """Take all marks away; where there are none, the filter."""
        table = self.bench.table
        if number := len(table.marked):
            self.mark(table.clear_marks)
            self._unmarked_at = self.session.position
            marks = "1 mark" if number == 1 else f"{number} marks"
            self.say("info", f"{marks} cleared: {self.bench.key('undo')} restores")
        elif table.filter:
            text = table.filter.text
            self.bench.set_filter(None)
            self.say("info", f"filter {text} cleared: {self.bench.key('filter')} up recalls it")

    def _marks_to_restore(self) -> bool:
        """Whether undo restores marks: nothing was marked or changed since they were cleared."""
        return (
            self.bench.table.cleared
            and self._unmarked_at == self.session.position
            and not self.bench.table.pending
        )

    def undo(self) -> None:
        """Undo the last change of the recipe, or restore marks that were cleared after it."""
        if self._marks_to_restore():
            self.mark(self.bench.table.restore_marks)
            self.say("info", f"marks restored: {len(self.bench.table.marked)}")
        else:
            self.step(p.Undo())

    # --- the recipe ---------------------------------------------------------------------------

    def hold(self, format: str) -> None:
        """Set the format of the layers in scope."""
        layers = self.bench.layers_in_scope()
        if not layers:
            self.say("warning", f"no layer in scope: {self.bench.scope_words()}")
            return
        self.set_format(layers, format, self.bench.scope_words())

    def set_format(self, layers: tuple[str, ...], format: str, who: str) -> None:
        """Set the format of layers; ``who`` they are is said where all of them hold it."""
        bench, session = self.bench, self.session
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
            self.say("info", f"{who}: already {held}")
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
        """Show the effects of the other direction; nothing is measured for it."""
        bench, session = self.bench, self.session
        bench.switch_direction()
        format, direction = bench.format, bench.direction
        after = ""
        if (
            format
            and not sweeps.measured(session, format, direction)
            and sweeps.sweeping(session, format, direction) is None
        ):
            after = f"; not measured, {bench.key('sweep_format')} sweeps it"
        self.say("info", f"{direction} {format}: {WAYS[direction]}{after}")

    def sweep_and_show(self, format: str) -> None:
        """Measure every layer in a format, and show its effects as they come."""
        self.bench.effects.wanted = format
        self.sweep(format)

    def sweep(self, format: str, direction: p.Direction | None = None) -> None:
        """Measure every layer in a format, in the direction that is shown if none is named."""
        way = direction or self.bench.direction
        what = format if way == "degrade" else f"{format} {way}"
        ahead = [job for job in running(self.session) if job.kind == "sweep"]
        after = ""
        if ahead:
            after = f", after {ahead[-1].title}: {self.bench.key('jobs')} shows all jobs"
        self.say("info", f"sweep requested: {what}{after}")
        self.ask(p.Sweep((format,), way))

    def activations(self) -> None:
        """Show the pane's tab of activations; measure them first, where they are not known."""
        self.bench.show_tab("activations")
        if all(each is None for each in self.session.layers.activations):
            self.ask(p.Triage(activations=True))

    def errors(self) -> None:
        """Show the pane's tab of errors, or of drift; measure them first, where not known."""
        if self.bench.detail.tab not in ("errors", "drift"):
            self.bench.show_tab("errors")
        if not self._errors_known():
            self.ask(p.MeasureErrors())

    def _errors_known(self) -> bool:
        session, recipe = self.session, recipe_hash(self.session.changed)
        return session.drift() is not None and all(
            session.output_error(name, held, recipe) is not None
            for name, held in session.changed.items()
        )

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

    def log_pane(self) -> None:
        """Show or hide the log below the table."""
        hidden = self.bench.toggle_log()
        shown = "log hidden" if hidden else "log shown"
        if not hidden and not self.bench.has_class("-tall"):
            shown += " in a terminal of 100 columns and 34 lines or more"
        self.say("info", f"{shown}; {self.bench.key('log')} shows all of it")

    def log_counts(self) -> None:
        """Change the histogram's heights."""
        histogram = self.bench.detail.histogram
        histogram.toggle_log()
        remember(log_counts=histogram.by_log)
        shown = "log of the counts" if histogram.by_log else "counts"
        self.say("info", f"histogram: {shown}")
