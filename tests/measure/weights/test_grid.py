"""The grid drawn on a histogram, against the formulas of integer formats in plain arithmetic."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import pytest
import torch

from engine.formats.grammar import parse_format
from engine.measure.weights.grid import Grid, format_grid, typical_range


def half(value: float) -> float:
    """Rounded to float16 and back, as a stored scale is."""
    return float(torch.tensor(value, dtype=torch.float16))


def typical_group(weight: torch.Tensor, size: int | None) -> list[float]:
    """The group whose largest magnitude is the median of all groups', by brute force."""
    groups = []
    for row in weight.tolist():
        step = size or len(row)
        groups += [row[at : at + step] for at in range(0, len(row), step)]
    groups = [g for g in groups if any(g)]
    groups.sort(key=lambda group: max(map(abs, group)))
    return groups[len(groups) // 2]


def levels(group: list[float], bits: int, symmetric: bool) -> list[float]:
    """Every value that a code can stand for within the group's range."""
    low, high = min(0.0, *group), max(0.0, *group)
    if symmetric:
        scale = half(max(-low, high) / (2 ** (bits - 1) - 0.5))
        return [code * scale for code in range(-(2 ** (bits - 1)), 2 ** (bits - 1))]
    exact = (high - low) / (2**bits - 1)
    zero = round(-low / exact)
    scale = half(exact)
    bottom, top = max(0, round(low / scale) + zero), min(2**bits - 1, round(high / scale) + zero)
    return [(code - zero) * scale for code in range(bottom, top + 1)]


@pytest.mark.parametrize(
    ("text", "bits", "size", "symmetric"),
    [
        ("int2-g32", 2, 32, False),
        ("int3-g64", 3, 64, False),
        ("int4-g32", 4, 32, False),
        ("int4-g128-sym", 4, 128, True),
        ("int4-channel", 4, None, False),
        ("int5-g32-sym", 5, 32, True),
        ("int6-g32", 6, 32, False),
    ],
)
def test_the_levels_are_all_values_a_typical_group_can_take(
    text: str, bits: int, size: int | None, symmetric: bool
) -> None:
    weight = torch.randn(40, 256, generator=torch.Generator().manual_seed(3)) * 0.02
    expected = levels(typical_group(weight, size), bits, symmetric)
    found = format_grid(weight, parse_format(text), torch.float16)
    assert found.levels == pytest.approx(expected, rel=1e-5, abs=1e-9)
    gaps = [b - a for a, b in pairwise(expected)]
    assert found.step == pytest.approx(statistics.median(gaps), rel=1e-4)


def test_one_scale_for_the_tensor_spans_its_whole_range() -> None:
    weight = torch.randn(600, 64, generator=torch.Generator().manual_seed(3))
    weight[431, 7] = 30.0  # a row that no sample would hold
    found = format_grid(weight, parse_format("int4-tensor-sym"), torch.float16)
    assert found.levels[-1] == pytest.approx(7 * half(30 / 7.5), rel=1e-5)


def test_too_many_levels_leave_the_step_alone() -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(3))
    found = format_grid(weight, parse_format("int8"), torch.float16)
    assert found.levels == ()
    assert found.step == pytest.approx(half(max(map(abs, typical_group(weight, None))) / 127.5))


@pytest.mark.parametrize("text", ["fp16", "int4-g128+gptq", "int4-g2", "int8-g3"])
def test_what_is_kept_or_not_built_or_has_no_groups_to_speak_of_has_no_grid(text: str) -> None:
    assert _none(format_grid(torch.randn(8, 256), parse_format(text), torch.float16))


@pytest.mark.parametrize(
    "text",
    ["q2_k", "q4_k", "q6_k", "iq4_nl", "iq4_xs", "kmeans4", "e8-2+hadamard", "int4-g128+clip"],
)
def test_values_that_are_searched_for_or_fitted_make_no_grid(text: str) -> None:
    assert _none(format_grid(torch.randn(8, 256), parse_format(text), torch.float16))


def absmax_of(weight: torch.Tensor, size: int) -> float:
    return max(map(abs, typical_group(weight, size)))


