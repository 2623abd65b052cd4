"""Importance matrices of llama.cpp: what ``llama-imatrix`` writes and ``llama-quantize`` reads.

Two forms. The present one is a GGUF file: ``NAME.in_sum2`` has the sums of squares of each input of
the weight ``NAME``, ``NAME.counts`` how many tokens they are over; of experts, a row each. The one
before (``.dat``) has means times a number of calls. The files are untrusted: every length is
checked against the size of the file before it is used.

Source: ``IMatrixCollector::save_imatrix`` in ``tools/imatrix/imatrix.cpp`` and
``common/imatrix-loader.cpp`` of llama.cpp, as of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np

from engine.errors import CheckpointError

Array: TypeAlias = "np.ndarray[Any, Any]"

MAGIC = b"GGUF"
LARGEST = 1 << 32
"""Bytes of a file beyond any real one."""
_ALIGNMENT = 32
_LONGEST = 1 << 16
_SUMS, _COUNTS = ".in_sum2", ".counts"
_UINT32, _STRING, _ARRAY = 4, 8, 9
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the types of metadata that are numbers."""


@dataclass(frozen=True, eq=False)
class Entry:
    """What a file has for one weight."""

    sums: Array
    """``Σ x²`` of every input, float32 ``[matrices, in]``: of experts one each, else one."""
    counts: Array
    """Tokens behind the sums, float32 ``[matrices]``; 0 for an expert that no token reached."""

    @property
    def importance(self) -> Array:
        """``E[x²]``, float32 ``[matrices, in]``; 1 where there is no token, as llama.cpp has it."""
        some = self.counts[:, None] > 0
        return np.where(some, self.sums / np.where(some, self.counts[:, None], 1), np.float32(1))


@dataclass(frozen=True, eq=False)
class Imatrix:
    """A file."""

    entries: Mapping[str, Entry]
    """By llama.cpp's names of weights: ``blk.0.attn_q.weight``."""
    datasets: tuple[str, ...] = ()
    """Texts that it was made with."""
    chunks: int = 0
    chunk_size: int = 0
    """Tokens of a chunk; 0 in a file of the older form, which does not say."""
    sha256: str = ""
    """Hash of the file."""

    @property
    def tokens(self) -> int:
        """Tokens that it was made with, as far as it says."""
        return self.chunks * self.chunk_size


