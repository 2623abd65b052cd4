"""``nf4`` and ``fp4``: 4-bit codes into a table, times the greatest magnitude of a block."""

from __future__ import annotations

from engine.formats.catalogue import Base, Strategy
from engine.formats.family import Family
from engine.formats.grammar import Format

_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_NESTED = 256
"""Block maxima that share a float32 maximum with ``:dq``."""


def _why_no_groups(name: str, strategy: Strategy | None, group_size: int | None) -> str | None:
    if strategy != "block":
        return f"{name} does not come with strategy {strategy!r} and group size {group_size}"
    if group_size not in _SIZES:
        return f"{name} has blocks of a power of two from 32 to 4096, not of {group_size}"
    return None


def _stored_bits(fmt: Format, out: int, row: int) -> int:
    """A float32 maximum per block, or 8 bits with ``:dq``; the last byte of codes is padded.

    As bitsandbytes stores them; the tables it writes with every weight are not counted.
    """
    codes = 8 * -(-out * row // 2)
    blocks = -(-out * row // (fmt.group_size or 1))
    if "dq" not in dict(fmt.options):
        return codes + 32 * blocks
    offset = 32
    return codes + 8 * blocks + 32 * -(-blocks // _NESTED) + offset


_BASE = Base(
    4,
    "block",
    64,
    options=("gN",),
    keys={"dq": None},
    methods=("clip", "gptq"),
    why_no_groups=_why_no_groups,
    fixing=("dq",),
)

FAMILY = Family(
    name="normal-float",
    formats={"nf4": _BASE, "fp4": _BASE},
    stored_bits=_stored_bits,
    arithmetic="engine.quant.normal_float:ARITHMETIC",
    place=40,
)
