"""A journal that may be damaged: opened with what is whole, saying what is lost."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from engine import protocol as p
from engine.store import recovery
from engine.store.carving import Carved, is_begun
from engine.store.database import (
    IN_MEMORY,
    DamagedFileError,
    connect,
    naming,
    transaction,
)
from engine.store.journal_rows import SCHEMA, Row, decoded, is_whole, newest_snapshot, rows_of
from engine.store.seals import DamagedRowError, unsealed
from engine.store.upcasters import VERSION

log = logging.getLogger(__name__)


def _event_row(one: Carved) -> Row | None:
    match one:
        case Carved(int(seq), (None, when, str(kind), int(version), bytes(data))):
            if seq < 1 or not isinstance(when, int | float):
                return None
            row = (seq, float(when), kind, version, data)
            return row if is_whole(row, IN_MEMORY) else None
    return None


def _snapshot_row(one: Carved) -> tuple[int, int, bytes] | None:
    match one:
        case Carved(int(seq), (None, int(version), bytes(data))) if version == VERSION:
            with suppress(DamagedRowError):
                unsealed(data, version, seq, version)
                return seq, version, data
    return None


_TABLES = (recovery.Table("events", _event_row), recovery.Table("snapshots", _snapshot_row))


def _check(db: sqlite3.Connection) -> bool:
    """Whether a journal is whole, as far as it is read."""
    if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        return False
    newest = db.execute("SELECT * FROM snapshots ORDER BY seq DESC LIMIT 1").fetchone()
    after = 0
    if newest is not None and newest[1] == VERSION:
        if _snapshot_row(Carved(newest[0], (None, *newest[1:]))) is None:
            return False
        after = newest_snapshot(db, IN_MEMORY).seq
    return all(is_whole(row, IN_MEMORY) for row in rows_of(db, IN_MEMORY, after))


def opened(path: Path) -> tuple[sqlite3.Connection, str]:
    """A connection to a journal, and what was lost of it, if anything."""
    try:
        db, unread = recovery.opened(path, SCHEMA, _check)
    except DamagedFileError as error:
        log.warning("recovering: %s", error)
        rows = recovery.whole_rows(_TABLES, recovery.read(path), error.log)
        rows["events"] = _since_fresh(rows["events"])
        kept = recovery.rebuild(path, SCHEMA, rows, error.log)
        return connect(path, SCHEMA), _said(path, rows, f"the damaged file is kept as {kept.name}")
    if not unread:
        return db, ""
    with naming(path):
        (last,) = db.execute("SELECT MAX(seq) FROM events").fetchone()
    rows = recovery.whole_rows(_TABLES, b"", unread)
    rows = {"events": [row for row in _since_fresh(rows["events"]) if row[0] > (last or 0)]}
    if not rows["events"]:
        lost = f"the history of this session was damaged ({path}): what was written last is lost"
        return db, lost if is_begun(unread) else ""
    with transaction(db, path):
        recovery.insert(db, rows)
    rows["events"] = rows_of(db, path, 0)
    return db, _said(path, rows, "its log was damaged")


def _since_fresh(rows: Iterable[Row]) -> list[Row]:
    """Events in order, each once, from the last opening that forgot what was before it."""
    by_number = {row[0]: row for row in rows}
    ordered = [by_number[number] for number in sorted(by_number)]
    for at in range(len(ordered) - 1, 0, -1):
        if ordered[at][2] == "Opened" and ordered[at][3] <= VERSION:
            event = decoded(ordered[at], IN_MEMORY)
            if isinstance(event, p.Opened) and event.settings.fresh:
                return ordered[at:]
    return ordered


def _said(path: Path, rows: dict[str, list[recovery.Row]], how: str) -> str:
    """What was lost, in a sentence."""
    whole_until = max((row[0] for row in rows.get("snapshots", ())), default=0)
    after = [row for row in rows["events"] if row[0] > whole_until]
    numbers = [row[0] for row in after]
    # A history that was begun anew goes on counting.
    begun = numbers[0] - 1 if after and after[0][2] == "Opened" else whole_until
    gaps = [(a + 1, b - 1) for a, b in pairwise([begun, *numbers]) if b > a + 1]
    lost = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in gaps)
    last = max((*numbers, whole_until), default=0)
    missing = f"number {lost} and whatever followed number {last} is lost"
    if not gaps:
        missing = f"whatever followed number {last} is lost" if last else "nothing of it is left"
    return (
        f"the history of this session was damaged ({path}): {len(rows['events'])} events are "
        f"kept, {missing}; measurements are stored separately and kept; {how}"
    )
