"""How compressed-tensors stores each format family, and what it refuses.

``pack-quantized`` for integers (also for weight-only ``int8``: its ``int-quantized`` is for 8-bit
activations), ``float-quantized`` for fp8, ``mxfp4-pack-quantized``, ``mxfp8-quantized`` and
``nvfp4-pack-quantized``. For fp8 without activations it would infer ``naive-quantized``; we write
``float-quantized``, which has the same tensors under the name that servers know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from engine.formats.grammar import Format


class Form(msgspec.Struct, frozen=True):
    """How compressed-tensors stores a family."""

    name: Callable[[Format], str]
    """The name compressed-tensors has for the form of a format."""
    layout: str | Callable[[], object]
    """``module:NAME`` of an `engine.export.compressed.layouts.Layout`, or of a function that
    returns one: its tensors."""
    why_not: Callable[[Format, Sequence[int]], str | None] = lambda _fmt, _shape: None
    """Why a format, or a weight of this shape, cannot be stored like this; None if it can."""
    unpacked_to: str = ""
    """The dtype that weights are unpacked to, by torch's name; empty for the model's dtype."""


_FORMS: dict[str, Form] = {}


def register_form(family: str, form: Form) -> None:
    """Register how compressed-tensors stores a family; otherwise the target refuses its formats.

    Raises:
        ValueError: the family is registered already.
    """
    if family in _FORMS:
        raise ValueError(f"there is a form of compressed-tensors for {family!r} already")
    _FORMS[family] = form


def form_of(fmt: Format) -> Form | None:
    """How a format is stored; None if compressed-tensors has no such family."""
    return _FORMS.get(fmt.family)


def rounds_inputs(fmt: Format) -> bool:
    """Whether inputs are rounded to 8 bits at run time, which needs one code per byte."""
    return any(method.name == "a8" for method in fmt.methods)


# --- the families that come with qtui ------------------------------------------------------------


def _why_short_group(fmt: Format, shape: Sequence[int]) -> str | None:
    if fmt.group_size is None or shape[-1] % fmt.group_size == 0:
        return None
    return (
        f"the last group of {shape[-1] % fmt.group_size} is shorter than {fmt.group_size}: "
        "compressed-tensors needs groups that divide the row"
    )


def _why_no_float8(fmt: Format, shape: Sequence[int]) -> str | None:
    if fmt.name != "fp8-e4m3":
        return f"compressed-tensors has no {fmt.name}"
    return _why_blocks_mislead(fmt, shape) if fmt.strategy == "block" else None


def _why_blocks_mislead(fmt: Format, shape: Sequence[int]) -> str | None:
    """Why compressed-tensors would misread the blocks of fp8 when it unpacks them."""
    size = fmt.group_size or 1
    out, row = shape[-2:]
    if out <= size and (row <= size or row % size == 0):
        return None
    if out % size or row % size:
        return (
            f"blocks of {size} do not divide [{out}, {row}]: compressed-tensors derives the "
            "block size from the number of blocks, and would unpack wrong ones"
        )
    if row == size:
        return f"compressed-tensors would read scales of {out // size} blocks in a column as rows"
    return None


_LAYOUTS = "engine.export.compressed.layouts"

register_form(
    "integer",
    Form(
        name=lambda fmt: "int-quantized" if rounds_inputs(fmt) else "pack-quantized",
        layout=f"{_LAYOUTS}:INTEGER",
        why_not=_why_short_group,
    ),
)
register_form(
    "float8",
    Form(name=lambda _: "float-quantized", layout=f"{_LAYOUTS}:FLOAT8", why_not=_why_no_float8),
)
register_form(
    "microscaling",
    Form(
        name=lambda fmt: "mxfp4-pack-quantized" if fmt.bits == 4 else "mxfp8-quantized",
        layout=f"{_LAYOUTS}:MICROSCALING",
        unpacked_to="bfloat16",
    ),
)
register_form(
    "nvfp4",
    Form(
        name=lambda _: "nvfp4-pack-quantized",
        layout=f"{_LAYOUTS}:NVFP4",
        unpacked_to="bfloat16",
    ),
)
register_form(
    "gguf",
    Form(
        name=lambda fmt: fmt.name,
        layout="",
        why_not=lambda fmt, _: (
            f"{fmt} is a type of GGUF files, which compressed-tensors cannot hold"
        ),
    ),
)
