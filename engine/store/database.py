"""SQLite files: opening them, transactions, and errors that name the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.errors import EngineError


class StoreError(EngineError):
    """A journal or the store cannot be read or written; the message names the file."""


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
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path}: {error}: move the file away to start a new one") from error
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Connect without writing; fails soon if the file is locked."""
    try:
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True, check_same_thread=False, timeout=0.2, isolation_level=None,
        )  # fmt: skip
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path}: {error}") from error


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
        raise StoreError(f"{path}: {error}") from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise database errors as `StoreError`, naming the file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path}: {error}") from error
