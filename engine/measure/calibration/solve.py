"""Quantises a layer with methods that need inputs: tensors in, tensors out.

Methods are applied in the grammar's order: ``+smooth`` and ``+awq`` scale the input channels of all
weights that share an input, ``+outlier`` takes channels out, ``+gptq`` or plain rounding finds the
codes, weighed by ``+imatrix`` where the format has it, ``+a8`` rounds the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from engine.formats.grammar import Format, Method
from engine.quant.arithmetic import weighed
from engine.quant.data_free.hadamard import rotate_inputs, rotate_inputs_back
from engine.quant.input_statistics import InputStatistics
from engine.quant.methods.a8 import quantized_tokens, static_scale
from engine.quant.methods.awq import awq
from engine.quant.methods.channel_scales import folded, only_weights
from engine.quant.methods.gptq import Solved
from engine.quant.methods.imatrix import importance, importance_of_experts
from engine.quant.methods.outlier import outlier_columns
from engine.quant.methods.smooth import smooth
from engine.quant.quantize import dequantized
from engine.quant.rows import matrices
from engine.quant.scales import in_stored_dtype
from engine.quant.solve import solved_form


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """Calibration statistics of the inputs of layers that share one."""

    statistics: InputStatistics
    """Over all tokens; for experts together, each token once per expert it was routed to."""
    sample: Tensor
    """Sample tokens, ``[tokens, in]``."""
    experts: tuple[InputStatistics, ...] = ()
    """Statistics of each expert's own tokens; empty if all weights see the same."""

    @property
    def bytes(self) -> int:
        """Bytes in memory."""
        tensors = [self.sample]
        for each in (self.statistics, *self.experts):
            tensors += [each.gram, each.maximum, each.magnitude]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def of(self, expert: int) -> InputStatistics:
        """Statistics that one matrix of the weight is solved with."""
        return self.experts[expert] if self.experts else self.statistics


@dataclass(frozen=True, eq=False)
class Scaling:
    """A scale of a layer's input channels, and its effect on inputs and weight."""

    scale: Tensor
    """``s``, float32 ``[in]``: the weight is multiplied by it."""
    gain: Tensor
    """Factor on the inputs: ``1 / s``, as rounded in the operation that absorbs it."""
    offset: Tensor | None = None
    """Added to the inputs: the rounding of a norm's bias; None for 0."""

    def applied(self, inputs: Tensor) -> Tensor:
        """Inputs ``[…, in]`` after the absorbing operation applies the scale."""
        return _moved(inputs.to(torch.float32), self.gain, self.offset).to(inputs.dtype)


@dataclass(frozen=True, eq=False)
class Solution:
    """What a layer computes with."""

    weight: Tensor
    """float32, ``[out, in]`` or ``[experts, out, in]``."""
    inputs: Callable[[Tensor], Tensor] | None = None
    columns: int = 0
    """Input channels that ``+outlier`` keeps in 16 bits, of all experts together."""
    notes: tuple[str, ...] = ()
    form: Solved | None = None
    """The codes of a weight ``[out, in]`` found by ``+gptq``, or of any weight by ``+imatrix``;
    None otherwise."""


def method(fmt: Format, name: str) -> Method | None:
    """The method with this name; None if the format lacks it."""
    return next((each for each in fmt.methods if each.name == name), None)


def find_scale(
    by: str,
    weights: Sequence[Tensor],
    inputs: LayerInputs,
    fmt: Format,
    scale_dtype: torch.dtype,
    name: str,
    *,
    exact: bool = False,
) -> Tensor:
    """The scale of weights that share an input, by ``+smooth`` or ``+awq``: float32 ``[in]``.

    Args:
        by: ``smooth`` or ``awq``; if a format has both, awq gets smoothed inputs.
        weights: all of them, ``[…, out, in]``.
        inputs: of all of them.
        fmt: a format with this method.
        scale_dtype: the dtype that scales are stored in.
        name: a layer of them, for messages.
        exact: whether it must be made of powers of two, as for a layer that absorbs it.

    Raises:
        FormatError: see `smooth` and `awq`.
    """
    if by == "smooth":
        sample = inputs.sample if method(fmt, "a8") is not None else None
        return smooth(weights, inputs.statistics, fmt, scale_dtype, sample, name, exact=exact).scale
    return awq(weights, inputs.statistics, fmt, scale_dtype, name, exact=exact).scale


