"""``fp32``, ``fp16`` and ``bf16``: weights cast to a dtype, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import Format
from engine.quant.arithmetic import Arithmetic
from engine.quant.rows import row_chunks
from engine.quant.stored import StoredWeight

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""torch dtype by the name of a kept format."""


def write_cast(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, out: Tensor, name: str = "weight"
) -> None:
    """Write a weight ``[out, in]`` into ``out``, cast through the dtype of ``fmt``.

    Raises:
        FormatError: A finite value is too large for that dtype.
    """
    dtype = DTYPES[fmt.name]
    for rows in row_chunks(weight):
        cast = weight[rows].to(dtype)
        if (cast.isinf() & weight[rows].isfinite()).any():
            raise FormatError(
                f"{name}: a weight is too large for {fmt}, which ends at "
                f"{torch.finfo(dtype).max:.3g}: keep this layer in its own dtype"
            )
        out[rows] = cast


def _no_codes(weight: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str) -> StoredWeight:
    raise FormatError(f"{name}: {fmt} keeps the weight, there are no codes to write")


ARITHMETIC = Arithmetic(quantize=_no_codes, write=write_cast)
