"""GPTQ of small floats, codebooks and the lattice: error, float64 loops, and what is stored."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.formats.grammar import Format, parse_format
from engine.quant.data_free.hadamard import rotate, rotate_back
from engine.quant.float8 import FLOAT8
from engine.quant.input_statistics import output_error
from engine.quant.lattice import codebook, lattice_scale
from engine.quant.methods.gptq import Solved, gptq
from engine.quant.normal_float import NF4
from engine.quant.quantize import dequantized, stored_form
from engine.quant.small_floats import E2M1
from engine.quant.solve import solved, solved_form
from engine.quant.stored import stored_bytes
from tests.quant.adversarial import normal
from tests.quant.correlated import correlated

FLOATS = [
    *("fp8-e4m3", "fp8-e5m2", "fp8-e4m3-tensor", "fp8-e5m2-tensor", "fp8-e4m3-block128"),
    *("fp8-e5m2-block128", "mxfp4", "mxfp8", "nvfp4"),
]
CODEBOOKS = ["nf4", "fp4", "nf4-g32", "fp4-g4096", "nf4:dq", "fp4-g128:dq", "e8-2+hadamard"]
CLIPPED = ["fp8-e5m2-block128+clip", "mxfp4+clip", "nvfp4+clip", "nf4+clip", "nf4:dq+clip"]
ROTATED = ["int4-g128+hadamard", "int3-g64+hadamard+clip", "nvfp4+hadamard", "nf4:dq+hadamard"]
ALL = [*FLOATS, *CODEBOOKS, *CLIPPED, *ROTATED]


def options_of(text: str) -> list[str]:
    """What ``+gptq`` of this format takes beside the damping."""
    if text.startswith("e8-2"):
        return [""]
    if ":dq" in text or (text.startswith("fp8") and "block" not in text):
        return ["", ":actorder"]
    return ["", ":static", ":actorder:static"]


@pytest.mark.parametrize("text", ALL)
def test_the_output_error_is_below_that_of_rounding_in_every_trial(text: str) -> None:
    for seed in range(4):
        weight, H = normal(48, 128, seed=seed), correlated(128, 0.3, seed=seed)
        plain = output_error(dequantized(weight, parse_format(text), torch.float16) - weight, H)
        for options in options_of(text):
            fmt = parse_format(f"{text}+gptq{options}")
            approx, notes = solved(weight, H, fmt, torch.float16)
            assert output_error(approx - weight, H) < 0.8 * plain, (seed, options)
            assert all("run across" in note for note in notes)


@pytest.mark.parametrize("text", [*FLOATS, *CODEBOOKS, *CLIPPED])
def test_inputs_that_are_independent_are_rounded_to_nearest(text: str) -> None:
    weight = normal(150, 160, seed=1)
    plain = dequantized(weight, parse_format(text), torch.float16)
    for options in options_of(text):
        fmt = parse_format(f"{text}+gptq{options}")
        found = gptq(_turned(weight, fmt), torch.eye(160) * 7, fmt, torch.float16)
        assert torch.equal(found.approx(), plain)


@pytest.mark.parametrize("text", ALL)
def test_what_is_found_is_stored_as_rounding_stores_it(text: str) -> None:
    weight, H = normal(130, 256, seed=2), correlated(256, 0.3, seed=2)
    plain = stored_form(weight, parse_format(text.replace("+hadamard", "", "e8" not in text)), HALF)
    for options in options_of(text):
        found = solved_form(weight, H, parse_format(f"{text}+gptq{options}"), HALF)
        assert type(found.stored) is type(plain)
        assert stored_bytes(found.stored) == stored_bytes(plain)
        assert found.order is None
        for name, part in vars(plain).items():
            other = getattr(found.stored, name)
            if isinstance(part, Tensor):
                assert (other.shape, other.dtype) == (part.shape, part.dtype), name
                assert other.is_contiguous()
            else:
                assert other == part, name
        rebuilt = type(plain)(*(_copied(part) for part in vars(found.stored).values()))
        approx = rebuilt.approx()
        if found.rotated:
            rotate_back(approx)
        assert torch.equal(found.approx(), approx)


HALF = torch.float16


def _copied(part: object) -> object:
    """A tensor as it comes back from a file."""
    if not isinstance(part, Tensor):
        return part
    raw = bytearray(part.contiguous().view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(raw, dtype=torch.uint8).view(part.dtype).view(part.shape)


def _turned(weight: Tensor, fmt: Format) -> Tensor:
    turned = weight.clone()
    if fmt.name == "e8-2":
        rotate(turned)
    return turned


# --- one column at a time, in float64 ------------------------------------------------------------

Rounding = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""From the weights moved so far and a column: values ``[out, at_once]``, and how clear they are:
the distance to the next best over that to the best, less 1."""


