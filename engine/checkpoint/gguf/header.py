"""Parses and validates the header of a GGUF file, version 2 or 3, without reading weights or torch.

The format: ``GGUF``, a version, the numbers of tensors and of entries of metadata; the entries;
name, dimensions (those along a row first), type and offset of every tensor; then, aligned, their
bytes. The header is untrusted: every length, count and offset is checked against the file before it
is used, so that neither memory nor time depends on what a file claims.

Source: ``docs/gguf.md`` of ggml, and ``gguf_reader.py`` of the ``gguf`` package.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeAlias

from engine.checkpoint.gguf.stream import LONGEST_NAME, HeaderStream
from engine.checkpoint.links import refuse_pointer
from engine.errors import CheckpointError
from engine.ggml_types import GGML_TYPES, GgmlType

Value: TypeAlias = "int | float | bool | str | list[int] | list[float] | list[bool] | list[str]"

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_ALIGNMENT = 32
_MOST_KEYS = 1 << 16
_MOST_TENSORS = 1 << 17
_MOST_NUMBERS = 1 << 24
_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_CODES = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"
}  # fmt: skip
"""`struct`'s codes of the types of metadata that are numbers."""
_BYTES = {"B": 1, "b": 1, "?": 1, "H": 2, "h": 2, "I": 4, "i": 4, "f": 4, "Q": 8, "q": 8, "d": 8}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor as its file describes it."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    """As torch has it: inputs last."""
    file: Path
    start: int
    """Offset of its bytes in the file."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.shape[-1] // self.type.block * self.type.bytes

    @property
    def rows(self) -> int:
        """Rows, of all its dimensions but the last."""
        return prod(self.shape[:-1])

    @property
    def bytes(self) -> int:
        """Size as stored."""
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class GgufHeader:
    """What one file says."""

    file: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]
    """By llama.cpp's names, in the order of the file."""
    end: int
    """Bytes of the header itself."""


def read_gguf_header(file: Path) -> GgufHeader:
    """The header of one GGUF file.

    Raises:
        CheckpointError: the file cannot be opened, is shorter than its header says, of another
            version or byte order, or its header is inconsistent; names the file, and the key or
            tensor.
    """
    try:
        with file.open("rb", buffering=0) as stream:
            return _read(HeaderStream(file, stream))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error


