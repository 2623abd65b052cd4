"""What travels on the wire: frames, and how they are encoded."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from engine.protocol.commands import AnyCommand
from engine.protocol.events import AnyEvent
from engine.protocol.facts import AnyFact
from engine.protocol.message import Message

WIRE_VERSION = 4
"""Raised when a change makes an older client or engine misread a newer one."""

MAX_FRAME = 1 << 20
"""Longest frame on the wire, in bytes."""


class Hello(Message, frozen=True):
    """First frame in both directions: a client says what it has seen, an engine who it is."""

    wire: int = WIRE_VERSION
    session: str = ""
    seen: int = 0
    pid: int = 0


class Sent(Message, frozen=True):
    """An event on the wire. ``seq`` counts journalled events from 1; it is 0 for transient ones."""

    seq: int
    event: AnyEvent


class Snapshot(Message, frozen=True):
    """The encoded `Session` as it stood after event ``seq``: the first thing a client gets."""

    seq: int
    data: bytes


class Fragment(Message, frozen=True):
    """A piece of a message that is longer than `MAX_FRAME`; pieces follow each other."""

    data: bytes
    last: bool


AnyFrame: TypeAlias = Hello | Sent | Snapshot | Fragment | AnyCommand

encode = msgspec.msgpack.Encoder().encode
decode_frame = msgspec.msgpack.Decoder(AnyFrame).decode
decode_event = msgspec.msgpack.Decoder(AnyEvent).decode
decode_fact = msgspec.msgpack.Decoder(AnyFact).decode
