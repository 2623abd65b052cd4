"""``nvfp4``: 4-bit floats with an 8-bit float scale for every 16, and one float32 for all."""

from __future__ import annotations

from engine.formats.catalogue import Base
from engine.formats.family import Family, scales_of
from engine.formats.grammar import Format


def _stored_bits(fmt: Format, out: int, row: int) -> int:
    return fmt.bits * out * row + 8 * scales_of(fmt, out, row) + 32


FAMILY = Family(
    name="nvfp4",
    formats={"nvfp4": Base(4, "group", 16, methods=("clip", "gptq"), row_multiple=16)},
    stored_bits=_stored_bits,
    arithmetic="engine.quant.nvfp4:ARITHMETIC",
    eight_bits="fp8-e4m3",
    place=31,
)
