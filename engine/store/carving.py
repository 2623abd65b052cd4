"""Rows of a SQLite file that SQLite itself no longer reads, found page by page.

A damaged page hides everything below it from SQLite. Here each page is read by itself: a leaf whose
parents are lost still has its rows. A row found this way may be damaged, or deleted long ago: the
caller has to know (`engine.store.seals`).

The format of the file: https://www.sqlite.org/fileformat2.html, sections 1.6 (pages), 2.1 (records)
and 4 (the write-ahead log).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

Value: TypeAlias = int | float | str | bytes | None

MAGIC = b"SQLite format 3\0"
HEADER = 100
"""Bytes before the first page's tree."""
SIZES = (4096, 512, 1024, 2048, 8192, 16384, 32768, 65536)
"""Of pages, the most usual first."""
LOG_HEADER, FRAME_HEADER = 32, 24
LEAF, INDEX_LEAF, INDEX_INTERIOR = 0x0D, 0x0A, 0x02
"""Kinds of pages that hold rows; those of tables WITHOUT ROWID are index pages."""
_WIDTHS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
"""Bytes of the integers, by serial type."""


class Carved(NamedTuple):
    """What looks like a row."""

    rowid: int | None
    """None in a table WITHOUT ROWID."""
    values: tuple[Value, ...]


def is_header(head: bytes) -> bool:
    """Whether a file that begins so is a database as we write them."""
    size = int.from_bytes(head[16:18], "big")
    return (
        len(head) >= HEADER
        and head.startswith(MAGIC)
        and (size == 1 or (size >= 512 and size & (size - 1) == 0))
        and head[18] == head[19] and head[18] in (1, 2)
        and head[20:24] == b"\0\x40\x20\x20"
        and int.from_bytes(head[44:48], "big") <= 4
        and int.from_bytes(head[56:60], "big") <= 1  # UTF-8, or no table yet
    )  # fmt: skip


def carved(database: bytes, log: bytes = b"") -> Iterator[Carved]:
    """Everything that looks like a row, those of the log last; some may come twice.

    Args:
        database: content of the file.
        log: content of its ``-wal`` file.
    """
    for size in _page_sizes(database, log):
        yield from _carved(database, log, size)


def _carved(database: bytes, log: bytes, size: int) -> Iterator[Carved]:
    pages = {
        number: database[at : at + size].ljust(size, b"\0")
        for number, at in enumerate(range(0, len(database), size), 1)
    }
    frames = list(_frames(log, size))
    newest = {**pages, **dict(frames)}
    for number, page in (*pages.items(), *frames):
        yield from _rows(page, HEADER if number == 1 else 0, newest)


def frames_in(log: bytes) -> int:
    """Number of frames in a log, up to the last that ends a transaction: damaged or not, but of
    full length, since a shorter one was never finished."""
    return max(
        (
            number
            for size in _page_sizes(b"", log)
            for number, at in enumerate(range(LOG_HEADER, len(log) - size, size + FRAME_HEADER), 1)
            if _is_of_round(log, at) and log[at + 4 : at + 8] != b"\0\0\0\0"
        ),
        default=0,
    )


def is_begun(log: bytes) -> bool:
    """Whether a log's header belongs to its frames, or is damaged; else it was written for frames
    that never came."""
    return any(log[16:24] == log[at + 8 : at + 16] for at in _first_frames(log))


def _is_of_round(log: bytes, at: int) -> bool:
    """Whether a frame was written since the log was last begun anew: then both halves of its salt
    are the log's. One of them may be damaged."""
    salt = _salt(log)
    return log[at + 8 : at + 12] == salt[:4] or log[at + 12 : at + 16] == salt[4:]


def _salt(log: bytes) -> bytes:
    """What marks the frames that were written since the log was last begun anew: the header has it
    too, but it may be damaged, or just have been written for the next round."""
    header, *frames = (log[16:24], *(log[at + 8 : at + 16] for at in _first_frames(log)))
    return header if header in frames else frames[0]


