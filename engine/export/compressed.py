"""Layers and config as compressed-tensors stores them, each format in the form that it has there.

Equal, tensor for tensor, to what ``ModelCompressor`` of compressed-tensors writes:
``pack-quantized`` for integers (weight-only ``int8`` too, as there: its ``int-quantized`` is for
8-bit activations), ``float-quantized`` for fp8, ``mxfp4-pack-quantized``, ``mxfp8-quantized`` and
``nvfp4-pack-quantized``. Where it would infer ``naive-quantized`` for fp8 without activations,
``float-quantized`` is written, which is the same tensors under the name that servers know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from engine.export.packing import packed, words_for
from engine.export.shards import Slot
from engine.formats.grammar import Format
from engine.formats.storage import exportable
from engine.quant.float8 import Float8
from engine.quant.methods.gptq import Solved
from engine.quant.microscaling import Microscaled
from engine.quant.nvfp4 import NvFloat4
from engine.quant.quantized import Quantized
from engine.quant.stored import Stored

VERSION = "0.17.1"
"""The version of compressed-tensors whose forms these are."""

_FORMS = {
    "fp8-e4m3": "float-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "mxfp8": "mxfp8-quantized",
    "nvfp4": "nvfp4-pack-quantized",
}
_UNPACKED_TO = {"mxfp4": "bfloat16", "mxfp8": "bfloat16", "nvfp4": "bfloat16"}
"""The dtype that compressed-tensors unpacks a format to, whatever the model has."""
_INPUTS = {
    "type": "int",
    "num_bits": 8,
    "symmetric": True,
    "strategy": "token",
    "dynamic": True,
}
_OF_CODES = {"clip", "gptq"}
"""Methods that choose codes and scales, and leave nothing else to write."""


def form_of(fmt: Format) -> str:
    """What compressed-tensors calls the form that a format is stored in."""
    if rounds_inputs(fmt):
        return "int-quantized"
    return _FORMS.get(fmt.name, "pack-quantized")


def rounds_inputs(fmt: Format) -> bool:
    """Whether inputs are rounded to 8 bits as they come, and codes lie one a byte for that."""
    return any(method.name == "a8" for method in fmt.methods)


def why_not_expressed(fmt: Format, shape: tuple[int, ...], dtype: str) -> str | None:
    """Why compressed-tensors has no place for a weight of ``shape`` in ``fmt``; None if it has.

    Args:
        fmt: any format.
        shape: of the weight.
        dtype: that of the checkpoint, in torch's name.
    """
    if (why := exportable(fmt, shape)) is not None:
        return why
    if fmt.kept:
        return None
    whole = fmt.name == "int8" and fmt.symmetric and fmt.strategy in ("channel", "tensor")
    for method in fmt.methods:
        if method.name == "a8" and not method.options:
            if not whole:
                return "8-bit inputs are served with int8 per channel or tensor, symmetric"
        elif method.name not in _OF_CODES:
            return f"'+{method.name}' takes more than codes and scales, which is not yet written"
    unpacked = _UNPACKED_TO.get(fmt.name, dtype)
    if unpacked != dtype:
        return (
            f"compressed-tensors unpacks {fmt.name} to {unpacked}, which does not go with the "
            f"{dtype} of this checkpoint"
        )
    return None


def slots(
    prefix: str, fmt: Format, shape: tuple[int, ...], scale_dtype: torch.dtype
) -> dict[str, Slot]:
    """The tensors that stand for a weight ``[out, in]``, by name, before there are any.

    Args:
        prefix: the layer's name on disk, without ``.weight``.
        fmt: a format that can be expressed.
        shape: of the weight.
        scale_dtype: the dtype that scales of integer formats and of fp8 are stored in.
    """
    out, row = shape
    scales = _scales_shape(fmt, shape)
    if rounds_inputs(fmt):
        return {
            f"{prefix}.weight": Slot(torch.int8, shape),
            f"{prefix}.weight_scale": Slot(scale_dtype, scales),
        }
    if fmt.family == "integer":
        found = _integer_slots(prefix, fmt, shape, scale_dtype)
        if reorders(fmt):
            found[f"{prefix}.weight_g_idx"] = Slot(torch.int32, (row,))
        return found
    if fmt.bits == 8:
        found = {f"{prefix}.weight": Slot(torch.float8_e4m3fn, shape)}
    else:
        found = {f"{prefix}.weight_packed": Slot(torch.uint8, (out, row // 2))}
    if fmt.name == "nvfp4":
        found[f"{prefix}.weight_global_scale"] = Slot(torch.float32, (1,))
        scale_dtype = torch.float8_e4m3fn
    elif fmt.name.startswith("mx"):
        scale_dtype = torch.uint8
    found[f"{prefix}.weight_scale"] = Slot(scale_dtype, scales)
    return found


def reorders(fmt: Format) -> bool:
    """Whether groups are of columns in another order, which is then stored beside the codes."""
    options = [dict(method.options) for method in fmt.methods if method.name == "gptq"]
    grouped = fmt.strategy == "group"
    return grouped and any("actorder" in each and "static" not in each for each in options)


def tensors(prefix: str, fmt: Format, form: Stored | Solved) -> dict[str, Tensor]:
    """The tensors of `slots`, of a weight's stored form.

    Raises:
        TypeError: the stored form is not that of ``fmt``.
    """
    order = None
    if isinstance(form, Solved):
        order, form = form.order, form.stored
    if (order is not None) != reorders(fmt):
        raise TypeError(f"{prefix}: its columns do not lie as those of {fmt} are stored")
    shape = _scales_shape(fmt, _shape_of(form))
    match form:
        case Quantized() if rounds_inputs(fmt):
            return {
                f"{prefix}.weight": form.codes,
                f"{prefix}.weight_scale": form.scale.reshape(shape),
            }
        case Quantized() if fmt.family == "integer":
            return _integer_tensors(prefix, fmt, form, order)
        case Float8() if fmt.name == "fp8-e4m3":
            return {
                f"{prefix}.weight": form.codes,
                f"{prefix}.weight_scale": form.scale.reshape(shape),
            }
        case Microscaled() if fmt.name in ("mxfp4", "mxfp8"):
            codes = "weight_packed" if fmt.bits == 4 else "weight"
            return {
                f"{prefix}.{codes}": form.codes,
                f"{prefix}.weight_scale": form.exponent.reshape(shape),
            }
        case NvFloat4() if fmt.name == "nvfp4":
            return {
                f"{prefix}.weight_packed": form.codes,
                f"{prefix}.weight_scale": form.scale.reshape(shape),
                f"{prefix}.weight_global_scale": form.global_scale.reshape(1),
            }
    raise TypeError(f"{prefix}: {type(form).__name__} is not how {fmt} is stored")


def _shape_of(form: Stored) -> tuple[int, ...]:
    """The shape of the weight; ``(0, 0)`` of a form that is written nowhere."""
    codes = getattr(form, "codes", None)
    if not isinstance(codes, Tensor):
        return (0, 0)
    each = 2 if codes.dtype == torch.uint8 else 1
    return (*codes.shape[:-1], codes.shape[-1] * each)


def _integer_slots(
    prefix: str, fmt: Format, shape: tuple[int, ...], scale_dtype: torch.dtype
) -> dict[str, Slot]:
    out, row = shape
    scales = _scales_shape(fmt, shape)
    found = {
        f"{prefix}.weight_packed": Slot(torch.int32, (out, words_for(row, fmt.bits))),
        f"{prefix}.weight_scale": Slot(scale_dtype, scales),
        f"{prefix}.weight_shape": Slot(torch.int64, (2,)),
    }
    if not fmt.symmetric:
        found[f"{prefix}.weight_zero_point"] = (
            Slot(torch.int8, scales)
            if fmt.strategy == "tensor"
            else Slot(torch.int32, (words_for(out, fmt.bits), scales[1]))
        )
    return found


def _integer_tensors(
    prefix: str, fmt: Format, form: Quantized, order: Tensor | None
) -> dict[str, Tensor]:
    """Zero points are packed along the rows of the weight, those of a whole tensor not at all.

    Where columns were reordered they are put back, each with the number of its group.
    """
    scales = _scales_shape(fmt, tuple(form.shape))
    codes, groups = form.codes, {}
    if order is not None:
        assert fmt.group_size is not None
        place = order.argsort()
        codes = codes[:, place]
        groups[f"{prefix}.weight_g_idx"] = (place // fmt.group_size).to(torch.int32)
    found = {
        **groups,
        f"{prefix}.weight_packed": packed(codes, fmt.bits),
        f"{prefix}.weight_scale": form.scale.reshape(scales),
        f"{prefix}.weight_shape": torch.tensor(form.shape),
    }
    if form.zero_point is not None:
        points = form.zero_point.reshape(scales)
        if fmt.strategy != "tensor":
            points = packed(points.T, fmt.bits).T
        found[f"{prefix}.weight_zero_point"] = points
    return found


def quantization_config(formats: Mapping[str, Format], ignore: Iterable[str]) -> dict[str, Any]:
    """What ``config.json`` holds under ``quantization_config``.

    Args:
        formats: of the modules that are quantised, by their exact names.
        ignore: names of the other linear modules; servers want every one to be named.
    """
    groups: dict[Format, list[str]] = {}
    for name, fmt in formats.items():
        groups.setdefault(fmt, []).append(name)
    forms = {form_of(fmt) for fmt in groups}
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "format": forms.pop() if len(forms) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": _group(fmt, names)
            for number, (fmt, names) in enumerate(groups.items())
        },
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "sparsity_config": {},
        "transform_config": {},
    }


def _group(fmt: Format, names: list[str]) -> dict[str, Any]:
    strategy: str | None = fmt.strategy
    block = scale_dtype = None
    zp_dtype = None if fmt.symmetric else "torch.int8"
    if fmt.name == "nvfp4":
        strategy, scale_dtype, zp_dtype = "tensor_group", *2 * ("torch.float8_e4m3fn",)
    elif fmt.name.startswith("mx"):
        scale_dtype = zp_dtype = "torch.uint8"
    elif fmt.strategy == "block":
        block = [fmt.group_size, fmt.group_size]
    return {
        "format": form_of(fmt),
        "targets": names,
        "input_activations": dict(_INPUTS) if rounds_inputs(fmt) else None,
        "output_activations": None,
        "weights": {
            "type": "int" if fmt.family == "integer" else "float",
            "num_bits": fmt.bits,
            "symmetric": fmt.symmetric,
            "strategy": strategy,
            "group_size": None if block else fmt.group_size,
            "block_structure": block,
            "dynamic": False,
            "actorder": "group" if reorders(fmt) else None,
            "scale_dtype": scale_dtype,
            "zp_dtype": zp_dtype,
            "observer": "memoryless_minmax",
            "observer_kwargs": {},
        },
    }


def _scales_shape(fmt: Format, shape: tuple[int, ...]) -> tuple[int, ...]:
    out, row = shape
    size = fmt.group_size or row
    if fmt.strategy == "tensor":
        return (1,)
    if fmt.strategy == "block":
        return (-(-out // size), -(-row // size))
    return (out, row // size)