def scaled_inputs(inputs: LayerInputs, gain: Tensor) -> LayerInputs:
    """The statistics as if inputs had been multiplied by ``gain``, channel by channel."""
    return LayerInputs(
        _scaled(inputs.statistics, gain),
        inputs.sample * gain.to(inputs.sample.device),
        tuple(_scaled(each, gain) for each in inputs.experts),
    )


@torch.no_grad()
def solve(
    weight: Tensor,
    inputs: LayerInputs | None,
    fmt: Format,
    scaling: Scaling | None,
    scale_dtype: torch.dtype,
    name: str,
    given: Tensor | None = None,
) -> Solution:
    """Quantise a layer's weight, given its inputs before any scale.

    An expert that no token reached is rounded to nearest, with a note.

    Args:
        weight: ``[out, in]`` or ``[experts, out, in]``; not modified.
        inputs: before any scale; None where the importance is all that is needed.
        fmt: the format; the scale of its methods is already known.
        scaling: that scale; None without one.
        scale_dtype: the dtype that scales are stored in.
        name: the layer, for messages.
        given: the importance of inputs before any scale, ``[in]`` or ``[experts, in]``; None takes
            that of ``inputs``.

    Raises:
        FormatError: see the methods.
    """
    if scaling is not None:
        assert inputs is not None, "a scale is found with inputs"
        weight, inputs = folded(weight, scaling.scale), scaled_inputs(inputs, scaling.gain)
        given = None if given is None else given * scaling.gain.to(given.device).square()
    if method(fmt, "imatrix") is not None:
        return _weighed(weight, inputs, fmt, scaling, name, given)
    assert inputs is not None, "only an importance does without inputs"
    approx = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    notes: list[str] = []
    columns: list[Tensor] = []
    form: Solved | None = None
    idle = 0
    for expert, (matrix, out) in enumerate(zip(matrices(weight), matrices(approx), strict=True)):
        statistics = inputs.of(expert)
        if inputs.experts and not statistics.tokens:
            idle += 1
            out.copy_(dequantized(matrix, only_weights(fmt), scale_dtype, name))
            columns.append(torch.empty(0, dtype=torch.int64))
            continue
        kept, said, form = _solve_matrix(matrix, statistics, fmt, scale_dtype, name, out)
        columns.append(kept)
        notes += said
    if idle:
        notes.append(
            f"{name}: {idle} of {len(inputs.experts)} experts received no calibration "
            "token, and are rounded to nearest"
        )
    change = None
    gain = None if scaling is None else scaling.gain
    offset = None if scaling is None else scaling.offset
    if (a8 := method(fmt, "a8")) is not None:
        kept = torch.unique(torch.cat(columns)) if columns else torch.empty(0, dtype=torch.int64)
        fixed = None
        if ("static", True) in a8.options:
            inputs.statistics.check(name)
            rest = inputs.statistics.maximum.clone()
            rest[kept.to(rest.device)] = 0
            fixed = static_scale(rest)
        rotated = method(fmt, "hadamard") is not None
        change = rounded_inputs(gain, offset, kept, fixed, rotated=rotated)
    elif scaling is not None and offset is not None:
        change = scaling.applied
    elif gain is not None:
        approx *= gain.to(approx.device)
    alone = form if weight.dim() == 2 else None
    return Solution(approx, change, sum(map(len, columns)), tuple(notes), alone)


def _weighed(
    weight: Tensor,
    inputs: LayerInputs | None,
    fmt: Format,
    scaling: Scaling | None,
    name: str,
    given: Tensor | None,
) -> Solution:
    """A weight by the importance of its inputs, both scaled already."""
    notes, idle = [], 0
    if given is not None:
        found = given
    else:
        assert inputs is not None, "neither inputs nor their importance"
        if inputs.experts:
            found = importance_of_experts(inputs.experts, name)
            idle = sum(not each.tokens for each in inputs.experts)
        else:
            found = importance(inputs.statistics, name)
    if idle:
        assert inputs is not None
        notes.append(
            f"{name}: {idle} of {len(inputs.experts)} experts received no calibration token: "
            "all their inputs count the same"
        )
    stored = weighed(weight, only_weights(fmt), found, name)
    approx, change = stored.approx(), None
    if scaling is not None and scaling.offset is not None:
        change = scaling.applied
    elif scaling is not None:
        approx *= scaling.gain.to(approx.device)
    return Solution(approx, change, 0, tuple(notes), Solved(stored, None, ()))


