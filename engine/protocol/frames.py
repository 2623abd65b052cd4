"""Frames on the wire, and how they are encoded."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias, Union

import msgspec

from engine.protocol.commands import Command, command_hook, command_types, read_command
from engine.protocol.events import AnyEvent
from engine.protocol.facts import AnyFact
from engine.protocol.message import Message

WIRE_VERSION = 8
"""Raised when a change would make an older client or engine misread a newer one."""

MAX_FRAME = 1 << 20
"""Longest frame on the wire, in bytes."""


class Hello(Message, frozen=True, forbid_unknown_fields=False):
    """First frame in both directions: what the client has seen, which engine this is.

    Other versions must be able to read it, to say which version they are. A field that is added is
    left out where it is not needed.
    """

    wire: int = WIRE_VERSION
    session: str = ""
    seen: int = 0
    pid: int = 0
    of_run: bool | msgspec.UnsetType = msgspec.UNSET
    """Whether the engine belongs to a command without an interface, and ends with it."""
    command: str | msgspec.UnsetType = msgspec.UNSET
    """The command without an interface that the client is, such as ``qtui eval``; a terminal has
    none."""


class Sent(Message, frozen=True):
    """An event on the wire. ``seq`` counts journalled events from 1; it is 0 for transient ones."""

    seq: int
    event: AnyEvent


class Snapshot(Message, frozen=True):
    """The encoded `Session` after event ``seq``: the first thing a client receives."""

    seq: int
    data: bytes


class Fragment(Message, frozen=True):
    """Part of a message longer than `MAX_FRAME`; the parts follow each other."""

    data: bytes
    last: bool


AnyFrame: TypeAlias = Hello | Sent | Snapshot | Fragment | Command

encode = msgspec.msgpack.Encoder().encode
decode_event = msgspec.msgpack.Decoder(AnyEvent, dec_hook=command_hook).decode
decode_fact = msgspec.msgpack.Decoder(AnyFact).decode


def decode_frame(data: bytes) -> AnyFrame:
    """Decode a message; a command that is not registered here decodes as `Unknown`.

    Raises:
        msgspec.MsgspecError: it is not a message.
    """
    try:
        return _frames(len(command_types())).decode(data)
    except msgspec.ValidationError:
        found = msgspec.msgpack.decode(data)
        kind = found.get("type") if isinstance(found, dict) else None
        if isinstance(kind, str) and kind not in _KNOWN | command_types().keys():
            return read_command(found)
        raise


_KNOWN = {"Hello", "Sent", "Snapshot", "Fragment"}


@lru_cache(maxsize=1)
def _frames(commands: int) -> msgspec.msgpack.Decoder[AnyFrame]:
    """The decoder for this number of command types: rebuilt when another is registered."""
    kinds = (Hello, Sent, Snapshot, Fragment, *command_types().values())
    return msgspec.msgpack.Decoder(Union[kinds], dec_hook=command_hook)  # noqa: UP007
