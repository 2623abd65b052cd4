"""``iq2`` and ``iq3``, compiled by numba: the bytes of `engine.quant.gguf_iq`, every one.

A function here does what its namesake there does, operation by operation in float32, for one group
of weights after the other. Nothing is allocated here, and the interpreter's lock is not held.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.compiling import compiled, fabs, rint, sqrt
from engine.quant.gguf_kernels import _half, _interleave, _within

float32, uint8, int32, int64 = np.float32, np.uint8, np.int32, np.int64
ROWS, LANES = 8, 32
"""Rows of numbers that are scratch."""
SUPER_BLOCK = 256
CODES = 256
ZERO, ONE, TWO, HALF = float32(0), float32(1), float32(2), float32(0.5)
MISSED, ALL, ALL_IF_MISSED = range(3)
"""Points that are looked for again: `engine.quant.gguf_iq.Kind.again`."""
IMPORTANCE, SQUARES, SQUARES_AND_SPREAD = range(3)
"""What a squared error counts."""
TOP = float32(4)
"""The greatest code of `_fit_positive`."""


# --- one group ------------------------------------------------------------------------------------


@compiled()
def _magnitudes(x: Any, weights: Any, parity: bool, values: Any, signs: Any) -> None:
    """Magnitudes of a group, one of eight negative where signs do not fit; and signs as bits."""
    for k in range(x.size // 8):
        count, found = 0, 0
        for i in range(8 * k, 8 * k + 8):
            if x[i] >= ZERO:
                values[i] = x[i]
            else:
                values[i] = -x[i]
                found |= 1 << (i - 8 * k)
                count += 1
        if parity and count % 2 == 1:
            at = 8 * k
            least = weights[at] * x[at] * x[at]
            for i in range(8 * k + 1, 8 * k + 8):
                cost = weights[i] * x[i] * x[i]
                if cost < least:
                    least, at = cost, i
            values[at] = -values[at]
            found ^= 1 << (at - 8 * k)
        signs[k] = uint8(found)


@compiled()
def _error(x: Any, weights: Any, inverse: Any, first: bool) -> Any:
    scale, error = ONE / inverse, float32(-0.0)
    for i in range(x.size):
        code = rint(inverse * x[i])
        code = _in_a_byte(code) if first else min(code, TOP)
        gap = x[i] - scale * code
        error += weights[i] * gap * gap
    return error


@compiled()
def _in_a_byte(code: Any) -> Any:
    return float32(int64(code) & 255)


@compiled()
def _fit_positive(x: Any, weights: Any, codes: Any) -> Any:
    """A scale; see `engine.quant.gguf_search.fit_positive`."""
    greatest = ZERO
    for i in range(x.size):
        greatest = x[i] if x[i] > greatest else greatest
    if greatest < float32(1e-15):
        return ZERO
    best = TOP / greatest
    least = _error(x, weights, best, True)
    for k in range(-4, 5):
        if k != 0:
            tried = (float32(0.1) * float32(k) + TOP) / greatest
            error = _error(x, weights, tried, False)
            if error < least:
                least, best = error, tried
    lx, l2 = float32(-0.0), float32(-0.0)
    for i in range(x.size):
        code = min(rint(best * x[i]), TOP)
        lx += weights[i] * x[i] * code
        l2 += weights[i] * code * code
        codes[i] = _in_a_byte(code)
    for _ in range(5):
        moved = False
        for i in range(x.size):
            code, weight = codes[i], weights[i]
            rest_lx = lx - weight * x[i] * code
            rest_l2 = l2 - weight * code * code
            if rest_lx > ZERO and rest_l2 > ZERO:
                new = min(rint(x[i] * rest_l2 / rest_lx), TOP)
                if new != code:
                    new_lx = rest_lx + weight * x[i] * new
                    new_l2 = rest_l2 + weight * new * new
                    if new_lx * new_lx * l2 > lx * lx * new_l2:
                        codes[i], lx, l2, moved = _in_a_byte(new), new_lx, new_l2, True
        if not moved:
            break
    return lx / l2 if l2 > ZERO else ZERO


@compiled()
def _nearest_of_8(x: Any, near: Any, scale: Any, grid: Any, neighbours: Any) -> Any:
    found: Any = neighbours[0]
    least = float32(np.inf)
    for point in neighbours:
        distance = ZERO
        for i in range(4):
            gap = scale * grid[point, i] - x[i]
            distance += near[i] * gap * gap
        if distance < least:
            for i in range(4, 8):
                gap = scale * grid[point, i] - x[i]
                distance += near[i] * gap * gap
            if distance < least:
                least, found = distance, point
    return found


@compiled()
def _nearest_of_4(x: Any, near: Any, scale: Any, grid: Any, neighbours: Any) -> Any:
    found, least = neighbours[0], float32(np.inf)
    for point in neighbours:
        distance = ZERO
        for i in range(4):
            gap = scale * grid[point, i] - x[i]
            distance += near[i] * gap * gap
        if distance < least:
            least, found = distance, point
    return found


@compiled()
def _search(
    x: Any, near: Any, inverse: Any, scale: Any, bits: int, grid: Any, places: Any, starts: Any,
    neighbours: Any, values: Any, points: Any,
) -> Any:  # fmt: skip
    """Values and points nearest to scaled magnitudes; and a bit for each that rounding missed."""
    width = grid.shape[1]
    top = float32(2) if bits == 2 else float32(7)
    missed = 0
    for i in range(x.size):
        code = _within(rint(HALF * (inverse * x[i] - ONE)), ZERO, top)
        values[i] = code if code == code else ZERO
    for k in range(x.size // width):
        first = k * width
        place: Any = int32(0)
        for i in range(width):
            place |= int32(values[first + i]) << int32(bits * i)
        point = places[place]
        if point < 0:
            missed |= 1 << k
            some = neighbours[starts[place] : starts[place + 1]]
            part, weighing = x[first : first + width], near[first : first + width]
            if width == 8:
                point = _nearest_of_8(part, weighing, scale, grid, some)
            else:
                point = _nearest_of_4(part, weighing, scale, grid, some)
        points[k] = point
        for i in range(width):
            values[first + i] = grid[point, i]
    return missed


@compiled()
def _copy(source: Any, to: Any) -> None:
    for i in range(source.size):
        to[i] = source[i]


@compiled()
def _sum_qx(x: Any, weights: Any, values: Any) -> Any:
    found = float32(-0.0)
    for i in range(x.size):
        found += weights[i] * x[i] * values[i]
    return found


@compiled()
def _sum_q2(weights: Any, values: Any) -> Any:
    found = float32(-0.0)
    for i in range(weights.size):
        found += weights[i] * values[i] * values[i]
    return found


@compiled()
def _fit(
    x: Any, weights: Any, near: Any, values: Any, found: Any, points: Any, tried: Any,
    smallest: Any, searched: bool, again: int, candidates: Any,
    bits: int, grid: Any, places: Any, starts: Any, neighbours: Any,
) -> Any:  # fmt: skip
    """The scale of a group, 0 if it is empty; its points into ``points``."""
    width, greatest = grid.shape[1], x[0]
    for i in range(1, x.size):
        greatest = x[i] if x[i] > greatest else greatest
    if greatest < smallest:
        return ZERO
    levels = float32(3) if bits == 2 else float32(8)
    scale = greatest / (TWO * levels - ONE)
    if searched:
        scale = _fit_positive(x, weights, found)
        greatest = scale * levels
        if not greatest > ZERO:
            return ZERO
    groups = x.size // width
    best = ZERO
    missed = 0 if again == MISSED else (1 << groups) - 1
    for k in range(groups):
        points[k] = 0
    for i in range(x.size):
        values[i] = ONE
    for c in range(candidates.size):
        inverse = candidates[c] / greatest
        misses = _search(
            x, near, inverse, ONE / inverse, bits, grid, places, starts, neighbours, found, tried
        )
        qx, q2 = _sum_qx(x, weights, found), _sum_q2(weights, found)
        if q2 > ZERO and qx * qx > best * q2:
            scale, missed = qx / q2, misses
            best = scale * qx
            _copy(found, values)
            _copy(tried[:groups], points)
    if again == ALL or (again == ALL_IF_MISSED and missed != 0):
        missed = (1 << groups) - 1
    if missed != 0 and scale > ZERO:
        _search(x, near, ONE / scale, scale, bits, grid, places, starts, neighbours, found, tried)
        for k in range(groups):
            if missed >> k & 1:
                points[k] = tried[k]
                for i in range(k * width, (k + 1) * width):
                    values[i] = found[i]
        q2 = _sum_q2(weights, values)
        if q2 > ZERO:
            scale = _sum_qx(x, weights, values) / q2
    return scale


# --- super-blocks ---------------------------------------------------------------------------------


@compiled()
def _weigh(x: Any, given: Any, spread: Any, counts: int, weights: Any, near: Any) -> None:
    for i in range(x.size):
        square = x[i] * x[i]
        if counts == IMPORTANCE:
            weights[i] = given[i] * sqrt(spread + square)
        elif counts == SQUARES:
            weights[i] = square
        else:
            weights[i] = float32(0.25) * spread + square
        near[i] = sqrt(weights[i])


@compiled(entry=True)
def encode_grid(
    x: Any, importance: Any, counts: int, layout: int, group: int, parity: bool, spread: Any,
    smallest: Any, again: int, factor: Any, searched: bool, candidates: Any,
    bits: int, grid: Any, places: Any, starts: Any, neighbours: Any,
    first: int, last: int, room: Any, q: Any, out: Any,
) -> None:  # fmt: skip
    """Super-blocks from ``first`` to ``last`` as bytes.

    Args:
        x: float32 ``[super-blocks, 256]``.
        importance: float32 ``[super-blocks of a row, 256]``.
        counts: `IMPORTANCE`, `SQUARES` or `SQUARES_AND_SPREAD`.
        layout: of the bytes, see `_pack`.
        group, parity, spread, smallest, again, factor, searched: of the
            `engine.quant.gguf_iq.Kind`.
        candidates: divided by the greatest magnitude for an inverse scale, float32.
        bits, places, starts, neighbours: of the `engine.quant.gguf_grids.Grid`.
        grid: float32 ``[points, n]``, ``2 · code + 1``.
        first, last: of the super-blocks.
        room: float32 ``[ROWS, LANES]``, scratch; so is ``q``, uint8 ``[CODES]``.
        out: uint8 ``[super-blocks, bytes]``.
    """
    groups, each = SUPER_BLOCK // group, group // grid.shape[1]
    weights, near, magnitudes = room[0, :group], room[1, :group], room[2, :group]
    values, found, scales, word = room[3, :group], room[4, :group], room[5, :groups], room[6]
    numbers = room[7].view(int32)[:8]
    tried = room[7].view(int32)[8:16]
    low, high, signs, steps = q[:64], q[64:128], q[128:160], q[160:176]
    for block in range(first, last):
        row, given, own = out[block], importance[block % len(importance)], x[block]
        sum_x2 = float32(-0.0)
        for i in range(SUPER_BLOCK):
            sum_x2 += own[i] * own[i]
        sigma = spread * sum_x2 / float32(SUPER_BLOCK)
        greatest = ZERO if fabs(sum_x2) < float32(np.inf) else float32(np.inf)
        for g in range(groups):
            part = own[g * group : (g + 1) * group]
            _weigh(part, given[g * group : (g + 1) * group], sigma, counts, weights, near)
            bytes_ = signs[g * group // 8 : (g + 1) * group // 8]
            _magnitudes(part, weights, parity, magnitudes, bytes_)
            scale = _fit(
                magnitudes, weights, near, values, found, numbers, tried, smallest, searched,
                again, candidates, bits, grid, places, starts, neighbours,
            )  # fmt: skip
            for k in range(each):
                number = int32(0) if scale == ZERO else numbers[k]
                low[g * each + k] = uint8(number & int32(255))
                high[g * each + k] = uint8(number >> int32(8))
            for k in range(group // 8):
                bytes_[k] = bytes_[k] if scale >= ZERO else ~bytes_[k]
                bytes_[k] = uint8(0) if scale == ZERO else bytes_[k]
            scales[g] = fabs(scale)
            greatest = scales[g] if scales[g] > greatest or scales[g] != scales[g] else greatest
        d = greatest / float32(31)
        inverse = ONE / d
        for g in range(groups):
            step = HALF * (inverse * scales[g] - ONE)
            steps[g] = uint8(int32(_within(rint(_finite(step)), ZERO, float32(15))))
        _half(d if factor == ONE else d * factor, word, row[:2])
        _pack(low, high, signs, steps, layout, row[2:])


@compiled()
def _finite(value: Any) -> Any:
    """A number, 0 for what is none; infinity counts as much."""
    return value if value == value else ZERO


XXS_2, XS_2, S_2, XXS_3, S_3 = range(5)


@compiled()
def _pack(low: Any, high: Any, signs: Any, steps: Any, layout: int, out: Any) -> None:
    """Bytes of a super-block after ``d``: see `engine.quant.gguf_iq`."""
    if layout == XS_2:
        for k in range(32):
            out[2 * k] = low[k]
            out[2 * k + 1] = high[k] | signs[k] << uint8(1)
        _interleave(steps[:16], 1, 4, 0, 15, out[64:72])
    elif layout == S_2:
        _copy(low[:32], out)
        _copy(signs, out[32:64])
        _interleave(high[:32], 1, 2, 0, 3, out[64:72])
        _interleave(steps[:16], 1, 4, 0, 15, out[72:80])
    elif layout == S_3:
        _copy(low, out)
        _copy(signs, out[72:104])
        _interleave(high, 1, 1, 0, 1, out[64:72])
        _interleave(steps[:8], 1, 4, 0, 15, out[104:108])
    else:
        for g in range(8):
            word = int64(steps[g]) << 28
            for k in range(4):
                word |= int64(signs[4 * g + k] & uint8(127)) << (7 * k)
            at = 64 + 4 * g if layout == XXS_3 else 8 * g + 4
            for k in range(4):
                out[at + k] = uint8(word >> (8 * k) & 255)
                if layout == XXS_2:
                    out[8 * g + k] = low[4 * g + k]
        if layout == XXS_3:
            _copy(low, out)
