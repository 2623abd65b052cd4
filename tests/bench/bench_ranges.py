"""All group sizes and clipped ranges of a layer: one compiled pass against plain torch functions.

The plain functions are what one would write: a weight is quantised as `dequantized` does it, once
for every group size, and once more for every ratio with narrowed ranges, in float32; each is
compared with the weight. Both in one run, in turns; the best of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.formats.grammar import parse_built
from engine.measure.weights.ranges import RATIOS, kernels, range_errors, sizes_of, with_group
from engine.quant.integer import integer_codes, integer_values, quantization_parameters
from engine.quant.quantize import dequantized
from engine.quant.quantized import in_groups

SHAPES = ((1024, 1024), (2048, 4096))
FORMAT = "int4-g128"
TURNS = 3


def straightforward(weight: Tensor) -> list[float]:
    """Errors by plain functions, one after the other."""
    fmt, dtype = parse_built(FORMAT), torch.float16
    exact, found = weight.float(), []
    for size in sizes_of(weight.shape[1]):
        held = with_group(fmt, 0 if size == weight.shape[1] else size)
        found.append(float((dequantized(weight, held, dtype) - exact).square().sum()))
    for ratio in RATIOS:
        groups = in_groups(exact, fmt.group_size)
        lo, hi = groups.amin(-1) * ratio, groups.amax(-1) * ratio
        parameters = quantization_parameters(lo, hi, fmt, dtype)
        approx = integer_values(integer_codes(groups, parameters, fmt), parameters)
        gap = (approx - groups).square()
        beyond = (groups < lo.unsqueeze(-1)) | (groups > hi.unsqueeze(-1))
        found += [float(gap[beyond].sum()), float(gap[~beyond].sum()), float(beyond.sum())]
    return found


def fused(weight: Tensor) -> list[float]:
    """The same by one pass."""
    sizes = sizes_of(weight.shape[1])
    found = range_errors(weight, parse_built(FORMAT), torch.float16, sizes, RATIOS)
    return [*found.noise, *(float(each) for clip in found.clips for each in clip)]


def timed(run: Callable[[Tensor], list[float]], weight: Tensor) -> tuple[float, list[float]]:
    """Seconds, and what it found."""
    begun = time.perf_counter()
    found = run(weight)
    return time.perf_counter() - begun, found


@pytest.mark.parametrize("shape", SHAPES)
def test_one_pass_is_eight_times_as_fast_as_plain_functions(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    assert not isinstance(why := kernels(), str), why
    weight = (torch.randn(shape) * 0.02).to(torch.float16)
    seconds: dict[str, float] = {}
    figures: dict[str, list[float]] = {}
    for _ in range(TURNS):
        for run in (straightforward, fused):
            spent, figures[run.__name__] = timed(run, weight)
            seconds[run.__name__] = min(spent, seconds.get(run.__name__, spent))
    pairs = zip(figures["straightforward"], figures["fused"], strict=True)
    assert all(abs(a - b) <= 1e-4 * abs(a) for a, b in pairs), "figures differ"
    ratio = seconds["straightforward"] / seconds["fused"]
    print(
        f"{shape[0]} by {shape[1]}: plain {1000 * seconds['straightforward']:.0f} ms, one pass "
        f"{1000 * seconds['fused']:.0f} ms, {ratio:.1f} times as fast"
    )
    assert ratio >= 8
