"""The types of GGUF files, in the blocks of bytes that ggml defines."""

from __future__ import annotations

from engine.formats.catalogue import Base
from engine.formats.family import Family
from engine.formats.grammar import Format
from engine.ggml_types import QUANTISED


def _base(bits: int, block: int, *, symmetric: bool = True, weighs: bool = True) -> Base:
    methods = ("imatrix",) if weighs else ()
    return Base(bits, "block", block, symmetric, methods=methods, row_multiple=block)


def _stored_bits(fmt: Format, out: int, row: int) -> int:
    return out * row // (fmt.group_size or 1) * QUANTISED[fmt.name].bytes * 8


FAMILY = Family(
    name="gguf",
    formats={
        "q8_0": _base(8, 32, weighs=False),
        "q6_k": _base(6, 256),
        "q5_k": _base(5, 256, symmetric=False),
        "q4_k": _base(4, 256, symmetric=False),
        "q3_k": _base(3, 256),
        "q2_k": _base(2, 256, symmetric=False),
        "q4_0": _base(4, 32),
        "q4_1": _base(4, 32, symmetric=False),
        "q5_0": _base(5, 32),
        "q5_1": _base(5, 32, symmetric=False),
        "iq4_nl": _base(4, 32),
        "iq4_xs": _base(4, 256),
        "iq3_s": _base(3, 256),
        "iq3_xxs": _base(3, 256),
        "iq2_s": _base(2, 256),
        "iq2_xs": _base(2, 256),
        "iq2_xxs": _base(2, 256),
    },
    stored_bits=_stored_bits,
    arithmetic="engine.quant.gguf:ARITHMETIC",
    eight_bits="q8_0",
    place=60,
)
