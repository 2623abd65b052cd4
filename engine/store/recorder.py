"""Records events in one order: written, folded into the session, announced."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from engine import protocol as p
from engine.session import Session, apply, encode_session
from engine.store.database import StoreError
from engine.store.facts import FactStore
from engine.store.journal import Journal

log = logging.getLogger(__name__)

Announce = Callable[[int, p.AnyEvent], None]

SNAPSHOT_EVERY = 2000
"""Fewest events between two snapshots of the session."""


class Recorder:
    """A session, with the journal it is folded from."""

    def __init__(
        self, journal: Journal, facts: FactStore, announce: Announce, lock: threading.RLock
    ) -> None:
        """
        Args:
            journal: of the session; it is folded first.
            facts: the store of measurements.
            announce: receives every event with its number (0 for transient ones), in order, on the
                thread that recorded it; must not block.
            lock: held while an event is written, folded and announced.
        """
        self._journal, self._facts, self._announce, self._lock = journal, facts, announce, lock
        self.session: Session = journal.fold()
        # Jobs of the previous engine are over, however it ended.
        self.session.jobs, self.session.stage = {}, None
        self._tail = 0
        """Events since the last snapshot."""

    def emit(self, event: p.AnyEvent) -> None:
        """Write the event if it is journalled, fold it, announce it: in this order.

        Raises:
            StoreError: it could not be written. The end of a job is announced all the same, since
                clients wait for it.
        """
        with self._lock:
            try:
                seq = self._keep(event)
            except StoreError:
                if not isinstance(event, p.JobEnded):
                    raise
                log.exception("the end of job %s could not be written", event.job)
                seq = 0
            apply(self.session, event, seq)
            self._announce(seq, event)
            self._tail += bool(seq)
            # A snapshot costs time in proportion to the table: take one per that many events.
            if self._tail >= max(SNAPSHOT_EVERY, len(self.session.layers.names)):
                self._keep_snapshot()

    def _keep(self, event: p.AnyEvent) -> int:
        if isinstance(event, p.Learned) and event.fresh:
            replace = self.session.settings.fresh
            self._facts.put(event.keys, event.facts, replace=replace)
        return 0 if isinstance(event, p.Transient) else self._journal.append(event)

    def _keep_snapshot(self) -> None:
        self._tail = 0
        try:
            self._journal.snapshot(self.session)
        except StoreError:  # only makes the next start faster
            log.exception("a snapshot of the session could not be written")

    def close(self) -> None:
        """Write waiting events, and close the session."""
        with self._lock:
            if self._tail >= SNAPSHOT_EVERY:
                self._keep_snapshot()
            self._journal.close()

    def snapshot(self) -> tuple[int, bytes]:
        """Number of the last journalled event, and the encoded session after it."""
        with self._lock:
            return self.session.seq, encode_session(self.session)
