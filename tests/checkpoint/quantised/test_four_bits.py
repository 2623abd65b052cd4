"""Weights out of packed codes by a compiled loop, against those computed one by one."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.checkpoint import Checkpoint, dequantised_rows, list_layers
from engine.checkpoint.dequantised_rows import packed_rows
from engine.checkpoint.packed import four_bits
from engine.checkpoint.packed.grid import Grid
from engine.measure.compare.readings import _of_order
from engine.measure.weights.stored import stored_codes
from tests.checkpoint.quantised.fixtures import MODULE, WEIGHT, all_cases, save, written

OUT, INPUTS = 304, 1024
"""Rows that no tile divides, and more weights than are computed one by one."""
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
Stored = tuple[dict[str, Tensor], dict[str, Any]]


def words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)


def scales(dtype: torch.dtype, *shape: int) -> Tensor:
    """Most as quantisers write them; rows of subnormal products and overflowing ones; and single
    ones that are negative, subnormal, zero, infinite, NaN."""
    found = torch.randn(shape).abs() * 0.01
    found.view(-1)[::7] *= 1e-3
    found.view(-1)[::11] *= 1e6
    odd = torch.tensor([0.0, 1e-7, -3e-6, torch.inf, -torch.inf, torch.nan, 6e4, 65504.0, -0.0])
    found.view(-1)[5 : 5 + len(odd)] = odd
    return found.to(dtype)


def gptq(
    group: int,
    version: str,
    dtype: torch.dtype = HALF,
    out: int = OUT,
    inputs: int = INPUTS,
    index: Tensor | None = None,
    **config: Any,
) -> Stored:
    groups = -(-inputs // group)
    stored = {
        "qweight": words(-(-inputs // 8), out),
        "qzeros": words(groups, -(-out // 8)),
        "scales": scales(dtype, groups, out),
        "g_idx": (torch.arange(inputs) // group if index is None else index).int(),
    }
    said = {"quant_method": "gptq", "bits": 4, "group_size": group, "sym": False}
    return stored, said | {"checkpoint_format": version} | config


def gemm(group: int, dtype: torch.dtype = HALF, inputs: int = INPUTS) -> Stored:
    groups = inputs // group
    stored = {
        "qweight": words(inputs, OUT // 8),
        "qzeros": words(groups, OUT // 8),
        "scales": scales(dtype, groups, OUT),
    }
    return stored, {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}


def gemv(group: int) -> Stored:
    width = -(-INPUTS // group // 8)
    stored = {
        "qweight": words(OUT - 3, INPUTS // 8),
        "qzeros": words(OUT - 3, width),
        "scales": scales(HALF, OUT - 3, 8 * width),
    }
    return stored, {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemv"}


def packed(
    group: int,
    dtype: torch.dtype,
    zeros: str = "",
    out: int = OUT - 3,
    inputs: int = INPUTS,
    index: Tensor | None = None,
    experts: int = 0,
    whole: tuple[int, ...] | None = None,
) -> Stored:
    groups, each = -(-inputs // group), (experts,) if experts else ()
    shape = (*each, out, groups) if whole is None else whole
    stored = {
        "weight_packed": words(*each, out, -(-inputs // 8)),
        "weight_scale": scales(dtype, *shape)
        if whole is None
        else torch.full(shape, 0.01).to(dtype),
        "weight_shape": torch.tensor([*each, out, inputs]),
    }
    if zeros == "packed":
        stored["weight_zero_point"] = words(*each, -(-out // 8), groups)
    elif zeros == "int8":
        stored["weight_zero_point"] = torch.randint(-128, 128, shape, dtype=torch.int8)
    if index is not None:
        stored["weight_g_idx"] = index.int()
    weights = {"num_bits": 4, "type": "int", "symmetric": not zeros, "group_size": group}
    config = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return stored, {"quant_method": "compressed-tensors", "config_groups": config}


def shuffled(group: int, inputs: int = INPUTS) -> Tensor:
    """Act order: columns in any order, each with its group."""
    return (torch.arange(inputs) // group)[torch.randperm(inputs)]


NEVER = re.compile(r"(?!)")
KNOWN = {
    "gptqmodel": re.compile(r"gptq(_v2)?-4-.*"),
    "autoawq": re.compile(r"gem[mv]-.*"),
    "auto-round": re.compile(r"auto_round.*-4-.*"),
    "compressed-tensors": re.compile(r"(pack|experts)-4-.*"),
}
"""What the compiled loop knows, by tool."""
BY_GPTQMODEL = {"meta": {"quantizer": ["gptqmodel:7.7.0"]}}
CASES = {
    "gptq-128": gptq(128, "gptq"),
    "gptq-32-v2": gptq(32, "gptq_v2"),
    "gptq-row": gptq(INPUTS, "gptq"),
    "gptq-bfloat16": gptq(64, "gptq", BRAIN),
    "gptq-borrowed": gptq(64, "gptq", **BY_GPTQMODEL),
    "gptq-act-order": gptq(128, "gptq_v2", index=shuffled(128)),
    "gptq-act-order-bfloat16": gptq(32, "gptq", BRAIN, index=shuffled(32)),
    "gptq-unused-index": gptq(64, "gptq", index=torch.zeros(INPUTS)),
    "gptq-short-group": gptq(96, "gptq"),
    "gptq-odd": gptq(128, "gptq_v2", out=299, inputs=1003),
    "gptq-odd-act-order": gptq(128, "gptq", out=299, inputs=1003, index=shuffled(128, 1003)),
    "awq-gemm-128": gemm(128),
    "awq-gemm-32-bfloat16": gemm(32, BRAIN),
    "awq-gemm-odd": gemm(17, inputs=1020),
    "awq-gemv-128": gemv(128),
    "awq-gemv-64": gemv(64),
    "packed-float16": packed(64, HALF),
    "packed-bfloat16": packed(256, BRAIN),
    "packed-zeros": packed(32, HALF, "packed"),
    "packed-zeros-bfloat16": packed(128, BRAIN, "packed"),
    "packed-int8-zeros": packed(128, HALF, "int8"),
    "packed-short-group": packed(96, BRAIN, "packed"),
    "packed-odd": packed(128, HALF, inputs=1003),
    "packed-odd-zeros": packed(128, BRAIN, "packed", inputs=1003),
    "packed-act-order": packed(128, BRAIN, "packed", index=shuffled(128)),
    "packed-tensor": packed(INPUTS, BRAIN, whole=(1,)),
    "packed-experts": packed(128, BRAIN, "packed", out=100, experts=3),
}


def checkpoint_of(case: str, folder: Path) -> Checkpoint:
    stored, config = CASES[case]
    return save(folder, {f"{MODULE}.{k}": v for k, v in stored.items()}, config)


def bits(weight: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Of numbers of 16 bits; all NaN alike, whose other bits depend on the processor."""
    found = weight.contiguous().view(torch.uint16).numpy().copy()
    found[weight.isnan().numpy()] = 0xFFFF
    return found


