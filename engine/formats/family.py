"""Format families: each is declared once, and every list of formats is made from that.

A declaration has two halves. `Family` is text and numbers, which completion, recipes and the table
of layers need before any tensor library is imported; its `arithmetic` names the other half, an
`engine.quant.arithmetic.Arithmetic`, which is imported when the first weight is quantised. A family
of a plugin is declared in one file in the same way and given to `register_family`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import msgspec

from engine.formats.catalogue import BASES, Base, add_formats
from engine.formats.grammar import Format
from engine.plugins import load_plugins

SCALE_BITS = 16
"""Scales of integer and fp8 formats are stored in a 16-bit dtype."""


class Family(msgspec.Struct, frozen=True):
    """Formats that are stored and computed in one way."""

    name: str
    formats: dict[str, Base]
    """By name, in the order of lists."""
    stored_bits: Callable[[Format, int, int], int]
    """Bits that one weight ``[out, in]`` takes: codes, scales, zero points; of the format, ``out``
    and ``in``."""
    arithmetic: str | Callable[[], object]
    """``module:NAME`` of an `engine.quant.arithmetic.Arithmetic`, or a function that gives one."""
    eight_bits: str = "int8"
    """The format that a mix takes where a layer of this family should have more bits."""
    rotates_itself: bool = False
    """Whether its arithmetic does the rotation of ``+hadamard``."""
    place: int = 1000
    """Where its formats stand in lists: families with a lower number come first."""


_FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Make the formats of a family known to the grammar, and the family to everything else.

    Raises:
        ValueError: the family, or a format of that name, is there already.
    """
    _load_ours()  # so that a plugin's formats come after them, whoever is first
    if family.name in _FAMILIES:
        raise ValueError(f"there is a format family {family.name!r} already")
    add_formats(family.name, family.formats)
    _FAMILIES[family.name] = family


def families() -> list[Family]:
    """All families, in the order of lists."""
    _load_ours()
    load_plugins()
    return sorted(_FAMILIES.values(), key=lambda family: family.place)


def _load_ours() -> None:
    # By name: each of those modules is made of what stands in this one.
    importlib.import_module("engine.formats.families")


def family_of(fmt: Format) -> Family:
    """The family of a format."""
    return _FAMILIES[BASES[fmt.name].family]


def scales_of(fmt: Format, out: int, row: int) -> int:
    """How many scales a weight ``[out, in]`` has, from its strategy and group size."""
    size = fmt.group_size or 1
    if fmt.strategy == "tensor":
        return 1
    if fmt.strategy == "channel":
        return out
    if fmt.strategy == "block":
        return -(-out // size) * -(-row // size)
    return out * -(-row // size)
