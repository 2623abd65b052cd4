"""K-quants and ``iq4``, compiled by numba: the bytes of the searches step by step, every one.

`engine.quant.gguf_search`, `engine.quant.gguf_k` and `engine.quant.gguf_iq4` say what is done, and
a function here does what its namesake there does, operation by operation in float32. A strip of
`LANES` groups of weights is searched at a time, in the processor's cache: loops over lanes become
vector instructions, sums run over the weights of a group in their order. What follows the search
runs along the weights of one super-block after the other.

Nothing is allocated here, and the interpreter's lock is not held.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.compiling import compiled, fabs, floor, rint, sqrt

float32, uint8, int32, uint32 = np.float32, np.uint8, np.int32, np.uint32
LANES = 64
"""Groups that are searched at a time: eight super-blocks of 32, four of 16."""
ROWS = 160
"""Rows of `LANES` numbers that are scratch: weights, what they weigh, and codes; then the rest."""
SUPER_BLOCK = 256
CODES = 32 + SUPER_BLOCK
"""Bytes that are scratch: scales and minima of a super-block, then its codes."""
ZERO, ONE = float32(0), float32(1)
NOTHING = float32(-0.0)
"""What a sum begins with: unlike 0, it changes no term, not even the sign of a zero."""
SMALLEST = float32(1e-15)


# --- a strip of groups, side by side --------------------------------------------------------------


@compiled()
def _load(x: Any, begin: int, px: Any) -> None:
    """Groups of a strip, ``[groups, n]`` as ``[n, LANES]``; the last lanes may hold zeros."""
    count = min(LANES, x.shape[0] - begin)
    for lane in range(count):
        for i in range(x.shape[1]):
            px[i, lane] = x[begin + lane, i]
    for lane in range(count, LANES):
        for i in range(x.shape[1]):
            px[i, lane] = ZERO


@compiled()
def _total_of_products(a: Any, b: Any, out: Any) -> None:
    for lane in range(LANES):
        out[lane] = NOTHING
    for i in range(a.shape[0]):
        for lane in range(LANES):
            out[lane] += a[i, lane] * b[i, lane]


@compiled()
def _within(value: Any, lowest: Any, highest: Any) -> Any:
    """Clamped; NaN stays."""
    value = lowest if value < lowest else value
    return highest if value > highest else value


@compiled()
def _further(number: Any, peak: Any) -> Any:
    """Whether a number is of greater magnitude than the peak before it; NaN is of the greatest."""
    return fabs(number) > fabs(peak) or (number != number and peak == peak)


@compiled()
def _peaks(x: Any, peak: Any) -> None:
    """The number of the greatest magnitude of each lane, the first of several."""
    for lane in range(LANES):
        peak[lane] = x[0, lane]
    for i in range(1, x.shape[0]):
        for lane in range(LANES):
            peak[lane] = x[i, lane] if fabs(x[i, lane]) > fabs(peak[lane]) else peak[lane]


# --- scales and minima ----------------------------------------------------------------------------


@compiled()
def _rounded(x: Any, inverse: Any, base: Any, top: Any, codes: Any) -> None:
    for i in range(x.shape[0]):
        for lane in range(LANES):
            scaled = inverse[lane] * (x[i, lane] - base[lane])
            codes[i, lane] = _within(rint(scaled), ZERO, top)


@compiled()
def _tried(x: Any, weights: Any, inverse: Any, base: Any, top: Any, codes: Any, sums: Any) -> None:
    """Codes of a candidate, and what its scale and minimum are worked out from."""
    l, l2, xl = sums[0], sums[1], sums[2]
    for lane in range(LANES):
        l[lane] = l2[lane] = xl[lane] = NOTHING
    for i in range(x.shape[0]):
        for lane in range(LANES):
            scaled = inverse[lane] * (x[i, lane] - base[lane])
            code = _within(rint(scaled), ZERO, top)
            weighted = weights[i, lane] * code
            codes[i, lane] = code
            l[lane] += weighted
            l2[lane] += weighted * code
            xl[lane] += weighted * x[i, lane]


@compiled()
def _weighted_error(
    x: Any, weights: Any, scale: Any, lo: Any, codes: Any, absolute: bool, out: Any
) -> None:
    for lane in range(LANES):
        out[lane] = NOTHING
    for i in range(x.shape[0]):
        for lane in range(LANES):
            gap = scale[lane] * codes[i, lane] + lo[lane] - x[i, lane]
            gap = fabs(gap) if absolute else gap * gap
            out[lane] += gap * weights[i, lane]


@compiled()
def _fit_offsets(
    px: Any, pw: Any, pc: Any, rows: Any, top: Any, candidates: Any, absolute: bool
) -> None:
    """Scales and least numbers into ``rows[0]`` and ``rows[1]``, codes into ``pc``."""
    scale, lo, hi, inverse, base = rows[0], rows[1], rows[2], rows[3], rows[4]
    sum_w, sum_x, tried, new_scale, new_lo = rows[5], rows[6], rows[7], rows[8], rows[9]
    least, error, flat, determinant, sums = rows[10], rows[11], rows[12], rows[13], rows[14:17]
    for lane in range(LANES):
        lo[lane] = hi[lane] = px[0, lane]
        sum_w[lane] = NOTHING
    for i in range(px.shape[0]):
        for lane in range(LANES):
            value = px[i, lane]
            lo[lane] = value if value < lo[lane] else lo[lane]
            hi[lane] = value if value > hi[lane] else hi[lane]
            sum_w[lane] += pw[i, lane]
    for lane in range(LANES):
        lo[lane] = ZERO if lo[lane] > ZERO else lo[lane]
        flat[lane] = ONE if hi[lane] <= lo[lane] else ZERO
        base[lane] = lo[lane]
        inverse[lane] = top / (hi[lane] - lo[lane])
        scale[lane] = ONE / inverse[lane]
    _total_of_products(pw, px, sum_x)
    _rounded(px, inverse, base, top, pc)
    _weighted_error(px, pw, scale, lo, pc, absolute, least)
    for k in range(candidates.size):
        for lane in range(LANES):
            tried[lane] = candidates[k] / (hi[lane] - lo[lane])
        _tried(px, pw, tried, lo, top, pc, sums)
        for lane in range(LANES):
            l, l2, xl = sums[0, lane], sums[1, lane], sums[2, lane]
            det = sum_w[lane] * l2 - l * l
            a = (sum_w[lane] * xl - sum_x[lane] * l) / det
            b = (l2 * sum_x[lane] - l * xl) / det
            positive = b > ZERO
            new_lo[lane] = ZERO if positive else b
            new_scale[lane] = xl / l2 if positive else a
            determinant[lane] = det
        _weighted_error(px, pw, new_scale, new_lo, pc, absolute, error)
        for lane in range(LANES):
            better = (determinant[lane] > ZERO) & (error[lane] < least[lane])
            least[lane] = error[lane] if better else least[lane]
            inverse[lane] = tried[lane] if better else inverse[lane]
            base[lane] = lo[lane] if better else base[lane]
            scale[lane] = new_scale[lane] if better else scale[lane]
            lo[lane] = new_lo[lane] if better else lo[lane]
    _rounded(px, inverse, base, top, pc)
    for lane in range(LANES):
        scale[lane] = ZERO if flat[lane] > ZERO else scale[lane]
    for i in range(px.shape[0]):
        for lane in range(LANES):
            pc[i, lane] = ZERO if flat[lane] > ZERO else pc[i, lane]


# --- scales alone ---------------------------------------------------------------------------------


@compiled()
def _sums_of_codes(x: Any, weights: Any, inverse: Any, half: Any, weighted: Any, sums: Any) -> None:
    lx, l2 = sums[0], sums[1]
    for lane in range(LANES):
        lx[lane] = l2[lane] = NOTHING
    for i in range(x.shape[0]):
        for lane in range(LANES):
            code = _within(rint(inverse[lane] * x[i, lane]), -half, half - ONE)
            lx[lane] += weighted[i, lane] * code
            l2[lane] += weights[i, lane] * code * code


@compiled()
def _square(px: Any, pw: Any, weighted: Any) -> None:
    """``x²``, which a weight's error weighs, and ``x² · x``."""
    for i in range(px.shape[0]):
        for lane in range(LANES):
            pw[i, lane] = px[i, lane] * px[i, lane]
            weighted[i, lane] = pw[i, lane] * px[i, lane]


