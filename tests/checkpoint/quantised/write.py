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
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

MODULE = "model.layers.0.mlp.up_proj"


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


def weight(out: int = 32, row: int = 64, seed: int = 0) -> Tensor:
    """Weights whose ranges differ by row and are not centred."""
    torch.manual_seed(seed)
    size = torch.linspace(0.5, 2.0, out)[:, None]
    return (torch.randn(out, row) + 0.3 * torch.randn(out, 1)) * size * 0.05


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


TOOLS: dict[str, Callable[[], Iterator[Case]]] = {"gptqmodel": gptqmodel}
PACKAGES = {"gptqmodel": ("gptqmodel",)}


def plain(tensor: Tensor) -> bytes:
    """The bytes of a tensor."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes())


def described(case: Case) -> dict[str, Any]:
    """A case as JSON."""
    tensors = {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "data": base64.b85encode(zlib.compress(plain(tensor), 9)).decode(),
        }
        for name, tensor in case.tensors.items()
    }
    found: dict[str, Any] = {"config": case.config, "tensors": tensors}
    if case.metadata:
        found["metadata"] = case.metadata
    found["weight"] = {
        "dtype": str(case.weight.dtype).removeprefix("torch."),
        "shape": list(case.weight.shape),
        "sha256": hashlib.sha256(plain(case.weight)).hexdigest(),
    }
    return found


def main() -> None:
    """Print what a tool writes."""
    tool = sys.argv[1]
    with torch.no_grad():
        cases = {case.name: described(case) for case in TOOLS[tool]()}
    versions = {name: version(name) for name in PACKAGES[tool]}
    written = json.dumps({"versions": versions, "cases": cases}, indent=1, default=str)
    sys.stdout.write(f"\n{written}\n")


if __name__ == "__main__":
    main()
