"""SQLite files: opening them, transactions, and errors that name the file."""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Iterator, MutableMapping
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path

from engine.errors import EngineError
from engine.store.carving import HEADER, LOG_HEADER, is_header
from engine.store.paths import StateFolderError, unwritable

IN_MEMORY = Path(":memory:")
"""Instead of a file: a database that ends with its connection."""


class StoreError(EngineError):
    """A journal or the store cannot be read or written; the message names the file."""


class UnwritableStoreError(StoreError, StateFolderError):
    """They cannot be written because of the folder that they are in."""


class DamagedFileError(StoreError):
    """A file is no database, or no longer one; see `engine.store.recovery`."""

    log = b""
    """Its write-ahead log, as it was before anyone connected."""


def connect(path: Path, schema: str) -> sqlite3.Connection:
    """Connect to a file, created if absent; commits survive a power cut.

    Raises:
        DamagedFileError: it is not a database with these tables.
        StoreError: it cannot be opened.
    """
    connection: sqlite3.Connection | None = None
    try:
        with _registering:
            if path != IN_MEMORY and _identity(path) not in _open.values():
                _check_header(path)
            connection = sqlite3.connect(
                path, check_same_thread=False, timeout=30, isolation_level=None, factory=_Connection
            )
            connection.text_factory = _text
            connection.execute("PRAGMA journal_mode=WAL")  # locks the file as being in use
            _open[connection] = _identity(path)
        connection.execute("PRAGMA synchronous=FULL")
        declared = _declared(schema)
        if any(declared.get(name) != columns for name, columns in _tables(connection).items()):
            raise DamagedFileError(f"{path}: its tables are damaged")
        connection.executescript(f"BEGIN; {schema}; COMMIT")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("PRAGMA user_version = 0")  # fails now rather than at the first fact
        connection.execute("ROLLBACK")
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, UnicodeDecodeError) or _code(error) == sqlite3.SQLITE_ERROR:
            # Our statements are right: what they name is lost, or what SQLite says is no text.
            raise DamagedFileError(f"{path}: {error}") from error
        if isinstance(error, sqlite3.DatabaseError):
            raise _store_error(path, error) from error
        raise
    return connection


class _Connection(sqlite3.Connection):
    """One that is known to be open."""

    def close(self) -> None:
        with _registering:
            super().close()
            _open.pop(self, None)


_registering = threading.RLock()
_open: MutableMapping[sqlite3.Connection, object] = weakref.WeakKeyDictionary()
"""Which file each connection of this process has open."""


def _identity(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return path  # of no file that is open
    return found.st_dev, found.st_ino


def _check_header(path: Path) -> None:
    """Raise `DamagedFileError` for a file whose first bytes are not those of a database of ours.

    SQLite would read some of them as another text encoding, or as a file that is read-only.

    This process must have no connection to it: whenever a process closes a file, the system drops
    all locks that it has on it, those of SQLite too. Another process would then delete the log that
    the connection goes on writing to (https://www.sqlite.org/howtocorrupt.html, section 2.2).
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEADER)
        log = beside(path, "-wal").stat().st_size if not head else 0
    except OSError:  # absent, or connecting says why not
        return
    if head and not is_header(head):
        raise DamagedFileError(f"{path}: it is not a database")
    if log > LOG_HEADER:  # SQLite would delete the log of an empty file
        raise DamagedFileError(f"{path}: it is empty, and its log is not")


def beside(path: Path, end: str) -> Path:
    """SQLite's file for the log (``-wal``) or the shared memory (``-shm``) of a database."""
    return path.with_name(path.name + end)


def _text(data: bytes) -> str:
    """Text as it is stored: what is damaged is found by its seal."""
    return data.decode("utf-8", "replace")


def _tables(connection: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    """Tables by name, each with its columns."""
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {
        name: connection.execute("SELECT * FROM pragma_table_info(?)", (name,)).fetchall()
        for (name,) in names
    }


@cache
def _declared(schema: str) -> dict[str, list[tuple[object, ...]]]:
    """The tables of a schema, as `_tables` has them."""
    with closing(sqlite3.connect(IN_MEMORY)) as connection:
        connection.executescript(schema)
        return _tables(connection)


_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""Results of SQLite that come from the file's contents."""
_UNWRITABLE = (
    *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM),
)
"""Results of SQLite that come from the folder and not from the file's contents."""


def _code(error: BaseException) -> int:
    """The primary result code of SQLite."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _store_error(path: Path, error: sqlite3.DatabaseError) -> StoreError:
    if _code(error) in _UNWRITABLE:
        return UnwritableStoreError(f"{path}: {unwritable(str(error))}")
    kind = DamagedFileError if _code(error) in _DAMAGED else StoreError
    return kind(f"{path}: {error}")


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Connect without writing; fails soon if the file is locked."""
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True, check_same_thread=False, timeout=0.2, isolation_level=None,
        )  # fmt: skip
        connection.text_factory = _text
        return connection
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
