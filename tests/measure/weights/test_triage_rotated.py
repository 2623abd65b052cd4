"""Triage of rotated formats looks at the weight as a whole: the rotation mixes its rows."""

from __future__ import annotations

import pytest
import torch

from engine.formats.grammar import parse_format
from engine.measure.weights import plain
from engine.measure.weights.reconstruction import compare
from engine.quant.quantize import dequantized


def test_errors_of_a_rotated_format_are_those_of_the_whole_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plain, "CHUNK", 4 * 64)
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    weight[3] *= 30
    fmt = parse_format("int4-g32+hadamard")
    found = plain.errors_in(weight, fmt, torch.float16, "up")
    expected = compare(weight, dequantized(weight, fmt, torch.float16))
    assert found.frobenius == pytest.approx(expected.frobenius, rel=1e-12)
    parts = [dequantized(part, fmt, torch.float16) for part in weight.split(4)]
    assert compare(weight, torch.cat(parts)).frobenius != pytest.approx(found.frobenius, rel=1e-3)
