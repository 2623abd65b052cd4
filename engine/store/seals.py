"""A checksum at the end of each stored row: SQLite has none, so a flipped bit would be a figure."""

from __future__ import annotations

import zlib

from engine.errors import EngineError

SEALED_SINCE = 3
"""The first version of rows that end with a seal. Later versions keep it as it is."""
BYTES = 4


class DamagedRowError(EngineError):
    """A row is not what was written."""


def seal(data: bytes, *columns: object) -> bytes:
    """The content of a row with a checksum over it and the row's other columns."""
    return data + _checksum(data, columns)


def unsealed(data: object, version: object, *columns: object) -> bytes:
    """The content of a row.

    Args:
        data: as it is stored.
        version: that wrote it; before `SEALED_SINCE` there is nothing to check.
        columns: the other columns, the version among them, as they were given to `seal`.

    Raises:
        DamagedRowError: the row is not what was written.
    """
    if not isinstance(data, bytes) or not isinstance(version, int) or version < 1:
        raise DamagedRowError("a column is lost")
    if version < SEALED_SINCE:
        return data
    content = data[:-BYTES]
    if _checksum(content, columns) != data[-BYTES:]:
        raise DamagedRowError("its checksum is wrong")
    return content


def _checksum(data: bytes, columns: tuple[object, ...]) -> bytes:
    return zlib.crc32(data, zlib.crc32(repr(columns).encode())).to_bytes(BYTES, "big")
