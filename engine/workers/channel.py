"""Messages between an engine and a worker over a socket, as on the wire, without an event loop."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import msgspec

from engine import protocol as p
from engine.service.wire import LENGTH, frame

READ = 1 << 16


class Channel:
    """One end of a connected socket. Any thread may send; one receives."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._bytes = bytearray()
        self._pieces: list[bytes] = []
        self._sending = threading.Lock()

    def send(self, *messages: p.AnyFrame, timeout: float | None = None) -> None:
        """Send messages.

        Raises:
            OSError: the other end is gone, or has not read them in ``timeout`` seconds.
        """
        with self._sending:
            self._socket.settimeout(timeout)
            self._socket.sendall(b"".join(map(frame, messages)))

    def receive(self, timeout: float | None = None) -> p.AnyFrame:
        """The next message.

        Raises:
            TimeoutError: none came in ``timeout`` seconds.
            EOFError: the other end is gone.
            ConnectionError: the bytes are not a message of ours.
        """
        while True:
            found = self._whole()
            if found is not None:
                return found
            if timeout != self._socket.gettimeout():
                self._socket.settimeout(timeout)
            data = self._socket.recv(READ)
            if not data:
                raise EOFError
            self._bytes += data

    def close(self) -> None:
        """Close the socket; who waits at either end learns of it."""
        with suppress(OSError):  # the other end is gone
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _whole(self) -> p.AnyFrame | None:
        """The next whole message of the bytes that came; fragments are joined."""
        while len(self._bytes) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._bytes)
            end = LENGTH.size + length
            if length > p.MAX_FRAME:
                raise ConnectionError(f"a frame of {length} bytes: not this protocol")
            if len(self._bytes) < end:
                return None
            data = bytes(self._bytes[LENGTH.size : end])
            del self._bytes[:end]
            message = _decoded(data)
            if not isinstance(message, p.Fragment):
                return message
            self._pieces.append(message.data)
            if message.last:
                pieces, self._pieces = self._pieces, []
                return _decoded(b"".join(pieces))
        return None


def _decoded(data: bytes) -> p.AnyFrame:
    try:
        found: p.AnyFrame = p.decode_frame(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConnectionError(f"a frame that cannot be decoded: {error}") from error
    return found
