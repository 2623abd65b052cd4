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

from engine.checkpoint.gguf.header import MAGIC, read_gguf_header
from engine.errors import CheckpointError

Array: TypeAlias = "np.ndarray[Any, Any]"

LARGEST = 1 << 32
"""Bytes of a file beyond any real one."""
_ALIGNMENT = 32
_LONGEST = 1 << 16
_SUMS, _COUNTS = ".in_sum2", ".counts"
_UINT32, _STRING, _ARRAY = 4, 8, 9


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
                _refuse(file, f"has {size} bytes, more than any real one")
            in_gguf = stream.read(len(MAGIC)) == MAGIC
            stream.seek(0)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            data = b"" if in_gguf else stream.read(size)
        found = _read_gguf(file) if in_gguf else _read_dat(_Reader(file, data))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    if not found.entries:
        _refuse(file, "has no importance of any weight")
    for name, entry in found.entries.items():
        for numbers in (entry.sums, entry.counts):
            if not np.isfinite(numbers).all() or (numbers < 0).any():
                _refuse(file, f"has a value for {name!r} that is negative or not finite")
    return Imatrix(found.entries, found.datasets, found.chunks, found.chunk_size, digest)


def _refuse(file: Path, why: str) -> NoReturn:
    raise CheckpointError(
        f"{file} {why}: it is no importance matrix of llama.cpp, or a damaged one; make it again "
        "with llama-imatrix or qtui imatrix"
    )


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
        _refuse(self.file, why)

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


def _read_gguf(file: Path) -> Imatrix:
    header = read_gguf_header(file)
    if (kind := header.metadata.get("general.type")) != "imatrix":
        _refuse(file, f"is a GGUF file of type {kind!r}, not of 'imatrix'")
    found: dict[str, Array] = {}
    with file.open("rb") as stream:
        for tensor in header.tensors.values():
            if tensor.type.name != "f32":
                _refuse(file, f"stores {tensor.name!r} as {tensor.type.name}, not as float32")
            stream.seek(tensor.start)
            numbers = np.frombuffer(stream.read(tensor.bytes), "<f4").astype(np.float32)
            if numbers.size != tensor.rows * tensor.shape[-1]:
                _refuse(file, f"is truncated: {tensor.name!r} is not whole")
            found[tensor.name] = numbers.reshape(tensor.rows, tensor.shape[-1])
    datasets = header.metadata.get("imatrix.datasets")
    chunks, size = (header.metadata.get(f"imatrix.chunk_{key}") for key in ("count", "size"))
    return Imatrix(
        _paired(file, found),
        tuple(map(str, datasets)) if isinstance(datasets, list) else (),
        chunks if isinstance(chunks, int) else 0,
        size if isinstance(size, int) else 0,
    )


def _paired(file: Path, found: Mapping[str, Array]) -> dict[str, Entry]:
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
            _refuse(file, f"has only one of sums and counts of {name!r}")
        if sums.size % counts.size:
            _refuse(file, f"has {counts.size} counts for {sums.size} sums of {name!r}")
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