@compiled()
def _fit_symmetric(px: Any, pw: Any, pc: Any, rows: Any, half: Any, candidates: Any) -> None:
    """Scales into ``rows[0]``, codes into ``pc``; ``candidates`` are divided by the peak."""
    scale, peak, best, tried, gain = rows[0], rows[1], rows[2], rows[3], rows[4]
    sums = rows[5:7]
    _peaks(px, peak)
    _square(px, pw, pc)
    for lane in range(LANES):
        best[lane] = candidates[0] / peak[lane]
    _sums_of_codes(px, pw, best, half, pc, sums)
    for lane in range(LANES):
        lx, l2 = sums[0, lane], sums[1, lane]
        scale[lane] = ZERO if l2 == ZERO else lx / l2
        gain[lane] = scale[lane] * lx
    for k in range(1, candidates.size):
        for lane in range(LANES):
            tried[lane] = candidates[k] / peak[lane]
        _sums_of_codes(px, pw, tried, half, pc, sums)
        for lane in range(LANES):
            lx, l2 = sums[0, lane], sums[1, lane]
            better = (l2 > ZERO) & (lx * lx > gain[lane] * l2)
            scale[lane] = lx / l2 if better else scale[lane]
            gain[lane] = scale[lane] * lx if better else gain[lane]
            best[lane] = tried[lane] if better else best[lane]
    for lane in range(LANES):
        scale[lane] = ZERO if fabs(peak[lane]) < SMALLEST else scale[lane]
    for i in range(px.shape[0]):
        for lane in range(LANES):
            code = _within(rint(best[lane] * px[i, lane]), -half, half - ONE) + half
            pc[i, lane] = ZERO if fabs(peak[lane]) < SMALLEST else code


