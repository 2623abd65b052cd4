"""A session's journal of events, from which the session is folded.

Events are written in order. An intent is committed before it is announced, and a job's events with
its end. Other events wait briefly and are committed in groups: what a crash loses of them can be
found again by opening and measuring again. The journal holds a `Learned` event as the keys of its
facts; the facts themselves are in the store that all sessions share.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from engine import protocol as p
from engine.session import Session, apply, decode_session, encode_session
from engine.store.database import (
    IN_MEMORY,
    StoreError,
    connect,
    connect_to_read,
    naming,
    transaction,
)
from engine.store.facts import FactStore
from engine.store.lock import take
from engine.store.upcasters import VERSION, upcast

log = logging.getLogger(__name__)

LOCK_SECONDS = 5.0
"""How long to wait for a session whose engine is about to exit."""

GROUP_SECONDS = 0.25
"""How long an event may wait to be committed in a group."""

GROUP_EVENTS = 1000
"""How many events may wait."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, time REAL NOT NULL,
    kind TEXT NOT NULL, version INTEGER NOT NULL, bytes BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS snapshots (seq INTEGER PRIMARY KEY,
    version INTEGER NOT NULL, bytes BLOB NOT NULL);
"""

_Row = tuple[int, int, bytes]
"""Number, version and bytes of an event."""


def _rows(db: sqlite3.Connection, path: Path, after: int) -> list[_Row]:
    with naming(path):
        return db.execute(
            "SELECT seq, version, bytes FROM events WHERE seq > ? ORDER BY seq", (after,)
        ).fetchall()


def _events(
    rows: Sequence[_Row], path: Path, facts: FactStore | None
) -> Iterator[tuple[int, p.AnyEvent]]:
    """Decode rows to events; all facts they refer to are fetched in one query."""
    events: list[tuple[int, p.AnyEvent]] = []
    for seq, version, data in rows:
        try:
            events.append((seq, p.decode_event(upcast(data, version, path))))
        except msgspec.DecodeError as error:
            raise StoreError(
                f"{path}: event {seq} cannot be read ({error}): "
                "move the file away to start a new history; results are stored separately and kept"
            ) from error
    wanted = [key for _, event in events if isinstance(event, p.Learned) for key in event.keys]
    found = facts.get_many(wanted) if facts is not None else {}
    for seq, event in events:
        if isinstance(event, p.Learned):
            keys = tuple(key for key in event.keys if key in found)
            event = p.Learned(keys, tuple(found[key] for key in keys), event.fresh)
        yield seq, event


def _newest_snapshot(db: sqlite3.Connection, path: Path) -> Session:
    """The newest snapshot, or an empty session; snapshots only shorten the fold."""
    with naming(path):
        row = db.execute("SELECT version, bytes FROM snapshots ORDER BY seq DESC LIMIT 1")
        newest = row.fetchone()
    if newest is None or newest[0] != VERSION:
        return Session()
    try:
        session = decode_session(newest[1])
    except msgspec.DecodeError:
        return Session()
    # Before recipes were numbered, a snapshot had a history without them.
    return session if len(session.tried) > 1 or not session.history else Session()


def peek(folder: Path, facts: FactStore | None) -> tuple[Session, float]:
    """The session in ``folder`` and the time of its last event, without locking it.

    Writes nothing and waits for nothing: its engine may be running.

    Args:
        facts: a store, possibly read-only; None for a session without facts.

    Raises:
        StoreError: the journal cannot be read; the message names the file.
    """
    path = folder / "journal.sqlite"
    db = connect_to_read(path)
    try:
        with naming(path):
            db.execute("BEGIN")  # snapshot and events of the same moment
            session = _newest_snapshot(db, path)
            rows = _rows(db, path, session.seq)
            (when,) = db.execute("SELECT MAX(time) FROM events").fetchone()
    finally:
        db.close()
    for seq, event in _events(rows, path, facts):
        apply(session, event, seq)
    return session, when or path.stat().st_mtime


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
            StoreError: the journal cannot be read.
        """
        self.facts = facts
        self.path = IN_MEMORY if folder is None else folder / "journal.sqlite"
        self.folder = self.path.parent
        self._guard = None if folder is None else take(folder / "lock", patience)
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, float, str, int, bytes]] = []
        """Rows not committed yet."""
        self._timer: threading.Timer | None = None
        try:
            self._db = connect(self.path, SCHEMA)
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
        now, data = time.time(), p.encode(event)
        with self._lock:
            self._seq += 1
            self._waiting.append((self._seq, now, type(event).__name__, VERSION, data))
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
            rows = _rows(self._db, self.path, after)
        yield from _events(rows, self.path, self.facts)

    def fold(self) -> Session:
        """The session folded from the journal."""
        with self._lock:
            session = _newest_snapshot(self._db, self.path)
        for seq, event in self.read(session.seq):
            apply(session, event, seq)
        return session

    def snapshot(self, session: Session) -> None:
        """Store a folded session, so that the next fold starts from it."""
        row = (session.seq, VERSION, encode_session(session))
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
