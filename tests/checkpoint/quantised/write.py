"""Writes weights with another tool, and what that tool dequantises them to.

Run in an environment that has the tool::

    python tests/checkpoint/quantised/write.py TOOL > tests/checkpoint/quantised/written/TOOL.json

Nothing of qtui is imported. For each tool there is a function that quantises and packs a few small
weights with the tool's own code, and returns the tensors as the tool saves them, what it writes
into the config, and the weight that it computes with. Tensors are kept, of weights a hash.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import types
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor

MODULE = "model.layers.0.mlp.up_proj"
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"


@dataclass
class Case:
    """One weight as a tool writes it."""

    name: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    """By their names in the file."""
    weight: Tensor
    """What the tool dequantises them to, ``[out, in]``."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Of the file."""
    before: Tensor | None = None
    """What the weight is made of where that takes sums, whose order depends on the machine: then
    it is this that must be equal bit for bit, and some rows of the weight are kept."""


def weight(out: int = 32, row: int = 64, seed: int = 0) -> Tensor:
    """Weights whose ranges differ by row and are not centred."""
    torch.manual_seed(seed)
    size = torch.linspace(0.5, 2.0, out)[:, None]
    return (torch.randn(out, row) + 0.3 * torch.randn(out, 1)) * size * 0.05


def experts(out: int = 32, row: int = 64) -> Tensor:
    """Weights of three experts, ``[3, out, in]``."""
    return torch.stack([weight(out, row, seed) for seed in range(3)])


