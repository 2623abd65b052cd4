"""Whether the levels of a format are evenly spaced, so that errors can be told in steps."""

from __future__ import annotations

from engine.errors import FormatError
from engine.formats.catalogue import BASES
from engine.formats.grammar import parse_format

UNEVEN = frozenset({"normal-float", "float8", "microscaling", "nvfp4", "kmeans", "lattice"})
"""Families whose levels lie closer near zero, or where they were found to be best."""


def evenly_spaced(format: str) -> bool:
    """Whether the levels that share a scale have one distance; true of a name that is no format's.

    Of GGUF the types that begin with ``iq`` take their levels from tables.
    """
    try:
        fmt = parse_format(format)
    except FormatError:
        return True
    return BASES[fmt.name].family not in UNEVEN and not fmt.name.startswith("iq")
