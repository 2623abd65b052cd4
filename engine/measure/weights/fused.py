"""A weight's statistics, and its errors in integer formats, from one pass over its rows.

The pass is compiled by numba, see `engine.measure.weights.fused_kernels`. Several threads take
spans of rows, each reading its own. Sums of spans are joined in the order of the rows, so that
figures do not depend on the number of threads. No torch is needed.

Results equal those of `weight_statistics` and `compare` to about twelve digits: ``Ŵ`` is the same
to the last bit, and of the sums, all in float64, only the order differs.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import ModuleType
from typing import Protocol

import numpy as np

from engine.checkpoint.packed.four_bits import widened
from engine.errors import first_line
from engine.formats.family import family_of
from engine.formats.grammar import Format
from engine.measure.weights.sample import sampled_rows
from engine.measure.weights.sums import Array, Beyond, Sums

SPAN = 1 << 21
"""Weights of a span: some milliseconds of one thread."""
AT_ONCE = 1 << 19
"""Weights that a thread reads at a time."""
AHEAD = 12
"""How many spans are announced to the system before they are read."""
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_TINY = {"float16": 113 << 23, "bfloat16": 1 << 23, "float32": 1 << 23}
"""The least normal number of each dtype, as the bits of a float32."""


class Rows(Protocol):
    """Rows one below the other: `engine.checkpoint.StoredRows`, or `RowsInMemory`."""

    @property
    def dtype(self) -> str:
        """``float16``, ``bfloat16`` or ``float32``."""

    @property
    def read_as(self) -> str:
        """What `read` gives numbers of that dtype as: the same, or ``float32``."""

    @property
    def height(self) -> int:
        """Number of rows."""

    @property
    def width(self) -> int:
        """Weights of a row."""

    def read(self, first: int, room: memoryview) -> None:
        """Fill ``room`` with the bytes of rows from ``first`` on."""

    def announce(self, first: int, rows: int) -> None:
        """These rows are read soon."""


@dataclass(frozen=True)
class RowsInMemory:
    """Rows of a weight that is in memory."""

    dtype: str
    width: int
    bits: Array
    """uint8 ``[height, bytes of a row]``, contiguous."""

    @property
    def read_as(self) -> str:
        """The dtype."""
        return self.dtype

    @property
    def height(self) -> int:
        """Number of rows."""
        return len(self.bits)

    def read(self, first: int, room: memoryview) -> None:
        """Copy rows from ``first`` on."""
        count = len(room) // self.bits.shape[1]
        room[:] = self.bits[first : first + count].reshape(-1).data

    def announce(self, first: int, rows: int) -> None:
        """Does nothing."""


@cache
def kernels() -> ModuleType | str:
    """The compiled kernels; or why there are none, as a sentence."""
    instead = "weights are measured step by step, which takes several times as long"
    try:
        from engine.measure.weights import fused_kernels

        # Compiled or loaded here, once, rather than in every thread.
        rows = RowsInMemory("float16", 8, np.ones((1, 16), np.uint8))
        first = Pass(rows, (), False, fused_kernels)
        first.over(0, 1)
        first.beyond(0, 1, np.ones(1, np.bool_), 0.0, 1.0)
        fused_kernels.count(np.ones(8, np.uint8), np.zeros((fused_kernels.TABLES, 256), np.int64))
    except ImportError as error:
        return f"numba is missing ({first_line(error)}): {instead}; install it with pip"
    except Exception as error:  # noqa: BLE001 - numba refuses a processor or a numpy in many ways
        return f"numba fails ({type(error).__name__}: {first_line(error)[:120]}): {instead}"
    return fused_kernels


def is_fused(fmt: Format) -> bool:
    """Whether the pass knows a format: integers in groups or rows, without methods."""
    plain = not fmt.methods and not fmt.options
    return plain and fmt.strategy in ("group", "channel") and family_of(fmt).fused


@dataclass(frozen=True)
class Pass:
    """One pass over a weight, for statistics and errors in formats.

    Its methods may be called from several threads.
    """

    rows: Rows
    formats: tuple[Format, ...]
    brain: bool
    """Whether scales are stored in bfloat16, not float16."""
    kernels: ModuleType
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _shift: list[float] = field(default_factory=list)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First row and number of rows of each span."""
        step, height = self._step, self.rows.height
        return [(top, min(step, height - top)) for top in range(0, height, step)]

    @property
    def _step(self) -> int:
        return max(1, SPAN // self.rows.width)

    @property
    def shift(self) -> float:
        """The mean of the first row, as a float32."""
        with self._lock:
            if not self._shift:
                raw = _room(self.rows, 1)
                self.rows.read(0, raw.reshape(-1).data.cast("B"))
                values = widened(raw[0], self.rows.read_as)
                finite = values[np.isfinite(values)]
                mean = float(np.float32(finite.mean(dtype=np.float64))) if len(finite) else 0.0
                self._shift.append(mean)
            return self._shift[0]

    def announce(self) -> None:
        """This pass begins soon."""
        self.rows.announce(0, min(self.rows.height, AHEAD * self._step))

    def over(self, first: int, count: int) -> Sums:
        """Pass over a span.

        Raises:
            CheckpointError: rows cannot be read.
        """
        self._announce_later(first)
        found = Sums(self.rows.width, len(self.formats), self.shift, count)
        for top, raw in self._read(first, count, found):
            ranges, energies, broken = self._run(raw, found, found.powers, statistics=True)
            found.ranges[:, top : top + len(raw)] = ranges
            found.energies[top : top + len(raw)] = energies
            found.sample += self._sampled(first + top, raw)
            found.alive += int((ranges.any(0) | broken).sum())
            for i in map(int, np.flatnonzero(broken)):
                values = widened(raw[i], self.rows.read_as)
                found.add_broken_row(top + i, values)
                finite = np.isfinite(values)
                clean = raw[i].view(np.uint32 if self.rows.read_as == "float32" else np.uint16)
                clean = np.where(finite, clean, 0).astype(clean.dtype)
                powers = np.zeros(5)
                self._run(clean.view(np.uint16)[None], found, powers, statistics=False)
                found.powers[4] += powers[4]
        return found

    def beyond(self, first: int, count: int, reach: Array, mean: float, limit: float) -> Beyond:
        """Entries farther than ``limit`` from the mean, in some rows of a span.

        Args:
            reach: which rows have any, bool ``[count]``.
        """
        room = np.empty(self.rows.width, np.float32)
        ends, found = np.array([math.inf, -math.inf]), 0
        for top, raw in self._read(first, count, None):
            here = np.ascontiguousarray(reach[top : top + len(raw)])
            found += self.kernels.beyond(raw, self._kind, here, mean, limit, room, ends)
        return Beyond(found, float(ends[0]), float(ends[1]))

    @property
    def _kind(self) -> int:
        kinds = self.kernels.HALF, self.kernels.BFLOAT, self.kernels.SINGLE
        return int(kinds[list(_BYTES).index(self.rows.read_as)])

    def _run(
        self, raw: Array, found: Sums, powers: Array, *, statistics: bool
    ) -> tuple[Array, Array, Array]:
        """Add rows; return the range and the energy of each, and which were left out."""
        width, (table, base) = self.rows.width, self._table
        shapes = (self.kernels.TOGETHER, width), (5, -(-width // base)), (width,)
        room = [np.empty(shape, np.float32) for shape in shapes]
        ranges = np.full((2, len(raw)), [[np.inf], [-np.inf]], np.float32)
        energies, broken = np.zeros(len(raw)), np.zeros(len(raw), np.bool_)
        self.kernels.pass_over(
            raw, self._kind, np.uint32(_TINY[self.rows.dtype]), found.shift, table, base,
            self.brain, statistics, *room, found.columns, found.extremes, ranges, energies, broken,
            powers, found.errors,
        )  # fmt: skip
        return ranges, energies, broken

    def _sampled(self, first: int, raw: Array) -> list[Array]:
        """Those of some rows that are looked at more closely, as float32."""
        wanted = [row for row in self._looked_at if first <= row < first + len(raw)]
        return [widened(raw[row - first], self.rows.read_as) for row in wanted]

    @cached_property
    def _looked_at(self) -> list[int]:
        return sampled_rows(self.rows.height)

    @property
    def _table(self) -> tuple[Array, int]:
        """Group size, bits and symmetry of each format; and what divides all groups."""
        width = self.rows.width
        sizes = [min(fmt.group_size or width, width) for fmt in self.formats]
        rows = [
            (size, fmt.bits, fmt.symmetric) for size, fmt in zip(sizes, self.formats, strict=True)
        ]
        table = np.array(rows, np.int64).reshape(-1, 3)
        return table, math.gcd(*(size for size in sizes if size < width)) or width

    def _read(self, first: int, count: int, found: Sums | None) -> Iterator[tuple[int, Array]]:
        """Rows of a span, a few at a time: the place of the first one in it, and their bits."""
        step = max(1, AT_ONCE // self.rows.width)
        for top in range(0, count, step):
            begun = time.perf_counter()
            raw = _room(self.rows, min(step, count - top))
            self.rows.read(first + top, raw.reshape(-1).data.cast("B"))
            if found is not None:
                found.read_s += time.perf_counter() - begun
            yield top, raw

    def _announce_later(self, first: int) -> None:
        ahead = first + AHEAD * self._step
        if ahead < self.rows.height:
            self.rows.announce(ahead, min(self._step, self.rows.height - ahead))


_rooms = threading.local()


def _room(rows: Rows, count: int) -> Array:
    """Memory of this thread for the bits of some rows, uint16."""
    size = count * rows.width * _BYTES[rows.read_as]
    room: Array = getattr(_rooms, "bits", np.empty(0, np.uint8))
    if len(room) < size:
        room = _rooms.bits = np.empty(size, np.uint8)
    return room[:size].view(np.uint16).reshape(count, -1)