def brain_surgeon(weight: Tensor, H: Tensor, rounded: Rounding, at_once: int) -> list[Tensor]:
    """``Ŵ`` and how clear every choice was, ``[out, in / at_once]``.

    The Schur complement as it stands, equations 2 and 3 of the paper for several columns: all
    others are moved, and these are taken out of the inverse by Gaussian elimination.
    """
    W, H = weight.double().clone(), H.double().clone()
    width = W.shape[1]
    inverse = torch.linalg.inv(H + 0.01 * H.diagonal().mean() * torch.eye(width))
    approx, clear = torch.zeros_like(W), []
    for q in range(0, width, at_once):
        now = slice(q, q + at_once)
        approx[:, now], margin = rounded(W, q)
        clear.append(margin)
        gain = torch.linalg.solve(inverse[now, now], inverse[now])
        W -= (W[:, now] - approx[:, now]) @ gain
        inverse = inverse - inverse[:, now] @ gain
    return [approx, torch.stack(clear, 1)]


def nearest(w: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of values ``[n]`` to ``[out]``, and how clear that is."""
    distances, found = (w[:, None] - values).abs().topk(2, largest=False)
    return values[found[:, 0]], distances[:, 1] / distances[:, 0].clamp(min=1e-12) - 1


def scaled_columns(
    size: int, values: Tensor, scale_of: Callable[[Tensor], Tensor], at: dict[str, Tensor]
) -> Rounding:
    """Rounding to ``values`` times a scale ``[out]``, found as a group of columns is reached."""

    def rounded(W: Tensor, q: int) -> tuple[Tensor, Tensor]:
        if q % size == 0:
            at["scale"] = scale_of(W[:, q : q + size])
        chosen, margin = nearest(W[:, q] / at["scale"], values)
        return (chosen * at["scale"])[:, None], margin

    return rounded


def float8_values(name: str) -> Tensor:
    found = torch.arange(256).to(torch.uint8).view(FLOAT8[name]).double()
    return found[found.isfinite()].unique()


def of_rows(most: float) -> Callable[[Tensor], Tensor]:
    return lambda part: (part.abs().amax(1) / most).half().double()


def of_blocks(most: float) -> Callable[[Tensor], Tensor]:
    def scale(part: Tensor) -> Tensor:
        maxima = torch.cat([rows.abs().amax().expand(len(rows)) for rows in part.split(128)])
        return (maxima / most).half().double()

    return scale


def of_powers(part: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(part.abs().amax(1))  # from .5 to 1
    return torch.exp2((exponent - 1 + (mantissa >= 1.75 / 2) - 2).double())


EVEN = torch.tensor([*E2M1, *(-value for value in E2M1[1:])]).double()
LOOPS = {
    "fp8-e4m3": (160, float8_values("fp8-e4m3"), of_rows(448)),
    "fp8-e5m2": (160, float8_values("fp8-e5m2"), of_rows(57344)),
    "fp8-e4m3-block128": (128, float8_values("fp8-e4m3"), of_blocks(448)),
    "mxfp4": (32, EVEN, of_powers),
    "nf4-g32": (32, torch.tensor(NF4).double(), lambda part: part.abs().amax(1)),
}


@pytest.mark.parametrize("text", LOOPS)
def test_values_are_those_of_one_column_at_a_time(text: str) -> None:
    """In every row but where float64 itself is next to a tie: from there the row is another."""
    weight, H = normal(140, 160, seed=3), correlated(160, 0.15, seed=3)
    size, values, scale_of = LOOPS[text]
    expected = brain_surgeon(weight, H, scaled_columns(size, values, scale_of, {}), 1)
    found = gptq(weight, H, parse_format(f"{text}+gptq"), torch.float16)
    _check_rows(found, found.approx().double(), *expected, at_once=1)


def test_codewords_are_those_of_eight_columns_at_a_time() -> None:
    """Block LDLQ, its codewords found by looking at all 65,536."""
    weight, H = normal(12, 64, seed=4), correlated(64, 0.15, seed=4)
    scale = float(lattice_scale(weight))
    words = codebook().double()

    def rounded(W: Tensor, q: int) -> tuple[Tensor, Tensor]:
        distances = torch.cdist(W[:, q : q + 8] / scale, words)
        least, found = distances.topk(2, largest=False)
        return words[found[:, 0]] * scale, least[:, 1] / least[:, 0] - 1

    expected = brain_surgeon(weight, H, rounded, 8)
    found = gptq(weight, H, parse_format("e8-2+hadamard+gptq"), torch.float16)
    approx = found.approx()
    rotate(approx)  # which the stored form undoes
    _check_rows(found, approx.double(), *expected, at_once=8)


def _check_rows(
    found: Solved, approx: Tensor, expected: Tensor, clear: Tensor, at_once: int
) -> None:
    gap = (approx - expected).abs() > 1e-5 * expected.abs().amax(1, keepdim=True)
    parted = gap.any(1)
    assert parted.sum() <= len(parted) // 20
    for row in parted.nonzero().flatten().tolist():
        first = int(gap[row].nonzero()[0])
        assert clear[row, first // at_once] < 1e-3
    assert found.notes == ()


# --- strange inputs ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["fp8-e4m3", "mxfp4", "nvfp4", "nf4", "e8-2+hadamard", "int4-g32"])
def test_a_singular_h_is_solved_too(text: str) -> None:
    weight, x = normal(40, 128), normal(3, 128, seed=1)
    H = x.T @ x * 1e4
    plain = dequantized(weight, parse_format(text), torch.float16)
    rotated = text if "hadamard" in text else f"{text}+hadamard"
    for one in (text, rotated):
        found, _ = solved(weight, H, parse_format(f"{one}+gptq:damp=.00001"), torch.float16)
        assert found.isfinite().all()
        # Three tokens leave 125 directions free: nearly all of the error can be made up for.
        assert output_error(found - weight, H) < 0.1 * output_error(plain - weight, H)


@pytest.mark.parametrize("text", ["fp8-e4m3", "mxfp8", "nvfp4", "nf4:dq", "fp4-g4096"])
def test_channels_that_were_always_0_get_weights_of_0(text: str) -> None:
    weight, H = normal(40, 128), correlated(128, 0.5, seed=3)
    H[[5, 40]] = 0
    H[:, [5, 40]] = 0
    approx, notes = solved(weight, H, parse_format(f"{text}+gptq"), torch.float16, "up")
    assert "up: 2 input channels were always 0: weights set to 0" in notes
    if text != "fp4-g4096":  # whose last code of 0 is that of the dynamic type elsewhere
        assert (approx[:, [5, 40]] == 0).all()
    plain = dequantized(weight, parse_format(text), torch.float16)
    assert output_error(approx - weight, H) < output_error(plain - weight, H)


@pytest.mark.parametrize("text", ["int4-g32+hadamard", "e8-2+hadamard"])
def test_channels_that_were_always_0_do_no_harm_once_rotated(text: str) -> None:
    weight, H = normal(40, 128), correlated(128, 0.5, seed=3)
    H[[5, 40]] = 0
    H[:, [5, 40]] = 0
    approx, _ = solved(weight, H, parse_format(f"{text}+gptq"), torch.float16)
    plain = dequantized(weight, parse_format(text), torch.float16)
    assert output_error(approx - weight, H) < 0.8 * output_error(plain - weight, H)


def test_blocks_that_run_across_rows_are_found_beforehand_and_that_is_said() -> None:
    weight, H = normal(20, 80), correlated(80, 0.5, seed=4)
    _, notes = solved(weight, H, parse_format("nf4+gptq"), torch.float16, "up")
    assert notes == (
        "up: blocks of 64 run across the ends of its rows of 80: their maxima were found "
        "beforehand",
    )
    static, _ = solved(weight, H, parse_format("nf4+gptq:static"), torch.float16)
    moving, _ = solved(weight, H, parse_format("nf4+gptq"), torch.float16)
    assert torch.equal(static, moving)


def test_inputs_are_not_modified() -> None:
    for text in ("nf4+gptq", "int4+hadamard+gptq", "e8-2+hadamard+gptq", "fp8-e4m3+gptq"):
        weight, H = normal(8, 64), correlated(64, 0.3, seed=5)
        before = weight.clone(), H.clone()
        solved(weight, H, parse_format(text), torch.float16)
        assert torch.equal(weight, before[0])
        assert torch.equal(H, before[1])


def test_groups_are_found_from_weights_as_they_were_moved() -> None:
    """The first group is that of rounding, later ones are not."""
    weight, H = normal(16, 128), correlated(128, 0.6, seed=6)
    found = solved_form(weight, H, parse_format("nf4+gptq"), torch.float16).stored
    plain = stored_form(weight, parse_format("nf4"), torch.float16)
    maxima = [getattr(each, "absmax").view(16, 2) for each in (found, plain)]  # noqa: B009
    assert torch.equal(maxima[0][:, 0], maxima[1][:, 0])
    assert (maxima[0][:, 1] != maxima[1][:, 1]).all()
