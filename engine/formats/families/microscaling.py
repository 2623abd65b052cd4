"""``mxfp4`` and ``mxfp8``: small floats with an 8-bit exponent for every 32."""

from __future__ import annotations

from engine.formats.catalogue import Base
from engine.formats.family import Family, scales_of
from engine.formats.grammar import Format

_EXPONENT_BITS = 8


def _stored_bits(fmt: Format, out: int, row: int) -> int:
    return fmt.bits * out * row + _EXPONENT_BITS * scales_of(fmt, out, row)


FAMILY = Family(
    name="microscaling",
    formats={
        "mxfp4": Base(4, "group", 32, methods=("clip", "gptq"), row_multiple=32),
        "mxfp8": Base(8, "group", 32, methods=("clip", "gptq"), row_multiple=32),
    },
    stored_bits=_stored_bits,
    arithmetic="engine.quant.microscaling:ARITHMETIC",
    eight_bits="fp8-e4m3",
    place=30,
)
