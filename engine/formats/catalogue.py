"""Every format and method there is a name for, what each takes, and what cannot go together.

Pure data and rules, no tensors: `engine.formats.grammar` reads and prints by these tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

Family: TypeAlias = Literal["kept", "integer", "float", "codebook", "gguf"]
Strategy: TypeAlias = Literal["group", "channel", "tensor", "block"]
Value: TypeAlias = float | bool
"""What a key holds: a number, or True for a key that is only present or absent."""


class Number(msgspec.Struct, frozen=True):
    """A number that an option or a method takes: ``low <= x <= high``."""

    low: float
    high: float
    default: float | None = None
    percent: bool = False


Keys: TypeAlias = dict[str, Number | None]
"""Keys in printing order; None is a flag."""


class Base(msgspec.Struct, frozen=True):
    """What a format is before options and methods."""

    family: Family
    bits: int
    """Bits of one code."""
    strategy: Strategy | None = None
    """What shares a scale unless said otherwise; None where nothing is scaled."""
    group_size: int | None = None
    symmetric: bool = True
    """Whether codes lie evenly about 0, with no offset stored."""
    options: tuple[str, ...] = ()
    """The ``-options`` it takes; ``gN`` stands for any group size."""
    keys: Keys = {}
    block_bytes: int = 0
    """GGUF: bytes that a block of ``group_size`` weights takes."""


class MethodRule(msgspec.Struct, frozen=True):
    """What a method takes, and the formats it makes sense for."""

    bases: frozenset[str]
    why: str
    """Why the other formats cannot have it."""
    value: Number | None = None
    keys: Keys = {}


def _gguf(bits: int, block: int, block_bytes: int, *, symmetric: bool = True) -> Base:
    return Base("gguf", bits, "block", block, symmetric, block_bytes=block_bytes)


_INTEGER_OPTIONS = ("gN", "channel", "tensor", "sym", "asym")
_FP8_OPTIONS = ("channel", "tensor", "block128")
_SPARSE: Keys = {"sparse": Number(1e-6, 50, percent=True)}

BASES: dict[str, Base] = {
    "fp32": Base("kept", 32),
    "fp16": Base("kept", 16),
    "bf16": Base("kept", 16),
    **{
        f"int{bits}": Base("integer", bits, "group", 128, False, _INTEGER_OPTIONS)
        for bits in range(2, 8)
    },
    "int8": Base("integer", 8, "channel", None, True, _INTEGER_OPTIONS),
    "fp8-e4m3": Base("float", 8, "channel", options=_FP8_OPTIONS),
    "fp8-e5m2": Base("float", 8, "channel", options=_FP8_OPTIONS),
    "mxfp4": Base("float", 4, "group", 32),
    "mxfp8": Base("float", 8, "group", 32),
    "nvfp4": Base("float", 4, "group", 16),
    "nf4": Base("codebook", 4, "block", 64, options=("gN",), keys={"dq": None}),
    "fp4": Base("codebook", 4, "block", 64, options=("gN",), keys={"dq": None}),
    "kmeans3": Base("codebook", 3, "channel", symmetric=False, keys=_SPARSE),
    "kmeans4": Base("codebook", 4, "channel", symmetric=False, keys=_SPARSE),
    "e8-2": Base("codebook", 2, "tensor"),
    "q8_0": _gguf(8, 32, 34),
    "q6_k": _gguf(6, 256, 210),
    "q5_k": _gguf(5, 256, 176, symmetric=False),
    "q4_k": _gguf(4, 256, 144, symmetric=False),
    "q3_k": _gguf(3, 256, 110),
    "q2_k": _gguf(2, 256, 84, symmetric=False),
    "q4_0": _gguf(4, 32, 18),
    "q4_1": _gguf(4, 32, 20, symmetric=False),
    "q5_0": _gguf(5, 32, 22),
    "q5_1": _gguf(5, 32, 24, symmetric=False),
    "iq4_nl": _gguf(4, 32, 18),
    "iq4_xs": _gguf(4, 256, 136),
}

_ALL = frozenset(BASES)
_INTEGER = frozenset(name for name, base in BASES.items() if base.family == "integer")
_FLOAT = frozenset(name for name, base in BASES.items() if base.family == "float")
_ABSMAX = frozenset({"nf4", "fp4"})

METHODS: dict[str, MethodRule] = {
    "smooth": MethodRule(_ALL, "", value=Number(1e-6, 1, default=0.5), keys={"online": None}),
    "hadamard": MethodRule(_ALL, ""),
    "awq": MethodRule(_ALL, "", keys={"online": None}),
    "clip": MethodRule(_INTEGER | _FLOAT | _ABSMAX, "it has no range that a search could narrow"),
    "hqq": MethodRule(_INTEGER, "it moves zero points, which only integer formats have"),
    "gptq": MethodRule(
        _INTEGER | _FLOAT | _ABSMAX | {"e8-2"},
        "it settles the codes of a row by a search of its own",
        keys={"damp": Number(1e-6, 1, default=0.01), "actorder": None, "static": None},
    ),
    "outlier": MethodRule(
        frozenset({"int8"}),
        "it is the split of LLM.int8(), which goes with int8",
        value=Number(1e-6, 1000, default=6.0),
    ),
    "a8": MethodRule(
        _INTEGER, "8-bit integer activations multiply integer weights", keys={"static": None}
    ),
}
"""In the order in which they are applied, and printed."""


def why_impossible(
    name: str,
    strategy: Strategy | None,
    group_size: int | None,
    symmetric: bool,
    methods: Sequence[tuple[str, Sequence[str]]],
    options: Sequence[str] = (),
) -> str | None:
    """The reason why these parts make no format, or None where they do.

    Args:
        name: A key of `BASES`.
        strategy: What shares a scale.
        group_size: Weights that share a scale, where the strategy is a group or a block.
        symmetric: Whether codes lie evenly about 0.
        methods: The methods' names, each with the keys it is given.
        options: The keys the format itself is given.
    """
    base = BASES[name]
    if (why := _why_no_such_groups(name, strategy, group_size)) is not None:
        return why
    if symmetric != base.symmetric and base.family != "integer":
        return f"{name} has no choice between symmetric and asymmetric"
    names = [method for method, _ in methods]
    if base.family == "kept" and names:
        return f"{name} keeps the weights as they are, so '+{names[0]}' has nothing to work on"
    for method, keys in methods:
        rule = METHODS[method]
        if name not in rule.bases:
            return f"'+{method}' does not go with {name}: {rule.why}"
        if method == "gptq":
            why = _why_not_solved(name, strategy, keys, options)
            if why is not None:
                return why
    if "clip" in names and "hqq" in names:
        return "'+clip' and '+hqq' both set the range of a group: take one of them"
    if "hqq" in names and symmetric:
        return "'+hqq' moves zero points, and a symmetric format has none: add '-asym'"
    if name == "e8-2" and "hadamard" not in names:
        return "the lattice of e8-2 needs weights spread evenly: write 'e8-2+hadamard'"
    return None


def _why_not_solved(
    name: str, strategy: Strategy | None, keys: Sequence[str], options: Sequence[str]
) -> str | None:
    """Why GPTQ cannot have these keys with this format."""
    groups = strategy in ("group", "block")
    if "static" in keys and not groups:
        return "'+gptq:static' fixes the scales of groups beforehand, and there are no groups"
    if "static" in keys and "dq" in options:
        return "':dq' fixes all maxima beforehand, being quantised together: leave ':static' out"
    if "actorder" in keys and name == "e8-2":
        return "'+gptq:actorder' reorders columns, and a codeword of e8-2 holds eight neighbours"
    moving = groups and "static" not in keys and "dq" not in options
    if "actorder" in keys and moving and BASES[name].family != "integer":
        return f"{name} stores no order of columns: write '+gptq:actorder:static'"
    return None


def _why_no_such_groups(name: str, strategy: Strategy | None, group_size: int | None) -> str | None:
    base = BASES[name]
    if base.family == "integer" and strategy in ("group", "channel", "tensor"):
        if (strategy == "group") != (group_size is not None):
            return "a group size goes with the strategy 'group', and with no other"
        if group_size is not None and group_size < 1:
            return "a group holds at least one weight"
        return None
    if name in _ABSMAX and strategy == "block":
        if group_size not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
            return f"{name} has blocks of a power of two from 32 to 4096, not of {group_size}"
        return None
    fp8_choices = (("channel", None), ("tensor", None), ("block", 128))
    if base.options == _FP8_OPTIONS and (strategy, group_size) in fp8_choices:
        return None
    if (strategy, group_size) != (base.strategy, base.group_size):
        return f"{name} does not come with strategy {strategy!r} and group size {group_size}"
    return None
