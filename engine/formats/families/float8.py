"""``fp8-e4m3`` and ``fp8-e5m2``: 8-bit floats with a scale per channel, tensor or block."""

from __future__ import annotations

from engine.formats.catalogue import Base, Strategy
from engine.formats.family import SCALE_BITS, Family, scales_of
from engine.formats.grammar import Format

_CHOICES = (("channel", None), ("tensor", None), ("block", 128))


def _why_no_groups(name: str, strategy: Strategy | None, group_size: int | None) -> str | None:
    if (strategy, group_size) in _CHOICES:
        return None
    return f"{name} does not come with strategy {strategy!r} and group size {group_size}"


def _stored_bits(fmt: Format, out: int, row: int) -> int:
    return fmt.bits * out * row + SCALE_BITS * scales_of(fmt, out, row)


_BASE = Base(
    8,
    "channel",
    options=("channel", "tensor", "block128"),
    methods=("clip", "gptq"),
    why_no_groups=_why_no_groups,
)

FAMILY = Family(
    name="float8",
    formats={"fp8-e4m3": _BASE, "fp8-e5m2": _BASE},
    stored_bits=_stored_bits,
    arithmetic="engine.quant.float8:ARITHMETIC",
    eight_bits="fp8-e4m3",
    place=20,
)
