"""The fact store: each measurement once, under the key of everything it depends on.

A fact is committed before it is announced.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from engine import protocol as p
from engine.store.database import StoreError, connect, connect_to_read, transaction
from engine.store.upcasters import VERSION, upcast


class FactStore:
    """Facts by key, shared by all sessions and processes of a user. Safe from any thread."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """
        Args:
            read_only: neither create the file nor write to it.

        Raises:
            StoreError: ``path`` is not a fact store.
        """
        self.path = path
        self._lock = threading.Lock()
        if read_only:
            self._db = connect_to_read(path)
            return
        self._db = connect(
            path,
            "CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, time REAL NOT NULL,"
            " version INTEGER NOT NULL, data BLOB NOT NULL) WITHOUT ROWID",
        )

    def get(self, key: str) -> p.AnyFact | None:
        """The fact of a key; None if it was never measured."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Sequence[str], *, since: float = 0.0) -> dict[str, p.AnyFact]:
        """The facts of these keys written at ``since`` (epoch seconds) or later."""
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
                        found[key] = p.decode_fact(upcast(data, version, self.path))
                    except msgspec.DecodeError as error:
                        raise StoreError(
                            f"{self.path}: fact {key} cannot be read ({error}): "
                            "use --fresh to measure it again"
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
        """Commit facts; one that exists stays, unless ``replace``."""
        verb = "REPLACE" if replace else "IGNORE"
        now = time.time()
        rows = [(k, now, VERSION, p.encode(f)) for k, f in zip(keys, facts, strict=True)]
        with self._lock, transaction(self._db, self.path):
            self._db.executemany(f"INSERT OR {verb} INTO facts VALUES (?, ?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
