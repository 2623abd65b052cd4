"""The fact store: each measurement once, under the key of everything it depends on.

A fact is committed before it is announced. One that is damaged is as if it had never been measured.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from engine import protocol as p
from engine.store.database import DamagedFileError, transaction
from engine.store.fact_file import FactFile, Row, decoded
from engine.store.seals import DamagedRowError, seal
from engine.store.upcasters import VERSION

log = logging.getLogger(__name__)


class FactStore:
    """Facts by key, shared by all sessions and processes of a user. Safe from any thread."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """
        Args:
            read_only: neither create the file nor write to it.

        Raises:
            StoreError: ``path`` cannot be opened, or a damaged file not be replaced.
        """
        self.path = path
        self._lock = threading.Lock()
        self._file = FactFile(path, read_only=read_only)
        self.on_damage: Callable[[], None] = lambda: None
        """Called, on any thread, when there is something new in `damage`."""

    def get(self, key: str) -> p.AnyFact | None:
        """The fact of a key; None if it was never measured."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Sequence[str], *, since: float = 0.0) -> dict[str, p.AnyFact]:
        """The facts of these keys written at ``since`` (epoch seconds) or later."""
        found: dict[str, p.AnyFact] = {}
        with self._lock:
            for at in range(0, len(keys), 500):
                some = keys[at : at + 500]
                rows = self._file.using(partial(_rows, some, since))
                found.update(self._facts(rows))
            told = bool(self._file.said)
        if told:
            self.on_damage()
        return found

    def _facts(self, rows: Sequence[Row]) -> dict[str, p.AnyFact]:
        """Decode facts; damaged ones are removed, so that they can be measured again."""
        found: dict[str, p.AnyFact] = {}
        damaged: list[str] = []
        for row in rows:
            try:
                found[row[0]] = decoded(row, self.path)
            except DamagedRowError as error:
                log.warning("%s: fact %s cannot be read (%s)", self.path, row[0], error)
                damaged.append(row[0])
        if damaged and not self._file.read_only:
            self._file.using(partial(_remove, damaged, self.path))
            self._file.said.append(
                f"{len(damaged)} measurements in {self.path} were damaged: they are measured again "
                "when they are needed"
            )
        return found

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

        def write(db: sqlite3.Connection) -> None:
            with transaction(db, self.path):
                db.executemany(f"INSERT OR {verb} INTO facts VALUES (?, ?, ?, ?)", rows)

        with self._lock:
            self._file.using(write)
            told = bool(self._file.said)
        if told:
            self.on_damage()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def damage(self) -> list[str]:
        """What was damaged, in sentences; each is returned once."""
        with self._lock:
            said, self._file.said = self._file.said, []
        return said

    def verify(self) -> None:
        """Check every fact, and replace the file if it is damaged; takes seconds per gigabyte.

        Raises:
            StoreError: it cannot be read or replaced.
        """
        if not self._file.is_whole():
            with self._lock:
                self._file.replace()
            self.on_damage()


def _rows(keys: Sequence[str], since: float, db: sqlite3.Connection) -> list[Row]:
    marks = ",".join("?" * len(keys))
    rows = db.execute(
        f"SELECT * FROM facts WHERE time >= ? AND key IN ({marks})", (since, *keys)
    ).fetchall()
    if not {row[0] for row in rows} <= set(keys):  # nor could they be removed by their keys
        raise DamagedFileError("facts have other keys than those they are found by")
    return rows


def _remove(keys: Sequence[str], path: Path, db: sqlite3.Connection) -> None:
    with transaction(db, path):
        db.executemany("DELETE FROM facts WHERE key = ?", [(key,) for key in keys])
