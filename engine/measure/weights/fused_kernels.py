"""One pass over rows of a weight, compiled by numba: statistics and errors of integer formats.

A row is widened to float32 in the processor's cache; everything is computed from there. The
arithmetic of formats is that of `engine.quant.integer`, operation by operation in float32, so that
``Ŵ`` is the same to the last bit: nothing here may turn a division into a product, or fuse a
product with a sum. Only sums, which are in float64, are in another order.

Importing this module imports numba; nothing is compiled before the first call. Nothing is allocated
here, and the interpreter's lock is not held, so that threads pass over other rows meanwhile.
"""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

from engine.compiling import compiled, fabs, greatest, least, rint

float32, float64, uint16, uint32 = np.float32, np.float64, np.uint16, np.uint32

HALF, BFLOAT, SINGLE = 0, 1, 2
"""Dtypes of rows as stored: float16, bfloat16, float32."""
TOGETHER = 4
"""Rows that are in the cache at a time."""


@compiled()
def _widen(raw: Any, kind: int, x: Any) -> None:
    """Stored numbers in float32, exactly; ``raw`` are their bits, as uint16."""
    bits = x.view(uint32)
    if kind == SINGLE:
        whole = raw.view(uint32)
        for j in range(x.size):
            bits[j] = whole[j]
    elif kind == BFLOAT:
        for j in range(x.size):
            bits[j] = uint32(raw[j]) << uint32(16)
    else:
        for j in range(x.size):
            half = uint32(raw[j])
            size = half & uint32(0x7FFF)
            wide = (size << uint32(13)) + uint32(112 << 23)
            wide += uint32(112 << 23) if size >= uint32(0x7C00) else uint32(0)
            bits[j] = wide | ((half & uint32(0x8000)) << uint32(16))
        for j in range(x.size):  # denormals are multiples of 2^-24
            steps = np.int32(raw[j]) & np.int32(0x7FFF)
            small = float32(steps) * float32(2.0**-24)
            small = -small if raw[j] >= uint16(0x8000) else small
            x[j] = small if steps < np.int32(0x400) else x[j]


@compiled(reordered=True)
def _health(x: Any, tiny: Any) -> tuple[int, int]:
    """How many entries are not finite, and how many are denormal."""
    bits = x.view(uint32)
    broken = denormal = 0
    for j in range(x.size):
        size = bits[j] & uint32(0x7FFFFFFF)
        broken += 1 if size >= uint32(0x7F800000) else 0
        denormal += 1 if size - uint32(1) < tiny - uint32(1) else 0
    return broken, denormal


@compiled(reordered=True)
def ranges(x: Any, size: int, lo: Any, hi: Any) -> None:
    """The least and the greatest entry of each group."""
    for g in range(lo.size):
        part = x[g * size : (g + 1) * size]
        a, b = float32(inf), float32(-inf)
        for j in range(part.size):
            a, b = least(part[j], a), greatest(part[j], b)
        lo[g], hi[g] = a, b


@compiled(reordered=True)
def _energy(x: Any) -> float:
    """Sum of squares."""
    total = 0.0
    for j in range(x.size):
        total += float64(x[j]) * float64(x[j])
    return total


@compiled(reordered=True)
def _moments(x: Any, shift: float, first: Any, second: Any, powers: Any) -> None:
    """Powers of the deviation from ``shift`` of four rows: by column, and in total."""
    a = b = c = d = 0.0
    for j in range(x.shape[1]):
        p, q = float64(x[0, j]) - shift, float64(x[1, j]) - shift
        r, s = float64(x[2, j]) - shift, float64(x[3, j]) - shift
        pp, qq, rr, ss = p * p, q * q, r * r, s * s
        one, two = (p + q) + (r + s), (pp + qq) + (rr + ss)
        first[j] += one
        second[j] += two
        a += one
        b += two
        c += (p * pp + q * qq) + (r * rr + s * ss)
        d += (pp * pp + qq * qq) + (rr * rr + ss * ss)
    powers[0] += a
    powers[1] += b
    powers[2] += c
    powers[3] += d


@compiled()
def _extremes(x: Any, lowest: Any, highest: Any) -> None:
    """The range of each column, over four more rows."""
    for j in range(x.shape[1]):
        lo = least(least(x[0, j], x[1, j]), least(x[2, j], x[3, j]))
        hi = greatest(greatest(x[0, j], x[1, j]), greatest(x[2, j], x[3, j]))
        lowest[j], highest[j] = least(lo, lowest[j]), greatest(hi, highest[j])


@compiled()
def _copy(row: Any, out: Any) -> None:
    for j in range(row.size):
        out[j] = row[j]


@compiled()
def _fill(out: Any, value: Any) -> None:
    for j in range(out.size):
        out[j] = value


