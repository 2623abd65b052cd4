"""Bytes of the header of a GGUF file, read a few at a time, of which no length is believed."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, NoReturn

from engine.errors import CheckpointError

_AHEAD = 1 << 20
LONGEST_HEADER = 1 << 28
"""Bytes; vocabularies and merges of real files take a tenth of it at most."""
LONGEST_NAME = 65_535
"""Bytes of a key or the name of a tensor."""
MOST_STRINGS = 1 << 22
"""In one array: tokens or merges."""


class HeaderStream:
    """Reads numbers and strings one after the other; every length is checked against the file."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(stream.fileno()).st_size
        self._stream, self._buffer, self._at, self._read = stream, b"", 0, 0

    @property
    def position(self) -> int:
        """Offset in the file of what is read next."""
        return self._read - len(self._buffer) + self._at

    @property
    def left(self) -> int:
        """Bytes of the file from here on."""
        return self.size - self.position

    def refuse(self, what: str) -> NoReturn:
        """Raise an error about the file.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(f"{self.file} {what}; download or convert it again")

    def take(self, count: int, what: str) -> bytes:
        """The next bytes.

        Raises:
            CheckpointError: the file ends before, or its header is longer than any real one.
        """
        if count > self.left:
            self.refuse(
                f"is truncated, or lies: {what} takes {count} bytes of the {self.left} there are"
            )
        if self.position + count > LONGEST_HEADER:
            self.refuse(f"has a header beyond {LONGEST_HEADER >> 20} MiB, as no real one has")
        if self._at + count > len(self._buffer):
            rest = self._buffer[self._at :]
            more = self._stream.read(max(_AHEAD, count - len(rest)))
            self._read += len(more)
            self._buffer, self._at = rest + more, 0
            if len(self._buffer) < count:
                self.refuse(f"ends within {what}; it was cut while it was read")
        found = self._buffer[self._at : self._at + count]
        self._at += count
        return found

    def number(self, code: str, what: str) -> int | float | bool:
        """The next number, in the code of `struct`."""
        found: int | float | bool = struct.unpack(
            "<" + code, self.take(struct.calcsize(code), what)
        )[0]
        return found

    def whole(self, code: str, what: str) -> int:
        """The next number, which is a count, a length or an offset."""
        return int(self.number(code, what))

    def text(self, what: str, longest: int = LONGEST_HEADER) -> str:
        """The next string: its length in 8 bytes, then UTF-8."""
        length = self.whole("Q", f"the length of {what}")
        if length > longest:
            self.refuse(f"says that {what} is {length} bytes long, beyond any real one")
        raw = self.take(length, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.refuse(f"holds {what} that is not UTF-8")

    def texts(self, count: int, what: str) -> list[str]:
        """The next ``count`` strings."""
        if count > MOST_STRINGS or count * 8 > self.left:
            self.refuse(f"says that {what} has {count} strings, beyond any real one")
        return [self.text(what) for _ in range(count)]
