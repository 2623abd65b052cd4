"""What a layer could hold instead of a format: the fixes that the field knows, as formats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from engine.errors import FormatError
from engine.formats.catalogue import BASES
from engine.formats.family import family_of
from engine.formats.grammar import Format, needs_calibration, parse_built, parse_format
from engine.formats.storage import stored_bits, why_not_held

SIZES = (128, 64, 32)
"""Smaller groups, as far as they are smaller."""
METHODS = ("clip", "awq", "gptq", "gptq:actorder", "hadamard")
"""Added to the format as it is."""
OTHERS = (
    "nf4",
    "int8",
    "fp8-e4m3",
    "int8+outlier6+a8",
    "int8+smooth.5+a8",
    "e8-2+hadamard",
)
"""Other ways to store it. ``+outlier6+a8`` is LLM.int8(), ``+smooth+a8`` is W8A8."""
NEAR = 0.75
"""Bits per weight within which a type of GGUF is near a format."""
SLOW = ("kmeans", "lattice", "gguf")
"""Families that search for their codes."""


def alternatives(format: str, shape: Sequence[int]) -> list[str]:
    """Formats to try on a weight of ``shape`` instead of one, that first, the quick ones next.

    As stored is always possible, and not listed.

    Raises:
        FormatError: it does not parse, or the weight cannot hold it.
    """
    base = parse_built(format)
    if (why := why_not_held(base, shape)) is not None:
        raise FormatError(f"a weight of shape {list(shape)} cannot hold {base}: {why}")
    found: dict[str, Format] = {}
    for text in _texts(base, shape):
        try:
            fmt = parse_built(text)
        except FormatError:
            continue  # the two do not go together
        if fmt != base and not fmt.kept and why_not_held(fmt, shape) is None:
            found.setdefault(str(fmt), fmt)
    return [str(base), *sorted(found, key=lambda text: _cost(found[text]))]


def _texts(base: Format, shape: Sequence[int]) -> Iterator[str]:
    text = str(base)
    for size in SIZES:
        if size < min(base.group_size or shape[-1], shape[-1]):
            yield _with_groups(base, size)
    for method in METHODS:
        yield f"{text}+{method}"
    yield f"kmeans{3 if base.bits <= 3 else 4}"
    yield f"kmeans{3 if base.bits <= 3 else 4}:sparse=.5%"
    yield from OTHERS
    bits = stored_bits(base, shape) / math.prod(shape)
    for name, about in BASES.items():
        if about.family == "gguf":
            fmt = parse_format(name)
            if why_not_held(fmt, shape) is None:
                near = stored_bits(fmt, shape) / math.prod(shape)
                if abs(near - bits) <= NEAR:
                    yield name


def _with_groups(base: Format, size: int) -> str:
    sign = "" if base.symmetric == BASES[base.name].symmetric else "-sym"
    methods = "".join(f"+{method}" for method in base.methods)
    return f"{base.name}-g{size}{sign}{methods}"


def _cost(fmt: Format) -> tuple[bool, bool, bool]:
    names = {method.name for method in fmt.methods}
    return needs_calibration(fmt), "gptq" in names, family_of(fmt).name in SLOW
