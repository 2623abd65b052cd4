"""The compiled pass against torch: ``Ŵ`` to the last bit, sums but for their order."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from engine import protocol as p
from engine.errors import FormatError
from engine.formats.grammar import Format, parse_format
from engine.measure.weights import fused
from engine.measure.weights.errors import WeightErrors
from engine.measure.weights.fused import Pass, RowsInMemory, is_fused
from engine.measure.weights.passes import Passes
from engine.measure.weights.plain import plain_statistics
from engine.measure.weights.reconstruction import compare
from engine.measure.weights.sums import Sums
from engine.quant.quantize import dequantized
from tests.quant.adversarial import adversarial, normal

FLOAT16, BFLOAT16, FLOAT32 = torch.float16, torch.bfloat16, torch.float32
FORMATS = ("int4-g128", "int4-g32", "int8", "int3-g128-sym", "int2-g96")
SUMS = 1e-12
"""Relative; a sum of n float64 numbers in another order differs by √n roundings of 1e-16 or so."""


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    found = fused.kernels()
    assert isinstance(found, ModuleType), found
    return found


def rows_of(weight: Tensor) -> RowsInMemory:
    width = weight.shape[-1]
    bits = weight.contiguous().view(torch.uint8).numpy().reshape(-1, width * weight.itemsize)
    return RowsInMemory(str(weight.dtype).removeprefix("torch."), width, bits)


def approximated(
    kernels: ModuleType, weight: Tensor, fmt: Format, scale_dtype: torch.dtype
) -> Tensor | None:
    """``Ŵ`` as the pass makes it; None if a scale overflows."""
    work = Pass(rows_of(weight), (fmt,), scale_dtype == BFLOAT16, kernels)
    table, base = work._table
    raw = work.rows.bits.view(np.uint16)  # type: ignore[attr-defined]
    width = weight.shape[-1]
    out = np.empty((len(raw), width), np.float32)
    room = np.empty((4, width), np.float32), np.empty((5, -(-width // base)), np.float32)
    over = kernels.approximate(raw, work._kind, table[0], base, work.brain, *room, out)
    return None if over else torch.from_numpy(out).view(weight.shape)


def measured(
    kernels: ModuleType, weight: Tensor, formats: list[Format], brain: bool, threads: int = 2
) -> tuple[Sums, p.LayerWeights]:
    passes = Passes(threads)
    try:
        steps = passes.begin(Pass(rows_of(weight), tuple(formats), brain, kernels), 4.0).result()
        while True:
            try:
                next(steps)
            except StopIteration as end:
                sums, beyond = end.value
                return sums, sums.weights("layer", 4.0, beyond)
    finally:
        passes.close()


def stored_as(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype).nan_to_num(0, 0, 0)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, FLOAT32])
@pytest.mark.parametrize("scale_dtype", [FLOAT16, BFLOAT16])
def test_approximations_are_those_of_the_quantiser_to_the_last_bit(
    kernels: ModuleType, dtype: torch.dtype, scale_dtype: torch.dtype
) -> None:
    options = ("g128", "g32-sym", "channel", "g96", "channel-sym", "g64")
    checked = overflows = 0
    for number, (what, weight) in enumerate(adversarial(40, 520).items()):
        stored = stored_as(weight, dtype)
        for bits in range(2, 9):
            fmt = parse_format(f"int{bits}-{options[(bits + number) % len(options)]}")
            found = approximated(kernels, stored, fmt, scale_dtype)
            try:
                expected = dequantized(stored, fmt, scale_dtype)
            except FormatError:
                assert found is None, (what, fmt)
                overflows += 1
                continue
            assert found is not None, (what, fmt)
            assert torch.equal(found, expected), (what, fmt)
            checked += 1
    assert checked > 100
    assert overflows == 0 or scale_dtype == FLOAT16 or dtype == FLOAT32


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, FLOAT32])
def test_random_weights_of_many_seeds_are_the_same_to_the_last_bit(
    kernels: ModuleType, dtype: torch.dtype
) -> None:
    for seed in range(40):
        weight = stored_as(normal(33, 250, seed=seed) * 10.0 ** (seed % 7 - 3), dtype)
        fmt = parse_format(f"int{2 + seed % 7}-g{(16, 32, 50, 128)[seed % 4]}")
        found = approximated(kernels, weight, fmt, FLOAT16)
        assert found is not None
        assert torch.equal(found, dequantized(weight, fmt, FLOAT16)), seed


def broken() -> dict[str, Tensor]:
    """Weights with faults, and shapes that are no whole number of anything."""
    some = normal(40, 520)
    some[3, 5], some[3, 7], some[10], some[2, 9] = math.nan, math.inf, -math.inf, math.nan
    some[:, 8] = some[:, 9] = 0
    some[2, 9], some[12], some[13] = math.nan, 0, 0
    some[13, 4] = math.inf
    column = normal(40, 520)
    column[:, 77] *= 30
    positive = normal(40, 520).abs() + 0.01
    positive[5, 5] = math.nan
    return {
        "some": some,
        "nothing finite": torch.full((5, 64), math.nan),
        "far from zero": normal(40, 520) + 3,
        "a column": column,
        "odd": column[:39, :77],
        "five weights": column[:1, :5],
        "experts": column[:36].reshape(3, 12, 520),
        "positive": positive,
    }


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, FLOAT32])
def test_statistics_and_errors_are_those_of_torch(
    kernels: ModuleType, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "SPAN", 1 << 12)
    monkeypatch.setattr(fused, "AT_ONCE", 1 << 11)
    formats = [parse_format(text) for text in FORMATS]
    sound = {what: stored_as(w, dtype) for what, w in adversarial(40, 520).items()}
    for what, weight in {**sound, **{k: w.to(dtype) for k, w in broken().items()}}.items():
        sums, statistics = measured(kernels, weight, formats, dtype == BFLOAT16)
        same(statistics, plain_statistics(weight, "layer", 4.0), what)
        for place, fmt in enumerate(formats):
            try:
                approx = dequantized(weight, fmt, BFLOAT16 if dtype == BFLOAT16 else FLOAT16)
            except FormatError:
                assert sums.overflows(place), (what, fmt)
                continue
            assert not sums.overflows(place), (what, fmt)
            same(sums.errors_in(place), compare(weight, approx), what)


def same(found: object, expected: object, what: str) -> None:
    """All numbers of two records are equal but for the order of sums."""
    assert type(found) is type(expected)
    fields = (
        found.__struct_fields__
        if isinstance(found, msgspec.Struct)
        else tuple(WeightErrors.__dataclass_fields__)
    )
    for name in fields:
        one, other = getattr(found, name), getattr(expected, name)
        if isinstance(one, msgspec.Struct):
            same(one, other, what)
        elif isinstance(one, float):
            # Decibels and kurtosis are near 0 where the terms that they are made of cancel.
            room = 1e-9 if name in ("kurtosis", "sqnr_db") else 0.0
            assert one == pytest.approx(other, rel=SUMS * 1e3, abs=room, nan_ok=True), (what, name)
            if isinstance(found, WeightErrors) and name != "sqnr_db":
                assert one == pytest.approx(other, rel=SUMS), (what, name)
        elif name == "large_columns":
            assert one[:1] == other[:1], (what, name)
            assert len(one) == len(other)  # of equally large ones either may come first
        elif name == "large_columns_sigma":
            assert one == pytest.approx(other, rel=SUMS * 1e3), (what, name)
        else:
            assert one == other, (what, name)


def test_figures_do_not_depend_on_the_number_of_threads(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "SPAN", 1 << 12)
    weight = stored_as(normal(300, 256), FLOAT16)
    formats = [parse_format(text) for text in FORMATS]
    one, three = (measured(kernels, weight, formats, False, threads) for threads in (1, 3))
    assert one[1] == three[1]
    assert [one[0].errors_in(i) for i in range(5)] == [three[0].errors_in(i) for i in range(5)]


def test_kernels_may_be_called_by_several_threads_at_once(kernels: ModuleType) -> None:
    weights = [stored_as(normal(64, 256, seed=seed), BFLOAT16) for seed in range(8)]
    formats = [parse_format("int4-g32")]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda w: measured(kernels, w, formats, True, 2)[1], weights))
    assert found == [measured(kernels, w, formats, True, 1)[1] for w in weights]


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("int4-g128", True),
        ("int8", True),
        ("int5-channel-asym", True),
        ("int4-tensor", False),
        ("int4-g128+clip", False),
        ("int4-g128+hadamard", False),
        ("nf4", False),
        ("fp8-e4m3", False),
        ("q8_0", False),
        ("bf16", False),
    ],
)
def test_the_pass_knows_integers_in_groups_and_rows(text: str, known: bool) -> None:
    assert is_fused(parse_format(text)) is known
