"""Errors of channels and the map of a weight's errors, against float64 NumPy."""

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
from engine.checkpoint import read_layer
from engine.formats.grammar import parse_format
from engine.measure.errors import channels
from engine.measure.errors.attention import divergence
from engine.measure.errors.channels import ChannelSums
from engine.measure.errors.weight_map import CELLS, ErrorMap, draw_error_map
from engine.model.network import StandIn
from engine.quant.quantize import dequantized
from engine.store.facts import FactStore
from tests import tiny
from tests.drive import open_files
from tests.drive import settings as chosen

CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["normal", "giant", "dead", "kept", "inputs"]),
    st.sampled_from([64, 1 << 24]),
)
def test_channels_are_numpy_s_however_they_are_split(
    seed: int, out: int, width: int, kind: str, chunk: int
) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(24, width)).astype(np.float32)
    w = random.normal(size=(out, width)).astype(np.float32)
    approx = w + 0.3 * random.normal(size=w.shape).astype(np.float32)
    if kind == "giant":
        w[out // 2] *= 1e4
        x[:, width // 2] *= 1e3
    elif kind == "dead":
        w[out // 2] = 0
    elif kind == "kept":
        approx = w.copy()
    held: Any = torch.tensor(approx)
    changed = x
    if kind == "inputs":
        changed = x.round()
        held = StandIn(held, torch.round)
    total = ChannelSums.empty((out, width), CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channels, "CHUNK", chunk)
        for part in np.split(x, 3):
            sums = ChannelSums.empty((out, width), CPU)
            sums.add(torch.tensor(part), torch.tensor(w), held, None)
            total.merge(sums)
    fact = total.fact("a", "int4", "", experts=False)
    y = x.astype(np.float64) @ w.T.astype(np.float64)
    apart = np.abs(changed.astype(np.float64) @ approx.T.astype(np.float64) - y)
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where(apart.mean(0) == 0, 0, apart.mean(0) / np.abs(y).mean(0))
    assert fact.channels == out
    assert fact.tokens == len(x)
    assert fact.nonfinite == 0
    order = np.sort(errors)[::-1][: channels.LISTED]
    assert fact.worst_errors == pytest.approx(order[order > 0].tolist(), rel=1e-3)
    assert [errors[at] for at in fact.worst] == pytest.approx(fact.worst_errors, rel=1e-3)
    above, below = (apart**2).sum(), (y**2).sum()
    whole = math.sqrt(above / below) if below else math.inf if above else 0.0
    assert fact.relative == pytest.approx(whole, rel=1e-3, abs=1e-12)
    assert sum(fact.counts) == out
    if kind == "dead":
        assert fact.worst[0] == out // 2
        assert fact.worst_errors[0] == math.inf
    if kind == "kept":
        assert (fact.worst, fact.over_10, fact.relative) == ([], 0, 0.0)


def test_bounds_are_exclusive_and_experts_have_their_own_channels() -> None:
    weight = torch.eye(3).repeat(4, 1, 1)
    approx = weight.clone()
    approx[0] *= 0.5  # errs by exactly half
    approx[2, 1] = 0  # errs wholly
    sums = ChannelSums.empty((4, 3, 3), CPU)
    for expert, tokens in ((0, 5), (2, 1), (3, 2)):
        sums.add(torch.ones(tokens, 3), weight, approx, expert)
    fact = sums.fact("a", "int4", "", experts=True)
    assert (fact.channels, fact.tokens, fact.unseen_experts) == (9, 8, 1)
    assert (fact.over_10, fact.over_50) == (4, 1)
    assert (fact.worst, fact.worst_experts) == ([1, 0, 1, 2], [2, 0, 0, 0])
    assert fact.worst_errors == [1.0, 0.5, 0.5, 0.5]
    assert fact.counts == [5, 0, 0, 0, 0, 0, 0, 0, 0, 3, 1]


def test_what_is_not_finite_is_counted_apart() -> None:
    weight = torch.ones(2, 2)
    weight[1, 0] = torch.inf
    sums = ChannelSums.empty((2, 2), CPU)
    sums.add(torch.tensor([[0.0, 1.0]]), weight, torch.ones(2, 2), None)  # 0 · inf
    fact = sums.fact("a", "int4", "", experts=False)
    assert (fact.channels, fact.nonfinite, fact.over_50) == (1, 1, 0)
    none = ChannelSums.empty((2, 2), CPU).fact("a", "int4", "", experts=False)
    assert none.channels == 0
    assert math.isnan(none.relative)


def test_divergence_of_heads_with_and_without_a_share_beside_the_tokens() -> None:
    p_ = torch.tensor([[[1.0, 0.0], [0.25, 0.75]], [[0.5, 0.0], [0.25, 0.25]]])
    q = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.25, 0.0], [0.5, 0.25]]])
    first = (0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2
    queries = (
        0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75),
        0.25 * math.log(0.5) + 0.5 * math.log(2),
    )
    assert divergence(p_, q) == pytest.approx([first, sum(queries) / 2])
    assert divergence(p_, p_) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("shape", "size"), [((200, 300), 32), ((70, 5000), 32), ((3, 50, 48), 48), ((5, 7), 128)]
)
def test_the_map_is_the_mean_of_groups_squared_relative_errors(
    shape: tuple[int, ...], size: int
) -> None:
    random = np.random.default_rng(1)
    w = random.normal(size=shape).astype(np.float32)
    w.reshape(-1, shape[-1])[2, : min(size, shape[-1])] = 0  # a group of zeros, kept exactly
    approx = np.where(w == 0, 0, w + 0.1 * random.normal(size=shape).astype(np.float32))
    errors = ErrorMap(math.prod(shape[:-1]), shape[-1], size)
    pairs = [(w, approx)] if len(shape) == 2 else zip(w, approx, strict=True)
    for one, other in pairs:
        errors.add(torch.tensor(one), torch.tensor(other, dtype=torch.float32))
    found = errors.cells().numpy()
    rows = w.reshape(-1, shape[-1]).astype(np.float64)
    apart = approx.reshape(rows.shape).astype(np.float32).astype(np.float64) - rows
    groups = math.ceil(shape[-1] / size)
    squared = np.zeros((len(rows), groups))
    for row in range(len(rows)):
        for group in range(groups):
            part = slice(group * size, (group + 1) * size)
            norm = (rows[row, part] ** 2).sum()
            squared[row, group] = (apart[row, part] ** 2).sum() / norm if norm else 0
    height, width = min(CELLS, len(rows)), min(CELLS, groups)
    assert found.shape == (height, width)
    at = np.arange(len(rows)) * height // len(rows), np.arange(groups) * width // groups
    for i in range(height):
        for j in range(width):
            cell = squared[np.ix_(at[0] == i, at[1] == j)]
            assert found[i, j] == pytest.approx(cell.mean(), rel=1e-9)


