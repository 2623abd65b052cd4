"""Parses and validates the header of a safetensors file, without reading weights or torch.

The format: eight bytes of little-endian length, that many bytes of JSON, then the tensors' bytes
end to end. The header is untrusted: every entry is checked against the size of the file and against
the other entries.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NoReturn

from engine.checkpoint.json_files import parse_object
from engine.checkpoint.links import refuse_pointer
from engine.errors import CheckpointError

LONGEST_HEADER = 100_000_000
"""Bytes; the same limit as safetensors' own reader."""
MOST_TENSORS = 500_000
"""In one file; the models of most experts have 150,000 in all their files."""
LONGEST_NAME = 1000
"""Characters of the name of a tensor."""
ZIP = b"PK\x03\x04"
"""How a file begins that `torch.save` wrote."""

DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "C64": ("complex64", 8),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""Dtype name in the header → torch's name, bytes per element."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its file describes it: ``start`` and ``end`` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size as stored."""
        return self.end - self.start


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by name, in the order of their bytes.

    Raises:
        CheckpointError: the file cannot be opened, is shorter than its header says, or its header
            is inconsistent; the message names the file and the tensor.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            head = stream.read(8)
            if len(head) < 8:
                _refuse(file, f"is {len(head)} bytes long, too short for a safetensors header")
            refuse_pointer(file, head)
            if head.startswith(ZIP):
                _refuse(file, "is an archive of torch.save, not a safetensors file")
            length = int.from_bytes(head, "little")
            if length < 2:
                _refuse(file, f"says that its header is {length} bytes long, which is impossible")
            if length > LONGEST_HEADER:
                _refuse(file, f"says that its header is {length} bytes long, beyond any real one")
            if 8 + length > size:
                _refuse(file, f"is truncated: {size} bytes, while its header alone takes {length}")
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    return _parse(file, text, size - 8 - length, 8 + length)


def read_metadata(file: Path) -> dict[str, str]:
    """The ``__metadata__`` of a safetensors file whose header was read without complaint."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(min(length, LONGEST_HEADER))
    found = parse_object(f"{file} has a header that is", text, unique=True)
    metadata: dict[str, str] = found.get("__metadata__", {})
    return metadata


def _refuse(file: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{file} {what}; download or save it again")


def _parse(file: Path, text: bytes, room: int, offset: int) -> dict[str, TensorInfo]:
    """Tensors of a header ``text`` whose ``room`` bytes of weights begin at ``offset``."""
    if not text.startswith(b"{"):  # a file of two formats hides one of them here
        _refuse(file, "has a header that does not begin with {: it is not an object of JSON")
    if (count := text.count(b'"data_offsets"')) > MOST_TENSORS:
        _refuse(file, f"has a header of {count} tensors, more than any real one")
    header = parse_object(f"{file} has a header that is", text, unique=True)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse(file, "has a __metadata__ that is not a table of strings")
    found = [_tensor(file, name, entry, offset) for name, entry in header.items()]
    found.sort(key=lambda tensor: (tensor.start, tensor.end))
    _check_cover(file, found, offset, room)
    return {tensor.name: tensor for tensor in found}


def _tensor(file: Path, name: str, entry: object, offset: int) -> TensorInfo:
    """One entry of the header, checked on its own."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        _refuse(file, f"names a tensor {name!r}, which is not text")
    if len(name) > LONGEST_NAME:
        _refuse(file, f"names a tensor with {len(name)} characters, {name[:40]!r} and so on")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(file, f"describes {name!r} by other keys than dtype, shape and data_offsets")
    word, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(word, str) or word not in DTYPES:
        raise CheckpointError(
            f"{file} stores {name!r} as dtype {word!r}, which is not one of "
            f"{', '.join(DTYPES)}; save it in one of these"
        )
    if not _are_counts(shape):
        _refuse(file, f"gives {name!r} the shape {shape!r}, not a list of counts")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(file, f"gives {name!r} the offsets {offsets!r}, not a start and an end after it")
    dtype, width = DTYPES[word]
    start, end = offsets
    needed = prod(shape) * width
    if end - start != needed:
        _refuse(
            file,
            f"gives {name!r} {end - start} bytes, while shape {shape} in {dtype} takes {needed}",
        )
    return TensorInfo(name, dtype, tuple(shape), file, offset + start, offset + end)


def _are_counts(value: object) -> bool:
    """A list of integers in [0, 2**63); ``True`` is not a number."""
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _check_cover(file: Path, tensors: list[TensorInfo], offset: int, room: int) -> None:
    """The tensors, sorted by start, must cover the file from ``offset`` to its end, end to end."""
    reached, before = offset, "the header"
    for tensor in tensors:
        if tensor.end > offset + room:
            _refuse(
                file,
                f"is truncated: {tensor.name!r} ends at byte {tensor.end} of {offset + room}",
            )
        if tensor.start < reached:
            _refuse(file, f"lets the bytes of {tensor.name!r} overlap those of {before!r}")
        if tensor.start > reached:
            gap = tensor.start - reached
            _refuse(file, f"leaves a hole of {gap} bytes between {before!r} and {tensor.name!r}")
        reached, before = tensor.end, tensor.name
    if reached != offset + room:
        _refuse(file, f"goes on for {offset + room - reached} bytes after its last tensor")
