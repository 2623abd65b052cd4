"""``int2`` to ``int8``: round to nearest, with one scale per group, channel or tensor.

The arithmetic is that of compressed-tensors in float32, which it equals bit for bit, but for
scales that vanish in 16 bits, where compressed-tensors divides by zero. ``+clip`` narrows the
ranges and ``+hqq`` moves the zero points before weights are rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from engine.formats.grammar import Format
from engine.quant.arithmetic import Arithmetic, Levels
from engine.quant.columns import group_index
from engine.quant.data_free.clip import best_factors, clips
from engine.quant.data_free.hqq import half_quadratic, splits
from engine.quant.quantized import Quantized, in_groups
from engine.quant.rows import finite_and_broken, row_chunks
from engine.quant.scales import stored_scale


class Parameters(NamedTuple):
    """What maps the weights of a group to codes and back, ``[…, groups]`` each."""

    scale: Tensor
    """In the dtype it is stored in."""
    zero_point: Tensor | None
    """float32 with the values that are stored, whole but for ``+hqq``; None if symmetric."""
    divisor: Tensor
    """float32: the stored scale, or infinity in a group that is stored as zeros."""


def code_range(bits: int) -> tuple[int, int]:
    """The least and the greatest signed code, both included."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def quantization_parameters(
    lo: Tensor, hi: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str = "weight"
) -> Parameters:
    """Scales and zero points for groups with weights from ``lo`` to ``hi``.

    ``scale = (hi − lo) / (2^bits − 1)`` and ``zero_point = round(−2^(bits−1) − lo / scale)``
    from the scale before it is rounded; symmetric ``max(−lo, hi) / ((2^bits − 1) / 2)``. This is
    ``calculate_qparams`` of compressed-tensors. A scale that is 0, before or after rounding to
    ``scale_dtype``, becomes `EMPTY_SCALE`, with zero point 0.

    Args:
        lo: Least weight of each group, float32; 0 counts as a weight of every group.
        hi: Greatest weight of each group, in the shape of ``lo``.
        fmt: An integer format.
        scale_dtype: The dtype that scales are stored in.
        name: The tensor, for the error message.

    Raises:
        FormatError: A scale is too large for ``scale_dtype``.
    """
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    q_min, q_max = code_range(fmt.bits)
    # A tensor on the device: CUDA turns division by a Python number into a product, which differs.
    steps = torch.tensor(float(q_max - q_min), device=lo.device)
    zero_point = None
    if fmt.symmetric:
        scale = torch.maximum(-lo, hi) / (steps / 2)
    else:
        scale = (hi - lo) / steps
        zero_point = (q_min - lo / scale).clamp(q_min, q_max).round()
    stored, divisor = stored_scale(scale, scale_dtype, fmt, name)
    if zero_point is not None:
        zero_point = zero_point.masked_fill(divisor.isinf(), 0)
    return Parameters(stored, zero_point, divisor)


def find_parameters(
    parts: Callable[[], Iterable[Tensor]],
    width: int,
    fmt: Format,
    scale_dtype: torch.dtype,
    name: str = "weight",
) -> Parameters:
    """The parameters that weights are rounded with, by ``+clip`` or ``+hqq`` where ``fmt`` has it.

    Args:
        parts: Gives weights in groups, finite float32 ``[rows, groups, size]``: one part, or for
            ``-tensor`` all parts of the weight, anew at every call.
        width: Weights of a row; what fills up the last group beyond it counts for nothing.
        fmt: An integer format.
        scale_dtype: The dtype that scales, and zero points that are not whole, are stored in.
        name: The tensor, for the error message.

    Raises:
        FormatError: A scale is too large for ``scale_dtype``, with the whole range.
    """

    def total(of: Callable[[Tensor], Tensor]) -> Tensor:
        sums = (
            _without_filling(of(groups), width).sum(-1, dtype=torch.float64) for groups in parts()
        )
        if fmt.strategy != "tensor":
            return next(iter(sums))
        return torch.stack([found.sum() for found in sums]).sum().reshape(1, 1)

    lo, hi = _range(parts, fmt)
    if clips(fmt):

        def error(factors: Tensor) -> Tensor:
            tried = quantization_parameters(lo * factors, hi * factors, fmt, scale_dtype, name)
            return total(lambda weights: (_approx(weights, tried, fmt) - weights).square_())

        factors = best_factors(error, lo)
        lo, hi = lo * factors, hi * factors
    found = quantization_parameters(lo, hi, fmt, scale_dtype, name)
    if splits(fmt) and found.zero_point is not None:
        scale = found.scale.to(torch.float32)
        q_min, q_max = code_range(fmt.bits)
        real = (q_min - lo.clamp(max=0) / scale).clamp(q_min, q_max)
        count = total(torch.ones_like).to(torch.float32)
        starts = (found.zero_point, real)
        point = half_quadratic(total, count, scale, starts, (q_min, q_max), scale_dtype)
        found = found._replace(zero_point=point.masked_fill(found.divisor.isinf(), 0))
    return found


