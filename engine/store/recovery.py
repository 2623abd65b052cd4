"""A damaged database is replaced by a new one with every row of it that is whole."""

from __future__ import annotations

import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from engine.store.carving import Carved, carved, frames_in
from engine.store.database import (
    IN_MEMORY,
    DamagedFileError,
    beside,
    connect,
    naming,
    transaction,
)
from engine.store.files import free_name
from engine.store.paths import StateFolderError, unwritable

Row: TypeAlias = tuple[Any, ...]


class Table(NamedTuple):
    """How rows of one table are recognised."""

    name: str
    row: Callable[[Carved], Row | None]
    """A row for ``INSERT``, if this is one of the table and whole."""


def opened(path: Path, schema: str, check: Callable[[sqlite3.Connection], bool]) -> Opened:
    """Connect to a database, unless it is damaged.

    Args:
        path: created if absent.
        schema: of its tables.
        check: whether its contents are whole.

    Raises:
        DamagedFileError: it is damaged.
        StoreError: it cannot be opened.
    """
    log = b"" if path == IN_MEMORY else read(beside(path, "-wal"))
    try:
        connection = connect(path, schema)
    except DamagedFileError as error:
        error.log = log
        raise
    try:
        with naming(path):
            if not check(connection):
                raise DamagedFileError(f"{path}: some of its rows are damaged")
            # What follows a damaged frame is no part of the database for SQLite.
            taken = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone() if log else None
            unread = taken is not None and frames_in(log) > max(0, taken[1])
    except BaseException as error:
        connection.close()  # this may delete the log
        if isinstance(error, DamagedFileError):
            error.log = log
        raise
    return Opened(connection, log if unread else b"")


class Opened(NamedTuple):
    """A connection."""

    connection: sqlite3.Connection
    log: bytes
    """The write-ahead log, if it has rows that SQLite did not read; else empty."""


def whole_rows(tables: Iterable[Table], database: bytes, log: bytes) -> dict[str, list[Row]]:
    """Every whole row in these bytes, by table; some may come twice, later ones last."""
    found: dict[str, list[Row]] = {table.name: [] for table in tables}
    for one in carved(database, log):
        for table in tables:
            if (row := table.row(one)) is not None:
                found[table.name].append(row)
                break
    return found


def rebuild(path: Path, schema: str, rows: dict[str, list[Row]], log: bytes) -> Path:
    """Replace a database by one with these rows.

    Args:
        path: nobody else may have it open.
        schema: of its tables.
        rows: of each table; of two with one key the later stays.
        log: the damaged database's, to be kept beside it.

    Returns:
        Where the damaged file is kept.

    Raises:
        StoreError: the folder cannot be written; the damaged file stays where it is.
    """
    kept = free_name(path.with_name(path.name + ".damaged"))
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        _copy(path, kept)
        if log:
            beside(kept, "-wal").write_bytes(log)
        with closing(connect(new, schema)) as connection, transaction(connection, new):
            insert(connection, rows)
        # A log that stays would be taken for the new file's.
        beside(path, "-wal").unlink(missing_ok=True)
        beside(path, "-shm").unlink(missing_ok=True)
        new.replace(path)
    except OSError as error:
        raise StateFolderError(unwritable(error.strerror or str(error))) from error
    finally:
        for end in ("", "-wal", "-shm"):
            with suppress(OSError):
                beside(new, end).unlink(missing_ok=True)
    return kept


def insert(connection: sqlite3.Connection, rows: dict[str, list[Row]]) -> None:
    """Insert rows into their tables; of two with one key the later stays."""
    for table, some in rows.items():
        if some:
            marks = ", ".join("?" * len(some[0]))
            connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", some)


def read(path: Path) -> bytes:
    """Content of a file; empty if there is none."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
