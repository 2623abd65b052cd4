"""Inspect sources before they are opened: one at a time, debounced."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from textual.screen import Screen
from textual.timer import Timer

from engine.errors import EngineError
from engine.opening.inspection import Inspection
from qtui.textual_internals import call_after

GROUP = "inspect"


class Inspections:
    """Inspects sources for a screen, and keeps what was found."""

    def __init__(
        self,
        screen: Screen[Any],
        inspect: Callable[[str], Awaitable[Inspection]],
        found: Callable[[str, Inspection], None],
    ) -> None:
        """
        Args:
            screen: whose timers and workers are used.
            inspect: what a source is; cancelled when another one is chosen.
            found: called with a source and what was found.
        """
        self.known: dict[str, Inspection] = {}
        """What sources turned out to be."""
        self._screen, self._inspect, self._found = screen, inspect, found
        self._rest: Timer | None = None

    @property
    def running(self) -> bool:
        """Whether a source is being inspected."""
        return any(each.group == GROUP and each.is_running for each in self._screen.workers)

    def soon(self, wait: float, source: Callable[[], str]) -> None:
        """Inspect a source after so many seconds, and nothing else meanwhile."""
        self._screen.workers.cancel_group(self._screen, GROUP)
        self._stop_waiting()
        self._rest = call_after(self._screen, wait, lambda: self._start(source()))

    def now(self, source: str) -> None:
        """Inspect a source at once."""
        self._stop_waiting()
        self._start(source)

    def _stop_waiting(self) -> None:
        if self._rest is not None:
            self._rest.stop()

    def _start(self, source: str) -> None:
        if source:
            self._screen.run_worker(self._run(source), group=GROUP, exclusive=True)

    async def _run(self, source: str) -> None:
        try:
            result = await self._inspect(source)
        except (EngineError, OSError) as error:
            result = Inspection(source=source, problem=str(error) or type(error).__name__)
        self.known[source] = result
        self._found(source, result)