def spans(height: int) -> Iterator[tuple[int, int]]:
    """Around tiles, and words of eight rows."""
    ends = (0, 1, 7, 8, 9, 127, 128, 129, 137, 264, height)
    return itertools.combinations(sorted({min(end, height) for end in ends}), 2)


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_plain_arithmetic(case: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(case, tmp_path)
    (weight,) = checkpoint.quantised.values()
    grid = weight.load()
    assert isinstance(grid, Grid)
    assert four_bits.kernels() is not None
    some = packed_rows(weight)
    assert some is not None
    plain = replace(grid, packed=None).rows(0, weight.height)
    assert np.array_equal(bits(grid.rows(0, weight.height)), bits(plain))
    for first, last in spans(weight.height):
        wide = np.full((last - first, weight.shape[-1]), np.float32(7.0))
        some.fill(first, wide)
        found = torch.from_numpy(wide)
        # Numbers of 16 bits already: nothing is rounded here.
        whole = found.to(plain.dtype)
        assert torch.equal(whole.float().nan_to_num(9.0), found.nan_to_num(9.0))
        assert np.array_equal(bits(whole), bits(plain[first:last]))


@pytest.mark.parametrize("case", CASES)
def test_codes_and_scales_are_counted_as_one_by_one(case: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(case, tmp_path)
    (layer,) = list_layers(checkpoint)
    (name,) = checkpoint.quantised
    fast = stored_codes(checkpoint, layer)
    held = stored_codes(checkpoint, layer, dequantised_rows(checkpoint, layer))
    slow = replace(checkpoint.quantised[name], packed=None)
    plain = replace(checkpoint, quantised={name: slow})
    assert repr(fast) == repr(held) == repr(stored_codes(plain, layer))  # NaN among them


@pytest.mark.parametrize("keep", [0x77777777, 0x33333333, 0x11111111, 0])
@pytest.mark.parametrize("case", ["gptq-odd", "awq-gemm-128", "packed-odd"])
def test_codes_that_do_not_occur(keep: int, case: str, tmp_path: Path) -> None:
    stored, config = CASES[case]
    first, *rest = stored
    spoilt = {first: stored[first] & keep} | {name: stored[name] for name in rest}
    checkpoint = save(tmp_path, {f"{MODULE}.{k}": v for k, v in spoilt.items()}, config)
    weight = checkpoint.quantised[WEIGHT]
    some = packed_rows(weight)
    assert some is not None
    found = some.count()
    codes = weight.load().codes(0, weight.height).codes
    counts = torch.bincount(codes.flatten().int(), minlength=16)
    assert (found.total, found.lowest, found.highest) == (
        codes.numel(), int(counts[0]), int(counts[15]),
    )  # fmt: skip
    assert found.used.tolist() == (counts > 0).tolist()


@pytest.mark.parametrize(
    ("tool", "name"),
    [each for each in all_cases() if KNOWN.get(each[0], NEVER).fullmatch(each[1])],
)
def test_what_tools_write_is_read_alike(tool: str, name: str, tmp_path: Path) -> None:
    (weight,) = written(tmp_path, tool, name).quantised.values()
    some = packed_rows(weight)
    assert some is not None
    wide = np.empty((weight.height, weight.shape[-1]), np.float32)
    some.fill(0, wide)
    found = weight.load()
    assert isinstance(found, Grid)
    plain = replace(found, packed=None).rows(0, weight.height)
    assert torch.equal(torch.from_numpy(wide), plain.float())


def test_codes_read_in_another_order_are_not_those_that_are_stored(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("gptq-128", tmp_path)
    grid = checkpoint.quantised[WEIGHT].load()
    assert isinstance(grid, Grid)
    turned = grid.changed(unpack=lambda first, last: 15 - grid.unpack(first, last))
    plain = replace(grid, packed=None, unpack=turned.unpack)
    assert np.array_equal(bits(turned.rows(0, OUT)), bits(plain.rows(0, OUT)))
    assert not np.array_equal(bits(turned.rows(0, OUT)), bits(grid.rows(0, OUT)))
    other = next(
        change
        for _, _, change in _of_order(checkpoint.quantised[WEIGHT], grid, turned.rows(0, 1), 0)
    )(grid)
    assert not np.array_equal(bits(other.rows(0, OUT)), bits(grid.rows(0, OUT)))


def test_scales_in_float32_are_left_to_plain_arithmetic(tmp_path: Path) -> None:
    stored, config = gptq(128, "gptq", SINGLE)
    checkpoint = save(tmp_path, {f"{MODULE}.{k}": v for k, v in stored.items()}, config)
    assert checkpoint.quantised[WEIGHT].packed is None


def test_without_the_compiler_codes_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of("gptq-128", tmp_path)
    fast = checkpoint.quantised[WEIGHT].read()
    monkeypatch.setattr(four_bits, "kernels", lambda: None)
    (layer,) = list_layers(checkpoint)
    rows = dequantised_rows(checkpoint, layer)
    assert rows is not None
    assert rows.read_as == rows.dtype == "float16"
    assert np.array_equal(bits(fast), bits(checkpoint.quantised[WEIGHT].read()))
    room = bytearray(2 * fast.numel())
    rows.read(0, memoryview(room))
    found = torch.frombuffer(room, dtype=torch.float16).view(fast.shape)
    assert np.array_equal(bits(fast), bits(found))


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        ("gptqmodel", "gptq-4-sym-g32"),
        ("autoawq", "gemm-g64"),
        ("compressed-tensors", "pack-4-asym-g32"),
    ],
)
def test_reading_rows_and_counting_codes_imports_no_torch(
    tool: str, name: str, tmp_path: Path
) -> None:
    written(tmp_path, tool, name)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from engine.checkpoint import dequantised_rows, list_layers, open_checkpoint\n"
        "from engine.measure.weights.stored import stored_codes\n"
        f"checkpoint = open_checkpoint(Path({str(tmp_path)!r}))\n"
        "(layer,) = list_layers(checkpoint)\n"
        "rows = dequantised_rows(checkpoint, layer)\n"
        "rows.read(0, memoryview(bytearray(4 * rows.width)))\n"
        "assert stored_codes(checkpoint, layer, rows).levels == 16\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
