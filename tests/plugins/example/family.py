"""A format family: three values, in groups or per channel.

TWN (Li et al. 2016, arXiv 1605.04711, equations 5 and 6): weights beyond ``0.7 · mean|w|`` become
``±scale``, the mean magnitude of those; all others 0. compressed-tensors can hold it as 2-bit
integers.
"""

from __future__ import annotations

from engine.export.compressed.form import Form, register_form
from engine.formats.catalogue import Base
from engine.formats.family import SCALE_BITS, Family, register_family, scales_of
from engine.formats.grammar import Format


def _arithmetic() -> object:
    import torch  # when a weight is quantised, not when the plugin is loaded
    from torch import Tensor

    from engine.quant.arithmetic import Arithmetic
    from engine.quant.quantized import Quantized, in_groups
    from engine.quant.scales import stored_scale

    def quantize(weight: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str) -> Quantized:
        finite = weight.detach().to(torch.float32).nan_to_num(0.0, posinf=0.0, neginf=0.0)
        groups = in_groups(finite, fmt.group_size)
        size = groups.abs()
        beyond = size > 0.7 * size.mean(-1, keepdim=True)
        count = beyond.sum(-1).clamp(min=1)
        scale, _ = stored_scale((size * beyond).sum(-1) / count, scale_dtype, fmt, name)
        codes = (groups.sign() * beyond).to(torch.int8).flatten(-2)[..., : weight.shape[-1]]
        return Quantized(codes, scale, None, fmt.group_size)

    return Arithmetic(quantize=quantize)


def _why_no_groups(name: str, strategy: str | None, group_size: int | None) -> str | None:
    if strategy == "group" and (group_size or 0) < 2:
        return f"{name} has groups of at least two, not {group_size}"
    return None


FAMILY = Family(
    name="ternary",
    formats={
        "ternary": Base(
            bits=2,
            strategy="group",
            group_size=64,
            options=("gN", "channel"),
            why_no_groups=_why_no_groups,
        )
    },
    stored_bits=lambda fmt, out, row: 2 * out * row + SCALE_BITS * scales_of(fmt, out, row),
    arithmetic=_arithmetic,
)

FORM = Form(
    name=lambda _: "pack-quantized",
    layout="engine.export.compressed.layouts:INTEGER",
    why_not=lambda fmt, shape: (
        f"rows of {shape[-1]} end in a shorter group of {fmt}"
        if shape[-1] % (fmt.group_size or shape[-1])
        else None
    ),
)
"""How ``--to checkpoint`` stores it; without this it can be measured, and not exported there."""


def register() -> None:
    register_family(FAMILY)
    register_form(FAMILY.name, FORM)
