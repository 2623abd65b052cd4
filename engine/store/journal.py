"""A session's journal of events, from which the session is folded.

Events are written in order. An intent is committed before it is announced, and a job's events with
its end. Other events wait briefly and are committed in groups: what a crash loses of them can be
found again by opening and measuring again. The journal holds a `Learned` event as the keys of its
facts; the facts themselves are in the store that all sessions share.

A damaged journal is opened with the events that are whole; `Journal.recovered` says what was lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from engine import protocol as p
from engine.session import Session, encode_session
from engine.store.database import (
    IN_MEMORY,
    DamagedFileError,
    StoreError,
    connect_to_read,
    naming,
    transaction,
)
from engine.store.facts import FactStore
from engine.store.journal_recovery import opened
from engine.store.journal_rows import Row, events_of, folded, newest_snapshot, rows_of
from engine.store.lock import take
from engine.store.seals import seal
from engine.store.upcasters import VERSION

log = logging.getLogger(__name__)

LOCK_SECONDS = 5.0
"""How long to wait for a session whose engine is about to exit."""

GROUP_SECONDS = 0.25
"""How long an event may wait to be committed in a group."""

GROUP_EVENTS = 1000
"""How many events may wait."""


def peek(folder: Path, facts: FactStore | None) -> tuple[Session, float]:
    """The session in ``folder`` and the time of its last event, without locking it.

    Writes nothing and waits for nothing: its engine may be running.

    Args:
        facts: a store, possibly read-only; None for a session without facts.

    Raises:
        StoreError: the journal cannot be read; the message names the file.
    """
    path = folder / "journal.sqlite"
    try:
        with closing(connect_to_read(path)) as db, naming(path):
            db.execute("BEGIN")  # snapshot and events of the same moment
            session = newest_snapshot(db, path)
            rows = rows_of(db, path, session.seq)
            (when,) = db.execute("SELECT MAX(time) FROM events").fetchone()
        return folded(session, events_of(rows, path, facts)), when or path.stat().st_mtime
    except DamagedFileError as error:
        raise StoreError(f"{error}: opening the session again keeps what is whole") from error


class Journal:
    """A session's events in order. An open journal locks the session: one engine at a time."""

    def __init__(
        self, folder: Path | None, facts: FactStore, patience: float = LOCK_SECONDS
    ) -> None:
        """
        Args:
            folder: of the session; None keeps the journal in memory alone.
            facts: the store.
            patience: seconds to wait for an engine that is about to exit.

        Raises:
            SessionBusyError: another engine has the session open.
            StoreError: the journal cannot be written, or a damaged one not be replaced.
        """
        self.facts = facts
        self.path = IN_MEMORY if folder is None else folder / "journal.sqlite"
        self.folder = self.path.parent
        self._guard = None if folder is None else take(folder / "lock", patience)
        self._lock = threading.Lock()
        self._waiting: list[Row] = []
        """Rows not committed yet."""
        self._timer: threading.Timer | None = None
        self.recovered = ""
        """What was lost, in a sentence, if the file was damaged."""
        try:
            self._db, self.recovered = opened(self.path)
            with naming(self.path):
                (last,) = self._db.execute(
                    "SELECT MAX(seq) FROM (SELECT seq FROM events"
                    " UNION ALL SELECT seq FROM snapshots UNION ALL SELECT 0)"
                ).fetchone()
            self._seq: int = last
        except BaseException:
            self._unlock()
            raise

    def append(self, event: p.Event) -> int:
        """Add one event and return its number, counted from 1; it is committed now or soon.

        Raises:
            StoreError: it could not be written, or an earlier event could not.
        """
        if isinstance(event, p.Learned):
            # The facts are in the store already: write only their keys.
            event = p.Learned(event.keys, (), event.fresh)
        now, kind, data = time.time(), type(event).__name__, p.encode(event)
        with self._lock:
            self._seq += 1
            sealed = seal(data, self._seq, now, kind, VERSION)
            self._waiting.append((self._seq, now, kind, VERSION, sealed))
            full = len(self._waiting) >= GROUP_EVENTS
            late = now - self._waiting[0][1] > GROUP_SECONDS
            if full or late or not event.deferrable:
                try:
                    self._commit()
                except StoreError:
                    self._waiting.pop()
                    self._seq -= 1
                    raise
            elif self._timer is None:
                self._timer = threading.Timer(GROUP_SECONDS, self._commit_late)
                self._timer.daemon = True
                self._timer.start()
            return self._seq

    def commit(self) -> None:
        """Write the waiting events.

        Raises:
            StoreError: they could not be written; they keep waiting.
        """
        with self._lock:
            self._commit()

    def _commit(self) -> None:
        if not self._waiting:
            return
        with transaction(self._db, self.path):
            self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", self._waiting)
        self._waiting.clear()

    def _commit_late(self) -> None:
        with self._lock:
            self._timer = None
            try:
                self._commit()
            except StoreError:  # they keep waiting; the next append raises
                log.exception("events could not be written yet")

    def read(self, after: int = 0) -> Iterator[tuple[int, p.AnyEvent]]:
        """Events numbered over ``after``, facts filled in from the store."""
        with self._lock:
            self._commit()
            rows = rows_of(self._db, self.path, after)
        yield from events_of(rows, self.path, self.facts)

    def fold(self) -> Session:
        """The session folded from the journal."""
        with self._lock:
            session = newest_snapshot(self._db, self.path)
        return folded(session, self.read(session.seq))

    def snapshot(self, session: Session) -> None:
        """Store a folded session, so that the next fold starts from it."""
        columns = session.seq, VERSION
        row = (*columns, seal(encode_session(session), *columns))
        with self._lock:
            self._commit()
            with transaction(self._db, self.path):
                self._db.execute("DELETE FROM snapshots")
                self._db.execute("INSERT INTO snapshots VALUES (?, ?, ?)", row)

    def clear(self) -> None:
        """Start a new history; facts stay in the store.

        Numbering continues, so that an attached client does not mistake a new event for an old one.
        """
        with self._lock, transaction(self._db, self.path):
            self._db.execute("DELETE FROM events")
            self._db.execute("DELETE FROM snapshots")
            self._waiting.clear()

    def close(self) -> None:
        """Commit waiting events, close the file and unlock the session."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            try:
                self._commit()
            except StoreError:
                log.exception("the last events could not be written")
            self._db.close()
            self._unlock()

    def _unlock(self) -> None:
        if self._guard is not None:
            self._guard.close()
