"""Quantises, dequantises and compares a weight in one compiled pass, tile by tile.

``engine.quant.integer`` goes through memory once per step of its arithmetic; here ``torch.compile``
fuses them into one loop over a tile of groups. Ŵ equals the other path bit for bit, which a probe
checks before the first use. If it does not, or if nothing can be compiled, the caller uses the
other path and reports why.

A kernel is compiled for a group size and dtypes; bits and signs are arguments. It is cached on
disk.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.errors import first_line
from engine.formats.grammar import Format, parse_format
from engine.measure.weights.reconstruction import Sums, WeightErrors
from engine.quant.arithmetic import arithmetic_of
from engine.quant.integer import code_range
from engine.quant.quantize import dequantized
from engine.quant.scales import EMPTY_SCALE
from engine.store.paths import kernel_folder

TILE = 1 << 21
"""Weights of a tile, about: two tiles are the memory that is needed beside the weight."""
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Where torch looks for the folder of its compiled kernels."""
_LEAST_SQUARE = 1e-30
"""Mean squares below this are left to the plain path: float32 ends at 1e-38."""
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_Sums = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Variant(NamedTuple):
    """What a kernel is specialised for."""

    dtype: torch.dtype
    """Of the weight."""
    scale_dtype: torch.dtype
    group: int
    """Weights that share a scale: a group, or a whole row."""

    @property
    def tile(self) -> tuple[int, int]:
        """Groups of a tile, and weights of each."""
        return max(1, TILE // self.group), self.group


def variant_for(
    shape: tuple[int, ...], dtype: torch.dtype, fmt: Format, scale_dtype: torch.dtype
) -> Variant | None:
    """The kernel for a weight ``[…, out, in]`` in a format; None if there is none.

    There is one for integer formats without methods whose groups divide the row, or are the row.
    """
    if fmt.methods or fmt.strategy not in ("group", "channel") or not arithmetic_of(fmt).fused:
        return None
    if dtype not in _DTYPES or not shape or 0 in shape:
        return None
    group = fmt.group_size or shape[-1]
    if shape[-1] % group or not 16 <= group <= TILE:
        return None
    return Variant(dtype, scale_dtype, group)


class Fused:
    """The compiled kernels of one job, each probed before its first use.

    Args:
        variants: the kernels that may be compiled; all if None.

    Attributes:
        why: why compiling stopped, as a sentence; empty while it works.
    """

    def __init__(self, variants: Collection[Variant] | None = None) -> None:
        self.why = ""
        self._variants = variants
        self._ready: set[Variant] = set()

    def errors(
        self,
        weight: Tensor,
        fmt: Format,
        scale_dtype: torch.dtype,
        out: Tensor | None = None,
    ) -> WeightErrors | None:
        """Errors of ``weight`` in ``fmt``; None if the other path has to compute them.

        They equal those of `compare` to six digits: a group is summed in float32, groups in
        float64.

        Args:
            weight: ``[out, in]`` or ``[experts, out, in]``, on the CPU; not modified.
            fmt: the format.
            scale_dtype: the dtype that scales are stored in.
            out: float32 in the shape of ``weight``, contiguous: takes Ŵ if given. What it holds
                means nothing where None is returned.

        Returns:
            None where no kernel serves, none can be compiled (see `why`), a value is not finite,
            a scale overflows, or the weight is zero or so small that squares vanish in float32.
        """
        variant = variant_for(tuple(weight.shape), weight.dtype, fmt, scale_dtype)
        if variant is None or self.why or not weight.is_cpu:
            return None
        if self._variants is not None and variant not in self._variants:
            return None
        if not self._probed(variant):
            return None
        return _run(variant, weight.detach(), fmt, out)

    def _probed(self, variant: Variant) -> bool:
        if variant in self._ready:
            return True
        try:
            fmt = parse_format("int4-channel")
            for text in ("int4-channel", "int3-channel-sym"):
                fmt = parse_format(text)
                probe = _probe(variant)
                found = torch.empty(probe.shape)
                errors = _run(variant, probe, fmt, found)
                if errors is None or not torch.equal(
                    found, dequantized(probe, fmt, variant.scale_dtype)
                ):
                    self.why = (
                        "the compiled kernel rounds differently from the plain one on this machine "
                        "and is not used"
                    )
                    return False
        except (RuntimeError, OSError, ImportError) as error:
            # No compiler, one that fails, a cache that cannot be written: all end here.
            self.why = (
                f"no kernel can be compiled ({type(error).__name__}: {first_line(error)[:120]}): "
                "weights are quantised step by step, which takes several times as long"
            )
            return False
        self._ready.add(variant)
        return True


def _run(variant: Variant, weight: Tensor, fmt: Format, out: Tensor | None) -> WeightErrors | None:
    groups, size = variant.tile
    flat = weight.reshape(-1, size)
    into = None if out is None else out.view(-1, size)
    q_min, q_max = code_range(fmt.bits)
    numbers = [torch.tensor(float(number)) for number in (q_max - q_min, q_min, q_max)]
    symmetric = torch.tensor(fmt.symmetric)
    room = torch.empty(groups, size)
    kernel = _compiled()
    sums = Sums()
    sums.entries = weight.numel()
    with _kernels_kept(), torch.no_grad():
        for start in range(0, len(flat), groups):
            tile = flat[start : start + groups]
            rows = len(tile)
            if rows < groups:  # one shape, one kernel: zeros add nothing to any sum
                tile = torch.cat([tile, tile.new_zeros(groups - rows, size)])
            noise, distance, farthest, signal, stored = kernel(
                tile, room, *numbers, symmetric, variant.scale_dtype
            )
            if not bool(stored.isfinite().all()):
                return None
            if into is not None:
                into[start : start + rows] = room[:rows]
            sums.noise += float(noise.sum(dtype=torch.float64))
            sums.distance += float(distance.sum(dtype=torch.float64))
            sums.signal += float(signal.sum(dtype=torch.float64))
            sums.farthest = max(sums.farthest, float(farthest.amax()))
    return sums.errors() if _within_float32(sums) else None


def _within_float32(sums: Sums) -> bool:
    """Whether squares neither overflowed nor vanished to a degree that a figure would show."""
    floor = _LEAST_SQUARE * sums.entries
    if not math.isfinite(sums.noise + sums.signal) or sums.signal < floor:
        return False
    return sums.farthest == 0 or sums.noise >= floor


def _tile(
    weight: Tensor,
    approx: Tensor,
    steps: Tensor,
    q_min: Tensor,
    q_max: Tensor,
    symmetric: Tensor,
    scale_dtype: torch.dtype,
) -> _Sums:
    """The arithmetic of `engine.quant.integer` for groups in rows, ``[groups, size]``.

    Ŵ goes to ``approx``. The numbers are tensors, so that no kernel is compiled for each of them.

    Returns:
        For each group the sum of squares and of magnitudes of ``Ŵ − W``, its greatest magnitude,
        the sum of squares of W, and the scale as stored.
    """
    x = weight.to(torch.float32)
    lo = x.amin(-1, keepdim=True).clamp(max=0)
    hi = x.amax(-1, keepdim=True).clamp(min=0)
    scale = torch.where(symmetric, torch.maximum(-lo, hi) / (steps / 2), (hi - lo) / steps)
    stored = scale.to(scale_dtype)
    empty = stored == 0
    point = (q_min - lo / scale).clamp(q_min, q_max).round()
    point = torch.where(symmetric | empty, 0.0, point)
    factor = stored.masked_fill(empty, EMPTY_SCALE).to(torch.float32)
    codes = (x / factor.masked_fill(empty, math.inf) + point).clamp(q_min, q_max).round()
    found = (codes - point) * factor
    approx.copy_(found)
    gap = (found - x).abs()
    return (
        (gap * gap).sum(-1),
        gap.sum(-1),
        gap.amax(-1),
        (x * x).sum(-1),
        stored.squeeze(-1),
    )


@contextmanager
def _kernels_kept() -> Iterator[None]:
    """Have the compiler cache its kernels in our folder, unless the user named another.

    torch reads the folder from the environment, and writes it there too: both are undone.
    """
    before = os.environ.get(CACHE_VARIABLE)
    if before is None:
        with suppress(OSError):  # the compiler's own folder will do
            os.environ[CACHE_VARIABLE] = str(kernel_folder())
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(CACHE_VARIABLE, None)
        else:
            os.environ[CACHE_VARIABLE] = before


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., _Sums]:
    options: dict[str, str | int | bool | Callable[..., object]] = {
        # Without it a scale is never rounded to 16 bits: a cast and its way back cancel out.
        "emulate_precision_casts": True,
        # Triage gives a thread away while the model is loaded; that must compile nothing anew.
        "cpp.dynamic_threads": True,
        "guard_filter_fn": _without_global_state,
        # One small file: a header compiled beforehand costs more than it saves.
        "cpp_cache_precompile_headers": False,
    }
    return torch.compile(_tile, dynamic=False, fullgraph=True, options=options)


def _without_global_state(guards: Sequence[Any]) -> list[bool]:
    """Which of the conditions of a kernel are kept: not the number of threads among others."""
    return [guard.guard_type != "GLOBAL_STATE" for guard in guards]


def _probe(variant: Variant) -> Tensor:
    """Groups of all magnitudes, of zeros, of ties, one-sided, with outliers; a tile and a bit."""
    groups, size = variant.tile
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(groups + 3, size, generator=generator) * 0.05
    probe *= torch.logspace(-6, 3, len(probe)).unsqueeze(1)
    probe[1::9, size // 2] *= 40
    probe[2::9] = probe[2::9].abs()
    probe[3::9] = -probe[3::9].abs()
    probe[4::9] = 0
    probe[5::9] = (torch.arange(size) % 31 - 15) / 2
    probe[6::9] = 0.3
    return probe.to(variant.dtype)
