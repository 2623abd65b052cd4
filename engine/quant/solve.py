"""Rounds a weight using its inputs: the entry point for methods that need ``H = X Xᵀ``.

Handles ``+gptq``, with ``+hadamard``, ``+clip`` and ``+hqq`` if the format has them. Methods that
scale inputs (``+smooth``, ``+awq``) come first: the caller that has their scale multiplies the
weight and ``H`` before, and divides the result after.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from engine.formats.grammar import Format
from engine.quant.data_free.hadamard import rotate, rotates
from engine.quant.methods.gptq import Solved, check, gptq


def solved(
    weight: Tensor, gram: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str = "weight"
) -> tuple[Tensor, tuple[str, ...]]:
    """``Ŵ`` float32 ``[out, in]``, and notes for the user.

    See `solved_form` for its stored form.
    """
    found = solved_form(weight, gram, fmt, scale_dtype, name)
    return found.approx(), found.notes


def solved_form(
    weight: Tensor, gram: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str = "weight"
) -> Solved:
    """Round one weight so that its output on calibration inputs changes least.

    Args:
        weight: ``[out, in]``, any floating dtype; not modified.
        gram: ``H = X Xᵀ`` over the calibration inputs, ``[in, in]``, up to a factor; not modified.
        fmt: A format with ``+gptq``; ``+hadamard``, ``+clip`` and ``+hqq`` are applied, and ``+a8``
            is ignored, since it does not change weights.
        scale_dtype: The dtype that scales are stored in.
        name: The tensor, for messages.

    Raises:
        FormatError: As `engine.quant.methods.gptq.gptq`.
    """
    if not any(method.name == "hadamard" for method in fmt.methods):
        return gptq(weight, gram, fmt, scale_dtype, name)
    check(weight, gram, fmt, name)
    W = weight.detach().to(torch.float32, copy=True)
    H = gram.to(torch.float32, copy=True)
    rotate(W)
    rotate(H)  # both sides of it: Vᵀ H V
    found = gptq(W, H, fmt, scale_dtype, name)
    return dataclasses.replace(found, rotated=rotates(fmt))