@compiled()
def _refine(
    x: Any, weight: Any, weighted: Any, codes: Any, half: Any, sums: Any, moved: Any
) -> None:
    """One weight of every group: its code moves to where the error is least."""
    lx, l2 = sums[0], sums[1]
    for lane in range(LANES):
        code = codes[lane]
        rest_lx = lx[lane] - weighted[lane] * code
        rest_l2 = l2[lane] - weight[lane] * code * code
        new = _within(rint(x[lane] * rest_l2 / rest_lx), -half, half - ONE)
        new_lx = rest_lx + weighted[lane] * new
        new_l2 = rest_l2 + weight[lane] * new * new
        better = (rest_lx > ZERO) & (new != code) & (new_l2 > ZERO)
        better &= new_lx * new_lx * l2[lane] > lx[lane] * lx[lane] * new_l2
        codes[lane] = new if better else code
        lx[lane] = new_lx if better else lx[lane]
        l2[lane] = new_l2 if better else l2[lane]
        moved[lane] = ONE if better else moved[lane]


@compiled()
def _refine_symmetric(px: Any, pw: Any, weighted: Any, pc: Any, rows: Any, half: Any) -> None:
    """Scales into ``rows[0]``, codes into ``pc``."""
    scale, peak, inverse, moved, sums = rows[0], rows[1], rows[2], rows[3], rows[4:6]
    _peaks(px, peak)
    _square(px, pw, weighted)
    for lane in range(LANES):
        inverse[lane] = -half / peak[lane]
    for i in range(px.shape[0]):
        for lane in range(LANES):
            pc[i, lane] = _within(rint(inverse[lane] * px[i, lane]), -half, half - ONE)
    _sums_of_codes(px, pw, inverse, half, weighted, sums)
    for _ in range(5):
        for lane in range(LANES):
            moved[lane] = ZERO
        for i in range(px.shape[0]):
            _refine(px[i], pw[i], weighted[i], pc[i], half, sums, moved)
        anywhere = ZERO
        for lane in range(LANES):
            anywhere += moved[lane]
        if anywhere == ZERO:
            break
    for lane in range(LANES):
        lx, l2 = sums[0, lane], sums[1, lane]
        scale[lane] = lx / l2 if l2 > ZERO else ZERO
        scale[lane] = ZERO if fabs(peak[lane]) < SMALLEST else scale[lane]
    for i in range(px.shape[0]):
        for lane in range(LANES):
            pc[i, lane] = ZERO if fabs(peak[lane]) < SMALLEST else pc[i, lane] + half