def named(tensors: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Buffers of a module by the names they have in a file."""
    return {f"{MODULE}.{name}": tensors[name] for name in names if name in tensors}


def grid(whole: Tensor, bits: int, group: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scales and zero points ``[out, groups]`` of round to nearest."""
    parts = whole.unflatten(1, (-1, group))
    top = (1 << bits) - 1
    if symmetric:
        scale = parts.abs().amax(-1) * 2 / top
        return scale.half().float(), torch.full_like(scale, (top + 1) // 2)
    low, high = parts.amin(-1).clamp_max(0), parts.amax(-1).clamp_min(0)
    scale = ((high - low) / top).half().float()
    return scale, (-low / scale).round().clamp(0, top)


def gptqmodel() -> Iterator[Case]:
    """GPTQ versions 1 and 2 and planar, and AWQ as GPTQModel packs it."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import FORMAT, QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    def case(bits: int, form: str, *, symmetric: bool, group: int = 32, act: bool = False) -> Case:
        whole, config = (
            weight(),
            QuantizeConfig(bits=bits, group_size=group, sym=symmetric, desc_act=act, format=form),
        )
        size = 64 if group == -1 else group
        scales, zeros = grid(whole, bits, size, symmetric=symmetric)
        order = torch.arange(64) // size
        if act:
            order = order[torch.randperm(64)]
        linear = torch.nn.Linear(64, 32, bias=False)
        linear.weight.data = whole
        module = TorchLinear(
            bits=bits, group_size=group, sym=symmetric, desc_act=act, in_features=64,
            out_features=32, format=FORMAT(form),
        )  # fmt: skip
        module.pack(linear, scales, zeros, order.int())
        module.post_init()
        dequantised = module.dequantize_weight().T.contiguous()
        if form == "gptq":
            convert_gptq_v2_to_v1_format_module(module, config)
        names = ("qweight", "qzeros", "scales", "g_idx")
        said = {"quant_method": "gptq", **config.to_dict()}
        said["meta"] = {"quantizer": [f"gptqmodel:{version('gptqmodel')}"]}
        kind = f"{form}-{bits}-{'sym' if symmetric else 'asym'}-g{group}{'-act' if act else ''}"
        return Case(kind, said, named(dict(module.named_buffers()), names), dequantised)

    for form in ("gptq", "gptq_v2"):
        for bits in (2, 3, 4, 8):
            yield case(bits, form, symmetric=False)
            yield case(bits, form, symmetric=True)
        yield case(4, form, symmetric=False, act=True)
        yield case(4, form, symmetric=True, group=-1)
    for bits in (2, 3, 4, 5, 6, 7, 8):
        yield case(bits, "gptq_p", symmetric=bits == 5)


def compressed_tensors() -> Iterator[Case]:
    """Every format of compressed-tensors that quantises, as its compressors write it."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    def case(
        name: str,
        form: str,
        weights: dict[str, Any],
        state: dict[str, Tensor],
        module: str = MODULE,
    ) -> Case:
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        compressor = BaseCompressor.load_from_registry(form)
        packed = compressor.compress(state, scheme)
        whole = compressor.decompress(dict(packed), scheme)["weight"]
        group = {**json.loads(scheme.model_dump_json(exclude_none=True)), "format": form}
        config = {
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"group_0": group},
            "version": version("compressed-tensors"),
        }
        tensors = {f"{module}.{key}": value for key, value in packed.items()}
        return Case(name, config, tensors, whole)

    def integers(bits: int, group: int, *, symmetric: bool) -> tuple[dict[str, Any], Any]:
        size = {-1: 64, 0: 64}.get(group, group)
        whole = weight(30)
        scale, zero = grid(whole, bits, size, symmetric=symmetric)
        strategy = {-1: "channel", 0: "tensor"}.get(group, "group")
        arguments = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy}
        if group > 0:
            arguments["group_size"] = group
        if group == 0:
            scale, zero = scale.amax().reshape(1), zero[:1, :1].reshape(1)
        state = {"weight": whole.bfloat16(), "weight_scale": scale.bfloat16()}
        if not symmetric:
            state["weight_zero_point"] = (zero - (1 << (bits - 1))).to(torch.int8)
        return arguments, state

    for bits in range(1, 9):
        for symmetric in (True, False) if bits > 1 else (True,):
            arguments, state = integers(bits, 32, symmetric=symmetric)
            kind = "sym" if symmetric else "asym"
            yield case(f"pack-{bits}-{kind}-g32", "pack-quantized", arguments, state)
    together = ((4, True), (4, False), (3, False))
    if version("compressed-tensors").startswith("0.17"):  # it does not read what it packs then
        together = ()
    for bits, symmetric in together:
        whole = experts(30)
        pairs = [grid(each, bits, 32, symmetric=symmetric) for each in whole]
        scale, zero = (torch.stack(each) for each in zip(*pairs, strict=True))
        state = {"weight": whole.bfloat16(), "weight_scale": scale.bfloat16()}
        if not symmetric:
            state["weight_zero_point"] = (zero - (1 << (bits - 1))).to(torch.int8)
        arguments = {
            "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group",
            "group_size": 32,
        }  # fmt: skip
        kind = f"experts-{bits}-{'sym' if symmetric else 'asym'}-g32"
        yield case(kind, "pack-quantized", arguments, state, EXPERTS)
    for group, name in ((-1, "channel"), (0, "tensor")):
        arguments, state = integers(4, group, symmetric=True)
        yield case(f"pack-4-sym-{name}", "pack-quantized", arguments, state)
        arguments, state = integers(8, group, symmetric=True)
        yield case(f"int-8-sym-{name}", "int-quantized", arguments, state)
    arguments, state = integers(4, -1, symmetric=False)
    yield case("pack-4-asym-channel", "pack-quantized", arguments, state)
    arguments, state = integers(8, 32, symmetric=False)
    yield case("int-8-asym-g32", "int-quantized", arguments, state)
    if version("compressed-tensors").startswith("0.17"):  # newer ones do not write it
        arguments, state = integers(4, 16, symmetric=False)
        arguments["actorder"] = "group"
        torch.manual_seed(3)
        state["weight_g_idx"] = (torch.arange(64) // 16)[torch.randperm(64)].int()
        yield case("pack-4-asym-g16-actorder", "pack-quantized", arguments, state)

    whole = weight(32)
    eight = {"num_bits": 8, "type": "float", "symmetric": True}
    blocks = whole.unflatten(0, (2, 16)).unflatten(2, (4, 16)).abs().amax((1, 3)) / 448
    state = {"weight": whole.bfloat16(), "weight_scale": blocks.bfloat16()}
    arguments = {**eight, "strategy": "block", "block_structure": [16, 16]}
    yield case("float-8-block16", "float-quantized", arguments, state)
    for name, scale, more in (
        ("channel", whole.abs().amax(1, keepdim=True) / 448, {"strategy": "channel"}),
        ("tensor", (whole.abs().amax() / 448).reshape(1), {"strategy": "tensor"}),
        (
            "g16",
            whole.unflatten(1, (-1, 16)).abs().amax(-1) / 448,
            {"strategy": "group", "group_size": 16},
        ),
    ):
        state = {"weight": whole.bfloat16(), "weight_scale": scale.bfloat16()}
        yield case(f"float-8-{name}", "float-quantized", {**eight, **more}, state)
    four = {"num_bits": 4, "type": "float", "symmetric": True}
    whole_scale = (448 * 6 / whole.abs().amax()).reshape(1).float()
    parts = whole.unflatten(1, (-1, 16)).abs().amax(-1)
    scale = (parts / 6 * whole_scale).to(torch.float8_e4m3fn)
    state = {
        "weight": whole.bfloat16(),
        "weight_scale": scale.bfloat16(),
        "weight_global_scale": whole_scale,
    }
    arguments = {**four, "strategy": "tensor_group", "group_size": 16}
    yield case("nvfp4", "nvfp4-pack-quantized", arguments, state)
    power = torch.exp2(torch.floor(torch.log2(whole.unflatten(1, (-1, 32)).abs().amax(-1))) - 2)
    state = {"weight": whole.bfloat16(), "weight_scale": power.bfloat16()}
    arguments = {**four, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    yield case("mxfp4", "mxfp4-pack-quantized", arguments, state)
    state["weight_scale"] = power.bfloat16() / 64
    arguments = {**eight, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    yield case("mxfp8", "mxfp8-quantized", arguments, state)


def autoawq() -> Iterator[Case]:
    """GEMM, GEMV and GEMV_FAST as AutoAWQ packs them.

    Only GEMM has a dequantiser on a CPU; the kernels of the others compute what stands here.
    """
    stub = types.ModuleType("awq")  # the package itself wants transformers of its time
    found = importlib.util.find_spec("awq")
    assert found is not None
    assert found.submodule_search_locations is not None
    stub.__path__ = list(found.submodule_search_locations)
    sys.modules["awq"] = stub
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.modules.linear.gemv import WQLinear_GEMV
    from awq.modules.linear.gemv_fast import WQLinear_GEMVFast
    from awq.utils.packing_utils import dequantize_gemm

    for form, kind in (
        ("gemm", WQLinear_GEMM), ("gemv", WQLinear_GEMV), ("gemv_fast", WQLinear_GEMVFast),
    ):  # fmt: skip
        for size in (32, 64):
            whole = weight(row=128)
            scales, zeros = grid(whole, 4, size, symmetric=False)
            wide = scales.repeat_interleave(size, 1), zeros.repeat_interleave(size, 1)
            codes = ((whole + wide[0] * wide[1]) / wide[0]).round().clamp(0, 15)
            linear = torch.nn.Linear(128, 32, bias=False)
            linear.weight.data = (codes - wide[1]) * wide[0]
            given = (scales, zeros)
            if form == "gemm":
                given = (scales.T.contiguous(), zeros.T.contiguous())
            module = kind.from_linear(linear, 4, size, False, *(each.half() for each in given))
            state = module.state_dict()
            if form == "gemm":
                state_of = state["qweight"], state["qzeros"], state["scales"]
                dequantised = dequantize_gemm(*state_of, 4, size).T.contiguous()
            elif form == "gemv":
                dequantised = (codes - wide[1]).half() * wide[0].half()
            else:
                offset = -(scales.half() * zeros.float()).half()
                product = codes * wide[0].half().float()
                dequantised = (product + offset.float().repeat_interleave(size, 1)).half()
            config = {
                "quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True,
                "version": form,
            }  # fmt: skip
            yield Case(f"{form}-g{size}", config, named(state, tuple(state)), dequantised)


def autoround() -> Iterator[Case]:
    """The layouts of GPTQ that AutoRound writes: zero points less one or not, ``g_idx`` or not."""
    from auto_round_extension.torch.qlinear_torch import QuantLinear
    from auto_round_extension.torch.qlinear_torch_zp import QuantLinear as LessOne

    for packing, kind, more in (
        ("auto_round:auto_gptq", LessOne, {}),
        ("auto_round", QuantLinear, {}),
        ("auto_round:gptqmodel", QuantLinear, {"g_idx": True}),
    ):
        for bits in (2, 3, 4, 8):
            for symmetric in (True, False):
                whole = weight()
                scales, zeros = grid(whole, bits, 32, symmetric=symmetric)
                linear = torch.nn.Linear(64, 32, bias=False)
                linear.weight.data = whole
                module = kind(bits, 32, 64, 32, False, **more)
                module.device = "cpu"
                middle = int(zeros.flatten()[0]) if symmetric else zeros
                module.pack(linear, scales, middle, None)
                module.eval()
                dequantised = module(torch.eye(64).half()).T.contiguous()
                config = {
                    "quant_method": "auto-round", "packing_format": packing, "bits": bits,
                    "group_size": 32, "sym": symmetric,
                }  # fmt: skip
                name = f"{packing}-{bits}-{'sym' if symmetric else 'asym'}"
                yield Case(name, config, named(module.state_dict(), tuple(_BUFFERS)), dequantised)
    yield _mxint4()


def _mxint4() -> Case:
    from auto_round.experimental.qmodules.mx import MXINT4QuantLinear
    from auto_round.export.export_to_autoround.qlinear_int import QuantLinear

    whole, group = weight(), 32
    power = torch.floor(torch.log2(whole.unflatten(1, (-1, group)).abs().amax(-1)))
    linear = torch.nn.Linear(64, 32, bias=False)
    linear.weight.data = whole
    module = QuantLinear(4, group, 64, 32, False)
    module.pack(linear, power, device="cpu")
    reader = MXINT4QuantLinear.__new__(MXINT4QuantLinear)
    torch.nn.Module.__init__(reader)
    reader.group_size, reader.dtype = group, torch.float32
    dequantised = reader.dequant_mx_tensor(module.weight_packed, module.weight_scale).bfloat16()
    config = {"quant_method": "auto-round", "packing_format": "auto_round:mx_int"}
    config |= {"data_type": "mx_int", "bits": 4, "group_size": group}
    names = ("weight_packed", "weight_scale")
    return Case("mxint4", config, named(module.state_dict(), names), dequantised)


_BUFFERS = ("qweight", "qzeros", "scales", "g_idx")


def bitsandbytes() -> Iterator[Case]:
    """nf4 and fp4, quantised twice and of an odd number of weights; int8."""
    from bitsandbytes import functional as bnb

    for kind in ("nf4", "fp4"):
        for block, nested, shape, dtype in (
            (64, False, (32, 64), torch.bfloat16),
            (64, True, (32, 64), torch.bfloat16),
            (128, True, (30, 65), torch.float16),
            (64, False, (7, 33), torch.float32),
        ):
            whole = weight(*shape).to(dtype)
            codes, state = bnb.quantize_4bit(
                whole, quant_type=kind, blocksize=block, compress_statistics=nested
            )
            dequantised = bnb.dequantize_4bit(codes, state)
            tensors = {f"{MODULE}.weight": codes}
            for key, value in state.as_dict(packed=True).items():
                tensors[f"{MODULE}.weight.{key}"] = value
            name = f"{kind}-{block}{'-nested' if nested else ''}-{shape[0]}x{shape[1]}"
            config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
            yield Case(name, config, tensors, dequantised)
    codes, absmax, _ = bnb.int8_vectorwise_quant(weight().half())
    dequantised = bnb.int8_vectorwise_dequant(codes, absmax)
    tensors = {f"{MODULE}.weight": codes, f"{MODULE}.SCB": absmax}
    tensors[f"{MODULE}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    yield Case("int8", config, tensors, dequantised)


def modelopt() -> Iterator[Case]:
    """What Model Optimizer packs: NVFP4, MXFP4, INT4 AWQ, INT8 and fp8."""
    from modelopt.torch.export import quant_utils as mo
    from modelopt.torch.quantization.qtensor import MXFP4QTensor, NVFP4QTensor

    def case(name: str, algo: str, tensors: dict[str, Tensor], dequantised: Tensor) -> Case:
        config = {"quant_method": "modelopt", "quant_algo": algo, "": {"dtype": "bfloat16"}}
        named_tensors = {f"{MODULE}.{key}": value for key, value in tensors.items()}
        return Case(name, config, named_tensors, dequantised)

    whole = weight().bfloat16()
    found, scale, scale_2 = NVFP4QTensor.quantize(whole, 16)
    dequantised = found.dequantize(
        dtype=torch.bfloat16, scale=scale, double_scale=scale_2, block_sizes={-1: 16}
    )
    tensors = {
        "weight": found._quantized_data,
        "weight_scale": scale,
        "weight_scale_2": scale_2,
        "input_scale": torch.tensor(0.1),
    }
    yield case("nvfp4", "NVFP4", tensors, dequantised)
    columns = torch.linspace(0.5, 2.0, 64).bfloat16()
    folded = found.dequantize(
        dtype=torch.float32, scale=scale, double_scale=scale_2, block_sizes={-1: 16}
    )
    tensors = {**tensors, "pre_quant_scale": columns}
    yield case("nvfp4-awq", "NVFP4_AWQ", tensors, (folded * columns.float()).bfloat16())
    found, scale = MXFP4QTensor.quantize(whole, 32)
    dequantised = found.dequantize(dtype=torch.bfloat16, scale=scale, block_sizes={-1: 32})
    tensors = {"weight": found._quantized_data, "weight_scale": scale.reshape(32, 2)}
    yield case("mxfp4", "W4A8_MXFP4_FP8", tensors, dequantised.reshape(32, 64))
    scale = whole.unflatten(1, (-1, 32)).abs().amax(-1).float() / 7
    packed = mo.to_quantized_weight(whole, scale, "int4_awq", None, 32)
    # Its dequantiser is for another packing: these are the codes that it packs.
    codes = (whole / scale.repeat_interleave(32, 1)).round().clamp(-8, 7).to(torch.int8)
    dequantised = (codes * scale.repeat_interleave(32, 1)).bfloat16()
    tensors = {"weight": packed, "weight_scale": scale}
    yield case("int4-awq", "W4A16_AWQ", tensors, dequantised)
    scale = whole.abs().amax(1).float() / 127
    codes = mo.to_quantized_weight(whole, scale, "int8_sq")
    dequantised = codes.float() * scale[:, None]
    tensors = {"weight": codes, "weight_scale": scale}
    yield case("int8-sq", "W8A8_SQ_PER_CHANNEL", tensors, dequantised.bfloat16())
    scale = whole.abs().amax().float() / 448
    codes = mo.to_quantized_weight(whole, scale, "fp8")
    dequantised = codes.float() * scale
    yield case("fp8", "FP8", {"weight": codes, "weight_scale": scale}, dequantised)


def mlx() -> Iterator[Case]:
    """Every mode, number of bits and group size of MLX."""
    import mlx.core as mx
    import numpy as np

    def torched(array: Any) -> Tensor:
        if array.dtype == mx.bfloat16:
            return torch.from_numpy(np.array(array.astype(mx.float32))).bfloat16()
        return torch.from_numpy(np.array(array))

    def case(mode: str, bits: int, size: int, dtype: Any) -> Case:
        whole = mx.array(weight(16, 128).numpy()).astype(dtype)
        parts = mx.quantize(whole, group_size=size, bits=bits, mode=mode)
        dequantised = mx.dequantize(*parts, group_size=size, bits=bits, mode=mode, dtype=dtype)
        names = ("weight", "scales", "biases")
        tensors = {f"{MODULE}.{n}": torched(p) for n, p in zip(names, parts, strict=False)}
        settings = {"group_size": size, "bits": bits, "mode": mode}
        text = "float16" if dtype == mx.float16 else "bfloat16"
        config = {"": {"quantization": settings, "dtype": text}}
        return Case(f"{mode}-{bits}-g{size}-{text}", config, tensors, torched(dequantised))

    for bits in (2, 3, 4, 5, 6, 8):
        yield case("affine", bits, 32, mx.float16)
    for size in (64, 128):
        yield case("affine", 4, size, mx.bfloat16)
    yield case("mxfp4", 4, 32, mx.bfloat16)
    yield case("mxfp8", 8, 32, mx.bfloat16)
    yield case("nvfp4", 4, 16, mx.bfloat16)
    whole = mx.array(experts(16, 64).numpy()).astype(mx.float16)
    settings = {"group_size": 32, "bits": 4}
    parts = mx.quantize(whole, **settings)
    names = (f"{EXPERTS}.weight", f"{EXPERTS}.scales", f"{EXPERTS}.biases")
    tensors = {n: torched(p) for n, p in zip(names, parts, strict=True)}
    dequantised = torched(mx.dequantize(*parts, **settings))
    yield Case("experts-4-g32", {"": {"quantization": settings}}, tensors, dequantised)


def transformers() -> Iterator[Case]:
    """BitNet, ``metal``, ``mxfp8`` and DeepSeek V4, as transformers packs and reads them."""
    from transformers.integrations.bitnet import pack_weights, unpack_weights

    torch.manual_seed(0)
    values = torch.randint(-1, 2, (32, 64))
    packed = pack_weights(values.clone())
    scale = torch.tensor([13.7], dtype=torch.bfloat16)
    own = unpack_weights.__wrapped__(packed, torch.float32)
    for kind in ("bitlinear", "autobitlinear"):
        whole = own * scale.float() if kind == "autobitlinear" else own * (1 / scale.float())
        config = {"quant_method": "bitnet", "linear_class": kind}
        tensors = {f"{MODULE}.weight": packed, f"{MODULE}.weight_scale": scale}
        yield Case(kind, config, tensors, whole.bfloat16())
    yield from _metal()
    yield from _powers_of_two()


def _metal() -> Iterator[Case]:
    from transformers.integrations import metal_quantization as metal

    for bits, dtype in ((4, torch.bfloat16), (2, torch.float16), (8, torch.bfloat16)):
        packed, scales, biases = metal._affine_quantize_tensor(weight().to(dtype), 32, bits)
        parts = (packed, scales.to(dtype), biases.to(dtype))
        whole = metal._affine_dequantize_tensor(*parts, 32, bits).to(dtype)
        names = (f"{MODULE}.weight", f"{MODULE}.scales", f"{MODULE}.qbiases")
        config = {"quant_method": "metal", "bits": bits, "group_size": 32}
        yield Case(f"metal-{bits}", config, dict(zip(names, parts, strict=True)), whole)


def _powers_of_two() -> Iterator[Case]:
    """fp8 and 4 bits with scales that are exponents: mxfp8, and DeepSeek V4's two layouts."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    reader = Fp8Dequantize(None)

    def powers(whole: Tensor, rows: int, columns: int, top: int) -> Tensor:
        blocks = whole.unflatten(0, (-1, rows)).unflatten(2, (-1, columns)).abs().amax((1, 3))
        return torch.floor(torch.log2(blocks)) - top + 127

    whole = weight(256, 128)
    for name, rows, columns, scale_name, config in (
        ("mxfp8", 1, 32, "weight_scale_inv", {"quant_method": "mxfp8"}),
        ("deepseek-fp8", 128, 128, "scale", {"quant_method": "fp8"}),
    ):
        config["weight_block_size"] = [rows, columns]
        scale = powers(whole, rows, columns, 8).to(torch.uint8)
        wide = torch.exp2(scale.float() - 127).repeat_interleave(rows, 0)
        codes = (whole / wide.repeat_interleave(columns, 1)).to(torch.float8_e4m3fn)
        stored = scale if name == "mxfp8" else scale.view(torch.float8_e8m0fnu)
        dequantised = reader._dequantize_one(codes, stored, torch.bfloat16)
        tensors = {f"{MODULE}.weight": codes, f"{MODULE}.{scale_name}": stored}
        yield Case(name, config, tensors, dequantised)
    whole = weight(32, 64)
    scale = powers(whole, 1, 32, 2).to(torch.uint8)
    torch.manual_seed(1)
    codes = torch.randint(-128, 128, (32, 32)).to(torch.int8)
    stored = scale.view(torch.float8_e8m0fnu)
    tensors = {f"{MODULE}.weight": codes, f"{MODULE}.scale": stored}
    dequantised = reader._dequantize_one(codes, stored, torch.bfloat16)
    yield Case("deepseek-fp4", {"quant_method": "fp8"}, tensors, dequantised)


def hqq() -> Iterator[Case]:
    """Every number of bits of HQQ, along both axes, its settings encoded as tensors."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    for bits, group, axis, dtype in (
        (8, 64, 1, torch.float16), (4, 32, 1, torch.bfloat16), (3, 32, 1, torch.float16),
        (2, 16, 1, torch.float16), (1, 32, 1, torch.float16), (4, 32, 0, torch.float16),
        (3, 64, 0, torch.float16), (4, 64, 1, torch.float32),
    ):  # fmt: skip
        linear = torch.nn.Linear(64, 32, bias=False)
        linear.weight.data = weight().to(dtype)
        config = BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis)
        module = HQQLinear(linear, config, compute_dtype=dtype, device="cpu")
        module.encoded_state_dict = True
        tensors = {f"{MODULE}.{key}": value for key, value in module.state_dict().items()}
        name = f"{bits}-g{group}-axis{axis}-{str(dtype).removeprefix('torch.')}"
        yield Case(name, {"quant_method": "hqq"}, tensors, module.dequantize())


def torchao() -> Iterator[Case]:
    """Tensors of torchao that a CPU makes, flattened for safetensors.

    Those that only a GPU makes are packed as torchao packs them (Int4PlainInt32Tensor), or stand
    in ``torchao-cuda``.
    """
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerAxis,
        PerGroup,
        quantize_,
    )

    def case(name: str, stored: Tensor, whole: Tensor | None = None) -> Case:
        tensors, metadata = flatten_tensor_state_dict({f"{MODULE}.weight": stored})
        whole = stored.dequantize() if whole is None else whole  # type: ignore[no-untyped-call]
        return Case(name, _TORCHAO, tensors, whole, metadata)

    for name, config in (
        ("int8", Int8WeightOnlyConfig()),
        ("float8", Float8WeightOnlyConfig()),
        ("int4-g32", IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))),
        ("int3-channel", IntxWeightOnlyConfig(weight_dtype=torch.int3, granularity=PerAxis(0))),
    ):
        linear = torch.nn.Linear(64, 32, bias=False)
        linear.weight.data = weight().bfloat16()
        quantize_(linear, config)
        yield case(name, linear.weight)
    for dtype, name in (
        (torch.float8_e4m3fn, "mxfp8"),
        (torch.float8_e5m2, "mxfp8-e5m2"),
        (torch.float4_e2m1fn_x2, "mxfp4"),
    ):
        for swizzled in (False, True):
            whole = weight(136, 96).bfloat16()  # not all of a block of 128 x 4 scales
            found = MXTensor.to_mx(whole, dtype, 32, is_swizzled_scales=swizzled)
            yield case(f"{name}{'-swizzled' if swizzled else ''}", found)
    for swizzled in (False, True):
        for scaled in (False, True):
            whole = weight(136, 96).bfloat16()
            amax = per_tensor_amax_to_scale(whole.abs().amax().float()) if scaled else None
            found = NVFP4Tensor.to_nvfp4(whole, per_tensor_scale=amax, is_swizzled_scales=swizzled)
            kind = f"{'-scaled' if scaled else ''}{'-swizzled' if swizzled else ''}"
            yield case(f"nvfp4{kind}", found)
    for words in (False, True):
        stored, whole = _plain_int4(words=words)
        yield case(f"int4-{'words' if words else 'plain'}-g32", stored, whole)