def group_parameters(
    groups: Tensor, width: int, fmt: Format, scale_dtype: torch.dtype, name: str = "weight"
) -> Parameters:
    """`find_parameters` of weights ``[rows, groups, size]`` that are all there are."""
    return find_parameters(lambda: [groups], width, fmt, scale_dtype, name)


def integer_codes(groups: Tensor, parameters: Parameters, fmt: Format) -> Tensor:
    """The nearest codes of ``[…, groups, size]``, float32."""
    codes = groups / parameters.divisor.unsqueeze(-1)
    if parameters.zero_point is not None:
        codes.add_(parameters.zero_point.unsqueeze(-1))
    return codes.clamp_(*code_range(fmt.bits)).round_()


def integer_values(codes: Tensor, parameters: Parameters) -> Tensor:
    """``(code − zero_point) · scale`` of float32 codes ``[…, groups, size]``, in place."""
    if parameters.zero_point is not None:
        codes.sub_(parameters.zero_point.unsqueeze(-1))
    return codes.mul_(parameters.scale.to(torch.float32).unsqueeze(-1))


def stored_zero_points(points: Tensor, fmt: Format, scale_dtype: torch.dtype) -> Tensor:
    """Zero points in the dtype they are stored in: int8, or with ``+hqq`` that of the scales."""
    return points.to(scale_dtype if splits(fmt) else torch.int8)


def quantize_integer(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str = "weight"
) -> Quantized:
    """Round a weight to the nearest codes of an integer format.

    Args:
        weight: ``[out, in]`` or ``[experts, out, in]``, each expert on its own; not modified.
            Values that are not finite take no part in a range and get the code of 0.
        fmt: ``int2`` to ``int8``; of the methods, ``clip`` and ``hqq`` are looked at.
        scale_dtype: The dtype that scales are stored in.
        name: The tensor, for the error message.

    Raises:
        FormatError: A scale is too large for ``scale_dtype``.
    """
    weight = weight.detach()
    if weight.dim() == 3:
        parts = [quantize_integer(expert, fmt, scale_dtype, name) for expert in weight]
        points = [part.zero_point for part in parts if part.zero_point is not None]
        return Quantized(
            torch.stack([part.codes for part in parts]),
            torch.stack([part.scale for part in parts]),
            torch.stack(points) if points else None,
            fmt.group_size,
        )
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    found = []
    for rows, _, parameters, groups in _encoded(weight, fmt, scale_dtype, name):
        codes[rows] = groups.flatten(-2)[:, : weight.shape[1]].to(torch.int8)
        found.append(parameters)
    found = found[:1] if fmt.strategy == "tensor" else found
    points = [p.zero_point for p in found if p.zero_point is not None]
    return Quantized(
        codes,
        torch.cat([p.scale for p in found]),
        stored_zero_points(torch.cat(points), fmt, scale_dtype) if points else None,
        fmt.group_size,
    )


def write_dequantized(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, out: Tensor, name: str = "weight"
) -> None:
    """Write ``Ŵ`` of one weight ``[out, in]`` into ``out``, float32, a few rows at a time.

    Values that are not finite are copied. Raises as `quantize_integer` does.
    """
    for rows, broken, parameters, groups in _encoded(weight, fmt, scale_dtype, name):
        approx = integer_values(groups, parameters).flatten(-2)[:, : weight.shape[1]]
        if broken is not None:
            approx = torch.where(broken, weight[rows].to(torch.float32), approx)
        out[rows] = approx


