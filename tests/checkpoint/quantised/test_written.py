"""Every weight that another tool wrote is read as that tool dequantises it, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.checkpoint import list_layers, read_layer
from tests.checkpoint.quantised.fixtures import all_cases, cases, digest, tensor, written
from tests.checkpoint.quantised.write import SAMPLED


@pytest.mark.parametrize(("tool", "name"), all_cases())
def test_a_weight_is_what_its_tool_dequantises_it_to(tool: str, name: str, tmp_path: Path) -> None:
    checkpoint = written(tmp_path, tool, name)
    (row,) = list_layers(checkpoint)
    weight = read_layer(checkpoint, row)
    case = cases(tool)[name]
    known = case["weight"]
    dtype = getattr(torch, known["dtype"])
    if row.own_bits:
        beside = sum(t.bytes for n, t in checkpoint.tensors.items() if n.endswith(".bias"))
        assert (row.own_bits, weight.dtype) == (8 * (checkpoint.bytes - beside), dtype)
    assert list(row.shape) == known["shape"]
    if "rows" in case:  # summed in another order: see tests.checkpoint.quantised.test_trellis
        expected = tensor(case["rows"])
        off = (weight[::SAMPLED].double() - expected.double()).abs().max()
        assert float(off) <= float(expected.abs().max()) / 2**10
    else:
        assert digest(weight.to(dtype)) == known["sha256"]  # fp8 is read in float32, not rounded


@pytest.mark.parametrize(("tool", "name"), all_cases())
def test_rows_are_those_of_the_whole(tool: str, name: str, tmp_path: Path) -> None:
    checkpoint = written(tmp_path, tool, name)
    weight = list_layers(checkpoint)[0].parts[0]
    whole = checkpoint.read(weight)
    first, last = (1, 2) if whole.ndim == 3 else (3, 7)
    some = checkpoint.read_rows(weight, first, last)
    assert torch.equal(some.view(torch.uint8), whole[first:last].contiguous().view(torch.uint8))
