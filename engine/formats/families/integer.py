"""``int2`` to ``int8``: codes on a uniform grid, with a scale per group, channel or tensor."""

from __future__ import annotations

from functools import partial

from engine.formats.catalogue import Base, Strategy
from engine.formats.family import SCALE_BITS, Family, scales_of
from engine.formats.grammar import Format


def _why_no_groups(name: str, strategy: Strategy | None, group_size: int | None) -> str | None:
    if strategy not in ("group", "channel", "tensor"):
        return f"{name} does not come with strategy {strategy!r} and group size {group_size}"
    if (strategy == "group") != (group_size is not None):
        return "a group size goes with the strategy 'group', and with no other"
    if group_size is not None and group_size < 1:
        return "a group holds at least one weight"
    return None


def _stored_bits(fmt: Format, out: int, row: int) -> int:
    """Zero points take as many bits as a code; with ``+hqq`` they are fractional and take 16."""
    real = any(method.name == "hqq" for method in fmt.methods)
    zero_point = 0 if fmt.symmetric else SCALE_BITS if real else fmt.bits
    return fmt.bits * out * row + (SCALE_BITS + zero_point) * scales_of(fmt, out, row)


_METHODS = ("clip", "hqq", "gptq", "a8")
_base = partial(
    Base,
    options=("gN", "channel", "tensor", "sym", "asym"),
    why_no_groups=_why_no_groups,
    stores_order=True,
)

FAMILY = Family(
    name="integer",
    formats={
        **{
            f"int{bits}": _base(bits, "group", 128, False, methods=_METHODS) for bits in range(2, 8)
        },
        "int8": _base(8, "channel", None, True, methods=(*_METHODS, "outlier")),
    },
    stored_bits=_stored_bits,
    arithmetic="engine.quant.integer:ARITHMETIC",
    fused=True,
    place=10,
)
