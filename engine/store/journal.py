"""What is never lost: the store of facts, and each session's journal of events.

A fact is committed before it is announced, and an intent before it is echoed. A journal holds a
`Learned` event by the keys of its facts alone; the facts stand once, in the store that every
session shares.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from engine import protocol as p
from engine.errors import EngineError
from engine.session import Session, apply, decode_session, encode_session
from engine.store.upcasters import UPCASTERS, VERSION

LOCK_SECONDS = 5.0
"""How long to wait for a session whose engine is about to end."""

SNAPSHOT_EVERY = 2000
"""Events between two snapshots of the folded session."""


class StoreError(EngineError):
    """A journal or the store cannot be read or written; the message names the file."""


class SessionBusyError(EngineError):
    """Another engine holds the session."""


def _connect(path: Path, schema: str) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            path, check_same_thread=False, timeout=30, isolation_level=None
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(schema)
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path}: {error}: move the file away to begin a new one") from error
    return connection


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection that writes nothing and gives up soon where the file is locked."""
    try:
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True, check_same_thread=False, timeout=0.2, isolation_level=None,
        )  # fmt: skip
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path}: {error}") from error


@contextmanager
def _transaction(db: sqlite3.Connection, path: Path) -> Iterator[None]:
    """All or nothing of what is executed inside.

    Raises:
        StoreError: naming the file.
    """
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise StoreError(f"{path}: {error}") from error


def _upcast(data: bytes, version: int, where: object) -> bytes:
    if version > VERSION:
        raise StoreError(f"{where} was written by a newer qtui (version {version}): update qtui")
    for step in range(version, VERSION):
        data = UPCASTERS[step](data)
    return data


class FactStore:
    """Facts by key, shared by all sessions and processes of a user. Safe from any thread."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """
        Args:
            read_only: neither make the file nor write to it.

        Raises:
            StoreError: if ``path`` is not a store.
        """
        self.path = path
        self._lock = threading.Lock()
        if read_only:
            self._db = _connect_to_read(path)
            return
        self._db = _connect(
            path,
            "CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, time REAL NOT NULL,"
            " version INTEGER NOT NULL, data BLOB NOT NULL) WITHOUT ROWID",
        )

    def get(self, key: str) -> p.AnyFact | None:
        """The fact of a key, None if it was never measured."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Sequence[str], *, since: float = 0.0) -> dict[str, p.AnyFact]:
        """The facts there are for these keys, written at ``since`` (epoch seconds) or later."""
        found: dict[str, p.AnyFact] = {}
        with self._lock:
            for at in range(0, len(keys), 500):
                some = keys[at : at + 500]
                marks = ",".join("?" * len(some))
                rows = self._query(
                    f"SELECT key, version, data FROM facts WHERE time >= ? AND key IN ({marks})",
                    (since, *some),
                )
                for key, version, data in rows:
                    try:
                        found[key] = p.decode_fact(_upcast(data, version, self.path))
                    except msgspec.DecodeError as error:
                        raise StoreError(
                            f"{self.path}: fact {key} cannot be read ({error}): "
                            "--fresh measures it anew"
                        ) from error
        return found

    def _query(self, sql: str, values: tuple[object, ...]) -> list[tuple[str, int, bytes]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self.path}: {error}") from error

    def put(
        self, keys: Sequence[str], facts: Sequence[p.AnyFact], *, replace: bool = False
    ) -> None:
        """Commit facts; one already there stays, unless ``replace`` measures anew."""
        verb = "REPLACE" if replace else "IGNORE"
        now = time.time()
        rows = [(k, now, VERSION, p.encode(f)) for k, f in zip(keys, facts, strict=True)]
        with self._lock, _transaction(self._db, self.path):
            self._db.executemany(f"INSERT OR {verb} INTO facts VALUES (?, ?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


_Row = tuple[int, int, bytes]
"""Number, version and bytes of an event."""


def _rows(db: sqlite3.Connection, path: Path, after: int) -> list[_Row]:
    try:
        return db.execute(
            "SELECT seq, version, bytes FROM events WHERE seq > ? ORDER BY seq", (after,)
        ).fetchall()
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path}: {error}") from error


def _events(
    rows: Sequence[_Row], path: Path, facts: FactStore | None
) -> Iterator[tuple[int, p.AnyEvent]]:
    """The events of some rows; what they learned is asked for at once, not event by event."""
    events: list[tuple[int, p.AnyEvent]] = []
    for seq, version, data in rows:
        try:
            events.append((seq, p.decode_event(_upcast(data, version, path))))
        except msgspec.DecodeError as error:
            raise StoreError(
                f"{path}: event {seq} cannot be read ({error}): "
                "move the file away to begin a new history; measurements are kept elsewhere"
            ) from error
    wanted = [key for _, event in events if isinstance(event, p.Learned) for key in event.keys]
    found = facts.get_many(wanted) if facts is not None else {}
    for seq, event in events:
        if isinstance(event, p.Learned):
            keys = tuple(key for key in event.keys if key in found)
            event = p.Learned(keys, tuple(found[key] for key in keys), event.fresh)
        yield seq, event


