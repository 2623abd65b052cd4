"""Layers and config as compressed-tensors stores them: the form ``pack-quantized``.

Equal, tensor for tensor, to what ``ModelCompressor`` of compressed-tensors writes. Weight-only
``int8`` is ``pack-quantized`` too, as there: its ``int-quantized`` is for 8-bit activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from engine.export.packing import packed, words_for
from engine.export.shards import Slot
from engine.quant import Format, Quantized
from engine.quant.storage import exportable

FORM = "pack-quantized"
VERSION = "0.17.1"
"""The version of compressed-tensors whose form this is."""


def why_not_expressed(fmt: Format, shape: tuple[int, ...]) -> str | None:
    """Why compressed-tensors has no place for a weight of ``shape`` in ``fmt``; None if it has."""
    if (why := exportable(fmt, shape)) is not None:
        return why
    if fmt.family != "integer" and not fmt.kept:
        return f"{fmt} is not yet written: this version exports integer and kept formats"
    return None


def slots(
    prefix: str, fmt: Format, shape: tuple[int, ...], scale_dtype: torch.dtype
) -> dict[str, Slot]:
    """The tensors that stand for a weight ``[out, in]``, by name, before there are any.

    Args:
        prefix: the layer's name on disk, without ``.weight``.
        fmt: an integer format that can be expressed.
        shape: of the weight.
        scale_dtype: the dtype that scales are stored in.
    """
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


def tensors(prefix: str, fmt: Format, form: Quantized) -> dict[str, Tensor]:
    """The tensors of `slots`, of a weight's stored form.

    Zero points are packed along the rows of the weight, those of a whole tensor not at all.
    """
    scales = _scales_shape(fmt, tuple(form.shape))
    found = {
        f"{prefix}.weight_packed": packed(form.codes, fmt.bits),
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
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "format": FORM,
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
    return {
        "format": FORM,
        "targets": names,
        "input_activations": None,
        "output_activations": None,
        "weights": {
            "type": "int",
            "num_bits": fmt.bits,
            "symmetric": fmt.symmetric,
            "strategy": fmt.strategy,
            "group_size": fmt.group_size,
            "block_structure": None,
            "dynamic": False,
            "actorder": None,
            "scale_dtype": None,
            "zp_dtype": None if fmt.symmetric else "torch.int8",
            "observer": "memoryless_minmax",
            "observer_kwargs": {},
        },
    }


def _scales_shape(fmt: Format, shape: tuple[int, ...]) -> tuple[int, ...]:
    out, row = shape
    if fmt.strategy == "tensor":
        return (1,)
    return (out, 1 if fmt.group_size is None else row // fmt.group_size)
