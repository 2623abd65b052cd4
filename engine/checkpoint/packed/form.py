"""Names of the formats that weights are stored in: canonical ones where there is one."""

from __future__ import annotations

from engine.errors import FormatError
from engine.formats.grammar import parse_format


def integer_form(bits: int, group: int | None, *, symmetric: bool | None) -> str:
    """The name of an integer format, ``int4-g128-sym``.

    Args:
        bits: of a code.
        group: weights that share a scale; None for a whole row, 0 for the whole tensor.
        symmetric: whether there are no zero points; None if that is not known.
    """
    strategy = {None: "-channel", 0: "-tensor"}.get(group, f"-g{group}")
    zero = {True: "-sym", False: "-asym", None: ""}[symmetric]
    return canonical(f"int{bits}{strategy}{zero}", f"int{bits}{strategy}{zero}")


def canonical(text: str, otherwise: str) -> str:
    """A format in its canonical form; another name for what qtui has no format for."""
    try:
        return str(parse_format(text))
    except FormatError:
        return otherwise
