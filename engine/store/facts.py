"""The fact store: each measurement once, under the key of everything it depends on.

A fact is committed before it is announced. One that is damaged is as if it had never been measured;
a damaged file is replaced by one with every fact that is whole, while others may have it open.
"""

from __future__ import annotations

import fcntl
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, TypeAlias, TypeVar

import msgspec

from engine import protocol as p
from engine.store import recovery
from engine.store.carving import Carved
from engine.store.database import (
    IN_MEMORY,
    DamagedFileError,
    beside,
    connect_to_read,
    naming,
    transaction,
)
from engine.store.paths import StateFolderError, unwritable
from engine.store.seals import DamagedRowError, seal, unsealed
from engine.store.upcasters import VERSION, upcast

log = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, time REAL NOT NULL,"
    " version INTEGER NOT NULL, data BLOB NOT NULL) WITHOUT ROWID"
)
CHECKED = 4 << 20
"""Bytes of a store up to which it is checked when it is opened; see `FactStore.verify`."""

Row: TypeAlias = tuple[str, float, int, bytes]


class FactStore:
    """Facts by key, shared by all sessions and processes of a user. Safe from any thread."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """
        Args:
            read_only: neither create the file nor write to it.

        Raises:
            StoreError: ``path`` cannot be opened.
        """
        self.path, self._read_only = path, read_only
        self._guard: IO[bytes] | None = None
        self._lock = threading.Lock()
        self._said: list[str] = []
        """Sentences about damage that nobody was told yet."""
        self.on_damage: Callable[[], None] = lambda: None
        """Called, on any thread, when there is something new in `damage`."""
        if read_only:
            self._db = connect_to_read(path)
            return
        if path != IN_MEMORY:
            self._guard = _guard(beside(path, ".lock"))
        self._db = self._connected()

    # -- the file ------------------------------------------------------------------------------

    def _connected(self) -> sqlite3.Connection:
        """A connection to the file, which is replaced first if it is damaged."""
        with self._held(fcntl.LOCK_SH):
            try:
                return self._opened(self._check)
            except DamagedFileError as error:
                unread = error.log
        return self._replaced(unread)

    def _opened(self, check: Callable[[sqlite3.Connection], bool]) -> sqlite3.Connection:
        db, unread = recovery.opened(self.path, SCHEMA, check)
        self._file = _identity(self.path)
        if unread:
            rows = recovery.whole_rows([_TABLE], b"", unread)["facts"]
            with transaction(db, self.path):
                before = db.total_changes
                db.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?, ?, ?)", rows)
            if found := db.total_changes - before:
                self._said.append(
                    f"the log of the store of measurements was damaged ({self.path}): {found} "
                    "measurements after the damage are kept"
                )
        return db

    def _check(self, db: sqlite3.Connection) -> bool:
        """Whether a small store is whole; that of a large one takes too long to know."""
        small = self.path == IN_MEMORY or self.path.stat().st_size <= CHECKED
        if small and not _is_whole(db):
            return False
        db.execute("SELECT * FROM facts LIMIT 1").fetchone()
        return True

    def verify(self) -> None:
        """Check every fact, and replace the file if it is damaged; takes seconds per gigabyte.

        Raises:
            StoreError: it cannot be read or replaced.
        """
        if self._guard is None:
            return
        try:
            with closing(connect_to_read(self.path)) as db, naming(self.path):
                if _is_whole(db):
                    return
        except DamagedFileError:
            pass
        with self._lock:
            self._db.close()
            self._db = self._replaced()
        self.on_damage()

    def _replaced(self, unread: bytes = b"") -> sqlite3.Connection:
        """A connection to a new file in the place of a damaged one.

        Args:
            unread: its log, as it was before this process connected.
        """
        with self._held(fcntl.LOCK_EX):
            try:  # another process may have done it meanwhile
                return self._opened(_is_whole)
            except DamagedFileError as error:
                log.warning("recovering: %s", error)
                unread = unread or error.log
            rows = recovery.whole_rows([_TABLE], recovery.read(self.path), unread)["facts"]
            # Of a fact that was measured anew, the newest stays.
            newest = {row[0]: row for row in sorted(rows, key=lambda row: row[1])}
            kept = recovery.rebuild(self.path, SCHEMA, {"facts": [*newest.values()]}, unread)
            self._said.append(
                f"the store of measurements was damaged ({self.path}): {len(newest)} are kept, "
                "what is lost is measured again when it is needed; "
                f"the damaged file is kept as {kept.name}"
            )
            return self._opened(_is_whole)

    @contextmanager
    def _held(self, how: int) -> Iterator[None]:
        """Hold the lock that keeps others from replacing the file, or from using it."""
        if self._guard is None:
            yield
            return
        fcntl.flock(self._guard, how)
        try:
            yield
        finally:
            fcntl.flock(self._guard, fcntl.LOCK_UN)

    def _follow(self) -> None:
        """Connect to the file that another process has put in the place of a damaged one."""
        if self._guard is not None and _identity(self.path) not in (self._file, None):
            self._db.close()
            self._db = self._opened(self._check)

    def _using(self, work: Callable[[], T]) -> T:
        """What ``work`` does with the database; once more if it is replaced."""
        if self._read_only:
            with naming(self.path):
                return work()
        for last in (False, True):
            try:
                with self._held(fcntl.LOCK_SH):
                    self._follow()
                    with naming(self.path):
                        return work()
            except DamagedFileError:
                if last or self._guard is None:
                    raise
                self._db.close()
                self._db = self._replaced()
        raise AssertionError

    def damage(self) -> list[str]:
        """What was damaged, in sentences; each is returned once."""
        with self._lock:
            said, self._said = self._said, []
        return said

    # -- facts ---------------------------------------------------------------------------------

    def get(self, key: str) -> p.AnyFact | None:
        """The fact of a key; None if it was never measured."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Sequence[str], *, since: float = 0.0) -> dict[str, p.AnyFact]:
        """The facts of these keys written at ``since`` (epoch seconds) or later."""
        found: dict[str, p.AnyFact] = {}
        with self._lock:
            for at in range(0, len(keys), 500):
                some = keys[at : at + 500]
                rows = self._using(lambda some=some: self._rows(some, since))  # type: ignore[misc]
                found.update(self._facts(rows))
            told = bool(self._said)
        if told:
            self.on_damage()
        return found

    def _rows(self, keys: Sequence[str], since: float) -> list[Row]:
        marks = ",".join("?" * len(keys))
        return self._db.execute(
            f"SELECT * FROM facts WHERE time >= ? AND key IN ({marks})", (since, *keys)
        ).fetchall()

    def _facts(self, rows: Sequence[Row]) -> dict[str, p.AnyFact]:
        """Decode facts; damaged ones are removed, so that they can be measured again."""
        found: dict[str, p.AnyFact] = {}
        damaged: list[str] = []
        for row in rows:
            try:
                found[row[0]] = _decoded(row, self.path)
            except DamagedRowError as error:
                log.warning("%s: fact %s cannot be read (%s)", self.path, row[0], error)
                damaged.append(row[0])
        if damaged and not self._read_only:
            self._using(lambda: self._remove(damaged))
            self._said.append(
                f"{len(damaged)} measurements in {self.path} were damaged: they are measured again "
                "when they are needed"
            )
        return found

    def _remove(self, keys: Sequence[str]) -> None:
        with transaction(self._db, self.path):
            self._db.executemany("DELETE FROM facts WHERE key = ?", [(key,) for key in keys])

    def put(
        self, keys: Sequence[str], facts: Sequence[p.AnyFact], *, replace: bool = False
    ) -> None:
        """Commit facts; one that exists stays, unless ``replace``."""
        verb = "REPLACE" if replace else "IGNORE"
        now = time.time()
        rows = [
            (key, now, VERSION, seal(p.encode(fact), key, now, VERSION))
            for key, fact in zip(keys, facts, strict=True)
        ]

        def write() -> None:
            with transaction(self._db, self.path):
                self._db.executemany(f"INSERT OR {verb} INTO facts VALUES (?, ?, ?, ?)", rows)

        with self._lock:
            self._using(write)
            told = bool(self._said)
        if told:
            self.on_damage()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
            if self._guard is not None:
                self._guard.close()