def _solve_matrix(
    matrix: Tensor,
    statistics: InputStatistics,
    fmt: Format,
    scale_dtype: torch.dtype,
    name: str,
    out: Tensor,
) -> tuple[Tensor, Sequence[str], Solved | None]:
    """Quantise ``[out, in]`` in place; returns the columns kept, notes, and GPTQ's result."""
    outlier, columns = method(fmt, "outlier"), torch.empty(0, dtype=torch.int64)
    notes: Sequence[str] = ()
    found: Solved | None = None
    H = statistics.gram.to(matrix.device)
    if outlier is not None:
        assert outlier.value is not None
        statistics.check(name, matrix.shape[-1])
        columns = outlier_columns(statistics.maximum, outlier.value).to(matrix.device)
        kept = in_stored_dtype(matrix[:, columns], scale_dtype, fmt, name)
        matrix = matrix.to(torch.float32, copy=True)
        matrix[:, columns] = 0
        if method(fmt, "gptq") is not None and len(columns):
            # Columns kept in 16 bits are excluded: give them unrelated inputs of medium size.
            H = H.clone()
            H[columns] = 0
            H[:, columns] = 0
            rest = H.diagonal()[H.diagonal() > 0]
            H[columns, columns] = rest.mean() if len(rest) else H.new_ones(())
    if method(fmt, "gptq") is not None:
        statistics.check(name, matrix.shape[-1])
        found = solved_form(matrix, H, _with_gptq(fmt), scale_dtype, name)
        notes = found.notes
        out.copy_(found.approx())
    else:
        out.copy_(dequantized(matrix, only_weights(fmt), scale_dtype, name))
    if outlier is not None:
        out[:, columns] = kept.to(torch.float32)
    return columns.cpu(), notes, found


def rounded_inputs(
    gain: Tensor | None = None,
    offset: Tensor | None = None,
    columns: Tensor | None = None,
    fixed: Tensor | None = None,
    *,
    rotated: bool = False,
) -> Callable[[Tensor], Tensor]:
    """Simulate ``+a8`` on inputs: scaled, and rounded except for channels kept in 16 bits.

    Args:
        gain: factor on the inputs, float32 ``[in]``.
        offset: added to the inputs.
        columns: channels that are not rounded and affect no range.
        fixed: the scale of all tokens; None for one per token.
        rotated: whether they are rotated before and rotated back after rounding.
    """

    def change(x: Tensor) -> Tensor:
        scaled = _moved(x.to(torch.float32), gain, offset)
        if rotated:
            return rotate_inputs_back(_rounded(rotate_inputs(scaled))).to(x.dtype)
        step = None if fixed is None else fixed.to(x.device)
        if columns is None or not len(columns):
            return _rounded(scaled, step).to(x.dtype)
        kept = columns.to(x.device)
        rest = _rounded(scaled.index_fill(-1, kept, 0.0), step)
        return rest.index_copy(-1, kept, scaled[..., kept]).to(x.dtype)

    return change


class _Rounded(torch.autograd.Function):
    """`quantized_tokens` with gradient 1, since that of rounding is 0.

    The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432, section 2.3). Without it no
    gradient would reach the layers before one with rounded inputs.
    """

    @staticmethod
    def forward(context: Any, inputs: Tensor, scale: Tensor | None) -> Tensor:
        """Round."""
        return quantized_tokens(inputs, scale)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        """Pass the gradient through."""
        return gradients[0], None


def _rounded(inputs: Tensor, scale: Tensor | None = None) -> Tensor:
    found: Tensor = _Rounded.apply(inputs, scale)  # type: ignore[no-untyped-call]
    return found


def _moved(inputs: Tensor, gain: Tensor | None, offset: Tensor | None) -> Tensor:
    if gain is not None:
        inputs = inputs * gain.to(inputs.device)
    return inputs if offset is None else inputs + offset.to(inputs.device)


def _with_gptq(fmt: Format) -> Format:
    stays = {each.name for each in only_weights(fmt).methods} | {"gptq"}
    return msgspec.structs.replace(
        fmt, methods=tuple(each for each in fmt.methods if each.name in stays)
    )


def _scaled(statistics: InputStatistics, gain: Tensor) -> InputStatistics:
    gain = gain.to(statistics.gram.device)
    return InputStatistics(
        statistics.gram * gain * gain[:, None],
        statistics.maximum * gain.abs(),
        statistics.magnitude * gain.abs(),
        statistics.tokens,
    )
