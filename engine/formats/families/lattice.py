"""``e8-2+hadamard``: 2 bits a weight, eight weights at a time from a ball of the E8 lattice."""

from __future__ import annotations

from engine.formats.catalogue import Base
from engine.formats.family import Family

_SCALE_BITS = 32

FAMILY = Family(
    name="lattice",
    formats={
        "e8-2": Base(
            2,
            "tensor",
            methods=("gptq",),
            needs="hadamard",
            needs_because="the lattice of e8-2 needs weights spread evenly",
            why_no_order="a codeword of e8-2 holds eight neighbours",
            row_multiple=8,
        )
    },
    stored_bits=lambda fmt, out, row: fmt.bits * out * row + _SCALE_BITS,
    arithmetic="engine.quant.lattice:ARITHMETIC",
    rotates_itself=True,
    place=51,
)
