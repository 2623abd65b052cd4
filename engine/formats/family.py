"""Format families: each is declared once, and every list of formats comes from the declarations.

A declaration has two halves. `Family` is text and numbers, which completion, recipes and the layer
table need before any tensor library is imported. Its `arithmetic` names the other half, an
`engine.quant.arithmetic.Arithmetic`, which is imported when the first weight is quantised. A plugin
declares a family in the same way, in one file, and passes it to `register_family`.
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
    """Formats with the same storage and arithmetic."""

    name: str
    formats: dict[str, Base]
    """By name, in the order of lists."""
    stored_bits: Callable[[Format, int, int], int]
    """Bits of one weight ``[out, in]``: codes, scales, zero points. Called with the format, ``out``
    and ``in``."""
    arithmetic: str | Callable[[], object]
    """``module:NAME`` of an `engine.quant.arithmetic.Arithmetic`, or of a function that returns
    one."""
    eight_bits: str = "int8"
    """The format that a mix uses when a layer of this family should have more bits."""
    rotates_itself: bool = False
    """Whether its arithmetic handles the rotation of ``+hadamard``."""
    fused: bool = False
    """Whether its arithmetic is that of `engine.quant.integer`, which
    `engine.measure.weights.fused_kernels` has in one pass."""
    place: int = 1000
    """Its position in lists: lower numbers first."""


_FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Register a family, and its formats with the grammar.

    Raises:
        ValueError: the family, or one of its formats, exists already.
    """
    _load_ours()  # so that formats of plugins come after ours, whichever is registered first
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
    # By name: those modules import this one.
    importlib.import_module("engine.formats.families")


def family_of(fmt: Format) -> Family:
    """The family of a format."""
    return _FAMILIES[BASES[fmt.name].family]


def scales_of(fmt: Format, out: int, row: int) -> int:
    """Number of scales of a weight ``[out, in]``, from its strategy and group size."""
    size = fmt.group_size or 1
    if fmt.strategy == "tensor":
        return 1
    if fmt.strategy == "channel":
        return out
    if fmt.strategy == "block":
        return -(-out // size) * -(-row // size)
    return out * -(-row // size)