@compiled()
def _stored(scale: Any, brain: bool) -> bool:
    """Round scales to float16 or bfloat16, to nearest even; whether one overflows."""
    bits = scale.view(uint32)
    drop = uint32(16) if brain else uint32(13)
    half = uint32((1 << 15) - 1) if brain else uint32((1 << 12) - 1)
    least = uint32(0) if brain else uint32(113 << 23)
    limit = uint32(0x7F800000) if brain else uint32(143 << 23)
    over = 0
    for g in range(scale.size):
        # Below 2^-14, float16 has multiples of 2^-24, as the float32 numbers from .5 to 1 have.
        small = (scale[g] + float32(0.5)) - float32(0.5)
        odd = (bits[g] >> drop) & uint32(1)
        rounded = ((bits[g] + half + odd) >> drop) << drop
        below = bits[g] < least
        over += 1 if rounded >= limit else 0
        bits[g] = rounded
        scale[g] = small if below else scale[g]
    return over > 0


@compiled()
def find_parameters(
    lo: Any, hi: Any, each: int, symmetric: bool, ends: Any, brain: bool, found: Any
) -> bool:
    """Scale, divisor and zero point of groups of ``each`` ranges; whether a scale overflows."""
    q_min, q_max = ends
    scale, divisor, point = found[0], found[1], found[2]
    steps = q_max - q_min
    for g in range(scale.size):
        a = b = float32(0.0)
        for i in range(g * each, min((g + 1) * each, lo.size)):
            a, b = least(lo[i], a), greatest(hi[i], b)
        exact = greatest(-a, b) / (steps / float32(2)) if symmetric else (b - a) / steps
        nonzero = exact if exact > float32(0) else float32(1)
        zero = rint(least(greatest(q_min - a / nonzero, q_min), q_max))
        scale[g] = fabs(exact)  # a zero may have either sign
        point[g] = float32(0) if symmetric else zero
    over = _stored(scale, brain)
    for g in range(scale.size):
        empty = scale[g] == float32(0)
        scale[g] = float32(2.0**-23) if empty else scale[g]  # EMPTY_SCALE
        divisor[g] = float32(inf) if empty else scale[g]
        point[g] = float32(0) if empty else point[g]
    return over


@compiled()
def round_to_grid(x: Any, size: int, ends: Any, found: Any, approx: Any) -> None:
    """``Ŵ`` of one row, rounded in groups of ``size``."""
    q_min, q_max = ends
    for g in range(found.shape[1]):
        scale, divisor, point = found[0, g], found[1, g], found[2, g]
        part, out = x[g * size : (g + 1) * size], approx[g * size : (g + 1) * size]
        for j in range(part.size):
            code = rint(least(greatest(part[j] / divisor + point, q_min), q_max))
            out[j] = (code - point) * scale


@compiled(reordered=True)
def _compare(x: Any, approx: Any, sums: Any) -> None:
    """Add squares and magnitudes of ``Ŵ − W``, and keep the greatest magnitude."""
    noise = distance = farthest = 0.0
    for j in range(x.size):
        gap = fabs(float64(approx[j]) - float64(x[j]))
        noise += gap * gap
        distance += gap
        farthest = greatest(gap, farthest)
    sums[0] += noise
    sums[1] += distance
    sums[2] = greatest(farthest, sums[2])


@compiled()
def _format(
    x: Any, lo: Any, hi: Any, base: int, fmt: Any, brain: bool, room: Any, approx: Any
) -> bool:
    """``Ŵ`` of a row in one format; whether a scale overflows."""
    size, bits, symmetric = fmt[0], fmt[1], fmt[2] != 0
    ends = float32(-(1 << (bits - 1))), float32((1 << (bits - 1)) - 1)
    groups = (x.size + size - 1) // size
    each = (size + base - 1) // base
    found = room[:, :groups]
    over = find_parameters(lo, hi, each, symmetric, ends, brain, found)
    round_to_grid(x, size, ends, found, approx)
    return over


