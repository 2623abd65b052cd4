"""Runs the compiled kernels of GGUF types, on as many threads as torch has.

Those of `engine.quant.gguf_kernels` and `engine.quant.gguf_grid_kernels`. Bytes equal those that
`engine.quant.gguf_k`, `engine.quant.gguf_iq4` and `engine.quant.gguf_iq` search for step by step.
That is what is done on a GPU, for K-quants and ``iq4`` with an importance matrix, and where numba
is missing or fails, which takes many times as long and is logged once. It is also done while a
kernel is being compiled, which takes some seconds, once on each machine: nobody waits longer for it
than `PATIENCE`.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from engine.errors import first_line
from engine.formats.family import family_of
from engine.formats.grammar import Format
from engine.quant import gguf_iq, gguf_iq4, gguf_k
from engine.quant.gguf_grids import grid
from engine.quant.gguf_search import symmetric_candidates

log = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds to wait for a kernel: enough to read it from the disk."""
LEAST = 1 << 14
"""Weights that are worth a thread of their own."""
PLAIN = (*gguf_k.NAMES, *gguf_iq4.SUPER_BLOCKS)
"""Types whose kernels take no importance."""
NAMES = (*PLAIN, *gguf_iq.KINDS)
Array: TypeAlias = "np.ndarray[Any, Any]"


class Kernel(NamedTuple):
    """A kernel for a format."""

    entry: str
    given: tuple[Any, ...]
    """What it is called with between the weight and the span."""
    group: int
    """Weights of a group."""
    module: str = "engine.quant.gguf_kernels"


def encode(
    x: Tensor, fmt: Format, patience: float = PATIENCE, importance: Tensor | None = None
) -> Tensor | None:
    """Super-blocks of a weight as bytes.

    Args:
        x: float32 ``[rows, in]``, finite.
        fmt: one of `NAMES`; any other gives None.
        patience: seconds to wait for the kernel.
        importance: of each input, float32 ``[in]``; with it, one of `PLAIN` gives None.

    Returns:
        uint8 ``[super-blocks, bytes]``; None if there is no kernel for it here, or not yet.
    """
    known = NAMES if importance is None else tuple(gguf_iq.KINDS)
    if x.device.type != "cpu" or fmt.name not in known:
        return None
    kernel = _kernel(fmt.name)
    if importance is not None:
        rows = importance.detach().to("cpu", torch.float32).reshape(-1, kernel.group).numpy()
        kernel = kernel._replace(given=(np.ascontiguousarray(rows), 0, *kernel.given[2:]))
    compiling = _compiling(kernel.entry)
    wait([compiling], patience)
    if not compiling.done() or (kernels := compiling.result()) is None:
        return None
    return _encoded(x.contiguous().view(-1, kernel.group), fmt, kernel, kernels)


def _encoded(x: Tensor, fmt: Format, kernel: Kernel, kernels: ModuleType) -> Tensor:
    """Super-blocks of groups ``[groups, n]`` as bytes."""
    super_block = fmt.group_size or 1
    blocks = x.numel() // super_block
    size = family_of(fmt).stored_bits(fmt, 1, super_block) // 8
    out = torch.empty(blocks, size, dtype=torch.uint8)
    together = kernels.LANES * kernel.group // super_block
    threads = max(1, min(torch.get_num_threads(), x.numel() // LEAST))
    step = -(-blocks // (threads * together)) * together

    def span(first: int) -> None:
        _call(kernels, kernel, x.numpy(), first, min(first + step, blocks), out.numpy())

    _on_threads(span, range(0, blocks, step))
    return out


def _call(kernels: ModuleType, kernel: Kernel, x: Array, first: int, last: int, out: Array) -> None:
    room = np.empty((kernels.ROWS, kernels.LANES), np.float32)
    codes = np.empty(kernels.CODES, np.uint8)
    getattr(kernels, kernel.entry)(x, *kernel.given, first, last, room, codes, out)


@cache
def _compiling(entry: str) -> Future[ModuleType | None]:
    """The kernels, of which this one is compiled, or read from the disk; None if it cannot be."""
    return _compiler().submit(_compiled, entry)


def _compiled(entry: str) -> ModuleType | None:
    kernel = next(each for each in map(_kernel, NAMES) if each.entry == entry)
    try:
        kernels = importlib.import_module(kernel.module)
        nothing = np.zeros((1, kernel.group), np.float32), 0, 0, np.empty((1, 1), np.uint8)
        _call(kernels, kernel, *nothing)
    except Exception as error:  # noqa: BLE001 - numba refuses a processor or a numpy in many ways
        log.warning(
            "numba is missing or fails (%s: %s): K-quants and iq types are searched for step by "
            "step, which takes many times as long; install it with pip",
            type(error).__name__, first_line(error)[:120],
        )  # fmt: skip
        return None
    return kernels


@cache
def _kernel(name: str) -> Kernel:
    if name in gguf_k.OFFSETS:
        kind = gguf_k.OFFSETS[name]
        given = kind.bits, np.float32(kind.top), _array(kind.candidates), kind.absolute
        return Kernel("encode_offsets", given, kind.group)
    if name == "q3_k":
        return Kernel("encode_q3", (), 16)
    if name == "q6_k":
        return Kernel("encode_q6", (_array(symmetric_candidates(32)),), 16)
    if name in gguf_iq.KINDS:
        return _grid_kernel(name)
    nearest = gguf_iq4.nearest_of_halves().numpy().astype(np.uint8)
    values = _array(gguf_iq4.TABLE)[nearest]
    candidates = _array([gguf_iq4.TABLE[0], *gguf_iq4.CANDIDATES])
    return Kernel(
        "encode_iq4", (gguf_iq4.SUPER_BLOCKS[name] // 32, candidates, values, nearest), 32
    )


def _grid_kernel(name: str) -> Kernel:
    """Given without an importance; the first two of what is given say what an error counts."""
    kind, points = gguf_iq.KINDS[name], grid(name)
    counts = ("even", "x²", "x² + σ²/4").index(kind.plain)
    layout = ("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s").index(name)
    again = ("missed", "all", "all if missed").index(kind.again)
    values = np.ascontiguousarray(2 * points.codes.astype(np.float32) + 1)
    of_kind = (
        layout, kind.group, kind.parity, np.float32(kind.spread), np.float32(kind.smallest), again,
        np.float32(kind.factor), kind.searched, _array(gguf_iq.tried(kind, points.levels)),
    )  # fmt: skip
    of_grid = points.bits, values, points.point, points.starts, points.neighbours
    given = np.ones((1, gguf_iq.SUPER_BLOCK), np.float32), counts, *of_kind, *of_grid
    return Kernel("encode_grid", given, gguf_iq.SUPER_BLOCK, "engine.quant.gguf_grid_kernels")


def _array(numbers: Sequence[float]) -> Array:
    return np.array(numbers, np.float32)


def _on_threads(span: Callable[[int], None], starts: range) -> None:
    """Run spans, a thread each; this thread takes the first."""
    rest = [_pool().submit(span, first) for first in starts[1:]]
    try:
        span(starts[0])
    finally:
        wait(rest)
    for each in rest:
        each.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, "gguf")


@cache
def _compiler() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "gguf-compiler")
