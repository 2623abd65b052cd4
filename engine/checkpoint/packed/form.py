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


def float8_form(dtype: str, scales: str) -> str:
    """The name of an fp8 format, ``fp8-e4m3-channel``.

    Args:
        dtype: of the codes, ``float8_e4m3fn`` or ``float8_e5m2``.
        scales: what shares one: ``channel``, ``tensor``, ``block128``, ``g128``.
    """
    name = "fp8-e5m2" if dtype == "float8_e5m2" else "fp8-e4m3"
    return canonical(f"{name}-{scales}", f"{name}-{scales}")


def canonical(text: str, otherwise: str) -> str:
    """A format in its canonical form; another name for what qtui has no format for."""
    try:
        return str(parse_format(text))
    except FormatError:
        return otherwise