_TORCHAO: dict[str, Any] = {"quant_method": "torchao", "": {"dtype": "bfloat16"}}


def _plain_int4(*, words: bool) -> tuple[Tensor, Tensor]:
    """Int4PlainInt32Tensor or Int4Tensor, as kernels that are not on a CPU make them."""
    from torchao.quantization import Int4PlainInt32Tensor, Int4Tensor

    whole = weight().bfloat16()
    scale, zero = (each.bfloat16() for each in grid(whole.float(), 4, 32, symmetric=False))
    wide = scale.repeat_interleave(32, 1).float()
    codes = (whole.float() / wide + zero.repeat_interleave(32, 1)).round().clamp(0, 15)
    parts = (scale.T.contiguous(), zero.T.contiguous())
    if words:
        packed = (codes[:, 1::2].to(torch.uint8) << 4) | codes[:, ::2].to(torch.uint8)
        parts = (parts[0], parts[1].to(torch.int8))
        exact = (codes - zero.float().repeat_interleave(32, 1)) * wide
        made = Int4PlainInt32Tensor(packed.view(torch.int32), *parts, [1, 32], whole.shape)
        return made, exact.bfloat16()
    signed = (codes - 8).to(torch.int8)
    packed = (signed[:, ::2] & 15) | (signed[:, 1::2] << 4)  # pack_int4 of MSLK
    added = (-(zero.float() - 8) * scale.float()).bfloat16()
    exact = signed.float() * wide + added.float().repeat_interleave(32, 1)
    made = Int4Tensor(packed, parts[0], added.T.contiguous(), [1, 32], whole.shape)
    return made, exact.bfloat16()


