"""SQLite files: opening them, transactions, and errors that name the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.errors import EngineError
from engine.store.paths import StateFolderError, unwritable

IN_MEMORY = Path(":memory:")
"""Instead of a file: a database that ends with its connection."""


class StoreError(EngineError):
    """A journal or the store cannot be read or written; the message names the file."""


class UnwritableStoreError(StoreError, StateFolderError):
    """They cannot be written because of the folder that they are in."""


def connect(path: Path, schema: str) -> sqlite3.Connection:
    """Connect to a file, created if absent; commits survive a power cut.

    Raises:
        StoreError: it is not a database.
    """
    try:
        connection = sqlite3.connect(
            path, check_same_thread=False, timeout=30, isolation_level=None
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(schema)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("PRAGMA user_version = 0")  # fails now rather than at the first fact
        connection.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:
        if _code(error) in (*_UNWRITABLE, sqlite3.SQLITE_BUSY):
            raise _store_error(path, error) from error
        raise StoreError(f"{path}: {error}: move the file away to start a new one") from error
    return connection


_UNWRITABLE = (
    *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM),
)
"""Results of SQLite that come from the folder and not from the file's contents."""


def _code(error: sqlite3.Error) -> int:
    """The primary result code of SQLite."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _store_error(path: Path, error: sqlite3.DatabaseError) -> StoreError:
    if _code(error) in _UNWRITABLE:
        return UnwritableStoreError(f"{path}: {unwritable(str(error))}")
    return StoreError(f"{path}: {error}")


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Connect without writing; fails soon if the file is locked."""
    try:
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True, check_same_thread=False, timeout=0.2, isolation_level=None,
        )  # fmt: skip
    except sqlite3.DatabaseError as error:
        raise _store_error(path, error) from error


@contextmanager
def transaction(db: sqlite3.Connection, path: Path) -> Iterator[None]:
    """A transaction: all of the statements inside take effect, or none.

    Raises:
        StoreError: naming the file.
    """
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        with suppress(sqlite3.ProgrammingError):  # it is closed: nothing is open in it
            if db.in_transaction:
                db.execute("ROLLBACK")
        raise _store_error(path, error) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise database errors as `StoreError`, naming the file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise _store_error(path, error) from error
