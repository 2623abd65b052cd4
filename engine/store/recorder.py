"""What happened, in the one order that counts: kept, folded into the session, announced."""

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
"""Fewest events between two snapshots of the folded session."""


class Record:
    """A session with the journal that it is folded from."""

    def __init__(
        self, journal: Journal, facts: FactStore, announce: Announce, lock: threading.RLock
    ) -> None:
        """
        Args:
            journal: of the session; what it tells is taken up again.
            facts: the store of measurements.
            announce: takes every event with its number (0 for transient ones), in order, on
                whichever thread it came about; must not block.
            lock: held while an event is kept, folded and announced.
        """
        self._journal, self._facts, self._announce, self._lock = journal, facts, announce, lock
        self.session: Session = journal.fold()
        # Jobs of the engine before are over, however it ended.
        self.session.jobs, self.session.stage = {}, None
        self._tail = 0
        """Events since the last snapshot."""

    def tell(self, event: p.AnyEvent) -> None:
        """Keep what is to be kept, fold it, announce it: in this order.

        Raises:
            StoreError: it could not be kept. The end of a job is announced all the same: whoever
                waits for it must not wait for ever.
        """
        with self._lock:
            try:
                seq = self._keep(event)
            except StoreError:
                if not isinstance(event, p.JobEnded):
                    raise
                log.exception("the end of job %s could not be kept", event.job)
                seq = 0
            apply(self.session, event, seq)
            self._announce(seq, event)
            self._tail += bool(seq)
            # A snapshot costs what the table is long: that, too, is shared by so many events.
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
        except StoreError:  # only a short cut for the next start
            log.exception("a snapshot of the session could not be kept")

    def close(self) -> None:
        """Keep what waits, and let the session go."""
        with self._lock:
            if self._tail >= SNAPSHOT_EVERY:
                self._keep_snapshot()
            self._journal.close()

    def snapshot(self) -> tuple[int, bytes]:
        """Number of the last journalled event, and the encoded session as it stood after it."""
        with self._lock:
            return self.session.seq, encode_session(self.session)