def _read(stream: HeaderStream) -> GgufHeader:
    version = _version(stream)
    tensors, keys = stream.whole("Q", "the number of tensors"), stream.whole("Q", "that of keys")
    for count, most, size, what in (
        (keys, _MOST_KEYS, 13, "keys"),
        (tensors, _MOST_TENSORS, 24, "tensors"),
    ):
        if count > most:
            stream.refuse(f"says that it has {count} {what}, beyond any real one")
        if count * size > stream.left:
            stream.refuse(f"is truncated: {stream.size} bytes cannot hold {count} {what}")
    metadata: dict[str, Value] = {}
    for _ in range(keys):
        key = stream.text("a key", LONGEST_NAME)
        if not key or "\0" in key:
            stream.refuse(f"has the key {key!r}, which is none")
        if key in metadata:
            stream.refuse(f"has the key {key!r} twice")
        metadata[key] = _value(stream, key, stream.whole("I", f"the type of {key!r}"))
    alignment = _alignment(stream, metadata)
    infos = [_info(stream) for _ in range(tensors)]
    end = stream.position
    start = -(-end // alignment) * alignment
    found: dict[str, GgufTensor] = {}
    for name, kind, shape, offset in infos:
        if name in found:
            stream.refuse(f"stores the tensor {name!r} twice")
        if offset % alignment:
            stream.refuse(f"puts {name!r} at offset {offset}, no multiple of {alignment}")
        found[name] = GgufTensor(name, kind, shape, stream.file, start + offset)
    _check_cover(stream, found)
    return GgufHeader(stream.file, version, metadata, found, end)


def _version(stream: HeaderStream) -> int:
    if stream.size < 24:
        stream.refuse(f"is {stream.size} bytes long, too short for the header of a GGUF file")
    head = stream.take(8, "its first bytes")
    refuse_pointer(stream.file, head)
    magic, version = head[:4], int.from_bytes(head[4:], "little")
    if magic == MAGIC[::-1] or (magic == MAGIC and version & 0xFFFF == 0 and version):
        raise CheckpointError(
            f"{stream.file} is a GGUF file for big-endian machines: convert it with "
            "gguf-convert-endian of the gguf package, or download the usual one"
        )
    if magic != MAGIC:
        stream.refuse(f"begins with {magic!r}, not with GGUF")
    if version not in VERSIONS:
        raise CheckpointError(
            f"{stream.file} is a GGUF file of version {version}; qtui reads versions 2 and 3: "
            "convert the model again, or look for a newer qtui"
        )
    return version


def _value(stream: HeaderStream, key: str, kind: int) -> Value:
    """One value of metadata. Arrays of arrays are refused: nothing in use has any."""
    what = f"the value of {key!r}"
    if kind == _STRING:
        return stream.text(what)
    if kind in _CODES:
        return stream.number(_CODES[kind], what)
    if kind != _ARRAY:
        stream.refuse(f"gives {key!r} the type {kind}, which there is none of")
    inner, count = stream.whole("I", what), stream.whole("Q", what)
    if inner == _STRING:
        return stream.texts(count, what)
    if inner not in _CODES:
        stream.refuse(f"gives {key!r} an array of type {inner}, which is none of numbers or texts")
    return _numbers(stream, count, _CODES[inner], what)


def _numbers(
    stream: HeaderStream, count: int, code: str, what: str
) -> list[int] | list[float] | list[bool]:
    width = _BYTES[code]
    if count > _MOST_NUMBERS or count * width > stream.left:
        stream.refuse(f"says that {what} has {count} numbers, beyond any real one")
    return list(struct.unpack(f"<{count}{code}", stream.take(count * width, what)))


def _alignment(stream: HeaderStream, metadata: Mapping[str, Value]) -> int:
    found = metadata.get("general.alignment", _ALIGNMENT)
    if type(found) is not int or not 8 <= found <= 1 << 20 or found & (found - 1):
        stream.refuse(f"has the general.alignment {found!r}, not a power of two from 8 to 2^20")
    return found


def _info(stream: HeaderStream) -> tuple[str, GgmlType, tuple[int, ...], int]:
    """Name, type, shape and offset of one tensor, each checked on its own."""
    name = stream.text("the name of a tensor", LONGEST_NAME)
    if not name or "\0" in name:
        stream.refuse(f"has a tensor called {name!r}")
    count = stream.whole("I", f"the dimensions of {name!r}")
    if not 1 <= count <= _DIMENSIONS:
        stream.refuse(f"gives {name!r} {count} dimensions, not 1 to {_DIMENSIONS}")
    dims = [stream.whole("Q", f"the dimensions of {name!r}") for _ in range(count)]
    number = stream.whole("I", f"the type of {name!r}")
    offset = stream.whole("Q", f"the offset of {name!r}")
    kind = GGML_TYPES.get(number)
    if kind is None:
        stream.refuse(f"stores {name!r} in type {number}, which ggml has not or has given up")
    if 0 in dims or prod(dims) >= 2**63:
        stream.refuse(f"gives {name!r} the dimensions {dims}, which no tensor has")
    if dims[0] % kind.block:
        stream.refuse(
            f"stores {name!r} in {kind.name}, whose blocks of {kind.block} do not divide "
            f"rows of {dims[0]}"
        )
    return name, kind, tuple(reversed(dims)), offset


def _check_cover(stream: HeaderStream, tensors: Mapping[str, GgufTensor]) -> None:
    """The tensors must lie within the file and not overlap."""
    reached, before = 0, "the header"
    for tensor in sorted(tensors.values(), key=lambda each: each.start):
        end = tensor.start + tensor.bytes
        if end > stream.size:
            stream.refuse(f"is truncated: {tensor.name!r} ends at byte {end} of {stream.size}")
        if tensor.start < reached:
            stream.refuse(f"lets the bytes of {tensor.name!r} overlap those of {before!r}")
        reached, before = end, tensor.name
