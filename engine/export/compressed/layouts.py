"""The tensors and the config entry of each format family in compressed-tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from engine.export.compressed.form import Form, form_of, rounds_inputs
from engine.export.packing import is_dense, packed, words_for
from engine.export.shards import Slot
from engine.formats.grammar import Format
from engine.plugins import resolve
from engine.quant.float8 import Float8
from engine.quant.methods.gptq import Solved
from engine.quant.microscaling import Microscaled
from engine.quant.nvfp4 import NvFloat4
from engine.quant.quantized import Quantized
from engine.quant.stored import StoredWeight

S = TypeVar("S", bound=StoredWeight)


@dataclass(frozen=True)
class Layout:
    """How a family is stored in a compressed-tensors checkpoint."""

    slots: Callable[[Format, tuple[int, ...], torch.dtype], dict[str, Slot]]
    """The slots of a weight ``[out, in]`` by name suffix, such as ``weight_scale``, from the
    format, the shape and the dtype of scales."""
    tensors: Callable[[Format, StoredWeight, Tensor | None], dict[str, Tensor]]
    """Those tensors, from a stored form and the order of its columns, if that is stored."""
    weights: dict[str, Any] | Callable[[Format], dict[str, Any]]
    """What ``weights`` of its config group adds to the format: ``type``, and if they differ
    ``strategy``, ``block_structure``, ``scale_dtype``, ``zp_dtype``."""


def layout_of(fmt: Format) -> Layout:
    """The layout of a format that can be stored."""
    form = form_of(fmt)
    assert form is not None, fmt
    return _loaded(form)


@cache
def _loaded(form: Form) -> Layout:
    found = resolve(form.layout) if isinstance(form.layout, str) else form.layout()
    if not isinstance(found, Layout):
        raise TypeError(f"{form.layout!r} is not a layout of compressed-tensors, but {found!r}")
    return found


def slots(
    prefix: str, fmt: Format, shape: tuple[int, ...], scale_dtype: torch.dtype
) -> dict[str, Slot]:
    """The slots of the tensors that store a weight ``[out, in]``, by name.

    Args:
        prefix: the layer's name on disk, without ``.weight``.
        fmt: a format that can be stored.
        shape: of the weight.
        scale_dtype: the dtype that scales of integer formats and of fp8 are stored in.
    """
    found = layout_of(fmt).slots(fmt, shape, scale_dtype)
    return {f"{prefix}.{name}": slot for name, slot in found.items()}


def tensors(prefix: str, fmt: Format, form: StoredWeight | Solved) -> dict[str, Tensor]:
    """The tensors for `slots`, from a weight's stored form.

    Raises:
        TypeError: the stored form is not that of ``fmt``.
    """
    order = None
    if isinstance(form, Solved):
        order, form = form.order, form.stored
    if (order is not None) != reorders(fmt):
        raise TypeError(f"{prefix}: its column order is not the one {fmt} is stored in")
    try:
        found = layout_of(fmt).tensors(fmt, form, order)
    except TypeError as error:
        raise TypeError(f"{prefix}: {error}") from error
    return {f"{prefix}.{name}": tensor for name, tensor in found.items()}


def reorders(fmt: Format) -> bool:
    """Whether columns are grouped in another order, which is then stored with the codes."""
    options = [dict(method.options) for method in fmt.methods if method.name == "gptq"]
    grouped = fmt.strategy == "group"
    return grouped and any("actorder" in each and "static" not in each for each in options)


def expected(form: StoredWeight, kind: type[S], fmt: Format) -> S:
    """The stored form, checked to be of a kind.

    Raises:
        TypeError: it is of another kind.
    """
    if not isinstance(form, kind):
        raise TypeError(f"{type(form).__name__} is not how {fmt} is stored")
    return form


def _scales_shape(fmt: Format, shape: tuple[int, ...]) -> tuple[int, ...]:
    out, row = shape
    size = fmt.group_size or row
    if fmt.strategy == "tensor":
        return (1,)
    if fmt.strategy == "block":
        return (-(-out // size), -(-row // size))
    return (out, row // size)


# --- integers ------------------------------------------------------------------------------------


def _integer_slots(
    fmt: Format, shape: tuple[int, ...], scale_dtype: torch.dtype
) -> dict[str, Slot]:
    out, row = shape
    scales = _scales_shape(fmt, shape)
    if rounds_inputs(fmt):
        return {"weight": Slot(torch.int8, shape), "weight_scale": Slot(scale_dtype, scales)}
    found = {
        "weight_packed": Slot(torch.int32, (out, words_for(row, fmt.bits, dense=is_dense()))),
        "weight_scale": Slot(scale_dtype, scales),
        "weight_shape": Slot(torch.int64, (2,)),
    }
    if not fmt.symmetric:
        found["weight_zero_point"] = (
            Slot(torch.int8, scales)
            if fmt.strategy == "tensor"
            else Slot(torch.int32, (words_for(out, fmt.bits, dense=is_dense()), scales[1]))
        )
    if reorders(fmt):
        found["weight_g_idx"] = Slot(torch.int32, (row,))
    return found


def _integer_tensors(fmt: Format, form: StoredWeight, order: Tensor | None) -> dict[str, Tensor]:
    """Zero points are packed along the rows of the weight, or not at all for a whole tensor.

    Reordered columns are put back in place, each with the number of its group.
    """
    form = expected(form, Quantized, fmt)
    scales = _scales_shape(fmt, tuple(form.shape))
    if rounds_inputs(fmt):
        return {"weight": form.codes, "weight_scale": form.scale.reshape(scales)}
    codes, groups = form.codes, {}
    if order is not None:
        assert fmt.group_size is not None
        place = order.argsort()
        codes = codes[:, place]
        groups["weight_g_idx"] = (place // fmt.group_size).to(torch.int32)
    found = {
        **groups,
        "weight_packed": packed(codes, fmt.bits, dense=is_dense()),
        "weight_scale": form.scale.reshape(scales),
        "weight_shape": torch.tensor(form.shape),
    }
    if form.zero_point is not None:
        points = form.zero_point.reshape(scales)
        if fmt.strategy != "tensor":
            points = packed(points.T, fmt.bits, dense=is_dense()).T
        found["weight_zero_point"] = points
    return found


INTEGER = Layout(_integer_slots, _integer_tensors, {"type": "int"})


# --- small floats --------------------------------------------------------------------------------


def _float8_slots(fmt: Format, shape: tuple[int, ...], scale_dtype: torch.dtype) -> dict[str, Slot]:
    return {
        "weight": Slot(torch.float8_e4m3fn, shape),
        "weight_scale": Slot(scale_dtype, _scales_shape(fmt, shape)),
    }


def _float8_tensors(fmt: Format, form: StoredWeight, _order: Tensor | None) -> dict[str, Tensor]:
    form = expected(form, Float8, fmt)
    scales = _scales_shape(fmt, tuple(form.codes.shape))
    return {"weight": form.codes, "weight_scale": form.scale.reshape(scales)}


def _float8_weights(fmt: Format) -> dict[str, Any]:
    if fmt.strategy != "block":
        return {"type": "float"}
    return {
        "type": "float",
        "group_size": None,
        "block_structure": [fmt.group_size, fmt.group_size],
    }


FLOAT8 = Layout(_float8_slots, _float8_tensors, _float8_weights)


def _codes_slot(fmt: Format, shape: tuple[int, ...]) -> dict[str, Slot]:
    out, row = shape
    if fmt.bits == 8:
        return {"weight": Slot(torch.float8_e4m3fn, shape)}
    return {"weight_packed": Slot(torch.uint8, (out, row // 2))}


def _microscaling_slots(
    fmt: Format, shape: tuple[int, ...], _scale_dtype: torch.dtype
) -> dict[str, Slot]:
    scales = Slot(torch.uint8, _scales_shape(fmt, shape))
    return {**_codes_slot(fmt, shape), "weight_scale": scales}


def _microscaling_tensors(
    fmt: Format, form: StoredWeight, _order: Tensor | None
) -> dict[str, Tensor]:
    form = expected(form, Microscaled, fmt)
    codes = "weight_packed" if fmt.bits == 4 else "weight"
    return {codes: form.codes, "weight_scale": form.exponent}


MICROSCALING = Layout(
    _microscaling_slots,
    _microscaling_tensors,
    {"type": "float", "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"},
)


def _nvfp4_slots(fmt: Format, shape: tuple[int, ...], _scale_dtype: torch.dtype) -> dict[str, Slot]:
    return {
        **_codes_slot(fmt, shape),
        "weight_global_scale": Slot(torch.float32, (1,)),
        "weight_scale": Slot(torch.float8_e4m3fn, _scales_shape(fmt, shape)),
    }


def _nvfp4_tensors(fmt: Format, form: StoredWeight, _order: Tensor | None) -> dict[str, Tensor]:
    form = expected(form, NvFloat4, fmt)
    return {
        "weight_packed": form.codes,
        "weight_scale": form.scale,
        "weight_global_scale": form.global_scale.reshape(1),
    }


NVFP4 = Layout(
    _nvfp4_slots,
    _nvfp4_tensors,
    {
        "type": "float",
        "strategy": "tensor_group",
        "scale_dtype": "torch.float8_e4m3fn",
        "zp_dtype": "torch.float8_e4m3fn",
    },
)
