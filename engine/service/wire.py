"""Messages on the socket: each with a length prefix, long ones as fragments."""

from __future__ import annotations

import asyncio
import struct

import msgspec

from engine import protocol as p

LENGTH = struct.Struct(">I")
PIECE_OVERHEAD = 64


MOST_SENT = 64 << 20
"""Bytes of the longest message that a client may send; a change of a million layers has fewer."""


async def read_frame(reader: asyncio.StreamReader, most: int | None = None) -> p.AnyFrame | None:
    """The next message, joined from its fragments; None at the end of the stream.

    Args:
        most: bytes that its fragments may have together; None trusts the other end.

    Raises:
        ConnectionError: the bytes are not a message of ours.
    """
    pieces: list[bytes] = []
    total = 0
    try:
        while True:
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            if length > p.MAX_FRAME:
                raise ConnectionError(f"a frame of {length} bytes: not this protocol")
            message: p.AnyFrame = p.decode_frame(await reader.readexactly(length))
            if not isinstance(message, p.Fragment):
                return message
            pieces.append(message.data)
            total += len(message.data)
            if not message.data or (most is not None and total > most):
                raise ConnectionError(f"fragments of {total} bytes: not this protocol")
            if message.last:
                whole: p.AnyFrame = p.decode_frame(b"".join(pieces))
                return whole
    except asyncio.IncompleteReadError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConnectionError(f"a frame that cannot be decoded: {error}") from error


def frame(message: p.AnyFrame) -> bytes:
    """A message with its length prefix, as fragments if it is longer than a frame may be."""
    data = p.encode(message)
    if len(data) <= p.MAX_FRAME:
        return LENGTH.pack(len(data)) + data
    size = p.MAX_FRAME - PIECE_OVERHEAD
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(
        frame(p.Fragment(piece, last=at + 1 == len(pieces))) for at, piece in enumerate(pieces)
    )
