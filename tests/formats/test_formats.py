"""The grammar of formats: one canonical text each, and a reason for everything refused."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from engine.errors import FormatError
from engine.formats.catalogue import BASES, METHODS
from engine.formats.grammar import (
    Format,
    Method,
    folds,
    needs_calibration,
    parse_format,
    why_not_alone,
    why_not_built,
    without_folds,
)

# --- the whole grammar, as text --------------------------------------------------------------


def numbers(low: float, high: float) -> st.SearchStrategy[str]:
    return st.floats(low, high).map(repr) | st.sampled_from([".5", "1", "0.25", "1e-3", "1."])


def shuffled(parts: list[str], seed: int) -> list[str]:
    parts = list(parts)
    random.Random(seed).shuffle(parts)
    return parts


@st.composite
def valid_formats(draw: st.DrawFn) -> str:
    """Any text that the grammar allows, in any order, case and spelling of numbers."""
    seed = draw(st.integers(0, 1 << 16))
    name = draw(st.sampled_from(sorted(BASES)))
    family = BASES[name].family
    options: list[str] = []
    keys: list[str] = []
    grouped, symmetric = False, True
    if family == "integer":
        size = draw(st.integers(1, 9_999_999))
        scope = draw(st.sampled_from(["", f"-g{size}", "-channel", "-tensor"]))
        sign = draw(st.sampled_from(["", "-sym", "-asym"]))
        options = [scope, sign]
        grouped = scope.startswith("-g") or (scope == "" and name != "int8")
        symmetric = sign == "-sym" or (sign == "" and name == "int8")
    elif name.startswith("fp8"):
        options = [draw(st.sampled_from(["", "-channel", "-tensor", "-block128"]))]
    elif name in ("nf4", "fp4"):
        options = [draw(st.sampled_from(["", "-g32", "-g64", "-g4096"]))]
        keys = draw(st.sampled_from([[], [":dq"]]))
    elif name.startswith("kmeans"):
        keys = draw(st.just([]) | numbers(1e-6, 50).map(lambda x: [f":sparse={x}%"]))
    grouped = grouped or name in ("mxfp4", "mxfp8", "nvfp4")
    blocks = grouped or name in ("nf4", "fp4") or "-block128" in options
    methods = draw(valid_methods(name, family, blocks, symmetric, ":dq" in keys))
    text = name + "".join(shuffled(options, seed) + keys + shuffled(methods, seed))
    text = draw(st.sampled_from([str.lower, str.upper, str.title]))(text)
    return draw(st.sampled_from(["", " ", "\t\n"])) + text + draw(st.sampled_from(["", "  "]))


@st.composite
def valid_methods(
    draw: st.DrawFn, name: str, family: str, grouped: bool, symmetric: bool, double: bool
) -> list[str]:
    if family == "kept":
        return []
    value = draw(numbers(1e-6, 1))
    online = draw(st.sampled_from(["", ":online"]))
    methods = [f"+smooth{value}{online}", f"+smooth{online}", "+hadamard", f"+awq{online}"]
    if family in ("integer", "float8", "microscaling", "nvfp4") or name in ("nf4", "fp4"):
        methods.append("+clip")
    if family == "integer" and not symmetric:
        methods.append("+hqq")
    if family in ("integer", "float8", "microscaling", "nvfp4") or name in ("nf4", "fp4", "e8-2"):
        orders = [""] if name == "e8-2" else ["", ":actorder"]
        if grouped and not double:
            # Only integer formats store the order of columns whose groups are found on the way.
            orders = ["", ":actorder"] if family == "integer" else [""]
            orders += [":static", ":actorder:static", ":static:actorder"]
        damp = draw(st.sampled_from(["", f":damp={draw(numbers(1e-6, 1))}", ":damp=.01"]))
        methods.append("+gptq" + damp + draw(st.sampled_from(orders)))
    if name == "int8":
        methods += ["+outlier", f"+outlier{draw(numbers(1e-6, 1000))}"]
    if family == "integer":
        methods += ["+a8", "+a8:static"]
    kinds = st.lists(st.sampled_from(methods), unique_by=lambda m: m[1:3].replace("cl", "hq"))
    needed = ["+hadamard"] if name == "e8-2" else []
    return needed + [method for method in draw(kinds) if method not in needed]


PIECES = st.sampled_from(
    [*BASES, *METHODS, *"-+:=.%05", "-g64", "-sym", "-asym", "-channel", ":online", ":damp=", "1e9"]
)


@given(valid_formats())
def test_every_format_prints_as_text_that_reads_back_equal(text: str) -> None:
    fmt = parse_format(text)
    assert parse_format(str(fmt)) == fmt
    assert str(parse_format(str(fmt))) == str(fmt)
    assert hash(parse_format(str(fmt))) == hash(fmt)


@given(st.lists(PIECES).map("".join) | st.text())
def test_any_text_reads_to_a_fixed_point_or_is_refused(text: str) -> None:
    try:
        canonical = str(parse_format(text))
    except FormatError as error:
        refusal = str(error)
        event("refused")
    else:
        refusal = ""
        assert str(parse_format(canonical)) == canonical
    assert refusal.isprintable()


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("int4", "int4-g128"),
        ("int4-g128-asym", "int4-g128"),
        ("int4-asym-g128", "int4-g128"),
        ("int3-g64", "int3-g64"),
        ("int4-sym", "int4-g128-sym"),
        ("int4-channel", "int4-channel"),
        ("int4-tensor-sym", "int4-tensor-sym"),
        ("int8", "int8"),
        ("int8-channel-sym", "int8"),
        ("int8-asym", "int8-asym"),
        ("int8-tensor", "int8-tensor"),
        ("int8-g128", "int8-g128"),
        ("int8-g128-sym", "int8-g128"),
        ("int8-g128-asym", "int8-g128-asym"),
        (" BF16\n", "bf16"),
        ("fp8-e4m3-channel", "fp8-e4m3"),
        ("FP8-E5M2-Block128", "fp8-e5m2-block128"),
        ("nf4:dq", "nf4-g64:dq"),
        ("kmeans4:sparse=0.50%", "kmeans4:sparse=.5%"),
        ("e8-2+hadamard", "e8-2+hadamard"),
        ("e8-2+gptq+hadamard", "e8-2+hadamard+gptq"),
        ("nf4+gptq:static:actorder", "nf4-g64+gptq:actorder:static"),
        ("nf4:dq+gptq:actorder", "nf4-g64:dq+gptq:actorder"),
        ("fp8-e4m3+gptq:actorder", "fp8-e4m3+gptq:actorder"),
        ("fp8-e4m3-block128+gptq:static", "fp8-e4m3-block128+gptq:static"),
        ("Q4_K", "q4_k"),
        ("int4+gptq:actorder:damp=0.02", "int4-g128+gptq:damp=.02:actorder"),
        ("int4+gptq:damp=.01", "int4-g128+gptq"),
        ("int3-g64-sym+clip+awq", "int3-g64-sym+awq+clip"),
        ("int4+awq:online", "int4-g128+awq:online"),
        ("int8+a8:static+smooth", "int8+smooth.5+a8:static"),
        ("int8+smooth0.75:online+a8", "int8+smooth.75:online+a8"),
        ("int8+outlier6.0", "int8+outlier6"),
        (
            "int8-asym+a8+outlier+gptq+hqq+awq+hadamard+smooth1",
            "int8-asym+smooth1+hadamard+awq+hqq+gptq+outlier6+a8",
        ),
    ],
)
def test_a_format_has_one_canonical_text(text: str, canonical: str) -> None:
    assert str(parse_format(text)) == canonical


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int44", "unknown format 'int44': did you mean 'int4'?"),
        ("int4g128", "did you mean 'int4'?"),
        ("int16", "unknown format 'int16'"),
        ("fp8", "did you mean 'fp8-e4m3'?"),
        ("q4_k_m", "did you mean 'q4_k'?"),
        ("nf5", "did you mean 'nf4'?"),
        ("", "unknown format ''"),
        ("wat", "known are fp32, fp16"),
        ("int4-symm", "did you mean '-sym'?"),
        ("int4-block128", "'int4' takes -gN, -channel, -tensor, -sym, -asym"),
        ("mxfp4-g32", "'mxfp4' takes nothing after '-'"),
        ("int4-g64-channel", "takes one of '-g64' and '-channel'"),
        ("int4-sym-asym", "takes one of '-sym' and '-asym'"),
        ("int4-g0", "at least one weight"),
        ("nf4-g48", "a power of two from 32 to 4096"),
        ("int4:dq", "'int4' takes nothing after ':'"),
        ("nf4:dq:dq", "twice"),
        ("nf4:dq=1", "takes no value"),
        ("kmeans3:sparse=.5", "from .000001% to 50%, found '.5'"),
        ("kmeans3:sparse=0%", "from .000001% to 50%"),
        ("int4+awk", "unknown method 'awk': did you mean 'awq'?"),
        ("int4+", "unknown method ''"),
        ("int4+awq3", "takes no value"),
        ("int4+awq+awq", "has the method '+awq' twice"),
        ("int4+smooth1.5", "from .000001 to 1, found '1.5'"),
        ("int4+gptq:damp", "'+gptq:damp' takes a number"),
        ("int4+gptq:damp=1e999", "'+gptq:damp' takes a number"),
        ("int4+gptq:dump=.1", "did you mean ':damp'?"),
        ("int4+clip+hqq", "both set the range"),
        ("int4-sym+hqq", "a symmetric format has none"),
        ("int8+hqq", "add '-asym'"),
        ("int4-channel+gptq:static", "there are no groups"),
        ("fp8-e4m3+gptq:static", "there are no groups"),
        ("e8-2+hadamard+gptq:static", "there are no groups"),
        ("e8-2+hadamard+gptq:actorder", "eight neighbours"),
        ("nf4:dq+gptq:static", "':dq' needs all maxima in advance"),
        ("nf4+gptq:actorder", "nf4 stores no column order: write '+gptq:actorder:static'"),
        ("nvfp4+gptq:actorder", "nvfp4 stores no column order"),
        ("mxfp4+gptq:damp=.1:actorder", "mxfp4 stores no column order"),
        ("fp8-e5m2-block128+gptq:actorder", "fp8-e5m2 stores no column order"),
        ("int4+outlier6", "goes with int8"),
        ("bf16+awq", "bf16 does not quantise weights"),
        ("fp8-e4m3+a8", "multiply integer weights"),
        ("nf4+hqq", "only integer formats"),
        ("q4_k+clip", "no range"),
        ("kmeans4+gptq", "its own search"),
        ("q8_0+imatrix", "weighs the search"),
        ("int4+imatrix", "llama.cpp's quantisers"),
        ("e8-2", "write 'e8-2+hadamard'"),
    ],
)
def test_what_is_refused_comes_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse_format(text)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "parts",
    [
        {"name": "int5x"},
        {"name": "int4", "strategy": "group", "group_size": None},
        {"name": "int4", "strategy": "channel", "group_size": 64},
        {"name": "int4", "strategy": "block", "group_size": 64},
        {"name": "mxfp4", "strategy": "group", "group_size": 64},
        {"name": "fp8-e4m3", "strategy": "block", "group_size": 64},
        {"name": "nf4", "strategy": "group", "group_size": 64},
        {"name": "q4_k", "strategy": "block", "group_size": 256, "symmetric": True},
        {"name": "bf16", "strategy": "tensor"},
        {"name": "int8", "strategy": "channel", "methods": (Method("awk"),)},
    ],
)
def test_a_format_put_together_by_hand_is_checked_too(parts: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        Format(**parts)  # type: ignore[arg-type]


def test_a_format_says_what_it_is() -> None:
    fmt = parse_format("int3-g64+gptq:damp=.02:actorder+awq")
    assert (fmt.name, fmt.family, fmt.bits, fmt.kept) == ("int3", "integer", 3, False)
    assert (fmt.strategy, fmt.group_size, fmt.symmetric) == ("group", 64, False)
    assert fmt.methods == (
        Method("awq"),
        Method("gptq", options=(("damp", 0.02), ("actorder", True))),
    )
    assert parse_format("kmeans4:sparse=.5%").options == (("sparse", 0.5),)
    assert parse_format("int8+smooth").methods == (Method("smooth", 0.5),)
    assert parse_format("q4_k").family == "gguf"
    assert parse_format("nf4").family == "normal-float"
    assert (parse_format("mxfp4").group_size, parse_format("nvfp4").group_size) == (32, 16)
    assert parse_format("fp16").kept
    assert parse_format("fp16").strategy is None


def test_every_format_is_built_and_so_is_every_method() -> None:
    for name in BASES:
        assert why_not_built(parse_format("e8-2+hadamard" if name == "e8-2" else name)) is None
    for text in ("int4+clip", "nf4:dq+clip", "nvfp4+clip", "int3-g64+hqq", "q4_k+hadamard"):
        assert why_not_built(parse_format(text)) is None
    for text in (
        "q4_k+awq+imatrix",
        "int4+awq",
        "e8-2+hadamard+gptq",
        "int4+clip+gptq",
        "int8+smooth+a8:static",
    ):
        assert why_not_built(parse_format(text)) is None
    for text in ("int8+hadamard+outlier6", "int8+hadamard+a8:static", "q4_k+hadamard+imatrix"):
        assert "not yet" in str(why_not_built(parse_format(text)))


@pytest.mark.parametrize(
    ("text", "calibrated", "alone", "folds_into"),
    [
        ("int4-g128", False, True, False),
        ("int4-g128+clip+hadamard", False, True, False),
        ("int8+a8", False, False, False),
        ("int8+a8:static", True, False, False),
        ("int8+outlier6", True, False, False),
        ("iq2_xs+imatrix", True, False, False),
        ("q4_0+awq+imatrix", True, False, True),
        ("int4-g128+gptq", True, False, False),
        ("int4-g128+awq+gptq", True, False, True),
        ("int8+smooth.5:online+a8", True, False, False),
        ("int8+smooth.5+awq:online", True, False, True),
    ],
)
def test_what_a_format_asks_of_inputs(
    text: str, calibrated: bool, alone: bool, folds_into: bool
) -> None:
    fmt = parse_format(text)
    assert needs_calibration(fmt) is calibrated
    assert (why_not_alone(fmt) is None) is alone
    assert folds(fmt) is folds_into
    assert not folds(without_folds(fmt))


def test_reading_a_format_imports_no_torch() -> None:
    code = "import sys, engine.formats.storage; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