@pytest.mark.parametrize("louder", [-1, 1])
@pytest.mark.parametrize(
    ("text", "size", "count"),
    [
        ("int3-g128", 128, 8),
        ("int4-g128", 128, 16),
        ("int3-g64-sym", 64, 8),
        ("int4-g128-sym", 128, 16),
        ("int4-g4-sym", 4, 16),
        ("nf4-g64", 64, 16),
        ("nf4-g64:dq", 64, 16),
        ("fp4-g64", 64, 15),
        ("mxfp4", 32, 15),
        ("nvfp4", 16, 15),
        ("q4_0", 32, 16),
        ("q4_1", 32, 16),
        ("q5_0", 32, 32),
    ],
)
def test_a_grid_has_every_value_that_the_format_has(
    text: str, size: int, count: int, louder: int
) -> None:
    # Groups reach much further on one side: half of a format's values lie beyond the other.
    weight = torch.randn(40, 256, generator=torch.Generator().manual_seed(3)).abs() * 0.02
    weight = louder * (weight - 0.01)
    assert len(format_grid(weight, parse_format(text), torch.float16).levels) == count


E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


@pytest.mark.parametrize("seed", range(5))
def test_the_values_of_small_floats_are_those_of_the_typical_group(seed: int) -> None:
    """Scales by the formulas of the formats; each lies on a signed table of 4-bit floats."""
    weight = torch.randn(40, 256, generator=torch.Generator().manual_seed(seed)) * 0.02
    peak = absmax_of(weight, 32)
    exponent = math.floor(math.log2(peak)) + (peak / 2 ** math.floor(math.log2(peak)) >= 1.75)
    scales = {"mxfp4": 2.0 ** (exponent - 2)}
    shared = 448 * 6 / float(weight.abs().max())
    stored = torch.tensor(shared * absmax_of(weight, 16) / 6).to(torch.float8_e4m3fn)
    scales["nvfp4"] = float(stored.to(torch.float32)) / shared
    for text, scale in scales.items():
        expected = sorted({sign * scale * value for value in E2M1 for sign in (-1, 1)})
        found = format_grid(weight, parse_format(text), torch.float16)
        assert found.levels == pytest.approx(expected, rel=1e-5)


def test_the_values_of_nf4_are_its_table_times_the_greatest_magnitude() -> None:
    from engine.quant.normal_float import NF4

    weight = torch.randn(40, 256, generator=torch.Generator().manual_seed(3)) * 0.02
    peak = absmax_of(weight, 64)
    found = format_grid(weight, parse_format("nf4-g64"), torch.float16)
    assert found.levels == pytest.approx([peak * value for value in NF4], rel=1e-5)


def _none(grid: Grid) -> bool:
    return grid.levels == () and math.isnan(grid.step)


def test_zeros_broken_weights_and_a_scale_that_overflows_have_no_grid() -> None:
    format = parse_format("int4-g32")
    for weight in (torch.zeros(4, 64), torch.full((4, 64), torch.nan), torch.full((4, 64), 1e9)):
        assert _none(format_grid(weight, format, torch.float16))


def test_weights_that_are_not_finite_count_as_nothing() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    weight[::2, 3] = torch.inf
    found = format_grid(weight, parse_format("int4-g32"), torch.float16)
    assert len(found.levels) == 16
    assert all(math.isfinite(level) for level in found.levels)


def test_of_experts_the_first_that_is_finite_counts() -> None:
    weight = torch.randn(3, 8, 64, generator=torch.Generator().manual_seed(3))
    format = parse_format("int4-g32")
    alone = format_grid(weight[1], format, torch.float16)
    weight[0, 0, 0] = torch.nan
    assert format_grid(weight, format, torch.float16) == alone
    assert _none(format_grid(torch.full((2, 4, 32), torch.nan), format, torch.float16))


def test_the_shorter_group_at_the_end_of_a_row_is_not_typical() -> None:
    weight = torch.ones(4, 40)
    weight[:, 32:] = 100.0
    assert typical_range(weight, parse_format("int4-g32")) == (0.0, 1.0)
    assert typical_range(weight, parse_format("int4-g64")) == (0.0, 100.0)


def test_nothing_of_the_layers_size_is_quantised(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.measure.weights import grid

    seen: list[int] = []
    whole = grid.dequantized

    def spy(weight: torch.Tensor, *given: object) -> torch.Tensor:
        seen.append(weight.numel())
        return whole(weight, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(grid, "dequantized", spy)
    for text in ("int4-g128", "int4-channel", "int4-tensor"):
        format_grid(torch.randn(4000, 512), parse_format(text), torch.float16)
    assert max(seen) < 10_000
