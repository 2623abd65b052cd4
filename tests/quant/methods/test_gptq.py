"""GPTQ of integer formats, against optimal brain quantisation one column at a time in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import parse_format
from engine.quant.input_statistics import output_error
from engine.quant.methods.gptq import gptq
from engine.quant.quantize import dequantized
from engine.quant.quantized import Quantized
from tests.quant.adversarial import normal
from tests.quant.correlated import correlated


def from_halfway(scale: Tensor) -> Tensor:
    """How far float64 numbers lie from the middle of two neighbours in float16, in their steps."""
    step = 2.0 ** (torch.frexp(scale).exponent.double() - 11).clamp(min=-24)
    return (scale / step - (scale / step).floor() - 0.5).abs()


def brain_surgeon(
    weight: Tensor,
    H: Tensor,
    bits: int,
    group: int | None,
    symmetric: bool,
    damp: float = 0.01,
    actorder: bool = False,
    static: bool = False,
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Codes, ``Ŵ`` and how far from a tie each was, columns where they were; their order.

    Of a column whose scale was rounded from halfway between two of float16, that is as near.

    Equations 2 and 3 of the paper as they stand: after every column all others are moved, and the
    column is taken out of the inverse by Gaussian elimination. Scales are stored in float16.
    """
    W, H = weight.double().clone(), H.double().clone()
    width, half = W.shape[1], 2 ** (bits - 1)
    H += damp * H.diagonal().mean() * torch.eye(width)
    order = list(range(width))
    if actorder:
        order.sort(key=lambda column: -float(H[column, column]))
    inverse = torch.linalg.inv(H)
    size = group or width

    def parameters(columns: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        lo, hi = W[:, columns].amin(1).clamp(max=0), W[:, columns].amax(1).clamp(min=0)
        if symmetric:
            scale, zero = torch.maximum(-lo, hi) / (half - 0.5), torch.zeros(len(W))
        else:
            scale = (hi - lo) / (2 * half - 1)
            zero = (-half - lo / scale).round()
        return scale.half().double(), zero, from_halfway(scale)

    fixed = {
        start: parameters([*range(width)][start : start + size]) for start in range(0, width, size)
    }
    codes, approx, ties = torch.zeros(W.shape), torch.zeros_like(W), torch.zeros_like(W)
    scale, zero, halfway = fixed[0]
    for position, q in enumerate(order):
        if group is not None and static:
            scale, zero, halfway = fixed[q // size * size]
        elif group is not None and position % size == 0:
            scale, zero, halfway = parameters(order[position : position + size])
        exact = W[:, q] / scale + zero
        codes[:, q] = exact.clamp(-half, half - 1).round().float()
        ties[:, q] = (exact - exact.floor() - 0.5).abs().minimum(halfway)
        approx[:, q] = (codes[:, q] - zero) * scale
        W.addr_((W[:, q] - approx[:, q]) / inverse[q, q], inverse[q], alpha=-1)
        inverse.addr_(inverse[:, q] / inverse[q, q], inverse[q].clone(), alpha=-1)
    return codes.to(torch.int8), approx, ties, order


OPTIONS = [
    *itertools.product(["int4-g32", "int3-g48-sym", "int4-channel", "int8"], ["", ":actorder"]),
    *itertools.product(["int4-g32-sym", "int2-g64", "int3-g160"], [":static", ":actorder:static"]),
    *itertools.product(["int4-g128", "int3-g160", "int4-g20"], ["", ":damp=.1:actorder"]),
]


@pytest.mark.parametrize(("text", "options"), OPTIONS)
@pytest.mark.parametrize("shape", [(5, 64), (24, 320), (40, 200)])
def test_codes_are_those_of_one_column_at_a_time(
    text: str, options: str, shape: tuple[int, int]
) -> None:
    """In every row but where float64 itself is within a thousandth of a tie, which float32 may
    break the other way: from that column on the row is another one.
    """
    weight, H = normal(*shape, seed=shape[1]), correlated(shape[1], 0.15, seed=shape[0])
    assert torch.linalg.cond(H.double()) < 100
    fmt = parse_format(f"{text}+gptq{options}")
    found = gptq(weight, H, fmt, torch.float16, "up")
    expected, approx, ties, order = brain_surgeon(
        weight,
        H,
        fmt.bits,
        fmt.group_size,
        fmt.symmetric,
        0.1 if "damp" in options else 0.01,
        "actorder" in options,
        "static" in options,
    )
    codes = found.stored.codes
    if found.order is not None:
        codes = codes[:, found.order.argsort()]
    ours = found.approx().double()
    differs = (codes != expected) | ~torch.isclose(ours, approx, rtol=1e-6, atol=0)
    parted = differs.any(1)
    for row in parted.nonzero().flatten().tolist():
        first = next(q for q in order if differs[row, q])
        assert ties[row, first] < 1e-3
    assert parted.sum() <= 1
    torch.testing.assert_close(ours[~parted], approx[~parted], rtol=1e-6, atol=0)
    assert found.notes == ()
    reordered = "actorder" in options and "static" not in options and fmt.strategy == "group"
    assert (found.order is not None) == reordered


@pytest.mark.parametrize("text", ["int4-g128", "int3-g64", "int4-channel-sym", "int8", "int2-g32"])
@pytest.mark.parametrize("seed", range(6))
def test_the_output_error_is_below_that_of_rounding(text: str, seed: int) -> None:
    weight, H = normal(32, 256, seed=seed), correlated(256, 0.3, seed=seed)
    plain = dequantized(weight, parse_format(text), torch.float16)
    for options in ("", ":actorder", *((":static",) if "-g" in text else ())):
        found = gptq(weight, H, parse_format(f"{text}+gptq{options}"), torch.float16)
        assert output_error(found.approx() - weight, H) < output_error(plain - weight, H)


@pytest.mark.parametrize("seed", range(6))
def test_strongly_correlated_inputs_keep_less_than_40_percent(seed: int) -> None:
    weight, H = normal(64, 512, seed=seed), correlated(512, 0.8, seed=seed)
    plain = dequantized(weight, parse_format("int4-g128"), torch.float16)
    found = gptq(weight, H, parse_format("int4-g128+gptq"), torch.float16)
    assert output_error(found.approx() - weight, H) < 0.4 * output_error(plain - weight, H)


@pytest.mark.parametrize("text", ["int4-g32", "int4-channel", "int4-tensor", "int3-g32-sym"])
def test_inputs_that_are_independent_are_rounded_to_nearest(text: str) -> None:
    weight = normal(16, 96)
    found = gptq(weight, torch.eye(96) * 7, parse_format(f"{text}+gptq"), torch.float16)
    assert torch.equal(found.approx(), dequantized(weight, parse_format(text), torch.float16))


@pytest.mark.parametrize("text", ["int3-g64+clip", "int3-g64+hqq", "int3-tensor"])
def test_ranges_and_zero_points_are_those_of_other_methods(text: str) -> None:
    weight, H = normal(32, 256), correlated(256, 0.6, seed=1)
    plain = dequantized(weight, parse_format(text), torch.float16)
    for options in ("", ":actorder"):
        found = gptq(weight, H, parse_format(f"{text}+gptq{options}"), torch.float16)
        assert output_error(found.approx() - weight, H) < output_error(plain - weight, H)
    alone = gptq(weight, torch.eye(256), parse_format(f"{text}+gptq"), torch.float16)
    assert torch.equal(alone.approx(), plain)


def test_a_factor_of_h_changes_nothing() -> None:
    weight, H = normal(16, 96), correlated(96, 0.5, seed=2)
    H[7] = H[:, 7] = 0
    fmt = parse_format("int4-g32+gptq:actorder")
    one, other = gptq(weight, H, fmt, torch.float16), gptq(weight, H * 1024, fmt, torch.float16)
    assert torch.equal(one.approx(), other.approx())


def test_a_singular_h_raises_its_damping_and_says_so() -> None:
    weight = normal(8, 128)
    x = normal(3, 128, seed=1)
    H = x.T @ x * 1e4
    found = gptq(weight, H, parse_format("int4-g32+gptq:damp=.0000011"), torch.float16, "up")
    plain = dequantized(weight, parse_format("int4-g32"), torch.float16)
    # Three tokens leave 125 directions free: all of their error can be made up for.
    assert output_error(found.approx() - weight, H) < 0.1 * output_error(plain - weight, H)
    indefinite = H - torch.eye(128) * 0.02 * H.diagonal().mean()
    raised = gptq(weight, indefinite, parse_format("int4-g32+gptq"), torch.float16, "up")
    assert "up: H is singular at damping 0.01, which was raised to 0.1" in raised.notes
    assert raised.approx().isfinite().all()


def test_channels_that_were_always_0_get_weights_of_0_and_a_note() -> None:
    weight, H = normal(8, 64), correlated(64, 0.5, seed=3)
    H[[5, 40]] = 0
    H[:, [5, 40]] = 0
    found = gptq(weight, H, parse_format("int4-g32+gptq"), torch.float16, "up")
    assert found.notes == ("up: 2 input channels were always 0: weights set to 0",)
    assert (found.approx()[:, [5, 40]] == 0).all()
    plain = dequantized(weight, parse_format("int4-g32"), torch.float16)
    assert output_error(found.approx() - weight, H) < output_error(plain - weight, H)


def test_zeros_stay_zero_and_inputs_are_not_modified() -> None:
    weight, H = normal(8, 64), correlated(64, 0.0, seed=4)
    weight[3] = 0
    weight_before, H_before = weight.clone(), H.clone()
    found = gptq(weight, H, parse_format("int4-g32+gptq:actorder"), torch.float16)
    assert (found.approx()[3] == 0).all()
    assert torch.equal(weight, weight_before)
    assert torch.equal(H, H_before)
    assert isinstance(found.stored, Quantized)
    assert found.stored.scale.dtype == torch.float16
    assert found.approx(torch.bfloat16).dtype == torch.bfloat16


def test_a_group_larger_than_the_row_is_the_row() -> None:
    weight, H = normal(8, 64), correlated(64, 0.5, seed=5)
    wide = gptq(weight, H, parse_format("int4-g256+gptq"), torch.float16)
    row = gptq(weight, H, parse_format("int4-channel+gptq"), torch.float16)
    assert torch.equal(wide.approx(), row.approx())


def _broken(weight: Tensor, value: float) -> Tensor:
    changed = weight.clone()
    changed[0, 0] = value
    return changed


WEIGHT, H64 = normal(8, 64), correlated(64, 0.5, seed=6)


@pytest.mark.parametrize(
    ("weight", "H", "text", "message"),
    [
        (_broken(WEIGHT, math.nan), H64, "int4+gptq", "finite weights"),
        (_broken(WEIGHT, math.inf), H64, "int4+gptq", "finite weights"),
        (WEIGHT, _broken(H64, math.nan), "int4+gptq", "calibration inputs, is not finite"),
        (WEIGHT, torch.zeros(64, 64), "int4+gptq", "no calibration token"),
        (WEIGHT, H64[:32, :32], "int4+gptq", r"H has the shape \[32, 32\]"),
        (WEIGHT, -H64, "int4+gptq", "not positive definite"),
        (WEIGHT * 1e9, H64, "int4+gptq", "needs a scale"),
        (WEIGHT[None], H64, "int4+gptq", r"one weight \[out, in\]"),
        (WEIGHT, H64, "int4", r"has no '\+gptq'"),
        (WEIGHT[:, :40], H64[:40, :40], "mxfp4+gptq", "blocks of 32"),
    ],
)
def test_what_means_nothing_is_refused(weight: Tensor, H: Tensor, text: str, message: str) -> None:
    with pytest.raises(FormatError, match=f"^up: .*{message}"):
        gptq(weight, H, parse_format(text), torch.float16, "up")
