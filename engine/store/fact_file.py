"""The file of the fact store: shared by processes, and replaced by whoever finds it damaged.

Whoever uses it holds a shared lock meanwhile, and looks whether it still is the file that was
opened. Whoever replaces it holds the lock alone, so that nothing is written into the old one.
"""

from __future__ import annotations

import fcntl
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, TypeAlias, TypeVar

from engine import protocol as p
from engine.store import recovery, upcasters
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
from engine.store.seals import DamagedRowError, unsealed
from engine.store.upcasters import VERSION

log = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, time REAL NOT NULL,"
    " version INTEGER NOT NULL, data BLOB NOT NULL) WITHOUT ROWID"
)
CHECKED = 4 << 20
"""Bytes of a file up to which it is checked when it is opened; see `FactFile.is_whole`."""

Row: TypeAlias = tuple[str, float, int, bytes]
"""Key, time, version and bytes of a fact."""


class FactFile:
    """A connection to the file. Not safe from several threads at once, but for `is_whole`."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """
        Args:
            read_only: neither create the file nor write to it.

        Raises:
            StoreError: ``path`` cannot be opened, or a damaged file not be replaced.
        """
        self.path, self.read_only = path, read_only
        self.said: list[str] = []
        """Sentences about damage that nobody was told yet."""
        self._guard: IO[bytes] | None = None
        self._identity: tuple[int, int] | None = None
        """Which file is open; None if none is."""
        if read_only:
            self.connection = connect_to_read(path)
            return
        if path != IN_MEMORY:
            self._guard = _guard(beside(path, ".lock"))
        self.connection = self._connected()

    def using(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What ``work`` does with the connection; once more if the file has to be replaced.

        Raises:
            StoreError: naming the file.
        """
        if self.read_only:
            with naming(self.path):
                return work(self.connection)
        for last in (False, True):
            try:
                with self._held(fcntl.LOCK_SH):
                    self._follow()
                    with naming(self.path):
                        return work(self.connection)
            except DamagedFileError:
                if last or self._guard is None:
                    raise
                self.replace()
        raise AssertionError

    def is_whole(self) -> bool:
        """Check every fact, through a connection of its own; takes seconds per gigabyte.

        Raises:
            StoreError: it cannot be read.
        """
        if self._guard is None:
            return True
        try:
            with closing(connect_to_read(self.path)) as db, naming(self.path):
                return _is_whole(db)
        except DamagedFileError:
            return False

    def replace(self) -> None:
        """Put a file with every fact that is whole in the place of this one.

        Raises:
            StoreError: the folder cannot be written; the damaged file stays.
        """
        self.connection.close()
        self._identity = None  # where it fails, the next use tries again
        self.connection = self._replaced()

    def close(self) -> None:
        """Close the file."""
        self.connection.close()
        if self._guard is not None:
            self._guard.close()

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
        if unread:
            try:
                self._take_unread(db, unread)
            except BaseException:
                db.close()
                raise
        self._identity = _identity(self.path)
        return db

    def _take_unread(self, db: sqlite3.Connection, unread: bytes) -> None:
        """Add the facts of a log that SQLite did not read."""
        rows = recovery.whole_rows([_TABLE], b"", unread)["facts"]
        with transaction(db, self.path):
            before = db.total_changes
            db.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?, ?, ?)", rows)
        if found := db.total_changes - before:
            self.said.append(
                f"the log of the store of measurements was damaged ({self.path}): {found} "
                "measurements after the damage are kept"
            )

    def _check(self, db: sqlite3.Connection) -> bool:
        """Whether a small file is whole; that of a large one takes too long to know."""
        small = self.path == IN_MEMORY or self.path.stat().st_size <= CHECKED
        if small and not _is_whole(db):
            return False
        db.execute("SELECT * FROM facts LIMIT 1").fetchone()
        return True

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
            self.said.append(
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
        if self._guard is None:
            return
        there = _identity(self.path)
        if self._identity is None or there not in (self._identity, None):
            self.connection.close()
            self._identity = None
            self.connection = self._opened(self._check)


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


def decoded(row: Row, path: Path) -> p.AnyFact:
    """The fact of a row.

    Raises:
        DamagedRowError: it is not what was written.
        StoreError: a newer version wrote it.
    """
    fact: p.AnyFact = upcasters.decoded(row, path, p.decode_fact)
    return fact


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
                    decoded(row, IN_MEMORY)
            except DamagedRowError:
                return None
            return row
    return None


_TABLE = recovery.Table("facts", _fact_row)
