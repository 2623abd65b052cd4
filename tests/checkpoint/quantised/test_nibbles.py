"""Weights looked up by packed codes, against codes that are unpacked and computed one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.checkpoint import list_layers
from engine.checkpoint.packed import nibbles
from engine.checkpoint.packed.grid import Grid
from engine.measure.weights.stored import stored_codes
from tests.checkpoint.quantised.fixtures import MODULE, WEIGHT, save

OUT, INPUTS = 301, 1024
"""Rows that no tile divides, and more weights than are computed one by one."""


def words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)


def scales(*shape: int) -> Tensor:
    """Among them negative, subnormal, zero, infinite, NaN."""
    found = torch.randn(shape) * 0.01
    odd = torch.tensor([0.0, 1e-7, -3e-6, torch.inf, torch.nan, 6e4])
    found.view(-1)[: len(odd)] = odd
    return found


def gptq(group: int, version: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    groups, out = INPUTS // group, 304
    stored = {
        "qweight": words(INPUTS // 8, out),
        "qzeros": words(groups, out // 8),
        "scales": scales(groups, out).half(),
        "g_idx": (torch.arange(INPUTS) // group).int(),
    }
    config = {"quant_method": "gptq", "bits": 4, "group_size": group, "sym": False}
    return stored, config | {"checkpoint_format": version}


def packed(group: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Any]]:
    stored = {
        "weight_packed": words(OUT, INPUTS // 8),
        "weight_scale": scales(OUT, INPUTS // group).to(dtype),
        "weight_shape": torch.tensor([OUT, INPUTS]),
    }
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": group}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return stored, {"quant_method": "compressed-tensors", "config_groups": groups}


CASES = {
    "gptq-128": gptq(128, "gptq"),
    "gptq-32-v2": gptq(32, "gptq_v2"),
    "gptq-row": gptq(INPUTS, "gptq"),
    "packed-float16": packed(64, torch.float16),
    "packed-bfloat16": packed(256, torch.bfloat16),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_looked_up_is_what_is_computed(case: str, tmp_path: Path) -> None:
    stored, config = CASES[case]
    checkpoint = save(tmp_path, {f"{MODULE}.{k}": v for k, v in stored.items()}, config)
    grid = checkpoint.quantised[WEIGHT].load()
    assert isinstance(grid, Grid)
    assert grid.nibbles is not None
    plain = replace(grid, nibbles=None)
    assert nibbles.kernels() is not None
    for first, last in ((0, len(grid.scales)), (7, 300)):
        assert grid.nibbles.looks_up(grid.scales.shape[1], grid.dtype, last - first)
        assert torch.equal(
            grid.rows(first, last).view(torch.int16), plain.rows(first, last).view(torch.int16)
        )
    row = list_layers(checkpoint)[0]
    counted = stored_codes(checkpoint, row)
    object.__setattr__(checkpoint.quantised[WEIGHT], "load", lambda: plain)
    one_by_one = stored_codes(checkpoint, row)
    assert repr(counted) == repr(one_by_one)  # NaN among them


def test_without_the_compiler_codes_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, config = CASES["gptq-128"]
    checkpoint = save(tmp_path, {f"{MODULE}.{k}": v for k, v in stored.items()}, config)
    fast = checkpoint.quantised[WEIGHT].read()
    monkeypatch.setattr(nibbles, "kernels", lambda: None)
    slow = checkpoint.quantised[WEIGHT].read()
    assert torch.equal(fast.view(torch.int16), slow.view(torch.int16))
