"""GGUF files written byte by byte, so that every field can lie."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

F32, STRING, ARRAY, U32 = 0, 8, 9, 4


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def string(key: str | bytes, value: str | bytes) -> bytes:
    return entry(key, STRING, text(value))


def whole(key: str, value: int) -> bytes:
    return entry(key, U32, struct.pack("<I", value))


def array(key: str, kind: int, count: int, raw: bytes) -> bytes:
    return entry(key, ARRAY, struct.pack("<IQ", kind, count) + raw)


def tensor(
    name: str | bytes = "a.weight",
    dims: Sequence[int] = (32, 2),
    kind: int = F32,
    offset: int = 0,
    count: int | None = None,
) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(dims) if count is None else count)
        + b"".join(struct.pack("<Q", each) for each in dims)
        + struct.pack("<IQ", kind, offset)
    )


@dataclass
class File:
    """All fields of a file; those that are None follow from the others."""

    keys: list[bytes] = field(default_factory=lambda: [string("general.architecture", "llama")])
    tensors: list[bytes] = field(default_factory=lambda: [tensor()])
    magic: bytes = b"GGUF"
    version: bytes = struct.pack("<I", 3)
    key_count: int | None = None
    tensor_count: int | None = None
    weights: int = 256
    alignment: int = 32

    def write(self, path: Path) -> Path:
        keys = len(self.keys) if self.key_count is None else self.key_count
        tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        head = self.magic + self.version + struct.pack("<QQ", tensors, keys)
        head += b"".join(self.keys) + b"".join(self.tensors)
        path.write_bytes(head + b"\0" * (-len(head) % self.alignment) + b"\0" * self.weights)
        return path
