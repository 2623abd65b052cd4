"""Fixes in the workbench: try formats on layers, then take one, or the best of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engine import protocol as p
from engine.diagnosis.fixes import verdict_of
from engine.diagnosis.worst import worst_layers
from engine.report import wording as n
from engine.session import Session
from qtui.actions import Choice
from qtui.screens.session_screen import AppWide
from qtui.screens.workbench.screen import Workbench
from qtui.views.fixes import changes, fixes_and_best, is_tried, kl_words, to_better

WORST = p.TryFixes().worst
"""Layers that "the worst" are."""
KEPT = "kept"


class Doing(Protocol):
    """What runs the workbench's actions, as fixes need it."""

    bench: Workbench

    @property
    def session(self) -> Session:
        """What is shown."""

    def say(self, level: p.Level, words: str) -> None:
        """Show a message at the foot."""

    def ask(self, command: p.AnyCommand) -> None:
        """Send the engine a command."""

    def app_wide(self, what: AppWide) -> None:
        """Have the app do something."""

    def set_format(self, layers: tuple[str, ...], format: str, who: str) -> None:
        """Set the format of layers."""

    def list_choices(self, id: str, at: str = "") -> None:
        """List the values of an action."""


class Fixes:
    """Asks for fixes of the layer under the cursor, of the marked layers or the worst."""

    def __init__(self, do: Doing) -> None:
        """
        Args:
            do: runs the workbench's actions.
        """
        self.do = do

    def why_not(self, id: str) -> str:
        """Why an action is not possible now; empty where it is."""
        session = self.do.session
        layers = self._worst() if id == "fixes_worst" else self._layers()
        if not layers:
            worst = id == "fixes_worst" and session.layers.names
            return "no effect is known yet: sweep first" if worst else "no layers yet"
        if session.model is None and self._untried(layers):
            return "the model is not loaded yet"
        return ""

    def ask(self) -> None:
        """Try formats on the marked layers, else on the one under the cursor; or take fixes."""
        self._ask(self._layers())

    def ask_worst(self) -> None:
        """Try formats on the worst layers; or take their fixes."""
        self._ask(self._worst())

    def choices(self) -> Sequence[Choice]:
        """The fixes of the layer under the cursor."""
        layer, session = self.do.bench.table.current, self.do.session
        if layer is None or layer not in session.fixes:
            return []
        format = self._format(layer)
        fixes, best = fixes_and_best(session, layer, format)
        row = session.index[layer]
        glyphs = self.do.bench.glyphs
        return [
            Choice(
                fix.format or KEPT,
                f"{fix.format or session.kept(row)}  {verdict_of(fix, format, best)}",
                f"KL{glyphs.kilo} {kl_words(fix, glyphs)}  {n.size(fix.bits / 8)}",
                fix.refused,
            )
            for fix in fixes
        ]

    def take(self, format: str) -> None:
        """Set a fix on the layer under the cursor."""
        layer = self.do.bench.table.current
        if layer is not None:
            self.do.set_format((layer,), format, "this layer")

    # --- several layers ---------------------------------------------------------------------------

    def _ask(self, layers: Sequence[str]) -> None:
        if untried := self._untried(layers):
            self._try(untried)
        elif len(layers) > 1:
            self._compare(layers)
        elif layers[0] in self.do.session.fixes:
            self._list(layers[0])
        else:
            self.do.say("warning", f"this layer cannot hold {self._format(layers[0])}")

    def _try(self, layers: Sequence[str]) -> None:
        by_format: dict[str, list[str]] = {}
        for layer in layers:
            by_format.setdefault(self._format(layer), []).append(layer)
        self.do.bench.show_tab("fixes")
        count = "this layer" if len(layers) == 1 else f"{len(layers)} layers"
        self.do.say("info", f"trying other formats than {', '.join(by_format)} on {count}")
        for format, names in by_format.items():
            self.do.ask(p.TryFixes(tuple(names), format))

    def _list(self, layer: str) -> None:
        """List the fixes of the layer under the cursor, or of the only one that is marked."""
        self.do.bench.go_to(layer)
        self.do.bench.show_tab("fixes")
        _, best = fixes_and_best(self.do.session, layer, self._format(layer))
        self.do.list_choices("fixes", "" if best is None else best.format or KEPT)

    def _compare(self, layers: Sequence[str]) -> None:
        from qtui.screens.workbench.fix_changes import FixChanges

        session = self.do.session
        found = changes(session, layers, self.do.bench.format)
        if not found:
            self.do.say("info", f"{len(layers)} layers: each holds its best fix, or has none")
            return

        def taken(take: bool | None) -> None:
            if not take:
                return
            recipe = dict(self.do.session.changed)
            for change in found:
                if change.fix.format:
                    recipe[change.layer] = change.fix.format
                else:
                    recipe.pop(change.layer, None)
            self.do.app_wide("unfreeze")
            self.do.ask(p.SetRecipe(recipe))
            self.do.say("info", f"taken: {self.do.bench.key('undo')} goes back")

        self.do.bench.app.push_screen(FixChanges(session, found, self.do.bench.glyphs), taken)

    def _layers(self) -> tuple[str, ...]:
        table = self.do.bench.table
        marked = [name for name in self.do.session.layers.names if name in table.marked]
        if marked:
            return tuple(marked)
        return () if table.current is None else (table.current,)

    def _worst(self) -> tuple[str, ...]:
        format = self.do.bench.format
        return tuple(worst_layers(self.do.session, format)[:WORST]) if format else ()

    def _format(self, layer: str) -> str:
        return to_better(self.do.session, layer, self.do.bench.format)

    def _untried(self, layers: Sequence[str]) -> list[str]:
        session = self.do.session
        return [name for name in layers if not is_tried(session, name, self._format(name))]