def _encoded(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str
) -> Iterator[tuple[slice, Tensor | None, Parameters, Tensor]]:
    """Yield rows, which of their values are not finite, parameters, and float32 codes in groups."""
    size, width = fmt.group_size, weight.shape[1]
    shared = None
    if fmt.strategy == "tensor":

        def parts() -> Iterator[Tensor]:
            for rows in row_chunks(weight):
                yield in_groups(finite_and_broken(weight[rows])[0], None)

        shared = find_parameters(parts, width, fmt, scale_dtype, name)
    for rows in row_chunks(weight):
        finite, broken = finite_and_broken(weight[rows])
        groups = in_groups(finite, size)
        parameters = shared or group_parameters(groups, width, fmt, scale_dtype, name)
        yield rows, broken, parameters, integer_codes(groups, parameters, fmt)


def _range(parts: Callable[[], Iterable[Tensor]], fmt: Format) -> tuple[Tensor, Tensor]:
    """The least and the greatest weight of every group, or ``[1, 1]`` each of the tensor."""
    if fmt.strategy != "tensor":
        groups = next(iter(parts()))
        return groups.amin(-1), groups.amax(-1)
    ends = [groups.aminmax() for groups in parts()]
    lo = torch.stack([end.min for end in ends]).amin()
    hi = torch.stack([end.max for end in ends]).amax()
    return lo.reshape(1, 1), hi.reshape(1, 1)


def _approx(groups: Tensor, parameters: Parameters, fmt: Format) -> Tensor:
    return integer_values(integer_codes(groups, parameters, fmt), parameters)


def _without_filling(groups: Tensor, width: int) -> Tensor:
    """Numbers ``[rows, groups, size]`` with 0 for those that no weight of the row stands behind."""
    beyond = groups.shape[-2] * groups.shape[-1] - width
    if beyond > 0:
        groups[..., -1, groups.shape[-1] - beyond :] = 0
    return groups


class _Group(NamedTuple):
    """What one group of columns is rounded with."""

    found: Parameters
    divisor: Tensor
    """``[out]`` or ``[1]``, as the two below."""
    zero: Tensor | None
    scale: Tensor


class IntegerColumns:
    """`engine.quant.columns.Columns` of an integer format."""

    at_once = 1

    def __init__(self, W: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str) -> None:
        self.group = fmt.group_size
        self._fmt, self._scale_dtype, self._name = fmt, scale_dtype, name
        self._ends = code_range(fmt.bits)
        self._groups: list[_Group] = []
        self._codes = torch.empty(W.shape, dtype=torch.int8, device=W.device)
        if self.group is None:
            self.fix(W)

    def fix(self, part: Tensor) -> None:
        weights = part.T.unsqueeze(1).contiguous()
        found = group_parameters(weights, len(part), self._fmt, self._scale_dtype, self._name)
        zero = None if found.zero_point is None else found.zero_point.view(-1)
        scale = found.scale.to(torch.float32).view(-1)
        self._groups.append(_Group(found, found.divisor.view(-1), zero, scale))

    def round(self, place: int, w: Tensor) -> Tensor:
        group = self._groups[group_index(place, self.group)]
        q = w / group.divisor
        if group.zero is not None:
            q.add_(group.zero)
        q.clamp_(*self._ends).round_()
        self._codes[place] = q[0]
        if group.zero is not None:
            q.sub_(group.zero)
        return q.mul_(group.scale)

    def stored(self) -> Quantized:
        found = [group.found for group in self._groups]
        points = [each.zero_point for each in found if each.zero_point is not None]
        point = None
        if points:
            point = stored_zero_points(torch.cat(points, 1), self._fmt, self._scale_dtype)
        scale = torch.cat([each.scale for each in found], 1)
        return Quantized(self._codes.T.contiguous(), scale, point, self.group)


def _levels(fmt: Format) -> Levels:
    if not fmt.symmetric:
        return Levels()
    least, greatest = code_range(fmt.bits)
    return Levels(tuple(float(code) for code in range(least, greatest + 1)))


ARITHMETIC = Arithmetic(
    quantize=quantize_integer,
    write=write_dequantized,
    columns=IntegerColumns,
    levels=_levels,
    by_row=lambda fmt: fmt.strategy in ("group", "channel"),
)
