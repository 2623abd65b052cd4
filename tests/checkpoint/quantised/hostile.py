"""Quantised payloads that no tool writes: what is wrong with each, and what is said of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.checkpoint.quantised.fixtures import MODULE

Spoil = Callable[[dict[str, Tensor], dict[str, Any]], None]


def put(ending: str, value: object, place: object = 0) -> Spoil:
    """One element of a tensor has another value."""

    def spoil(stored: dict[str, Tensor], config: dict[str, Any]) -> None:
        stored[f"{MODULE}.{ending}"][place] = value  # type: ignore[index,assignment]

    return spoil


def instead(ending: str, tensor: Tensor) -> Spoil:
    """A tensor is another one."""

    def spoil(stored: dict[str, Tensor], config: dict[str, Any]) -> None:
        stored[f"{MODULE}.{ending}"] = tensor

    return spoil


def without(ending: str) -> Spoil:
    """A tensor is missing."""

    def spoil(stored: dict[str, Tensor], config: dict[str, Any]) -> None:
        del stored[f"{MODULE}.{ending}"]

    return spoil


def said(**values: object) -> Spoil:
    """The config says something else."""

    def spoil(stored: dict[str, Tensor], config: dict[str, Any]) -> None:
        config.update(values)

    return spoil


def chars(text: str) -> Tensor:
    """Text as HQQ keeps it."""
    return torch.tensor([ord(char) for char in text], dtype=torch.uint8)


def no_shape(stored: dict[str, Tensor], config: dict[str, Any]) -> None:
    """The shape of HQQ is empty, and the size of its groups follows from it."""
    stored[f"{MODULE}.shape"] = torch.zeros(0, dtype=torch.int64)
    del stored[f"{MODULE}.group_size"]


STATE = "weight.quant_state.bitsandbytes__nf4"


def state(**values: object) -> Spoil:
    """The JSON beside a 4-bit weight of bitsandbytes says something else."""

    def spoil(stored: dict[str, Tensor], config: dict[str, Any]) -> None:
        found = json.loads(bytes(stored[f"{MODULE}.{STATE}"].tolist()))
        text = json.dumps({**found, **values}).encode()
        stored[f"{MODULE}.{STATE}"] = torch.tensor(list(text), dtype=torch.uint8)

    return spoil


GPTQ, CT = ("gptqmodel", "gptq_v2-4-asym-g32-act"), ("compressed-tensors", "pack-3-asym-g32")
NF4, NESTED = ("bitsandbytes", "nf4-64-32x64"), ("bitsandbytes", "nf4-64-nested-32x64")
INT8, AWQ, MLX = ("bitsandbytes", "int8"), ("autoawq", "gemv-g64"), ("mlx", "affine-4-g64-bfloat16")
EIGHT = ("compressed-tensors", "int-8-asym-g32")
HQQ, AO = ("hqq", "4-g32-axis1-bfloat16"), ("torchao", "int4-g32")
NVFP4, MO = ("compressed-tensors", "nvfp4"), ("model-optimizer", "nvfp4")
DEEP = torch.tensor(list(b"[" * 20000), dtype=torch.uint8)

TRAITS: list[tuple[tuple[str, str], Spoil, str]] = [
    (GPTQ, put("g_idx", -1), "puts input 0 into group -1 of 2"),
    (GPTQ, put("g_idx", 2, 5), "puts input 5 into group 2 of 2"),
    (GPTQ, put("g_idx", 2**31 - 1, 63), "puts input 63 into group 2147483647 of 2"),
    (GPTQ, without("qzeros"), "without its 'qzeros'"),
    (GPTQ, without("scales"), "without its 'scales'"),
    (GPTQ, instead("qzeros", torch.zeros(2, 3, dtype=torch.int32)), "fit no number of bits"),
    (GPTQ, instead("scales", torch.ones(2, 32, dtype=torch.int32)), "not float16 or bfloat16"),
    (GPTQ, instead("g_idx", torch.zeros(0, dtype=torch.int32)), "the group of each input"),
    (GPTQ, said(dynamic={"+:(": {}}), "regular expression"),
    (CT, put("weight_shape", -64, 1), r"weight_shape' says \[30, -64\]"),
    (CT, put("weight_shape", 2**40, 1), "weight_shape' says"),
    (CT, put("weight_shape", 31, 0), "weight_shape' says"),
    (CT, without("weight_shape"), "no 'weight_shape'"),
    (CT, without("weight_scale"), "without its 'weight_scale'"),
    (CT, instead("weight_packed", torch.zeros(30, 5, dtype=torch.int32)), "5 words a row of 64"),
    (CT, instead("weight_zero_point", torch.zeros(2, 2, dtype=torch.int32)), "weight_zero_point"),
    (EIGHT, instead("weight_zero_point", torch.zeros(5, 1).to(torch.int8)), "as its scales"),
    (NVFP4, without("weight_global_scale"), "no 'weight_global_scale'"),
    (NVFP4, instead("weight_scale", torch.zeros(32, 3).to(torch.float8_e4m3fn)), "weight_scale"),
    (NF4, state(shape=[2**40, 2**40]), "weight' is uint8"),
    (NF4, state(shape=[-1, -1]), "no 4-bit weight has"),
    (NF4, state(blocksize=0), "a block size of 0"),
    (NF4, state(dtype="hub"), "a dtype of 'hub'"),
    (NF4, state(shape="abc"), "no 4-bit weight has"),
    (NF4, instead(STATE, torch.tensor(list(b"{nope"), dtype=torch.uint8)), "not the JSON"),
    (NF4, instead(STATE, DEEP), "not the JSON"),
    (NF4, instead(STATE, torch.tensor([255, 254], dtype=torch.uint8)), "not the JSON"),
    (NF4, instead("weight.quant_map", torch.zeros(3)), "quant_map"),
    (NF4, without("weight.absmax"), "absmax"),
    (NESTED, state(nested_blocksize=0), "no 4-bit weight has"),
    (NESTED, state(nested_offset=float("nan")), "an offset of nan"),
    (NESTED, without("weight.nested_absmax"), "nested_absmax"),
    (INT8, instead("SCB", torch.ones(3)), "SCB"),
    (INT8, instead("weight_format", torch.tensor(2, dtype=torch.uint8)), "order of a GPU"),
    (AWQ, instead("scales", torch.ones(32, 12).half()), "packed in int32|scales"),
    (MO, instead("weight_scale", torch.ones(32, 3).to(torch.float8_e4m3fn)), "weight_scale"),
    (MO, without("weight_scale_2"), "weight_scale_2"),
    (HQQ, instead("compute_dtype", chars("__import__('os').system('touch x')")), "do not trust"),
    (HQQ, instead("compute_dtype", chars("torch.load")), "compute_dtype 'load'"),
    (HQQ, instead("packing", chars("7bit_u8")), "packing '7bit_u8'"),
    (HQQ, instead("packing", torch.zeros(10**6, dtype=torch.uint8)), "a short text"),
    (HQQ, instead("group_size", torch.tensor(0)), "groups of 0"),
    (HQQ, instead("shape", torch.tensor([2**40, 2**40])), "bytes of codes"),
    (HQQ, no_shape, "groups of 0"),
    (HQQ, instead("axis", torch.tensor(7)), "axis 7"),
    (HQQ, without("nbits"), "no 'nbits'"),
    (AO, instead("_weight_scale", torch.ones(32, 5).bfloat16()), "blocks that divide"),
    (AO, instead("_weight_zero_point", torch.zeros(3, dtype=torch.int8)), "_weight_zero_point"),
    (AO, put("_weight_qdata", 100), "beyond 4 bits"),
    (MLX, without("biases"), "no 'biases'"),
    (MLX, instead("scales", torch.ones(16, 3).bfloat16()), "biases|scales|words"),
]


class Scaled(NamedTuple):
    """A layout by one case of it, and the ending of its scales."""

    tool: str
    case: str
    scale: str


SCALED = (
    Scaled("gptqmodel", "gptq-4-asym-g32", "scales"),
    Scaled("gptqmodel", "gptq_p-4-asym-g32", "scales"),
    Scaled("autoawq", "gemm-g64", "scales"),
    Scaled("autoawq", "gemv-g64", "scales"),
    Scaled("autoawq", "gemv_fast-g64", "scales"),
    Scaled("auto-round", "mxint4", "weight_scale"),
    Scaled("compressed-tensors", "pack-4-asym-g32", "weight_scale"),
    Scaled("compressed-tensors", "int-8-asym-g32", "weight_scale"),
    Scaled("compressed-tensors", "nvfp4", "weight_scale"),
    Scaled("compressed-tensors", "mxfp4", "weight_scale"),
    Scaled("bitsandbytes", "nf4-64-32x64", "weight.absmax"),
    Scaled("bitsandbytes", "nf4-64-nested-32x64", "weight.nested_absmax"),
    Scaled("bitsandbytes", "int8", "SCB"),
    Scaled("hqq", "4-g32-axis1-bfloat16", "scale"),
    Scaled("torchao", "int4-g32", "_weight_scale"),
    Scaled("torchao", "int8", "_weight_scale"),
    Scaled("torchao", "nvfp4-scaled", "_weight_scale"),
    Scaled("torchao-cuda", "tiles-g32", "_weight_scale_and_zero"),
    Scaled("mlx", "affine-4-g64-bfloat16", "scales"),
    Scaled("mlx", "mxfp4-4-g32-bfloat16", "scales"),
    Scaled("model-optimizer", "nvfp4", "weight_scale"),
    Scaled("model-optimizer", "mxfp4", "weight_scale"),
    Scaled("model-optimizer", "int4-awq", "weight_scale"),
    Scaled("model-optimizer", "fp8", "weight_scale"),
    Scaled("quanto", "int8", "weight._scale"),
    Scaled("quanto", "int4-g128", "weight._scale"),
    Scaled("transformers", "bitlinear", "weight_scale"),
    Scaled("transformers", "metal-4", "scales"),
    Scaled("transformers", "mxfp8", "weight_scale_inv"),
    Scaled("transformers", "deepseek-fp8", "scale"),
    Scaled("transformers", "deepseek-fp4", "scale"),
    Scaled("exllamav3", "1-3inst", "suh"),
)
"""Every layout that is read."""


def not_a_number(ending: str) -> Spoil:
    """The first scale is NaN: of a power of two, 255."""

    def spoil(stored: dict[str, Tensor], config: dict[str, Any]) -> None:
        found = stored[f"{MODULE}.{ending}"].clone()
        flat = found.view(-1)
        if found.dtype in (torch.uint8, torch.float8_e8m0fnu):
            flat.view(torch.uint8)[0] = 255
        else:
            flat[0] = math.nan
        stored[f"{MODULE}.{ending}"] = found

    return spoil


def cut(ending: str) -> Spoil:
    """There is no scale at all, in a tensor that is there."""

    def spoil(stored: dict[str, Tensor], config: dict[str, Any]) -> None:
        stored[f"{MODULE}.{ending}"] = stored[f"{MODULE}.{ending}"].reshape(-1)[:0]

    return spoil


def of_every_layout() -> Iterator[tuple[str, Scaled, Spoil]]:
    """What may be wrong with the scales of any layout, and how it is made."""
    for each in SCALED:
        yield "none of its scales", each, without(each.scale)
        yield "scales of no elements", each, cut(each.scale)
        yield "a scale that is not a number", each, not_a_number(each.scale)
