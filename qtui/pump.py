"""Fold the engine's events as they arrive, and repaint a few times a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, get_args

from engine.client import Link
from engine.protocol import AnyEvent, Sent
from engine.session import Dirty, Session, apply

EVERYTHING: frozenset[Dirty] = frozenset(get_args(Dirty))

SLICE = 0.01
"""Seconds of folding after which keys and repaints are handled."""


class Pump:
    """Folds events into `session` and asks for a repaint of what they changed.

    Nothing is repainted while nothing changes, and never more than ``fps`` times a second.
    """

    def __init__(
        self,
        session: Session,
        paint: Callable[[frozenset[Dirty]], None],
        later: Callable[[float, Callable[[], None]], Any],
        fps: int,
        before_fold: Callable[[AnyEvent], bool] = lambda event: True,
        behind: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            session: the state; replaced when the engine sends a whole one.
            paint: draws these parts.
            later: calls a function after so many seconds.
            fps: repaints a second, at most.
            before_fold: gets every event before it is folded; false if it must not be folded.
            behind: whether the terminal has not accepted earlier output: a slow connection gets
                fewer frames, not late ones.
        """
        self.session = session
        self.painted = 0
        """Repaints so far."""
        self._paint, self._later, self._before_fold, self._period = (
            paint,
            later,
            before_fold,
            1 / fps,
        )
        self._behind = behind
        self._dirty: set[Dirty] = set()
        self._last = float("-inf")
        self._armed = False

    @property
    def due(self) -> bool:
        """Whether something changed that is not painted yet."""
        return self._armed

    async def read(self, link: Link) -> None:
        """Fold whatever comes, until the engine ends.

        Raises:
            EngineGoneError: the engine ended.
        """
        began = time.perf_counter()
        while True:
            self.take(await link.receive())
            if time.perf_counter() - began > SLICE:
                # A busy link may never have to wait, and so would never yield by itself.
                await asyncio.sleep(0)
                began = time.perf_counter()

    def take(self, received: Sent | Session) -> None:
        """Fold an event, or show another session from now on."""
        if isinstance(received, Session):
            self.session = received
            self.mark_dirty(EVERYTHING)
        elif self._before_fold(received.event):
            self.mark_dirty(apply(self.session, received.event, received.seq))

    def mark_dirty(self, dirty: frozenset[Dirty]) -> None:
        """Repaint these parts when the next repaint is due."""
        self._dirty |= dirty
        if self._dirty and not self._armed:
            self._armed = True
            wait = self._last + self._period - time.monotonic()
            self._later(max(0.001, wait), self._flush)

    def _flush(self) -> None:
        if self._behind():
            self._later(self._period, self._flush)
            return
        dirty, self._dirty = frozenset(self._dirty), set()
        self._armed = False
        self._last = time.monotonic()
        self.painted += 1
        self._paint(dirty)
