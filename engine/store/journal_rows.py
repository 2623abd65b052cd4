"""Rows of a session's journal: events and snapshots as they are stored, and what they fold to."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from engine import protocol as p
from engine.session import Session, apply, decode_session
from engine.store import upcasters
from engine.store.database import DamagedFileError, naming
from engine.store.facts import FactStore
from engine.store.seals import DamagedRowError, unsealed
from engine.store.upcasters import VERSION

log = logging.getLogger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, time REAL NOT NULL,
    kind TEXT NOT NULL, version INTEGER NOT NULL, bytes BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS snapshots (seq INTEGER PRIMARY KEY,
    version INTEGER NOT NULL, bytes BLOB NOT NULL);
"""

Row: TypeAlias = tuple[int, float, str, int, bytes]
"""Number, time, kind, version and bytes of an event."""


def rows_of(db: sqlite3.Connection, path: Path, after: int) -> list[Row]:
    """Events numbered over ``after``, in order."""
    with naming(path):
        return db.execute("SELECT * FROM events WHERE seq > ? ORDER BY seq", (after,)).fetchall()


def decoded(row: Row, path: Path) -> p.AnyEvent:
    """The event of a row.

    Raises:
        DamagedRowError: it is not what was written.
        StoreError: a newer version wrote it.
    """
    event: p.AnyEvent = upcasters.decoded(row, path, p.decode_event)
    return event


def is_whole(row: Row, path: Path) -> bool:
    """Whether a row is what was written, as far as its version can know."""
    try:
        unsealed(row[4], row[3], *row[:4])
        if row[3] < VERSION:  # not every older version has a checksum
            decoded(row, path)
    except DamagedRowError:
        return False
    return True


def events_of(
    rows: Sequence[Row], path: Path, facts: FactStore | None
) -> Iterator[tuple[int, p.AnyEvent]]:
    """Decode rows to events; all facts they refer to are fetched in one query."""
    events: list[tuple[int, p.AnyEvent]] = []
    for row in rows:
        try:
            events.append((row[0], decoded(row, path)))
        except DamagedRowError as error:
            raise DamagedFileError(f"{path}: event {row[0]} cannot be read ({error})") from error
    wanted = [key for _, event in events if isinstance(event, p.Learned) for key in event.keys]
    found = facts.get_many(wanted) if facts is not None else {}
    for seq, event in events:
        if isinstance(event, p.Learned):
            keys = tuple(key for key in event.keys if key in found)
            event = p.Learned(keys, tuple(found[key] for key in keys), event.fresh)
        yield seq, event


def newest_snapshot(db: sqlite3.Connection, path: Path) -> Session:
    """The newest snapshot, or an empty session; snapshots only shorten the fold."""
    with naming(path):
        row = db.execute("SELECT * FROM snapshots ORDER BY seq DESC LIMIT 1")
        newest = row.fetchone()
    if newest is None or newest[1] != VERSION:
        return Session()
    try:
        session = decode_session(unsealed(newest[2], VERSION, *newest[:2]))
    except (msgspec.DecodeError, DamagedRowError):
        return Session()
    # Before recipes were numbered, a snapshot had a history without them.
    return session if len(session.tried) > 1 or not session.history else Session()


def folded(session: Session, events: Iterable[tuple[int, p.AnyEvent]]) -> Session:
    """Apply events to a session. After one that is lost, others may no longer apply."""
    last, gap = session.seq, False
    for seq, event in events:
        gap, last = gap or (last > 0 and seq > last + 1), seq
        try:
            apply(session, event, seq)
        except Exception:
            if not gap:
                raise
            log.warning("event %d does not apply: one before it is lost", seq, exc_info=True)
    return session
