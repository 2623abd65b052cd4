"""The grid drawn on a histogram, against the formulas of integer formats in plain arithmetic."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import pytest
import torch

from engine.measure.grid import Grid, format_grid, typical_range
from engine.quant import parse_format


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
        codes = range(
            max(-(2 ** (bits - 1)), round(low / scale)),
            min(2 ** (bits - 1) - 1, round(high / scale)) + 1,
        )
        return [code * scale for code in codes]
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


@pytest.mark.parametrize(
    "text",
    [
        *("fp16", "int4-g128+gptq"),
        *("q4_k", "iq4_nl", "kmeans4", "e8-2+hadamard", "int4+clip", "nf4+clip", "int4+hqq"),
    ],
)
def test_what_is_kept_not_built_or_fitted_to_the_weights_has_no_grid(text: str) -> None:
    assert _none(format_grid(torch.randn(8, 256), parse_format(text), torch.float16))


@pytest.mark.parametrize(("text", "levels"), [("nf4", 16), ("mxfp4", 15), ("q4_0", 16)])
def test_small_floats_and_tables_have_one(text: str, levels: int) -> None:
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(4))
    found = format_grid(weight, parse_format(text), torch.float16)
    assert levels - 3 <= len(found.levels) <= levels  # the lesser end may not reach the last


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
    from engine.measure import grid

    seen: list[int] = []
    whole = grid.dequantized

    def spy(weight: torch.Tensor, *given: object) -> torch.Tensor:
        seen.append(weight.numel())
        return whole(weight, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(grid, "dequantized", spy)
    for text in ("int4-g128", "int4-channel", "int4-tensor"):
        format_grid(torch.randn(4000, 512), parse_format(text), torch.float16)
    assert max(seen) < 10_000
