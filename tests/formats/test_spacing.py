"""Formats whose levels are evenly spaced: by the grids that the formats have."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from engine.formats.grammar import parse_format
from engine.formats.spacing import evenly_spaced
from engine.measure.weights.grid import format_grid


@pytest.mark.parametrize(
    "format",
    ["int2-g128", "int4-g128", "int4-g128-sym", "int8", "q4_0", "nf4", "fp4", "mxfp4", "fp8-e4m3"],
)
def test_levels_that_are_evenly_spaced_have_one_gap(format: str) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    levels = format_grid(weight, parse_format(format), torch.float16).levels
    gaps = [high - low for low, high in pairwise(levels)]
    if gaps:  # too many levels are not listed
        assert (max(gaps) < 1.2 * min(gaps)) == evenly_spaced(format)


@pytest.mark.parametrize(
    ("format", "even"),
    [("fp8-e4m3", False), ("iq4_nl", False), ("q4_k", True), ("bf16", True), ("some layout", True)],
)
def test_names_tell_where_levels_are_not_drawn(format: str, even: bool) -> None:
    assert evenly_spaced(format) == even
