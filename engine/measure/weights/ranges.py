"""A layer's errors in several group sizes and in clipped ranges, side by side.

For each group size the error of rounding to nearest. For each ratio the range of every group is
narrowed to that part of it, and the error is split into that of weights beyond the range and that
of weights within it. All of it comes from one compiled pass; `plain` computes the same step by
step, where the pass cannot be compiled, and is the reference that it is tested against.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import protocol as p
from engine.checkpoint import DiskLayer, read_layer
from engine.errors import FormatError, first_line
from engine.formats.grammar import Format, parse_built
from engine.formats.storage import stored_bits
from engine.measure.weights.chunks import rows_of
from engine.quant.integer import integer_codes, integer_values, quantization_parameters
from engine.quant.quantized import in_groups
from engine.quant.rows import finite_and_broken, row_chunks
from engine.service.jobs import Outcome, Steps
from engine.store import keys
from engine.workspace import Opened

GROUPS = (32, 64, 128, 256, 0)
"""Group sizes; 0 for a whole row."""
RATIOS = (1.0, 0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7)
"""Parts of the range."""
SPAN = 1 << 18
"""Weights that a thread passes over at a time."""


@dataclass(frozen=True)
class RangeErrors:
    """Sums over a weight."""

    signal: float
    """``‖W‖²``."""
    entries: int
    """Finite weights."""
    noise: tuple[float, ...]
    """``‖Ŵ − W‖²`` for each group size."""
    clips: tuple[tuple[float, float, int], ...]
    """For each ratio: squares beyond the range, squares within it, weights beyond it."""


@cache
def kernels() -> ModuleType | str:
    """The compiled pass; or why there is none, as a sentence."""
    instead = "groups and ranges are computed step by step, which takes ten times as long"
    try:
        from engine.measure.weights import ranges_kernels

        _Pass(ranges_kernels, parse_built("int4-g32"), torch.float16, (32,), (1.0,)).over(
            np.ones((1, 32), np.float32)
        )
    except ImportError as error:
        return f"numba is missing ({first_line(error)}): {instead}; install it with pip"
    except Exception as error:  # noqa: BLE001 - numba refuses a processor or a numpy in many ways
        return f"numba fails ({type(error).__name__}: {first_line(error)[:120]}): {instead}"
    return ranges_kernels


def sizes_of(width: int, groups: Sequence[int] = GROUPS) -> tuple[int, ...]:
    """Group sizes that differ for rows of ``width``; the last is the whole row."""
    return (*(size for size in groups if 0 < size < width), width)


def range_errors(
    weight: Tensor,
    fmt: Format,
    scale_dtype: torch.dtype,
    sizes: Sequence[int],
    ratios: Sequence[float],
    name: str = "weight",
) -> RangeErrors:
    """Errors of a weight ``[out, in]`` or ``[experts, out, in]``.

    Values that are not finite are left out.

    Args:
        weight: any floating dtype; not modified.
        fmt: an integer format by groups or channels, whose methods are not looked at.
        scale_dtype: the dtype that scales are stored in.
        sizes: of groups; at most the width.
        ratios: parts of the range of the format's own groups.
        name: the tensor, for messages.

    Raises:
        FormatError: a scale is too large for its dtype.
    """
    found = kernels()
    if isinstance(found, str) or weight.device.type != "cpu":
        return plain(weight, fmt, scale_dtype, sizes, ratios, name)
    one = _Pass(found, fmt, scale_dtype, tuple(sizes), tuple(ratios))
    rows = rows_of(weight)
    step = max(1, SPAN // max(1, rows.shape[1]))
    parts = [rows[at : at + step] for at in range(0, len(rows), step)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        sums = list(threads.map(one.of_rows, parts))
    if any(each.over for each in sums):
        raise FormatError(_overflows(name, fmt, scale_dtype))
    return RangeErrors(
        signal=math.fsum(each.signal for each in sums),
        entries=sum(each.entries for each in sums),
        noise=tuple(math.fsum(column) for column in zip(*(s.noise for s in sums), strict=True)),
        clips=tuple(
            (
                math.fsum(float(s.clips[at, 0]) for s in sums),
                math.fsum(float(s.clips[at, 1]) for s in sums),
                sum(int(s.clips[at, 2]) for s in sums),
            )
            for at in range(len(ratios))
        ),
    )


def _overflows(name: str, fmt: Format, scale_dtype: torch.dtype) -> str:
    kind = str(scale_dtype).removeprefix("torch.")
    return f"{name}: a scale of {fmt} is too large for {kind}"


@dataclass(frozen=True)
class _Sums:
    signal: float
    entries: int
    noise: NDArray[np.float64]
    clips: NDArray[np.float64]
    over: int


@dataclass(frozen=True)
class _Pass:
    """The compiled pass with its arguments."""

    kernels: ModuleType
    fmt: Format
    scale_dtype: torch.dtype
    sizes: tuple[int, ...]
    ratios: tuple[float, ...]

    def of_rows(self, rows: Tensor) -> _Sums:
        """Sums over some rows."""
        finite, broken = finite_and_broken(rows)
        found = self.over(finite.contiguous().numpy())
        if broken is None:
            return found
        return _Sums(
            found.signal, found.entries - int(broken.sum()), found.noise, found.clips, found.over
        )

    def over(self, x: NDArray[np.float32]) -> _Sums:
        """Sums over finite rows, float32 ``[rows, in]``."""
        width = x.shape[1]
        size = min(self.fmt.group_size or width, width)
        base = math.gcd(*(s for s in (*self.sizes, size) if s < width)) or width
        noise, clips = np.zeros(len(self.sizes)), np.zeros((len(self.ratios), 3))
        over: Any = self.kernels.pass_over(
            x, base, np.array(self.sizes, np.int64), size, np.array(self.ratios, np.float32),
            self.fmt.bits, self.fmt.symmetric, self.scale_dtype == torch.bfloat16,
            np.empty((7, -(-width // base)), np.float32), np.empty(width, np.float32), noise, clips,
        )  # fmt: skip
        signal = float(np.einsum("ij,ij->", x, x, dtype=np.float64))
        return _Sums(signal, x.size, noise, clips, int(over))


# --- step by step --------------------------------------------------------------------------------


def plain(
    weight: Tensor,
    fmt: Format,
    scale_dtype: torch.dtype,
    sizes: Sequence[int],
    ratios: Sequence[float],
    name: str = "weight",
) -> RangeErrors:
    """What `range_errors` returns, from plain operations on tensors; the same arguments."""
    rows = rows_of(weight)
    signal, entries = 0.0, 0
    noise, clips = [0.0] * len(sizes), [[0.0, 0.0, 0] for _ in ratios]
    for part in row_chunks(rows):
        finite, broken = finite_and_broken(rows[part])
        signal += float(finite.double().square().sum())
        entries += finite.numel() - (0 if broken is None else int(broken.sum()))
        for at, size in enumerate(sizes):
            _, gap, _ = next(_rounded(finite, fmt, size, (1.0,), scale_dtype, name))
            noise[at] += float(gap.sum())
        own = min(fmt.group_size or finite.shape[1], finite.shape[1])
        for at, (_, gap, beyond) in enumerate(
            _rounded(finite, fmt, own, ratios, scale_dtype, name)
        ):
            clips[at][0] += float(gap[beyond].sum())
            clips[at][1] += float(gap[~beyond].sum())
            clips[at][2] += int(beyond.sum())
    return RangeErrors(
        signal, entries, tuple(noise), tuple((a, b, int(count)) for a, b, count in clips)
    )


def _rounded(
    rows: Tensor,
    fmt: Format,
    size: int,
    ratios: Sequence[float],
    scale_dtype: torch.dtype,
    name: str,
) -> Iterator[tuple[float, Tensor, Tensor]]:
    """For each ratio: squares of ``Ŵ − W`` in float64, and which weights are beyond the range."""
    groups = in_groups(rows, size)
    lo, hi = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if fmt.symmetric:
        hi = torch.maximum(-lo, hi)
        lo = -hi
    for ratio in ratios:
        low, high = lo * ratio, hi * ratio
        parameters = quantization_parameters(low, high, fmt, scale_dtype, name)
        approx = integer_values(integer_codes(groups, parameters, fmt), parameters)
        gap = (approx.double() - groups.double()).square()
        beyond = (groups < low.unsqueeze(-1)) | (groups > high.unsqueeze(-1))
        width = rows.shape[1]
        yield ratio, gap.flatten(-2)[:, :width], beyond.flatten(-2)[:, :width]


# --- the answer to a question -------------------------------------------------------------------


def layer_ranges(opened: Opened, layer: DiskLayer, format: str) -> Steps:
    """Errors of a layer in several group sizes and clipped ranges.

    Yields:
        `Learned` with a `LayerRanges`.

    Raises:
        CheckpointError: a tensor cannot be read.
        FormatError: a scale is too large for its dtype.
    """
    fmt = parse_built(format)
    key = keys.Ranges(
        on=opened.files, layer=layer.name, format=format, groups=GROUPS, ratios=RATIOS,
        scale_dtype=opened.scale_dtype,
    ).address  # fmt: skip
    known = opened.known([key]).get(key)
    if isinstance(known, p.LayerRanges):
        yield p.Learned((key,), (known,), fresh=False)
        return Outcome(resumed=1)
    if isinstance(why := kernels(), str):
        yield p.Notice("info", why)
    weight = read_layer(opened.checkpoint, layer)
    sizes = sizes_of(layer.shape[-1])
    scale_dtype: torch.dtype = getattr(torch, opened.scale_dtype)
    found = range_errors(weight, fmt, scale_dtype, sizes, RATIOS, layer.name)
    yield p.Learned((key,), (fact_of(layer, fmt, sizes, RATIOS, found),))
    return Outcome(measured=1)


def fact_of(
    layer: DiskLayer,
    fmt: Format,
    sizes: Sequence[int],
    ratios: Sequence[float],
    found: RangeErrors,
) -> p.LayerRanges:
    """The fact of a layer."""

    def relative(square: float) -> float:
        return math.sqrt(square / found.signal) if found.signal else math.nan

    groups = []
    for size, noise in zip(sizes, found.noise, strict=True):
        held = with_group(fmt, 0 if size == layer.shape[-1] else size)
        groups.append(
            p.GroupSize(
                format=str(held),
                rmse=math.sqrt(noise / found.entries) if found.entries else math.nan,
                relative=relative(noise),
                bits=stored_bits(held, layer.shape),
            )
        )
    clips = tuple(
        p.ClipRatio(
            ratio=ratio,
            clipping=relative(beyond),
            rounding=relative(within),
            total=relative(beyond + within),
            clipped=count,
        )
        for ratio, (beyond, within, count) in zip(ratios, found.clips, strict=True)
    )
    return p.LayerRanges(layer=layer.name, format=str(fmt), groups=tuple(groups), clips=clips)


def with_group(fmt: Format, size: int) -> Format:
    """A format with another group size; 0 for a whole row."""
    return msgspec.structs.replace(
        fmt, strategy="group" if size else "channel", group_size=size or None
    )