@compiled(entry=True)
def pass_over(
    raw: Any,
    kind: int,
    tiny: Any,
    shift: float,
    formats: Any,
    base: int,
    brain: bool,
    statistics: bool,
    x: Any,
    groups: Any,
    approx: Any,
    columns: Any,
    extremes: Any,
    rows: Any,
    energies: Any,
    broken: Any,
    powers: Any,
    sums: Any,
) -> None:
    """Pass over rows once, and add to what is known of them.

    Rows with entries that are not finite are only marked: the caller cleans them.

    Args:
        raw: the bits of the rows, uint16 ``[rows, width]``, twice as wide for float32.
        kind: `HALF`, `BFLOAT` or `SINGLE`.
        tiny: the bits, as a float32, of the least normal number of that dtype.
        shift: a number near the mean, to subtract before powers are summed; a float32.
        formats: int64 ``[formats, 3]``: weights in a group, bits, whether symmetric.
        base: divides the group sizes, but for those of a whole row.
        brain: whether scales are stored in bfloat16, not float16.
        statistics: whether any but the errors are wanted.
        x: float32 ``[4, width]``, scratch; so are the next two.
        groups: float32 ``[5, ⌈width / base⌉]``.
        approx: float32 ``[width]``.
        columns: float64 ``[2, width]``: sums and sums of squares of deviations from ``shift``.
        extremes: float32 ``[2, width]``: the range of each column.
        rows: float32 ``[2, rows]``: receives the range of each row.
        energies: float64 ``[rows]``: receives the sum of squares of each row.
        broken: bool ``[rows]``: receives which rows were left out.
        powers: float64: sums of the powers 1 to 4 of the deviation from ``shift``, denormals.
        sums: float64 ``[formats, 4]``: squares and magnitudes of ``Ŵ − W``, the greatest, and how
            many rows have a scale that overflows.
    """
    height = raw.shape[0]
    lo, hi, room = groups[0], groups[1], groups[2:]
    for top in range(0, height, TOGETHER):
        count = min(TOGETHER, height - top)
        good = -1
        for i in range(count):
            row = x[i]
            _widen(raw[top + i], kind, row)
            bad, denormal = _health(row, tiny)
            broken[top + i] = bad > 0
            if bad > 0:
                continue
            good = i
            powers[4] += denormal
            ranges(row, base, lo, hi)
            a, b = float32(inf), float32(-inf)
            for g in range(lo.size):
                a, b = least(lo[g], a), greatest(hi[g], b)
            rows[0, top + i], rows[1, top + i] = a, b
            energies[top + i] = _energy(row) if statistics else 0.0
            for k in range(formats.shape[0]):
                over = _format(row, lo, hi, base, formats[k], brain, room, approx)
                sums[k, 3] += 1.0 if over else 0.0
                _compare(row, approx, sums[k])
        if not statistics or good < 0:
            continue
        for i in range(TOGETHER):  # a row twice changes no range
            if i >= count or broken[top + i]:
                _copy(x[good], x[i])
        _extremes(x, extremes[0], extremes[1])
        for i in range(TOGETHER):  # and one without a deviation no sum
            if i >= count or broken[top + i]:
                _fill(x[i], float32(shift))
        _moments(x, shift, columns[0], columns[1], powers)


@compiled(entry=True)
def approximate(
    raw: Any, kind: int, fmt: Any, base: int, brain: bool, x: Any, groups: Any, out: Any
) -> bool:
    """``Ŵ`` of finite rows, float32 ``[rows, width]``, as `pass_over` makes it; for comparison."""
    over = False
    for i in range(raw.shape[0]):
        _widen(raw[i], kind, x[0])
        ranges(x[0], base, groups[0], groups[1])
        over |= _format(x[0], groups[0], groups[1], base, fmt, brain, groups[2:], out[i])
    return over


@compiled(entry=True)
def beyond(raw: Any, kind: int, reach: Any, mean: float, limit: float, x: Any, found: Any) -> int:
    """How many finite entries of rows lie farther than ``limit`` from ``mean``.

    Args:
        raw: as in `pass_over`, as is ``kind``.
        reach: which rows to look at, bool ``[rows]``.
        x: float32 ``[width]``, scratch.
        found: float64: the least and the greatest deviation of the others, kept up to date.
    """
    count = 0
    for i in range(raw.shape[0]):
        if reach[i]:
            _widen(raw[i], kind, x)
            count += _beyond(x, mean, limit, found)
    return count


@compiled(reordered=True)
def _beyond(x: Any, mean: float, limit: float, found: Any) -> int:
    count, lo, hi = 0, found[0], found[1]
    bits = x.view(uint32)
    for j in range(x.size):
        finite = bits[j] & uint32(0x7FFFFFFF) < uint32(0x7F800000)
        away = float64(x[j] if finite else float32(0)) - mean
        inside = fabs(away) <= limit
        count += 1 if finite and not inside else 0
        near = finite and inside
        lo = least(away if near else inf, lo)
        hi = greatest(away if near else -inf, hi)
    found[0], found[1] = lo, hi
    return count


TABLES = 4
"""Tables that codes are counted in by turns: one after the other would wait for the same number."""


@compiled(entry=True)
def count(codes: Any, tables: Any) -> None:
    """Count codes, uint8, in tables ``[TABLES, 256]``."""
    whole = codes.size // TABLES * TABLES
    for j in range(0, whole, TABLES):
        tables[0, codes[j]] += 1
        tables[1, codes[j + 1]] += 1
        tables[2, codes[j + 2]] += 1
        tables[3, codes[j + 3]] += 1
    for j in range(whole, codes.size):
        tables[0, codes[j]] += 1
