"""The version of stored rows, and how rows of earlier versions are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from engine.store.database import StoreError
from engine.store.seals import DamagedRowError, unsealed

T = TypeVar("T")

VERSION = 3
"""Of journal rows, snapshots and facts; raised when a Struct changes so that old rows cannot be
read.

2: `JobStarted` carries its command; a session finds effects by `EffectKey`.
3: rows end with a checksum (`engine.store.seals`).
"""


def _commands_in_jobs(data: bytes) -> bytes:
    """1 → 2: `JobStarted` carries its command. Version 1 had title, formats and ask instead."""
    if b"JobStarted" not in data[:32]:  # the tag comes first; most rows are facts
        return data
    event: dict[str, Any] = msgspec.msgpack.decode(data)
    if event.get("type") != "JobStarted":
        return data
    formats, ask = event.pop("formats", ()), event.pop("ask", "")
    event["command"] = {"ask": ask, **_command_of(event["kind"], event["title"], formats)}
    return msgspec.msgpack.encode(event)


def _command_of(kind: str, title: str, formats: list[str]) -> dict[str, Any]:
    words = title.split()
    match kind:
        case "open":
            return {"type": "Open", "source": title.removeprefix("open "), "settings": {}}
        case "triage":
            return {"type": "Triage", "formats": formats}
        case "sweep":
            by = words[words.index("by") + 1] if "by" in words else "layer"
            exact = [word for word in words if word == "none" or word.startswith("top:")]
            return {
                "type": "Sweep", "formats": formats, "by": by,
                "direction": "restore" if "restore" in words else "degrade",
                "exact": exact[0] if exact else "all",
            }  # fmt: skip
        case "export":
            return {"type": "Export", "out": ""}  # version 1 did not record the path
        case _:
            return {"type": "MeasureRecipe"}


UPCASTERS: dict[int, Callable[[bytes], bytes]] = {1: _commands_in_jobs, 2: lambda data: data}
"""Version → how a row of it becomes one of the next version."""


def upcast(data: bytes, version: int, where: object) -> bytes:
    """Convert a row to the current version.

    Args:
        data: an encoded event or fact, without its checksum.
        version: the version that wrote it.
        where: the file, for the error message.

    Raises:
        StoreError: it was written by a newer version.
        msgspec.DecodeError: it is damaged.
    """
    if version > VERSION:
        raise StoreError(f"{where} was written by a newer qtui (version {version}): update qtui")
    for step in range(version, VERSION):
        data = UPCASTERS[step](data)
    return data


def decoded(row: Sequence[Any], path: Path, decode: Callable[[bytes], T]) -> T:
    """What a stored row holds; its last two columns are version and bytes.

    Raises:
        DamagedRowError: it is not what was written.
        StoreError: a newer version wrote it.
    """
    *columns, version, data = row
    try:
        return decode(upcast(unsealed(data, version, *columns, version), version, path))
    except (msgspec.DecodeError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise DamagedRowError(str(error)) from error
