"""Reads rows of any type of ggml: those that qtui writes itself, and the others by ``gguf``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.ggml_types import NUMBERS, QUANTISED
from engine.quant.gguf import TYPES, GgufBlocks


def decoded(type: str, rows: Tensor) -> Tensor:
    """Rows as a file holds them in float32, as ``gguf.dequantize`` reads them.

    Args:
        type: the name of a quantised type: ``q4_k``.
        rows: uint8 ``[rows, bytes of a row]``.

    Returns:
        ``[rows, in]``.
    """
    if type in TYPES:
        return GgufBlocks(rows, type, QUANTISED[type].bytes).approx()
    from gguf import GGMLQuantizationType, dequantize

    with np.errstate(all="ignore"):  # scales that are not numbers are told of later, by name
        found = dequantize(rows.numpy(), GGMLQuantizationType(NUMBERS[type]))
    return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))
