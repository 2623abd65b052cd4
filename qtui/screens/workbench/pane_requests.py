"""Request what the pane shows of the layer that the cursor rests on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from textual.timer import Timer

from engine import protocol as p
from engine.session import Session


class PaneRequests:
    """Requests a missing or outdated histogram, and what the pane's tab needs, once each."""

    REST: ClassVar[float] = 0.08
    """Seconds the cursor rests on a layer before anything is requested."""

    def __init__(
        self,
        here: Callable[[], tuple[Session, str | None]],
        ask: Callable[[p.AnyCommand], Any],
        later: Callable[[float, Callable[[], None]], Timer],
        wanted: Callable[[], p.AnyCommand | None],
    ) -> None:
        """
        Args:
            here: the session, and the layer under the cursor.
            ask: sends a command.
            later: calls a function after so many seconds.
            wanted: the command for what the shown tab lacks.
        """
        self._here, self._ask, self._later, self._wanted = here, ask, later, wanted
        self._asked: set[tuple[str, str]] = set()
        self._for_tabs: set[p.AnyCommand] = set()
        self._rest: Timer | None = None

    def forget(self) -> None:
        """The requests got no answer: they may be sent again."""
        self._asked.clear()
        self._for_tabs.clear()

    def answered(self, layer: str, format: str) -> None:
        """The answer arrived; if it is evicted later, it may be requested again."""
        self._asked.discard((layer, format))

    def tab_answered(self, command: p.AnyCommand) -> None:
        """The answer to a tab's command arrived; it may be evicted, and requested again."""
        self._for_tabs.discard(command)

    def soon(self) -> None:
        """Send the request once the cursor rests."""
        if self._rest is not None:
            self._rest.stop()
        self._rest = self._later(self.REST, self._rested)

    def _rested(self) -> None:
        self._histogram()
        command = self._wanted()
        if command is not None and command not in self._for_tabs:
            self._for_tabs.add(command)
            self._ask(command)

    def _histogram(self) -> None:
        session, layer = self._here()
        row = None if layer is None else session.row(layer)
        if layer is None or row is None:
            return
        held = session.layers.holds[row]
        format = "" if held == session.kept(row) else held
        known = session.histograms.get(layer)
        if (known is not None and known.format == format) or (layer, format) in self._asked:
            return
        self._asked.add((layer, format))
        self._ask(p.AskHistogram(layer, format=format))