def read_imatrix(file: Path) -> Imatrix:
    """Read a file of either form.

    Raises:
        CheckpointError: it cannot be read, is truncated or inconsistent, or has a value that is
            negative or not finite; the message names the file, and the weight.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > LARGEST:
                raise CheckpointError(
                    f"{file} has {size} bytes, more than an importance matrix ever has: give the "
                    "file that llama-imatrix wrote"
                )
            data = stream.read(size)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    reader = _Reader(file, data)
    found = _read_gguf(reader) if data.startswith(MAGIC) else _read_dat(reader)
    if not found.entries:
        reader.refuse("has no importance of any weight")
    for name, entry in found.entries.items():
        for numbers in (entry.sums, entry.counts):
            if not np.isfinite(numbers).all() or (numbers < 0).any():
                reader.refuse(f"has a value for {name!r} that is negative or not finite")
    digest = hashlib.sha256(data).hexdigest()
    return Imatrix(found.entries, found.datasets, found.chunks, found.chunk_size, digest)


def imatrix_bytes(matrix: Imatrix, *, older: bool = False) -> bytes:
    """A file's content.

    Args:
        matrix: what to write; its ``chunk_size`` is known.
        older: whether to write the form before GGUF.
    """
    return _dat(matrix) if older else _gguf(matrix)


# --- reading --------------------------------------------------------------------------------------


class _Reader:
    """Takes numbers and texts from the bytes of a file, each within them."""

    def __init__(self, file: Path, data: bytes) -> None:
        self.file, self._data, self._at = file, data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def refuse(self, why: str) -> NoReturn:
        raise CheckpointError(
            f"{self.file} {why}: it is no importance matrix of llama.cpp, or a damaged one; make "
            "it again with llama-imatrix or qtui imatrix"
        )

    def take(self, count: int, what: str) -> bytes:
        if not 0 <= count <= self.left:
            self.refuse(f"is truncated: {what} would take {count} bytes, {self.left} are left")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, code: str, what: str) -> int:
        found: int = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]
        return found

    def text(self, code: str, what: str) -> str:
        length = self.number(code, what)
        if length > _LONGEST:
            self.refuse(f"says that {what} has {length} bytes, beyond any real one")
        return self.take(length, what).decode("utf-8", "replace")

    def floats(self, count: int, what: str) -> Array:
        return np.frombuffer(self.take(4 * count, what), "<f4").astype(np.float32)

    def part(self, start: int, count: int, what: str) -> _Reader:
        """Another reader of ``count`` bytes from ``start``."""
        if not 0 <= start <= start + count <= len(self._data):
            self.refuse(f"is truncated: {what} would end at byte {start + count}")
        return _Reader(self.file, self._data[start : start + count])

    def aligned(self, alignment: int) -> int:
        """The position, rounded up."""
        return -(-self._at // alignment) * alignment


def _read_dat(reader: _Reader) -> Imatrix:
    entries: dict[str, Entry] = {}
    for _ in range(reader.number("i", "the number of weights")):
        name = reader.text("i", "the name of a weight")
        calls, values = reader.number("i", name), reader.number("i", name)
        if values < 1:
            reader.refuse(f"has {values} values for {name!r}")
        if name in entries:
            reader.refuse(f"has {name!r} twice")
        means = reader.floats(values, f"{name!r}") / np.float32(calls if calls > 0 else 1)
        entries[name] = Entry(means[None], np.ones(1, np.float32))
    chunks, datasets = 0, list[str]()
    if reader.left >= 8:
        chunks = max(0, reader.number("i", "the number of chunks"))
        if text := reader.text("i", "the name of the text"):
            datasets.append(text)
    return Imatrix(entries, tuple(datasets), chunks)


def _read_gguf(reader: _Reader) -> Imatrix:
    reader.take(4, "the first bytes")
    version = reader.number("I", "the version")
    if version not in (2, 3):
        reader.refuse(f"is a GGUF file of version {version}, and 2 and 3 are read")
    tensors, keys = reader.number("Q", "the number of tensors"), reader.number("Q", "that of keys")
    if tensors * 24 > reader.left or keys * 13 > reader.left:
        reader.refuse(f"says that it has {tensors} tensors and {keys} keys, beyond its size")
    about: dict[str, Any] = {}
    for _ in range(keys):
        key = reader.text("Q", "a key")
        about[key] = _value(reader, reader.number("I", key), key)
    if about.get("general.type") != "imatrix":
        reader.refuse(f"is a GGUF file of type {about.get('general.type')!r}, not of 'imatrix'")
    infos = [_info(reader) for _ in range(tensors)]
    alignment = about.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        reader.refuse(f"has the general.alignment {alignment!r}")
    start, found = reader.aligned(alignment), dict[str, Array]()
    if 4 * sum(rows * row for _, (row, rows), _ in infos) > reader.left:
        reader.refuse("has tensors of more bytes than itself")
    for name, dims, offset in infos:
        count = dims[0] * dims[1]
        part = reader.part(start + offset, 4 * count, repr(name))
        if name in found:
            reader.refuse(f"has {name!r} twice")
        found[name] = part.floats(count, repr(name)).reshape(dims[1], dims[0])
    datasets = about.get("imatrix.datasets")
    chunks, size = about.get("imatrix.chunk_count"), about.get("imatrix.chunk_size")
    return Imatrix(
        _paired(reader, found),
        tuple(datasets) if isinstance(datasets, list) else (),
        chunks if isinstance(chunks, int) else 0,
        size if isinstance(size, int) else 0,
    )


def _value(reader: _Reader, kind: int, key: str) -> Any:
    """A value of metadata: a text, a whole number, or a list of texts; None for others."""
    if kind == _STRING:
        return reader.text("Q", key)
    if kind == _ARRAY:
        inner, count = reader.number("I", key), reader.number("Q", key)
        if inner == _STRING:
            if count * 8 > reader.left:
                reader.refuse(f"says that {key!r} has {count} texts, beyond its size")
            return [reader.text("Q", key) for _ in range(count)]
        reader.take(count * _WIDTHS.get(inner, LARGEST), key)
        return None
    if kind == _UINT32:
        return reader.number("I", key)
    reader.take(_WIDTHS.get(kind, LARGEST), key)
    return None


def _info(reader: _Reader) -> tuple[str, tuple[int, int], int]:
    name = reader.text("Q", "the name of a tensor")
    count = reader.number("I", name)
    if not 1 <= count <= 4:
        reader.refuse(f"gives {name!r} {count} dimensions")
    dims = [reader.number("Q", name) for _ in range(count)]
    rows = 1
    for size in dims[1:]:
        rows *= size
    kind, offset = reader.number("I", name), reader.number("Q", name)
    if kind != 0:
        reader.refuse(f"stores {name!r} in another type than float32")
    if not 0 < dims[0] * rows <= LARGEST:
        reader.refuse(f"gives {name!r} the dimensions {dims}")
    return name, (dims[0], rows), offset


def _paired(reader: _Reader, found: Mapping[str, Array]) -> dict[str, Entry]:
    names = {
        tensor.removesuffix(end)
        for tensor in found
        for end in (_SUMS, _COUNTS)
        if tensor.endswith(end)
    }
    entries = {}
    for name in sorted(names):
        sums, counts = found.get(name + _SUMS), found.get(name + _COUNTS)
        if sums is None or counts is None:
            reader.refuse(f"has only one of sums and counts of {name!r}")
        if sums.size % counts.size:
            reader.refuse(f"has {counts.size} counts for {sums.size} sums of {name!r}")
        entries[name] = Entry(sums.reshape(counts.size, -1), np.rint(counts.reshape(-1)))
    return entries


# --- writing --------------------------------------------------------------------------------------


def _text(value: str, code: str = "Q") -> bytes:
    data = value.encode()
    return struct.pack(f"<{code}", len(data)) + data


def _gguf(matrix: Imatrix) -> bytes:
    datasets = b"".join(map(_text, matrix.datasets))
    about = [
        _text("general.type") + struct.pack("<I", _STRING) + _text("imatrix"),
        _text("imatrix.datasets")
        + struct.pack("<IIQ", _ARRAY, _STRING, len(matrix.datasets))
        + datasets,
        _text("imatrix.chunk_count") + struct.pack("<II", _UINT32, matrix.chunks),
        _text("imatrix.chunk_size") + struct.pack("<II", _UINT32, matrix.chunk_size),
    ]
    infos, parts, offset = [], [], 0
    for name, entry in sorted(matrix.entries.items()):
        for end, numbers in ((_SUMS, entry.sums), (_COUNTS, entry.counts[:, None])):
            rows, row = numbers.shape
            infos.append(_text(name + end) + struct.pack("<IQQIQ", 2, row, rows, 0, offset))
            parts.append(_padded(numbers.astype("<f4").tobytes()))
            offset += len(parts[-1])
    head = MAGIC + struct.pack("<IQQ", 3, len(infos), len(about))
    return _padded(head + b"".join(about) + b"".join(infos)) + b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)


def _dat(matrix: Imatrix) -> bytes:
    parts = []
    size = max(1, matrix.chunk_size)
    for name, entry in sorted(matrix.entries.items()):
        calls = -(-int(entry.counts.max()) // size)
        if calls == 0:
            continue  # no data, as llama-imatrix leaves it out
        values = (entry.importance * np.float32(calls)).astype("<f4")
        parts.append(_text(name, "i") + struct.pack("<ii", calls, values.size) + values.tobytes())
    dataset = matrix.datasets[-1] if matrix.datasets else ""
    end = struct.pack("<i", matrix.chunks) + _text(dataset, "i")
    return struct.pack("<i", len(parts)) + b"".join(parts) + end
