"""Codes of the GPTQ layout, version 1: packed into words, and unpacked again.

A weight ``[out, in]`` is ``(code − zero) · scale`` with codes and zero points from 0 on, and

- ``qweight`` ``[in · bits / 32, out]`` int32: codes along the inputs, the first in the lowest bits;
- ``qzeros`` ``[groups, out · bits / 32]`` int32: ``zero − 1``, along the outputs;
- ``scales`` ``[groups, out]``; ``g_idx`` ``[in]`` int32: the group of each input.

Codes of 3 bits follow one another across words, 32 of them in 3 words.

A zero point of 0 is stored as all ones, which readers take for 0 or for ``2^bits``, and GPTQModel,
which adds 1 to whole words, for a carry into the next one. So none is written: a group of zeros
gets another zero point, and one of weights of one sign is refused.
Source: GPTQModel, ``utils/model_dequant.py`` and ``nn_modules/qlinear``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.checkpoint.packed.unpacking import unpacked
from engine.errors import InfeasibleError
from engine.export.packing import packed
from engine.export.shards import Slot
from engine.formats.grammar import Format
from engine.quant.methods.gptq import Solved
from engine.quant.quantized import Quantized
from engine.quant.stored import StoredWeight


def slots(
    prefix: str, fmt: Format, shape: tuple[int, ...], scale_dtype: torch.dtype
) -> dict[str, Slot]:
    """The slots of a weight ``[out, in]`` by name."""
    out, row = shape
    groups = row // (fmt.group_size or row)
    return {
        f"{prefix}.qweight": Slot(torch.int32, (row * fmt.bits // 32, out)),
        f"{prefix}.qzeros": Slot(torch.int32, (groups, out * fmt.bits // 32)),
        f"{prefix}.scales": Slot(scale_dtype, (groups, out)),
        f"{prefix}.g_idx": Slot(torch.int32, (row,)),
    }


def tensors(prefix: str, fmt: Format, form: StoredWeight | Solved) -> dict[str, Tensor]:
    """The tensors for `slots`, from a weight's stored form.

    Raises:
        InfeasibleError: a group has a zero point of 0, and weights.
        TypeError: the stored form is not one of integer codes.
    """
    order = form.order if isinstance(form, Solved) else None
    codes = form.stored if isinstance(form, Solved) else form
    if not isinstance(codes, Quantized):
        raise TypeError(f"{prefix}: {type(codes).__name__} is not how {fmt} is stored")
    out, row = codes.shape
    size, half = fmt.group_size or row, 1 << (fmt.bits - 1)
    values, groups = codes.codes, torch.arange(row, dtype=torch.int64) // size
    if order is not None:
        place = order.argsort()
        values, groups = values[:, place], (place // size).cpu()
    scales = codes.scale.reshape(out, -1)
    zeros = torch.zeros(scales.shape, dtype=torch.int32, device=scales.device)
    if codes.zero_point is not None:
        zeros = codes.zero_point.reshape(out, -1).to(torch.int32)
        values, zeros = _without_zero(prefix, values, zeros, groups.to(zeros.device), half)
    # From codes around 0 to codes from 0 on, less one, and back, as `packed` takes them.
    stored = ((zeros + half - 1) & ((1 << fmt.bits) - 1)) - half
    return {
        f"{prefix}.qweight": packed(values, fmt.bits, dense=True).T.contiguous(),
        f"{prefix}.qzeros": packed(stored.to(torch.int8).T.contiguous(), fmt.bits, dense=True),
        f"{prefix}.scales": scales.T.contiguous(),
        f"{prefix}.g_idx": groups.to(torch.int32),
    }


def _without_zero(
    prefix: str, values: Tensor, zeros: Tensor, groups: Tensor, half: int
) -> tuple[Tensor, Tensor]:
    """Codes ``[out, in]`` and zero points ``[out, groups]``, both around 0, none at the lowest.

    Raises:
        InfeasibleError: a group with that zero point has weights other than 0.
    """
    lowest = zeros == -half
    if not bool(lowest.any()):
        return values, zeros
    there = lowest[:, groups]
    filled = there & (values != -half)
    if bool(filled.any()):
        rows = int(filled.any(1).sum())
        raise InfeasibleError(
            f"{prefix}: {rows} of its rows have a group with a zero point of 0, for its weights "
            "have one sign or nearly so; version 1 of the layout cannot store that for every "
            "reader: give the layer a symmetric format, or export with --to checkpoint"
        )
    return values.masked_fill(there, 0), zeros.masked_fill(lowest, 0)


def dequantised(found: dict[str, Tensor], bits: int) -> Tensor:
    """The weight ``[out, in]`` in float32, as a reader of version 1 has it.

    Args:
        found: ``qweight``, ``qzeros``, ``scales`` and ``g_idx``.
        bits: of a code.
    """
    scales = found["scales"].to(torch.float32)
    out, row = found["qweight"].shape[1], len(found["g_idx"])
    codes = unpacked(found["qweight"].T, bits, row).to(torch.float32)
    zeros = (unpacked(found["qzeros"], bits, out) + 1) & ((1 << bits) - 1)
    group = found["g_idx"].to(torch.int64)
    return (codes - zeros[group].T.to(torch.float32)) * scales[group].T
