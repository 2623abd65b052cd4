"""The version that events and facts are written in, and how those of earlier ones are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec

from engine.store.database import StoreError

VERSION = 2
"""Raised when a Struct of an event, a fact or the session changes so that it reads differently.

1: effects of a session by strings. 2: by `EffectKey`.
"""

Upcaster: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""From the fields of one version, its ``type`` among them, to those of the next."""

Upcasters: TypeAlias = Mapping[int, Mapping[str, Upcaster]]
"""By version, by type; what is not named reads in the next version as it is."""

EVENTS: Upcasters = {}
FACTS: Upcasters = {}


def upcast(data: bytes, version: int, upcasters: Upcasters, where: object) -> bytes:
    """An encoded event or fact as this version writes it.

    Raises:
        StoreError: it was written by a newer version.
        msgspec.DecodeError: it is not MessagePack.
    """
    if version > VERSION:
        raise StoreError(f"{where} was written by a newer qtui (version {version}): update qtui")
    steps = [upcasters[step] for step in range(version, VERSION) if step in upcasters]
    if not steps:
        return data
    fields = msgspec.msgpack.decode(data, type=dict[str, Any])
    for step in steps:
        if (change := step.get(fields["type"])) is not None:
            fields = change(fields)
    return msgspec.msgpack.encode(fields)
