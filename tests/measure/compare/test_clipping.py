"""Weights beyond the ends of their grid, and the number that scales were made with."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.checkpoint.packed.grid import Grid
from engine.checkpoint.weight import QuantisedWeight
from engine.measure.compare.clipping import clipping
from tests.checkpoint.quantised.fixtures import cases, tensors, written
from tests.measure.compare.test_mislabelled import against, originals

OUT, IN, GROUP = 24, 64, 16


def stored(
    scale: Tensor, zeros: Tensor | None, levels: int = 16, index: Tensor | None = None
) -> QuantisedWeight:
    """A weight of a grid; only its ends count."""
    middle = 0 if zeros is not None else levels // 2
    grid = Grid(
        lambda a, b: torch.zeros(b - a, IN, dtype=torch.uint8), scale, torch.float32, levels, zeros,
        middle, index,
    )  # fmt: skip
    return QuantisedWeight("w", (OUT, IN), "float32", "gptq", "int4-g16", (), 0, lambda: grid)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("indexed", [True, False])
def test_weights_beyond_the_grid_are_counted_channel_by_channel(
    symmetric: bool, indexed: bool
) -> None:
    chance = torch.Generator().manual_seed(1)
    weight = torch.randn(OUT, IN, generator=chance)
    weight[:, 5] *= 4
    weight[7] *= 3
    scale = 0.1 + 0.2 * torch.rand(OUT, IN // GROUP, generator=chance)
    zeros = None if symmetric else torch.randint(4, 12, scale.shape, generator=chance)
    index = torch.arange(IN) % (IN // GROUP) if indexed else None
    found = clipping([(stored(scale, zeros, index=index), 0)], weight)

    group = torch.arange(IN) // GROUP if index is None else index
    wide = scale[:, group].double()
    zero = 8.0 if zeros is None else zeros[:, group].double()
    code = weight.double() / wide + zero
    rounded_scale = 16 / 256
    beyond = (code < -0.5 - rounded_scale) | (code > 15.5 + rounded_scale)
    assert found.share == pytest.approx(float(beyond.double().mean()), rel=1e-9)
    assert found.input == int(beyond.sum(0).argmax()) == 5
    assert found.input_share == pytest.approx(float(beyond[:, 5].double().mean()), rel=1e-9)
    assert found.output == int(beyond.sum(1).argmax()) == 7
    assert found.output_share == pytest.approx(float(beyond[7].double().mean()), rel=1e-9)
    assert math.isnan(found.divisor)  # these scales are of no weight


@pytest.mark.parametrize("divisor", [7.0, 7.5, 8.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_the_largest_weight_is_divided_by_is_read_from_scales(
    divisor: float, dtype: torch.dtype
) -> None:
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(2))
    scale = (weight.view(OUT, -1, GROUP).abs().amax(-1) / divisor).to(dtype)
    assert clipping([(stored(scale, None), 0)], weight).divisor == divisor
    # Symmetric, and stored with zero points all the same, as GPTQ does.
    zeros = torch.full(scale.shape, 8)
    assert clipping([(stored(scale, zeros), 0)], weight).divisor == divisor


@pytest.mark.parametrize(
    ("tool", "name", "divisor"),
    [
        ("autoawq", "gemm-g32", 15.0),
        ("gptqmodel", "gptq-4-sym-g32", 7.5),
        ("gptqmodel", "gptq-3-asym-g32", 7.0),
        ("compressed-tensors", "pack-4-sym-g32", 7.5),
        ("auto-round", "auto_round-4-sym", 7.5),
        ("model-optimizer", "int4-awq", 7.0),
        ("torchao", "int4-g32", 7.5),
    ],
)
def test_every_tool_s_own_number(tool: str, name: str, divisor: float, tmp_path: Path) -> None:
    case = cases(tool)[name]
    config = dict(case["config"])
    more = config.pop("", {})
    whole = originals(written(tmp_path / "read", tool, name))
    found = against(tmp_path, tensors(case), config, whole, metadata=case.get("metadata"), **more)
    facts = [fact for fact in found.layers.values() if fact.rounding != "same"]
    assert {(fact.divisor, fact.clipped) for fact in facts} == {(divisor, 0.0)}