def _first_frames(log: bytes) -> tuple[int, int]:
    size = int.from_bytes(log[8:12], "big")
    return LOG_HEADER, LOG_HEADER + FRAME_HEADER + (size if size in SIZES else SIZES[0])


def _page_sizes(database: bytes, log: bytes) -> tuple[int, ...]:
    """The size of pages; all that are possible if the header is damaged."""
    if is_header(database[:HEADER]):
        size = int.from_bytes(database[16:18], "big")
        return (65536 if size == 1 else size,)
    size = int.from_bytes(log[8:12], "big")
    return (size,) if size in SIZES and not database else SIZES


def _frames(log: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Number and content of each page in the log; frames of an earlier round are left out."""
    for at in range(LOG_HEADER, len(log), size + FRAME_HEADER):
        page = log[at + FRAME_HEADER : at + FRAME_HEADER + size]
        if _is_of_round(log, at):
            yield int.from_bytes(log[at : at + 4], "big"), page.ljust(size, b"\0")


def _rows(page: bytes, start: int, pages: Mapping[int, bytes]) -> Iterator[Carved]:
    kind = page[start]
    if kind not in (LEAF, INDEX_LEAF, INDEX_INTERIOR):
        return
    first = start + (12 if kind == INDEX_INTERIOR else 8)
    most = (len(page) - first) // 2
    for cell in range(min(most, int.from_bytes(page[start + 3 : start + 5], "big"))):
        at = int.from_bytes(page[first + 2 * cell : first + 2 * cell + 2], "big")
        try:
            yield _cell(page, at + 4 * (kind == INDEX_INTERIOR), kind == LEAF, pages)
        except (ValueError, IndexError, struct.error, KeyError):  # no row, or not all of one
            continue


def _cell(page: bytes, at: int, with_rowid: bool, pages: Mapping[int, bytes]) -> Carved:
    length, at = _varint(page, at)
    rowid = None
    if with_rowid:
        rowid, at = _varint(page, at)
    usable = len(page)
    most = usable - 35 if with_rowid else (usable - 12) * 64 // 255 - 23
    here = length
    if length > most:
        least = (usable - 12) * 32 // 255 - 23
        here = least + (length - least) % (usable - 4)
        here = here if here <= most else least
    payload = page[at : at + here]
    if here < length:
        payload += _overflow(page[at + here : at + here + 4], length - here, pages)
    if len(payload) != length:
        raise ValueError("the row is cut off")
    return Carved(rowid, _record(payload))


def _overflow(following: bytes, length: int, pages: Mapping[int, bytes]) -> bytes:
    """The rest of a row that does not fit into its page."""
    if length > len(pages) * len(next(iter(pages.values()))):  # pages have one size
        raise ValueError("longer than the file")
    found = bytearray()
    while len(found) < length:
        page = pages[int.from_bytes(following, "big")]
        following = page[:4]
        found += page[4:]
    return bytes(found[:length])


def _record(payload: bytes) -> tuple[Value, ...]:
    size, at = _varint(payload, 0)
    if not 0 < size <= len(payload):
        raise ValueError("no record")
    kinds = []
    while at < size:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[Value] = []
    for kind in kinds:
        value, at = _value(payload, at, kind)
        values.append(value)
    if at != len(payload):
        raise ValueError("no record")
    return tuple(values)


def _value(payload: bytes, at: int, kind: int) -> tuple[Value, int]:
    if kind in (0, 8, 9):
        return (None, 0, 1)[0 if kind == 0 else kind - 7], at
    if kind == 7:
        return struct.unpack_from(">d", payload, at)[0], at + 8
    if kind in _WIDTHS:
        end = at + _WIDTHS[kind]
        return int.from_bytes(payload[at:end], "big", signed=True), end
    if kind < 12:
        raise ValueError("no serial type")
    end = at + (kind - 12) // 2
    if end > len(payload):
        raise ValueError("the row is cut off")
    data = payload[at:end]
    return (data.decode() if kind % 2 else data), end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where the next thing begins."""
    value = 0
    for number in range(9):
        byte = data[at + number]
        if number == 8:
            return _signed(value << 8 | byte), at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + number + 1
    raise AssertionError


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
