"""Which formats compressed-tensors can store for which weights, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence

from engine.export.compressed.form import form_of
from engine.formats.grammar import FOLDED, Format, why_not_built
from engine.formats.storage import why_not_held

_WRITTEN = {"clip", "gptq", *FOLDED}
"""Methods that only choose codes and scales, or whose scales go into the layer before."""


def exportable(fmt: Format, shape: Sequence[int]) -> str | None:
    """Why compressed-tensors cannot store a weight of ``shape`` in this format; None if it can.

    `why_not_expressed` also covers what qtui does not write yet.
    """
    if (why := why_not_held(fmt, shape)) is not None:
        return why
    if (why := _why_not_stored(fmt)) is not None:
        return why
    if not fmt.kept:
        form = form_of(fmt)
        if form is None:
            return f"compressed-tensors has no {fmt.name}"
        if (why := form.why_not(fmt, shape)) is not None:
            return why
    return why_not_built(fmt)


def _why_not_stored(fmt: Format) -> str | None:
    """Why a method needs something that no checkpoint stores."""
    for method in fmt.methods:
        if ("online", True) in method.options:
            return f"'+{method.name}:online' scales inputs at run time, which no checkpoint stores"
    names = {method.name for method in fmt.methods}
    if "hadamard" in names:
        return (
            "'+hadamard' rotates inputs and outputs at run time with signs of its own, which no "
            "serving format supports"
        )
    if "hqq" in names:
        return "'+hqq' has fractional zero points, which compressed-tensors cannot store"
    return None


def why_not_expressed(fmt: Format, shape: Sequence[int], dtype: str) -> str | None:
    """Why compressed-tensors cannot store a weight of ``shape`` in ``fmt``; None if it can.

    Args:
        fmt: any format.
        shape: of the weight.
        dtype: of the checkpoint, by torch's name.
    """
    if (why := exportable(fmt, shape)) is not None:
        return why
    form = form_of(fmt)
    if fmt.kept or form is None:
        return None
    whole = fmt.name == "int8" and fmt.symmetric and fmt.strategy in ("channel", "tensor")
    for method in fmt.methods:
        if method.name == "a8" and not method.options:
            if not whole:
                return "8-bit inputs require int8 per channel or tensor, symmetric"
        elif method.name not in _WRITTEN:
            return f"'+{method.name}' needs more than codes and scales: not implemented yet"
    unpacked = form.unpacked_to or dtype
    if unpacked != dtype:
        return (
            f"compressed-tensors unpacks {fmt.name} to {unpacked}, but this checkpoint is in "
            f"{dtype}"
        )
    return None
