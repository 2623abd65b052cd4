"""How the codes of a quantised layer are used: unused and saturated ones, scales, zero points.

All from the file alone: what a wrong or careless quantiser leaves behind needs no original to see.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from engine import protocol as p
from engine.checkpoint import Checkpoint, DequantisedRows, DiskLayer
from engine.checkpoint.dequantised_rows import packed_rows
from engine.checkpoint.packed.orders import LEVELS
from engine.checkpoint.quantised.reader import reader_named
from engine.measure.weights.fused import kernels
from engine.measure.weights.sums import Array

if TYPE_CHECKING:
    from torch import Tensor

    from engine.checkpoint.packed.four_bits import FourBits
    from engine.checkpoint.weight import Codes

_INTEGERS = re.compile(r"int|^q[2-8]_[01k]$")
"""Forms whose codes are in the order of their numbers; mxint's are a sign and a size."""


@dataclass
class _Sums:
    """Counts over all codes, scales and zero points of a layer."""

    levels: int = 0
    codes: int = 0
    lowest: int = 0
    """Codes that are 0."""
    highest: Counter[int] = field(default_factory=Counter)
    """Those that are the last one, by how many there can be."""
    used: Array = field(default_factory=lambda: np.zeros(256, np.bool_))
    """Which codes occur."""
    scales: int = 0
    smallest: float = math.inf
    largest: float = -math.inf
    zero: int = 0
    negative: int = 0
    not_finite: int = 0
    low: int = -1
    high: int = -1
    outside: int = 0
    wrapped: int = 0
    subnormal: int = 0
    broken: int = 0
    version_1: bool = False
    """Whether zero points are stored as GPTQ's version 1 has them."""
    half: bool = False
    """Whether scales are stored in float16."""

    def add(self, codes: Codes) -> None:
        """Count those of some rows."""
        if codes.levels:
            counts = _counted(codes.codes)
            ends = int(counts[0]), int(counts[codes.levels - 1])
            self._add_codes(int(counts.sum()), *ends, codes.levels, counts > 0)
        else:
            self.broken += not_finite(codes.codes)
        zero = codes.zero
        if zero is not None:
            zero = zero.float() if zero.is_floating_point() else zero
        self._add_scaling(codes.levels, codes.scale.numpy(), None if zero is None else zero.numpy())

    def add_packed(self, packed: FourBits) -> None:
        """Count those of a whole weight that are still packed."""
        found = packed.count()
        self._add_codes(found.total, found.lowest, found.highest, LEVELS, found.used)
        self._add_scaling(LEVELS, packed.scales, packed.zeros if packed.has_zeros else None)

    def _add_codes(self, total: int, lowest: int, highest: int, levels: int, used: Array) -> None:
        self.codes += total
        self.lowest += lowest
        self.highest[levels] += highest
        self.used[: len(used)] |= used

    def _add_scaling(self, levels: int, scale: Array, zero: Array | None) -> None:
        self.levels = max(self.levels, levels)
        self._add_scales(scale)
        if zero is not None and zero.size:
            low, high = int(zero.min()), int(zero.max())
            self.low = low if self.low < 0 else min(self.low, low)
            self.high = max(self.high, high)
            self.outside += int(((zero <= 0) | (zero >= levels - 1)).sum())
            if self.version_1:
                self.wrapped += int((zero == 0).sum())

    def _add_scales(self, scale: Array) -> None:
        sizes = np.abs(scale)
        finite, zero = sizes < np.inf, scale == 0
        self.scales += scale.size
        self.not_finite += int(scale.size - finite.sum())
        self.zero += int(zero.sum())
        self.negative += int((scale < 0).sum())
        sizes = sizes[finite & ~zero]
        if sizes.size:
            smallest = float(sizes.min())
            self.smallest = min(self.smallest, smallest)
            self.largest = max(self.largest, float(sizes.max()))
            self.subnormal += self._subnormal(sizes, smallest)

    def _subnormal(self, sizes: Array, smallest: float) -> int:
        tiny = np.finfo(np.float16 if self.half else np.float32).tiny
        if smallest >= tiny:
            return 0
        small = sizes[sizes < tiny]
        if not self.half:
            return small.size
        # Else it is stored in another dtype.
        return int((small.astype(np.float16).astype(np.float32) == small).sum())

    def fact(self, form: str, layout: str, declared: str = "", read_as: str = "") -> p.StoredCodes:
        """The figures of a layer that is stored in a form of a layout."""
        total, ends = self.codes, self.lowest + self.highest[self.levels]
        return p.StoredCodes(
            levels=self.levels,
            unused=int((~self.used[: self.levels]).sum()),
            saturated=ends / total if total else 0.0,
            scales=self.scales,
            scale_min=self.smallest if self.largest >= 0 else math.nan,
            scale_max=self.largest if self.largest >= 0 else math.nan,
            scales_zero=self.zero,
            scales_negative=self.negative,
            scales_not_finite=self.not_finite,
            zero_min=self.low,
            zero_max=self.high,
            zeros_outside=self.outside,
            zeros_wrapped=self.wrapped,
            scales_subnormal=self.subnormal,
            codes_not_finite=self.broken,
            ordered="mxint" not in form and _INTEGERS.search(form) is not None,
            layout=layout,
            declared=declared,
            read_as=read_as,
        )


