"""Formats, and weights as they are once stored in one.

`parse_format` reads the grammar; `why_not_built`, `why_not_held` and `exportable` say what cannot
be done and why; `stored_bits` counts. `dequantized` is the weight that a stored form stands for,
and `stored_form` the stored form itself; `solved` and `solved_form` are the same two for formats
that look at the layer's inputs. torch is imported with those, not before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from engine.quant.formats import (
    Format,
    Method,
    needs_calibration,
    parse_built,
    parse_format,
    why_not_alone,
    why_not_built,
)
from engine.quant.storage import exportable, stored_bits, why_not_held

if TYPE_CHECKING:
    from engine.quant.integer import quantize_integer
    from engine.quant.quantize import dequantized, scale_dtype_for, stored_form
    from engine.quant.quantized import Quantized
    from engine.quant.solve import solved, solved_form

QUANTISER_VERSION = 1
"""Raised when a format comes to stand for other weights: part of the key of a measurement."""

__all__ = [
    "QUANTISER_VERSION",
    "Format",
    "Method",
    "Quantized",
    "dequantized",
    "exportable",
    "needs_calibration",
    "parse_built",
    "parse_format",
    "quantize_integer",
    "scale_dtype_for",
    "solved",
    "solved_form",
    "stored_bits",
    "stored_form",
    "why_not_alone",
    "why_not_built",
    "why_not_held",
]

_WITH_TORCH = {
    "Quantized": "engine.quant.quantized",
    "dequantized": "engine.quant.quantize",
    "quantize_integer": "engine.quant.integer",
    "solved_form": "engine.quant.solve",
    "solved": "engine.quant.solve",
    "stored_form": "engine.quant.quantize",
    "scale_dtype_for": "engine.quant.quantize",
}


def __getattr__(name: str) -> object:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WITH_TORCH[name]), name)
