"""Layouts that are known by name and not read: the error says which one it is."""

from __future__ import annotations

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.headers import TensorInfo
from engine.checkpoint.packed.declared import declared_config
from engine.errors import CheckpointError

UNREAD = {
    "aqlm": "sums of codebooks",
    "vptq": "codebooks of vectors",
    "spqr": "outliers kept apart",
    "higgs": "grids of vectors, in the order of a kernel",
    "eetq": "the order of a kernel",
    "fp_quant": "rotated, in the order of a kernel",
    "sinq": "two scales for each weight",
    "fouroversix": "the order of a kernel",
    "gemma": "Gemma's own",
    "nvfp4": "the order of a kernel",
    "quark": "Quark's own",
    "exl2": "bits that change within a layer",
    "paroquant": "pairs of weights that are turned",
    "marlin": "the order of a kernel",
    "bitblas": "the order of a kernel",
    "qqq": "the order of a kernel",
    "marlin_24": "the order of a kernel, half of the weights left out",
    "sparse_bitmask": "weights left out",
    "sparse_24_bitmask": "half of the weights left out",
}
"""What is said of each; a layout may be named by the method or by the format of a config."""
_NAMED_BY = ("quant_method", "checkpoint_format", "version", "packing_format", "format")
"""Keys of a config; and the ``format`` of its ``sparsity_config``."""
_READ_ANYWAY = {"quark": "float8"}
"""Dtypes of codes that mean the same whoever writes them."""


def refuse_unread(checkpoint: Checkpoint) -> None:
    """Refuse codes in a layout that is not read, by its name.

    Raises:
        CheckpointError: names a tensor of codes and the layout.
    """
    config = declared_config(checkpoint)
    sparse = config.get("sparsity_config")
    formats = [config.get(key) for key in _NAMED_BY]
    formats.append(sparse.get("format") if isinstance(sparse, dict) else None)
    names = [str(each or "").lower().replace("-", "_") for each in formats]
    name = next((name for name in names if name in UNREAD), None)
    codes = None if name is None else _codes(checkpoint, _READ_ANYWAY.get(name, "-"))
    if name is not None and codes is not None:
        raise CheckpointError(
            f"{codes.file} stores {codes.name!r} packed in {codes.dtype} by {name} "
            f"({UNREAD[name]}), which qtui does not read; open the checkpoint it was made from"
        )


def _codes(checkpoint: Checkpoint, read: str) -> TensorInfo | None:
    """A tensor that holds no plain numbers."""
    plain = ("float16", "bfloat16", "float32", "float64", "bool")
    return next(
        (
            tensor
            for tensor in checkpoint.tensors.values()
            if tensor.dtype not in plain and len(tensor.shape) > 1 and read not in tensor.dtype
        ),
        None,
    )