def _counted(codes: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How often each of 256 codes occurs."""
    import torch

    flat = codes.to(torch.uint8).flatten().numpy()
    found = kernels()
    if isinstance(found, str):
        return np.bincount(flat, minlength=256)
    counts = np.zeros((found.TABLES, 256), np.int64)
    found.count(flat, counts)
    total: np.ndarray[tuple[int], np.dtype[np.int64]] = counts.sum(0)
    return total


def stored_codes(
    checkpoint: Checkpoint, layer: DiskLayer, held: DequantisedRows | None = None
) -> p.StoredCodes | None:
    """The figures of a layer's codes; None if it is not stored as several tensors.

    One part and its pieces are in memory at a time.

    Args:
        checkpoint: that holds the layer.
        layer: which one.
        held: its rows, if its pieces are in memory already.

    Raises:
        CheckpointError: a piece cannot be read, or holds what it cannot mean.
    """
    weights = [checkpoint.quantised[part] for part in layer.parts if part in checkpoint.quantised]
    sums = _Sums()
    if not weights:
        return _of_one_scale(checkpoint, layer, sums)
    for at, weight in enumerate(weights):
        sums.version_1 = any(each.declared == "GPTQ v1" for each in weight.otherwise)
        sums.half = weight.dtype == "float16"
        packed = packed_rows(weight) if held is None else held.packed(at)
        if packed is not None:
            sums.add_packed(packed)
            continue
        loaded = weight.load() if held is None else held.loaded(at)
        for first, last in weight.spans():
            sums.add(loaded.codes(first, last))
    told = next((weight for weight in weights if weight.declared), weights[0])
    return sums.fact(told.form, told.layout, told.declared, told.read_as)


def _of_one_scale(checkpoint: Checkpoint, layer: DiskLayer, sums: _Sums) -> p.StoredCodes | None:
    """Of codes that have the name of their weight, or of a container's own types."""
    reader = reader_named(layer.reader) if layer.reader else None
    for at, part in enumerate(layer.parts):
        if reader is None:
            found = checkpoint.codes(part)
        elif reader.codes is not None:
            found = reader.codes(checkpoint, part, layer.scales[at])
        else:
            return None
        for codes in found:
            sums.add(codes)
    return sums.fact(layer.dtype, layer.reader or checkpoint.container) if sums.scales else None


def not_finite(values: Tensor) -> int:
    """How many of some numbers are NaN or infinite; of 8 bits too."""
    import torch

    wide = values.to(torch.float32) if values.is_floating_point() else values
    return int((~torch.isfinite(wide)).sum())
