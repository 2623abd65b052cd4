"""Quantised weights: of layouts that are read, and of those that are only recognised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.faults.traits.trait import add_tensor, change_config, parts, trait, write

LAYER = "model.layers.0.mlp.up_proj"


def _without(folder: Path, name: str) -> None:
    """Take a tensor out of the weight file."""
    header, data = parts(folder)
    start, end = header.pop(name)["data_offsets"]
    for entry in (entry for key, entry in header.items() if key != "__metadata__"):
        entry["data_offsets"] = [at - (end - start) * (at >= end) for at in entry["data_offsets"]]
    write(folder, header, data[:start] + data[end:])


def _fp8(folder: Path, scale: bytes, dtype: str = "F32", shape: tuple[int, ...] = (1,)) -> None:
    """A layer in fp8 with one scale."""
    _without(folder, f"{LAYER}.weight")
    add_tensor(folder, f"{LAYER}.weight", "F8_E4M3", [128, 64], bytes([0x38]) * 128 * 64)
    add_tensor(folder, f"{LAYER}.weight_scale_inv", dtype, list(shape), scale)
    change_config(folder, quantization_config={"quant_method": "fp8"})


NAN, INF = bytes.fromhex("0000c07f"), bytes.fromhex("0000807f")


def _scale(name: str, scale: bytes, *says: str, **given: Any) -> None:
    @trait(f"payload: fp8 with {name}", *says)
    def build(folder: Path) -> None:
        _fp8(folder, scale, **given)


_scale("a scale that is not a number", NAN, f"{LAYER}.weight_scale_inv", "not finite")
_scale("an infinite scale", INF, f"{LAYER}.weight_scale_inv", "not finite")
_scale("a scale of E8M0 255", b"\xff", f"{LAYER}.weight_scale_inv", "not finite", dtype="F8_E8M0")
_scale("a scale of nought", bytes(4))
_scale("a negative scale", bytes.fromhex("000080bf"))
_scale("no scales", b"", f"{LAYER}.weight_scale_inv", "does not fit", shape=(0,))
_scale("scales of integers", b"\1", f"{LAYER}.weight_scale_inv", "int8", dtype="I8")
_scale("scales that do not fit", bytes(4 * 7), f"{LAYER}.weight_scale_inv", "fit", shape=(7,))


def _blocks(name: str, found: object) -> None:
    @trait(f"payload: fp8 in blocks of {name}", f"{LAYER}.weight_scale_inv", "fit")
    def build(folder: Path) -> None:
        _fp8(folder, bytes(4 * 6), shape=(2, 3))
        quantised = {"quant_method": "fp8", "weight_block_size": found}
        change_config(folder, quantization_config=quantised)


_blocks("nought", [0, 0])
_blocks("-1", [-1, 128])
_blocks("2^63", [2**63, 2**63])
_blocks("text", "128")


def _mxfp4(folder: Path, exponent: int, blocks: list[int], scales: list[int]) -> None:
    count, groups = _product(blocks), _product(scales)
    add_tensor(folder, "model.layers.0.mlp.experts.down_proj_blocks", "U8", blocks, bytes(count))
    add_tensor(
        folder, "model.layers.0.mlp.experts.down_proj_scales", "U8", scales,
        bytes([exponent]) * groups,
    )  # fmt: skip
    change_config(folder, quantization_config={"quant_method": "mxfp4"})


def _product(sizes: list[int]) -> int:
    found = 1
    for size in sizes:
        found *= size
    return found


def _block(name: str, *says: str, exponent: int, blocks: list[int], scales: list[int]) -> None:
    @trait(f"payload: mxfp4 with {name}", "down_proj", *says)
    def build(folder: Path) -> None:
        _mxfp4(folder, exponent, blocks, scales)


_block("E8M0 255", "not finite", exponent=255, blocks=[2, 64, 2, 16], scales=[2, 64, 2])
_block("blocks of 15", "shape", exponent=127, blocks=[2, 64, 2, 15], scales=[2, 64, 2])
_block("scales that do not fit", "fit", exponent=127, blocks=[2, 64, 2, 16], scales=[2, 64, 3])
_block("flat blocks", "shape", exponent=127, blocks=[4096], scales=[256])

CODES: dict[str, tuple[str, dict[str, tuple[str, list[int]]], dict[str, Any]]] = {
    "gptq with g_idx": (
        "gptq",
        {"qweight": ("I32", [8, 128]), "g_idx": ("I32", [64]), "scales": ("F16", [1, 128]),
         "qzeros": ("I32", [1, 16])},
        {"quant_method": "gptq", "bits": 4, "group_size": 64},
    ),
    "hqq whose dtype runs": (
        "hqq", {"W_q": ("U8", [64, 64]), "scale": ("F16", [128, 1]), "zero": ("F16", [128, 1]),
                "compute_dtype": ("U8", [40])},
        {"quant_method": "hqq"},
    ),
    "bitsandbytes with a state": (
        "bitsandbytes",
        {"weight.quant_state.bitsandbytes__nf4": ("U8", [60]), "weight.absmax": ("F32", [64])},
        {"quant_method": "bitsandbytes"},
    ),
    "compressed-tensors with a shape": (
        "compressed-tensors",
        {"weight_packed": ("I32", [128, 8]), "weight_shape": ("I64", [2]),
         "weight_scale": ("F16", [128, 1])},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    ),
    "torchao with a type": (
        "torchao", {"_weight_qdata": ("I8", [128, 64]), "_weight_scale": ("F32", [128])},
        {"quant_method": "torchao", "_type": "load", "_data": "load"},
    ),
    "exl3 whose last size is 15": (
        "exl3", {"trellis": ("I16", [8, 4, 15])}, {"quant_method": "exl3"}
    ),
}  # fmt: skip
RUNS = b"__import__('os').mkdir('executed')"
WIDTHS = {"I32": 4, "U8": 1, "F16": 2, "F32": 4, "I64": 8, "I8": 1, "I16": 2}


def _codes(name: str) -> None:
    _, tensors, config = CODES[name]

    @trait(f"payload: {name}", LAYER)
    def build(folder: Path) -> None:
        _without(folder, f"{LAYER}.weight")
        for ending, (dtype, shape) in tensors.items():
            room = _product(shape) * WIDTHS[dtype]
            content = (RUNS if dtype == "U8" else b"\xff").ljust(room, b"\xff")[:room]
            add_tensor(folder, f"{LAYER}.{ending}", dtype, shape, content)
        change_config(folder, quantization_config=config)


for _name in CODES:
    _codes(_name)
