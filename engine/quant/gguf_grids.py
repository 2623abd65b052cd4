"""The grids of ``iq2`` and ``iq3``: points that the magnitudes of 8 or 4 weights are moved to.

A point has a code for each of its weights, and a code stands for ``2 · code + 1`` while a scale is
searched for. Grids and their values come from the ``gguf`` package. Which points are looked at for
codes that are no point is what llama.cpp decides (``iq2xs_init_impl``, ``iq3xs_init_impl``): those
at the one to three least distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any]"


@dataclass(frozen=True, eq=False)
class Grid:
    """Points ``[points, n]`` and how to find them."""

    codes: Array
    """uint8 ``[points, n]``, from 0."""
    values: Array
    """float32 ``[points, n]``: what a point stands for once it is stored, as the ``gguf`` package
    reads it."""
    bits: int
    """Of a code in a place."""
    point: Array
    """int32 by place, ``Σ code · 2^(bits · i)``: the number of the point; −1 where there is
    none."""
    starts: Array
    """int32 by place: where its neighbours start; there is one more than there are places."""
    neighbours: Array
    """int32, the points near a place, nearest first, and the lowest number first among those as
    near."""

    @property
    def width(self) -> int:
        """Weights of a point."""
        return int(self.codes.shape[1])

    @property
    def levels(self) -> int:
        """Codes of a weight."""
        return int(self.codes.max()) + 1

    def padded(self) -> tuple[Array, Array]:
        """Rows of neighbours ``[places without a point, most]`` filled up with −1, and the row of
        every place."""
        counts = np.diff(self.starts)
        row = np.cumsum(counts > 0, dtype=np.int32) - 1
        some = counts[counts > 0]
        found = np.full((len(some), int(some.max())), -1, np.int32)
        found[np.arange(found.shape[1]) < some[:, None]] = self.neighbours
        return found, row


@cache
def grid(name: str) -> Grid:
    """The grid of ``iq2_xxs``, ``iq2_xs``, ``iq2_s``, ``iq3_xxs`` or ``iq3_s``.

    Made once: about a tenth of a second.
    """
    from gguf import quants

    kind: Any = getattr(quants, name.upper())
    kind.init_grid()
    values = np.array(kind.grid, np.float32).reshape(kind.grid_shape)
    codes = np.searchsorted(np.array(kind.grid_map, np.float32), values).astype(np.uint8)
    bits = 2 if codes.shape[1] == 8 else 3
    shells = {"iq2_s": 1, "iq3_s": 3}.get(name, 2)
    return Grid(codes, values, bits, *_places(codes, bits, shells))


def _places(codes: Array, bits: int, shells: int) -> tuple[Array, Array, Array]:
    points, n = codes.shape
    levels = int(codes.max()) + 1
    every = np.indices((levels,) * n, np.int32).reshape(n, -1)
    shift = bits * np.arange(n, dtype=np.int32)
    places = np.sort((every << shift[:, None]).sum(0))
    point = np.full(1 << bits * n, -1, np.int32)
    point[(codes.astype(np.int32) << shift).sum(1)] = np.arange(points, dtype=np.int32)
    free = places[point[places] < 0]
    counts = np.zeros(len(point), np.int32)
    found = []
    for start in range(0, len(free), 1024):
        some = free[start : start + 1024]
        own = (some[:, None] >> shift) & ((1 << bits) - 1)
        # Squares and products of small whole numbers: exact in float32.
        near, far = own.astype(np.float32), codes.astype(np.float32)
        apart = (near**2).sum(1)[:, None] + (far**2).sum(1) - 2 * near @ far.T
        ordered = np.argsort(apart, axis=1, kind="stable").astype(np.int32)
        distance = np.take_along_axis(apart, ordered, 1)
        shell = np.cumsum(np.diff(distance, axis=1, prepend=distance[:, :1]) > 0, axis=1)
        taken = shell < shells
        counts[some] = taken.sum(1)
        found.append(ordered[taken])
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return point, starts, np.concatenate(found)