@compiled()
def _place(scaled: Any) -> Any:
    """Where a number stands in a table of what is nearest to each half from −128 on."""
    halves = floor(scaled * float32(2))
    halves = halves if halves == halves else ZERO
    return int32(_within(halves, float32(-256), float32(255))) + int32(256)


@compiled()
def _sums_of_values(x: Any, weights: Any, inverse: Any, values: Any, sums: Any) -> None:
    qx, q2 = sums[0], sums[1]
    for lane in range(LANES):
        qx[lane] = q2[lane] = NOTHING
    for i in range(x.shape[0]):
        for lane in range(LANES):
            value = values[_place(inverse[lane] * x[i, lane])]
            weighted = weights[i, lane] * value
            qx[lane] += weighted * x[i, lane]
            q2[lane] += weighted * value


@compiled()
def _fit_values(px: Any, pw: Any, rows: Any, values: Any, candidates: Any) -> None:
    """Scales of groups of ``iq4`` into ``rows[0]``."""
    scale, peak, tried, gain, sums = rows[0], rows[1], rows[2], rows[3], rows[4:6]
    _peaks(px, peak)
    for i in range(px.shape[0]):
        for lane in range(LANES):
            pw[i, lane] = px[i, lane] * px[i, lane]
    for lane in range(LANES):
        tried[lane] = ONE / (-peak[lane] / candidates[0])
    _sums_of_values(px, pw, tried, values, sums)
    for lane in range(LANES):
        qx, q2 = sums[0, lane], sums[1, lane]
        scale[lane] = qx / q2 if q2 > ZERO else ZERO
        gain[lane] = scale[lane] * qx
    for k in range(1, candidates.size):
        for lane in range(LANES):
            tried[lane] = candidates[k] / peak[lane]
        _sums_of_values(px, pw, tried, values, sums)
        for lane in range(LANES):
            qx, q2 = sums[0, lane], sums[1, lane]
            better = (q2 > ZERO) & (qx * qx > gain[lane] * q2)
            scale[lane] = qx / q2 if better else scale[lane]
            gain[lane] = scale[lane] * qx if better else gain[lane]
    for lane in range(LANES):
        scale[lane] = ZERO if fabs(peak[lane]) < SMALLEST else scale[lane]


# --- a super-block as bytes -----------------------------------------------------------------------


