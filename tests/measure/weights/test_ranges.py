"""Group sizes and clipped ranges: every figure against a float64 NumPy formula."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import protocol as p
from engine.client import in_process
from engine.errors import FormatError
from engine.formats.grammar import parse_built
from engine.measure.weights.ranges import (
    GROUPS,
    RATIOS,
    RangeErrors,
    kernels,
    plain,
    range_errors,
    sizes_of,
)
from tests import tiny
from tests.drive import settings as chosen
from tests.drive import until

Array = np.ndarray[Any, Any]


def rounded(
    w: Array, size: int, bits: int, ratio: float, *, symmetric: bool
) -> tuple[Array, Array]:
    """``Ŵ`` of rows in groups, and which weights are beyond the range; scales are float16."""
    approx, beyond = np.zeros_like(w), np.zeros(w.shape, bool)
    q_min, q_max = np.float32(-(2 ** (bits - 1))), np.float32(2 ** (bits - 1) - 1)
    for i in range(w.shape[0]):
        for at in range(0, w.shape[1], size):
            part = w[i, at : at + size]
            lo, hi = min(part.min(), np.float32(0)), max(part.max(), np.float32(0))
            if symmetric:
                hi = max(-lo, hi)
                lo = -hi
            lo, hi = np.float32(lo * np.float32(ratio)), np.float32(hi * np.float32(ratio))
            beyond[i, at : at + size] = (part < lo) | (part > hi)
            steps = q_max - q_min
            scale = max(-lo, hi) / (steps / np.float32(2)) if symmetric else (hi - lo) / steps
            stored = np.float32(np.float16(scale))
            if stored == 0:
                continue
            zero = np.float32(0)
            if not symmetric:
                zero = np.round(np.clip(q_min - lo / np.float32(scale), q_min, q_max))
            codes = np.round(np.clip(part / stored + zero, q_min, q_max))
            approx[i, at : at + size] = (codes - zero) * stored
    return approx, beyond


def expected(
    w: Array, group: int | None, bits: int, sizes: list[int], *, symmetric: bool
) -> RangeErrors:
    exact = w.astype(np.float64)
    noise = []
    for size in sizes:
        approx, _ = rounded(w, size, bits, 1.0, symmetric=symmetric)
        noise.append(float(((approx.astype(np.float64) - exact) ** 2).sum()))
    clips = []
    for ratio in RATIOS:
        approx, beyond = rounded(w, group or w.shape[1], bits, ratio, symmetric=symmetric)
        gap = (approx.astype(np.float64) - exact) ** 2
        clips.append((float(gap[beyond].sum()), float(gap[~beyond].sum()), int(beyond.sum())))
    return RangeErrors(float((exact**2).sum()), w.size, tuple(noise), tuple(clips))


def agree(found: RangeErrors, wanted: RangeErrors) -> None:
    near = {"rel": 1e-5, "abs": 1e-6 * wanted.signal + 1e-30}
    assert found.entries == wanted.entries
    assert found.signal == pytest.approx(wanted.signal, rel=1e-9)
    assert found.noise == pytest.approx(wanted.noise, **near)
    for mine, theirs in zip(found.clips, wanted.clips, strict=True):
        assert mine[2] == theirs[2]
        assert mine[:2] == pytest.approx(theirs[:2], **near)


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(3, 256), (5, 96), (2, 100), (1, 7), (4, 320)]),
    st.sampled_from(["int4-g128", "int3-g32-sym", "int8-channel", "int2-g64", "int4-g48-sym"]),
    st.sampled_from(["normal", "outlier", "positive", "zero row", "constant", "tiny"]),
)
def test_errors_are_those_of_numpy(
    seed: int, shape: tuple[int, int], format: str, kind: str
) -> None:
    random = np.random.default_rng(seed)
    w = (random.normal(size=shape) * 0.02).astype(np.float32)
    if kind == "outlier":
        w[:, 0] *= 64
    elif kind == "positive":
        w = np.abs(w)
    elif kind == "zero row":
        w[0] = 0
    elif kind == "constant":
        w[:] = np.float32(0.25)
    elif kind == "tiny":
        w *= np.float32(1e-7)
    fmt = parse_built(format)
    group = None if fmt.group_size is None else min(fmt.group_size, shape[1])
    sizes = list(sizes_of(shape[1]))
    wanted = expected(w, group, fmt.bits, sizes, symmetric=fmt.symmetric)
    tensor = torch.tensor(w)
    assert not isinstance(kernels(), str)
    agree(range_errors(tensor, fmt, torch.float16, sizes, RATIOS), wanted)
    agree(plain(tensor, fmt, torch.float16, sizes, RATIOS), wanted)


@pytest.mark.parametrize("how", [range_errors, plain])
def test_what_is_not_finite_counts_for_nothing_and_experts_are_rows(how: Any) -> None:
    weight = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    clean = weight.clone()
    clean[0, 1, 3], clean[1, 0, 9] = 0, 0
    weight[0, 1, 3], weight[1, 0, 9] = math.nan, math.inf
    fmt = parse_built("int4-g32")
    found = how(weight, fmt, torch.bfloat16, (32, 64), RATIOS)
    whole = how(clean.reshape(8, 64), fmt, torch.bfloat16, (32, 64), RATIOS)
    assert found.entries == whole.entries - 2
    assert found.noise == pytest.approx(whole.noise)
    for mine, theirs in zip(found.clips, whole.clips, strict=True):
        assert mine == pytest.approx(theirs)


def test_a_scale_that_overflows_is_refused_by_name() -> None:
    weight = torch.full((1, 32), 1e6)
    fmt = parse_built("int4-g32")
    for how in (range_errors, plain):
        with pytest.raises(FormatError, match="o_proj"):
            how(weight, fmt, torch.float16, (32,), RATIOS, "o_proj")


def test_sizes_at_least_as_large_as_a_row_are_one() -> None:
    assert sizes_of(256) == (32, 64, 128, 256)
    assert sizes_of(4096) == (32, 64, 128, 256, 4096)
    assert sizes_of(16) == (16,)
    assert GROUPS[-1] == 0


def test_an_answer_is_kept_and_read_again(tmp_path: Path) -> None:
    source = tiny.build("llama", tmp_path / "llama")
    layer = "model.layers.1.mlp.down_proj"
    found = []
    for _ in range(2):
        client = in_process(str(source))
        try:
            client.send(p.Open(str(source), chosen(), model=False))
            until(client, lambda event: isinstance(event, p.LayersListed))
            client.send(p.AskRanges(layer, "int4-g32+clip"))
            events = until(
                client,
                lambda event: (
                    isinstance(event, p.Learned)
                    and any(isinstance(fact, p.LayerRanges) for fact in event.facts)
                ),
            )
        finally:
            client.close()
        learnt = events[-1]
        assert isinstance(learnt, p.Learned)
        found.append((learnt.fresh, learnt.facts[0]))
    assert [fresh for fresh, _ in found] == [True, False]
    assert found[0][1] == found[1][1]
    fact = found[0][1]
    assert isinstance(fact, p.LayerRanges)
    assert [each.format for each in fact.groups] == ["int4-g32", "int4-g64", "int4-channel"]
    for clip in fact.clips:
        assert clip.total**2 == pytest.approx(clip.clipping**2 + clip.rounding**2)
    assert (fact.clips[0].ratio, fact.clips[0].clipped) == (1.0, 0)
    assert fact.clips[0].total == pytest.approx(fact.groups[0].relative)
    sizes = [each.bits for each in fact.groups]
    assert sizes == sorted(sizes, reverse=True)


def test_a_format_without_groups_is_refused(tmp_path: Path) -> None:
    source = tiny.build("llama", tmp_path / "llama")
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), chosen(), model=False))
        until(client, lambda event: isinstance(event, p.LayersListed))
        client.send(p.AskRanges("model.layers.1.mlp.down_proj", "nf4"))
        refused = until(client, lambda event: isinstance(event, p.Refused))[-1]
    finally:
        client.close()
    assert isinstance(refused, p.Refused)
    assert "no groups to vary" in refused.message