def _guard(path: Path) -> IO[bytes]:
    try:
        return path.open("ab")
    except OSError as error:
        raise StateFolderError(unwritable(error.strerror or str(error))) from error


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file is there now; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _decoded(row: Row, path: Path) -> p.AnyFact:
    version = row[2]
    try:
        data = upcast(unsealed(row[3], version, *row[:3]), version, path)
        fact: p.AnyFact = p.decode_fact(data)
        return fact
    except (msgspec.DecodeError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise DamagedRowError(str(error)) from error


def _is_whole(db: sqlite3.Connection) -> bool:
    """Whether every fact is whole, and found under its key."""
    if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        return False
    before = ""
    for row in db.execute("SELECT * FROM facts ORDER BY key"):
        # Where keys are out of order, those after them are not found.
        if not isinstance(row[0], str) or row[0] <= before:
            return False
        try:
            unsealed(row[3], row[2], *row[:3])
        except DamagedRowError:
            return False
        before = row[0]
    return True


def _fact_row(one: Carved) -> Row | None:
    match one:
        case Carved(None, (str(key), int() | float() as when, int(version), bytes(data))):
            row = (key, float(when), version, data)
            try:
                unsealed(data, version, *row[:-1])
                if version < VERSION:
                    _decoded(row, IN_MEMORY)
            except DamagedRowError:
                return None
            return row
    return None


_TABLE = recovery.Table("facts", _fact_row)