@compiled()
def _half(number: Any, word: Any, out: Any) -> Any:
    """Write a number as float16, to nearest even, and return what was written.

    Args:
        number: float32.
        word: float32 ``[1]``, scratch.
        out: uint8 ``[2]``.
    """
    bits = word.view(uint32)
    word[0] = number
    sign, size = (bits[0] >> uint32(16)) & uint32(0x8000), bits[0] & uint32(0x7FFFFFFF)
    if size >= uint32(0x477FF000):  # beyond float16, or not a number
        found = uint32(0x7C00)
        word[0] = float32(np.inf)
    elif size < uint32(113 << 23):  # multiples of 2^-24
        steps = rint(fabs(number) * float32(2.0**24))
        found = uint32(steps)
        word[0] = steps * float32(2.0**-24)
    else:
        rounded = (size + uint32(0xFFF) + ((size >> uint32(13)) & uint32(1))) >> uint32(13)
        found = rounded - uint32(112 << 10)
        bits[0] = rounded << uint32(13)
    out[0] = uint8(found & uint32(255))
    out[1] = uint8((found | sign) >> uint32(8))
    return -word[0] if sign > uint32(0) else word[0]


@compiled()
def _interleave(codes: Any, stride: int, bits: int, shift: int, mask: int, out: Any) -> None:
    """Some bits of codes as bytes: those ``stride`` apart share one, the first in the low bits."""
    each = 8 // bits
    for run in range(codes.size // (stride * each)):
        first = run * stride
        for j in range(stride):
            out[first + j] = uint8(0)
        for r in range(each):
            part = codes[(run * each + r) * stride : (run * each + r + 1) * stride]
            for j in range(stride):
                out[first + j] |= ((part[j] >> uint8(shift)) & uint8(mask)) << uint8(bits * r)


@compiled()
def _number(value: Any) -> Any:
    """A finite number, or 0."""
    return value if fabs(value) < float32(np.inf) else ZERO


@compiled()
def _greatest_of(numbers: Any) -> Any:
    """The greatest number that is not negative; NaN if one is."""
    found = ZERO
    for number in numbers:
        found = number if number > found or number != number else found
    return found


@compiled()
def _largest(numbers: Any, top: Any, codes: Any) -> Any:
    """The step that brings the largest number to ``top``; and codes, uint8."""
    largest = _greatest_of(numbers)
    inverse = ZERO if largest == ZERO else top / largest
    for g in range(numbers.size):
        code = int32(rint(_number(inverse * numbers[g]))) & int32(255)
        codes[g] = uint8(min(code, int32(63)) if top == float32(63) else code)
    return largest / top


@compiled()
def _peak_of(numbers: Any) -> Any:
    peak = numbers[0]
    for g in range(1, numbers.size):
        peak = numbers[g] if _further(numbers[g], peak) else peak
    return peak


@compiled()
def _codes(x: Any, floor_: Any, step: Any, low: Any, high: Any, searched: Any, codes: Any) -> None:
    """Codes of a group: those of its stored scale, or those searched for if that is 0."""
    for i in range(x.size):
        code = _within(rint((x[i] + floor_) / step), low, high) - low
        code = searched[i] if step == ZERO else code
        codes[i] = uint8(int32(code if code == code else ZERO))


@compiled(entry=True)
def encode_offsets(
    x: Any,
    bits: int,
    top: Any,
    candidates: Any,
    absolute: bool,
    first: int,
    last: int,
    room: Any,
    q: Any,
    out: Any,
) -> None:
    """``q2_k``, ``q4_k`` and ``q5_k``: super-blocks from ``first`` to ``last`` as bytes.

    Args:
        x: float32 ``[groups, n]``, ``n`` weights of a group.
        bits: of a code.
        top: the greatest quantised scale and minimum, a float32.
        candidates: ``start + step · i + 2^bits − 1``, float32.
        absolute: as in `engine.quant.gguf_search.fit_offsets`.
        first, last: of the super-blocks.
        room: float32 ``[ROWS, LANES]``, scratch; so is ``q``, uint8 ``[CODES]``.
        out: uint8 ``[super-blocks, bytes]``.
    """
    n = x.shape[1]
    groups = SUPER_BLOCK // n
    px, pw, pc, rows = room[:n], room[n : 2 * n], room[2 * n : 3 * n], room[3 * n :]
    greatest = float32((1 << bits) - 1)
    scales, minima, codes = q[:groups], q[groups : 2 * groups], q[32:]
    scale, least, mean, word, minimum = rows[0], rows[1], rows[20], rows[21], rows[22]
    for begin in range(first, last, LANES // groups):
        _load(x, begin * groups, px)
        for lane in range(LANES):
            mean[lane] = ZERO
        if bits > 2:
            _total_of_products(px, px, mean)
            for lane in range(LANES):
                mean[lane] = sqrt(mean[lane] / float32(n))
        for i in range(n):
            for lane in range(LANES):
                pw[i, lane] = fabs(px[i, lane]) + mean[lane]
        _fit_offsets(px, pw, pc, rows, greatest, candidates, absolute)
        for lane in range(LANES):
            minimum[lane] = -least[lane]
        for block in range(begin, min(begin + LANES // groups, last)):
            row, lanes = out[block], (block - begin) * groups
            at = 80 if bits == 2 else 0
            d = _half(_largest(scale[lanes : lanes + groups], top, scales), word, row[at : at + 2])
            dmin = _half(
                _largest(minimum[lanes : lanes + groups], top, minima), word, row[at + 2 : at + 4]
            )
            if bits == 2:
                for g in range(groups):
                    row[g] = scales[g] | minima[g] << uint8(4)
                    scales[g], minima[g] = row[g] & uint8(15), row[g] >> uint8(4)
            for g in range(groups):
                part = codes[g * n : (g + 1) * n]
                floor_, step = dmin * float32(minima[g]), d * float32(scales[g])
                _codes(x[block * groups + g], floor_, step, ZERO, greatest, pc[:, lanes + g], part)
            if bits == 2:
                _interleave(codes, 32, 2, 0, 3, row[16:80])
                continue
            _pack_6_bits(scales, minima, row[4:16])
            if bits == 5:
                _interleave(codes, 32, 1, 4, 1, row[16:48])
            _interleave(codes, 32, 4, 0, 15, row[row.size - 128 :])


@compiled()
def _pack_6_bits(scales: Any, minima: Any, out: Any) -> None:
    for g in range(4):
        out[g] = scales[g] | (scales[g + 4] >> uint8(4)) << uint8(6)
        out[g + 4] = minima[g] | (minima[g + 4] >> uint8(4)) << uint8(6)
        out[g + 8] = scales[g + 4] & uint8(15) | (minima[g + 4] & uint8(15)) << uint8(4)


@compiled(entry=True)
def encode_q3(x: Any, first: int, last: int, room: Any, q: Any, out: Any) -> None:
    """``q3_k``; arguments as in `encode_offsets`."""
    px, pw, pc, weighted, rows = room[:16], room[16:32], room[32:48], room[48:64], room[64:]
    scales, codes, scale, word, half = q[:16], q[32:], rows[0], rows[10], float32(4)
    for begin in range(first, last, LANES // 16):
        _load(x, begin * 16, px)
        _refine_symmetric(px, pw, weighted, pc, rows, half)
        for block in range(begin, min(begin + LANES // 16, last)):
            row, lanes = out[block], (block - begin) * 16
            peak = _peak_of(scale[lanes : lanes + 16])
            inverse = float32(-32) / peak
            for g in range(16):
                scaled = rint(_number(inverse * scale[lanes + g]))
                scaled = _within(scaled, float32(-32), float32(31)) + float32(32)
                scales[g] = uint8(0) if peak == ZERO else uint8(int32(scaled))
            d = _half(ZERO if peak == ZERO else ONE / inverse, word, row[108:110])
            for g in range(16):
                step = d * (float32(scales[g]) - float32(32))
                part = codes[g * 16 : (g + 1) * 16]
                _codes(x[block * 16 + g], ZERO, step, -half, half - ONE, pc[:, lanes + g], part)
            _interleave(codes, 32, 1, 2, 1, row[:32])
            _interleave(codes, 32, 2, 0, 3, row[32:96])
            _interleave(scales, 8, 4, 0, 15, row[96:104])
            _interleave(scales, 4, 2, 4, 3, row[104:108])


@compiled(entry=True)
def encode_q6(x: Any, candidates: Any, first: int, last: int, room: Any, q: Any, out: Any) -> None:
    """``q6_k``; arguments as in `encode_offsets`, candidates are divided by the peak."""
    px, pw, pc, rows = room[:16], room[16:32], room[32:48], room[64:]
    codes, scale, word, half = q[32:], rows[0], rows[10], float32(32)
    for begin in range(first, last, LANES // 16):
        _load(x, begin * 16, px)
        _fit_symmetric(px, pw, pc, rows, half, candidates)
        for block in range(begin, min(begin + LANES // 16, last)):
            row, lanes = out[block], (block - begin) * 16
            peak = _peak_of(scale[lanes : lanes + 16])
            empty, inverse = fabs(peak) < SMALLEST, float32(-128) / peak
            d = _half(ZERO if empty else ONE / inverse, word, row[208:210])
            for g in range(16):
                scaled = rint(_number(inverse * scale[lanes + g]))
                scaled = ZERO if empty else _within(scaled, float32(-128), float32(127))
                row[192 + g] = uint8(int32(scaled) & int32(255))
                part = codes[g * 16 : (g + 1) * 16]
                step = d * scaled
                _codes(x[block * 16 + g], ZERO, step, -half, half - ONE, pc[:, lanes + g], part)
                for i in range(16):
                    part[i] = uint8(0) if empty else part[i]
            _interleave(codes, 64, 4, 0, 15, row[:128])
            _interleave(codes, 32, 2, 4, 3, row[128:192])


@compiled(entry=True)
def encode_iq4(
    x: Any,
    groups: int,
    candidates: Any,
    values: Any,
    nearest: Any,
    first: int,
    last: int,
    room: Any,
    q: Any,
    out: Any,
) -> None:
    """``iq4_nl`` in super-blocks of one group, ``iq4_xs`` in those of eight.

    Args:
        x: float32 ``[groups, 32]``.
        groups: in a super-block.
        candidates: the lowest value, and what is divided by the peak; float32.
        values: float32 ``[512]``: the value nearest to each half from −128 on.
        nearest: uint8 ``[512]``: its index.
        first, last, room, q, out: as in `encode_offsets`.
    """
    px, pw, rows = room[:32], room[32:64], room[64:]
    steps, codes, scale, word = q[:8], q[32 : 32 + 32 * groups], rows[0], rows[10]
    for begin in range(first, last, LANES // groups):
        _load(x, begin * groups, px)
        _fit_values(px, pw, rows, values, candidates)
        for block in range(begin, min(begin + LANES // groups, last)):
            row, lanes = out[block], (block - begin) * groups
            d = scale[lanes]
            if groups > 1:
                d = -_peak_of(scale[lanes : lanes + groups]) / float32(32)
            inverse = ZERO if d == ZERO else ONE / d
            _half(d, word, row[:2])
            for g in range(groups):
                if groups > 1:
                    step = rint(_number(inverse * scale[lanes + g]))
                    step = _within(step, float32(-32), float32(31))
                    steps[g] = uint8(int32(step + float32(32)))
                    step = d * step
                else:
                    step = d
                inverse_of = ZERO if step == ZERO else ONE / step
                part, given = codes[g * 32 : (g + 1) * 32], x[block * groups + g]
                for i in range(32):
                    part[i] = nearest[_place(inverse_of * given[i])]
            if groups > 1:
                _interleave(steps, 1, 2, 4, 3, row[2:4])
                _interleave(steps, 1, 4, 0, 15, row[4:8])
            _interleave(codes, 16, 4, 0, 15, row[row.size - 16 * groups :])