def test_a_map_is_drawn_of_the_files_alone(tmp_path: Path, prose: Path) -> None:
    source = tiny.build("llama", tmp_path / "llama")
    opened = open_files(source, FactStore(tmp_path / "facts.sqlite"), chosen(prose))
    layer = opened.row("model.layers.0.mlp.down_proj")

    def drawn(format: str) -> p.ErrorMapReady:
        (found,) = (e for e in draw_error_map(opened, layer, format) if e is not None)
        assert isinstance(found, p.ErrorMapReady)
        return found

    found = drawn("int3-g32+gptq")
    assert (found.format, found.used) == ("int3-g32+gptq", "int3-g32")
    assert (found.rows, found.groups, found.group_size) == (64, 4, 32)
    weight = read_layer(opened.checkpoint, layer)
    scales: torch.dtype = getattr(torch, opened.scale_dtype)
    approx = dequantized(weight, parse_format("int3-g32"), scales)
    errors = ErrorMap(64, 128, 32)
    errors.add(weight, approx)
    assert found.cells == errors.cells().flatten().tolist()
    assert len(found.cells) == found.height * found.width
    assert drawn("fp32").why == "it is as stored"
    assert not drawn("fp32").cells
    assert "256" in drawn("q4_k").why
    assert drawn("int8").group_size == 128


def test_the_map_of_experts_is_of_one_after_another(tmp_path: Path, prose: Path) -> None:
    source = tiny.build("qwen3_moe", tmp_path / "qwen3_moe")
    opened = open_files(source, FactStore(tmp_path / "facts.sqlite"), chosen(prose))
    layer = next(row for row in opened.rows.values() if len(row.shape) == 3)
    *steps, found = draw_error_map(opened, layer, "int4-g32")
    assert steps == [None] * layer.shape[0]
    assert isinstance(found, p.ErrorMapReady)
    assert found.rows == layer.shape[0] * layer.shape[1]
    weight = read_layer(opened.checkpoint, layer)
    scales: torch.dtype = getattr(torch, opened.scale_dtype)
    errors = ErrorMap(found.rows, layer.shape[2], 32)
    approx = dequantized(weight, parse_format("int4-g32"), scales)
    errors.add(weight.flatten(0, 1), approx.flatten(0, 1))
    assert found.cells == pytest.approx(errors.cells().flatten().tolist(), rel=1e-12)
