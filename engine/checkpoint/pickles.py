"""Old ``.bin`` checkpoints: pickles, opened only with torch's restricted unpickler."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint.headers import TensorInfo
from engine.checkpoint.links import refuse_pointer
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def listing(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a ``.bin`` file; their offsets start at 0 and only give sizes."""
    return {
        name: TensorInfo(
            name,
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            file,
            0,
            tensor.numel() * tensor.element_size(),
        )
        for name, tensor in load(file).items()
    }


def load(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.bin`` file by name, memory-mapped if possible.

    Raises:
        CheckpointError: the file holds anything but tensors in plain containers, or is damaged.
    """
    status = file.stat()
    return _load(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _load(file: Path, size: int, changed: int) -> dict[str, Tensor]:
    import torch

    try:
        # Files from before torch 1.6 are not zip archives and cannot be mapped.
        with file.open("rb") as stream:
            head = stream.read(64)
        refuse_pointer(file, head)
        zipped = head.startswith(b"PK\x03\x04")
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} is a pickle that is damaged or would run code when opened; it was not "
            "opened: convert the checkpoint to safetensors on a machine you trust it on"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{file} is not a readable torch file ({type(error).__name__}: {error}); "
            "download it again or convert it to safetensors"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds a {type(found).__name__}, not a table of tensors")
    return {
        name: tensor
        for name, tensor in found.items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor) and not tensor.is_sparse
    }