def torchao_on_cuda() -> Iterator[Case]:
    """Tiles of tinygemm, which only a GPU packs and multiplies."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int4TilePackedTo4dTensor
    from torchao.quantization.utils import pack_tinygemm_scales_and_zeros

    for name, out, row, group in (("g32", 16, 1024, 32), ("g128-padded", 12, 200, 128)):
        height, width = -(-out // 8) * 8, -(-row // 1024) * 1024
        codes = torch.randint(0, 16, (height, width), dtype=torch.int32, device="cuda")
        codes[:, row:] = 0
        scale = (torch.rand(height, width // group, device="cuda") * 0.05 + 0.001).bfloat16()
        zero = (torch.randn(height, width // group, device="cuda") * 0.1).bfloat16()
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8).contiguous()
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs, 8)
        both = pack_tinygemm_scales_and_zeros(scale, zero)
        one = torch.eye(width, device="cuda").bfloat16()
        whole = torch.ops.aten._weight_int4pack_mm(one, packed, group, both).T[:out, :row]
        stored = Int4TilePackedTo4dTensor(packed, both, [1, group], torch.Size((out, row)))
        tensors, metadata = flatten_tensor_state_dict({f"{MODULE}.weight": stored})
        yield Case(f"tiles-{name}", _TORCHAO, tensors, whole.contiguous(), metadata)


def quanto() -> Iterator[Case]:
    """8 bits of quanto; 4 and 2 bits in groups, in one group a row, of a layer with a bias."""
    from optimum.quanto import freeze, qfloat8, qint2, qint4, qint8, quantize

    for name, kind, row, dtype, biased in (
        ("int8", qint8, 64, torch.bfloat16, False),
        ("float8", qfloat8, 64, torch.bfloat16, False),
        ("int4-g128", qint4, 256, torch.bfloat16, False),
        ("int4-g96", qint4, 192, torch.float16, False),
        ("int4-channel", qint4, 64, torch.float32, False),
        ("int4-bias", qint4, 256, torch.float32, True),
        ("int2-g128", qint2, 256, torch.bfloat16, False),
        ("int2-channel", qint2, 64, torch.float16, False),
    ):
        linear = torch.nn.Sequential(torch.nn.Linear(row, 32, bias=biased))
        linear[0].weight.data = weight(32, row).to(dtype)
        quantize(linear, weights=kind)
        freeze(linear)
        whole = linear[0].weight.dequantize()
        tensors = {
            f"{MODULE}.{key.removeprefix('0.')}": value
            for key, value in linear.state_dict().items()
            if "scale" not in key or "weight" in key
        }
        config = {"quant_method": "quanto", "weights": name.partition("-")[0]}
        yield Case(name, config | {"": {"hidden_size": row}}, tensors, whole)


def exllamav3() -> Iterator[Case]:
    """Random paths, as ExLlamaV3 decodes them: its headers compiled for a CPU, its rotations."""
    where = importlib.util.find_spec("exllamav3")
    assert where is not None
    assert where.submodule_search_locations is not None
    home = Path(where.submodule_search_locations[0])
    for name in ("", ".modules", ".modules.quant", ".modules.quant.exl3_lib"):
        package = types.ModuleType(f"exllamav3{name}")  # the package itself wants CUDA
        package.__path__ = [str(home.joinpath(*name.split(".")[1:]))]
        sys.modules[f"exllamav3{name}"] = package
    for name in ("exllamav3.ext", "exllamav3.model", "exllamav3.model.config", "triton"):
        sys.modules[name] = MagicMock()
    sys.modules["triton.language"] = sys.modules["triton"].language
    from exllamav3.modules.quant.exl3 import LinearEXL3
    from exllamav3.modules.quant.exl3_lib.quantize import tensor_core_perm_i

    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "decode"
        source = Path(__file__).parent / "exl3_on_cpu.cpp"
        include = f"-I{home / 'exllamav3_ext'}"
        command = ["g++", "-O1", "-std=c++20", "-DUSE_ROCM", include, str(source), "-o"]
        subprocess.run([*command, str(program)], check=True)

        def inner(module: Any, room: Tensor, first: int) -> None:
            tiles = module.trellis
            kind = 1 if module.mcg else 2 if module.mul1 else 0
            asked = [str(program), str(round(2 * module.K)), str(kind)]
            answer = subprocess.run(asked, input=plain(tiles), capture_output=True, check=True)
            lanes = torch.frombuffer(bytearray(answer.stdout), dtype=torch.float16).view(-1, 256)
            whole = lanes[:, tensor_core_perm_i("cpu").long()].view(*tiles.shape[:2], 16, 16)
            room.copy_(whole.transpose(1, 2).reshape(room.shape))

        LinearEXL3._reconstruct_inner = inner
        for bits, book, old in (
            (1, "", False), (2, "mcg", False), (3, "mul1", False), (4, "", True),
            (5, "mcg", False), (6, "mul1", False), (7, "", False), (8, "mcg", False),
            (1.5, "mul1", False), (2.5, "mul1", False), (3.5, "mul1", False),
        ):  # fmt: skip
            torch.manual_seed(int(2 * bits))
            tensors = {"trellis": torch.randint(-(1 << 15), 1 << 15, (8, 8, int(16 * bits)))}
            tensors["trellis"] = tensors["trellis"].to(torch.int16)
            if old:
                tensors["su"], tensors["sv"] = torch.randint(-(1 << 15), 1 << 15, (2, 8)).short()
            else:
                tensors["suh"], tensors["svh"] = (torch.randn(2, 128) * 0.1).half()
            if book:
                tensors[book] = torch.tensor(1, dtype=torch.int32)
            module = LinearEXL3(None, 128, 128, **tensors)
            module.su = module.sv = None  # it has unpacked them
            whole = module.get_weight_tensor().T.contiguous()
            tiles = module.get_inner_weight_tensor()
            named_ = {f"{MODULE}.{key}": value for key, value in tensors.items()}
            name = f"{bits}-{book or '3inst'}{'-signs' if old else ''}"
            config = {"quant_method": "exl3", "bits": bits, "": {"hidden_size": 128}}
            yield Case(name, config, named_, whole, before=tiles)


TOOLS: dict[str, tuple[Callable[[], Iterator[Case]], str, tuple[str, ...]]] = {
    "auto-round": (autoround, "auto-round", ("auto-round",)),
    "model-optimizer": (modelopt, "model-optimizer", ("nvidia-modelopt",)),
    "mlx": (mlx, "mlx", ("mlx",)),
    "transformers": (transformers, "bitsandbytes", ("transformers",)),
    "hqq": (hqq, "hqq", ("hqq",)),
    "torchao": (torchao, "torchao", ("torchao",)),
    "torchao-cuda": (torchao_on_cuda, "torchao", ("torch", "torchao")),
    "quanto": (quanto, "quanto", ("optimum-quanto",)),
    "exllamav3": (exllamav3, "exllamav3", ("exllamav3",)),
    "bitsandbytes": (bitsandbytes, "bitsandbytes", ("bitsandbytes",)),
    "autoawq": (autoawq, "autoawq", ("autoawq",)),
    "gptqmodel": (gptqmodel, "gptqmodel", ("gptqmodel",)),
    "compressed-tensors": (compressed_tensors, "llm-compressor", ("compressed-tensors",)),
    "compressed-tensors-0.17": (compressed_tensors, "bitsandbytes", ("compressed-tensors",)),
}
"""What writes them, the environment that has it, and the packages whose versions matter."""
ON_GPU = ("torchao-cuda",)
"""Those that a GPU must write; the others do without."""


def plain(tensor: Tensor) -> bytes:
    """The bytes of a tensor."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes())


def described(case: Case) -> dict[str, Any]:
    """A case as JSON."""
    tensors = {name: _stored(tensor) for name, tensor in case.tensors.items()}
    found: dict[str, Any] = {"config": case.config, "tensors": tensors}
    if case.metadata:
        found["metadata"] = case.metadata
    found["weight"] = _weight_of(case.weight)
    if case.before is not None:
        found["before"] = _weight_of(case.before)
        found["rows"] = _stored(case.weight[::SAMPLED])
    return found


SAMPLED = 16
"""Of how many rows of such a weight one is kept."""


def _stored(tensor: Tensor) -> dict[str, Any]:
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "data": base64.b85encode(zlib.compress(plain(tensor), 9)).decode(),
    }


def _weight_of(tensor: Tensor) -> dict[str, Any]:
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(plain(tensor)).hexdigest(),
    }


def main() -> None:
    """Print what a tool writes."""
    function, _, packages = TOOLS[sys.argv[1]]
    with torch.no_grad():
        cases = {case.name: described(case) for case in function()}
    versions = {name: version(name) for name in packages}
    written = json.dumps({"versions": versions, "cases": cases}, indent=1, default=str)
    sys.stdout.write(f"\n{written}\n")


if __name__ == "__main__":
    main()