def _newest_snapshot(db: sqlite3.Connection) -> Session:
    """The newest snapshot, or an empty session: it is only a short cut to fold from."""
    row = db.execute("SELECT version, bytes FROM snapshots ORDER BY seq DESC LIMIT 1").fetchone()
    if row is None or row[0] != VERSION:
        return Session()
    try:
        return decode_session(row[1])
    except msgspec.DecodeError:
        return Session()


def peek(folder: Path, facts: FactStore | None) -> tuple[Session, float]:
    """The session in ``folder`` and the time of its last event, without holding it.

    Nothing is written or waited for: its engine may run meanwhile.

    Args:
        facts: a store, which may be open for reading only; None for a session without facts.

    Raises:
        StoreError: the journal cannot be read; the message names the file.
    """
    path = folder / "journal.sqlite"
    db = _connect_to_read(path)
    try:
        db.execute("BEGIN")  # snapshot and events as they stood at one moment
        session = _newest_snapshot(db)
        rows = _rows(db, path, session.seq)
        (when,) = db.execute("SELECT MAX(time) FROM events").fetchone()
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path}: {error}") from error
    finally:
        db.close()
    for seq, event in _events(rows, path, facts):
        apply(session, event, seq)
    return session, when or path.stat().st_mtime


class Journal:
    """A session's events in order. Holding one holds the session: one engine at a time."""

    def __init__(self, folder: Path, facts: FactStore, patience: float = LOCK_SECONDS) -> None:
        """
        Args:
            folder: of the session.
            facts: the store.
            patience: seconds to wait for an engine that is about to end.

        Raises:
            SessionBusyError: if another engine holds the session.
            StoreError: if the journal cannot be read.
        """
        self.folder, self.facts = folder, facts
        self.path = folder / "journal.sqlite"
        self._guard = _take(folder / "lock", patience)
        self._lock = threading.Lock()
        try:
            self._db = _connect(
                self.path,
                "CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, time REAL NOT NULL,"
                " kind TEXT NOT NULL, version INTEGER NOT NULL, bytes BLOB NOT NULL);"
                "CREATE TABLE IF NOT EXISTS snapshots (seq INTEGER PRIMARY KEY,"
                " version INTEGER NOT NULL, bytes BLOB NOT NULL);",
            )
            (last,) = self._db.execute(
                "SELECT MAX(seq) FROM (SELECT seq FROM events UNION ALL SELECT seq FROM snapshots"
                " UNION ALL SELECT 0)"
            ).fetchone()
            self._seq: int = last
        except BaseException:
            self._guard.close()
            raise

    def append(self, event: p.AnyEvent) -> int:
        """Commit one event and return its number, counted from 1."""
        if isinstance(event, p.Learned):
            # Facts are in the store already: keys alone.
            event = p.Learned(event.keys, (), event.fresh)
        with self._lock:
            self._seq += 1
            row = (self._seq, time.time(), type(event).__name__, VERSION, p.encode(event))
            try:
                self._db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", row)
            except sqlite3.DatabaseError as error:
                self._seq -= 1
                raise StoreError(f"{self.path}: {error}") from error
            return self._seq

    def read(self, after: int = 0) -> Iterator[tuple[int, p.AnyEvent]]:
        """Events numbered over ``after``, facts filled in from the store."""
        with self._lock:
            rows = _rows(self._db, self.path, after)
        yield from _events(rows, self.path, self.facts)

    def fold(self) -> Session:
        """The session as the journal tells it."""
        with self._lock:
            session = _newest_snapshot(self._db)
        for seq, event in self.read(session.seq):
            apply(session, event, seq)
        return session

    def snapshot(self, session: Session) -> None:
        """Keep a folded session, so that the next fold begins there."""
        row = (session.seq, VERSION, encode_session(session))
        with self._lock, _transaction(self._db, self.path):
            self._db.execute("DELETE FROM snapshots")
            self._db.execute("INSERT INTO snapshots VALUES (?, ?, ?)", row)

    def clear(self) -> None:
        """Begin the history anew; facts stay in the store.

        Numbers go on, so that a client that is attached takes no new event for one it has seen.
        """
        with self._lock, _transaction(self._db, self.path):
            self._db.execute("DELETE FROM events")
            self._db.execute("DELETE FROM snapshots")

    def close(self) -> None:
        """Close the file and let the session go."""
        with self._lock:
            self._db.close()
            self._guard.close()


def _take(path: Path, patience: float) -> IO[str]:
    """Hold a lock file for as long as it stays open; the system frees it when a process dies."""
    handle = path.open("a+")
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            handle.close()
            raise SessionBusyError(
                f"another run (process {holder}) holds the session {path.parent.name}: "
                "wait for its end, or stop that process"
            ) from error
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return handle
