"""Old ``.bin`` checkpoints: pickles, opened only with torch's restricted unpickler.

Of an archive of ``torch.save`` only the pickle is loaded, which says where each tensor lies; their
bytes are read like those of any other file, not through a memory map: a file that shrinks meanwhile
is an error then, not a bus error.
"""

from __future__ import annotations

import functools
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.checkpoint.files import LARGEST_TEXT
from engine.checkpoint.headers import ZIP, TensorInfo
from engine.checkpoint.links import refuse_pointer
from engine.checkpoint.torch_internals import file_offset
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_LOCAL_HEADER = 30
"""Bytes of the header before each file of an archive, without its name and its extra field."""


def listing(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a ``.bin`` file, with their place in it.

    Tensors that do not lie there end to end, and those of files from before torch 1.6, begin at
    byte 0: `load` reads them.

    Raises:
        CheckpointError: the file holds anything but tensors in plain containers, or is damaged.
    """
    records = _records(file) if _is_archive(file) else None
    if records is None:
        return {name: _info(file, name, tensor, 0) for name, tensor in load(file).items()}
    found = {}
    for name, tensor in _load(file, "meta").items():
        storage = tensor.untyped_storage()
        start = file_offset(storage)
        if records.get(start, -1) < storage.nbytes():
            raise CheckpointError(
                f"{file} has {storage.nbytes()} bytes for {name!r}, beyond what it stores there; "
                "download it again"
            )
        placed = start + int(tensor.storage_offset()) * tensor.element_size()
        found[name] = _info(file, name, tensor, placed if tensor.is_contiguous() else 0)
    return found


def _info(file: Path, name: str, tensor: Tensor, start: int) -> TensorInfo:
    dtype = str(tensor.dtype).removeprefix("torch.")
    end = start + tensor.numel() * tensor.element_size()
    return TensorInfo(name, dtype, tuple(tensor.shape), file, start, end)


def load(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.bin`` file by name, all of them in memory.

    Raises:
        CheckpointError: the file holds anything but tensors in plain containers, or is damaged.
    """
    status = file.stat()
    return _kept(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _kept(file: Path, size: int, changed: int) -> dict[str, Tensor]:
    return _load(file, "cpu")


def _load(file: Path, device: str) -> dict[str, Tensor]:
    import torch

    try:
        found = torch.load(file, map_location=device, weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} is a pickle that is damaged or would run code when opened; it was not "
            "opened: convert the checkpoint to safetensors on a machine you trust it on"
        ) from error
    except _DAMAGED as error:
        raise CheckpointError(
            f"{file} is not a readable torch file ({type(error).__name__}: {_short(error)}); "
            "download it again or convert it to safetensors"
        ) from error
    return _tensors(file, found)


_DAMAGED = (
    *(OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, MemoryError, AssertionError),
)
"""What the unpickler and its classes raise for files that are not what they seem."""


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _tensors(file: Path, found: Any) -> dict[str, Tensor]:
    import torch

    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds a {type(found).__name__}, not a table of tensors")
    return {
        name: tensor
        for name, tensor in found.items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor) and not tensor.is_sparse
    }


def _is_archive(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    refuse_pointer(file, head)
    return head.startswith(ZIP)


def _records(file: Path) -> Mapping[int, int]:
    """The files of an archive as ``torch.save`` writes it: where each begins → its bytes.

    Raises:
        CheckpointError: it is damaged, compressed, or its pickle is missing or far too large.
    """
    found: dict[int, int] = {}
    pickled = None
    try:
        with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise zipfile.BadZipFile(f"{entry.filename} is compressed")
                stream.seek(entry.header_offset + _LOCAL_HEADER - 4)
                name, extra = (int.from_bytes(stream.read(2), "little") for _ in range(2))
                begins = entry.header_offset + _LOCAL_HEADER + name + extra
                found[begins] = entry.file_size
                if entry.filename.endswith("/data.pkl"):
                    pickled = entry
                if entry.filename.endswith("/byteorder") and entry.file_size < 64:
                    stream.seek(begins)
                    if stream.read(entry.file_size) == b"big":
                        raise zipfile.BadZipFile("its numbers are big-endian")
        if pickled is None:
            raise zipfile.BadZipFile("it has no data.pkl")
        if pickled.file_size > LARGEST_TEXT:
            raise zipfile.BadZipFile(f"its data.pkl has {pickled.file_size} bytes")
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{file} is not a readable torch file ({_short(error)}); "
            "download it again or convert it to safetensors"
        ) from error
    return found
