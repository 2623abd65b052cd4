"""What a GGUF file can hold; no tensors."""

from __future__ import annotations

from collections.abc import Sequence

from engine.export.rules import why_no_method, why_not_at_all
from engine.export.target import Weight
from engine.formats.grammar import Format
from engine.ggml_types import NUMBERS

NAME = "a GGUF file"


def why_not_expressed(fmt: Format, shape: Sequence[int], dtype: str) -> str | None:
    """Why a weight of ``shape`` cannot be stored in this format; None if it can."""
    if fmt.kept:
        return None
    if fmt.family != "gguf" or fmt.name not in NUMBERS:
        return f"GGUF files have no {fmt.name}"
    return why_not_at_all(fmt, shape) or why_no_method(fmt, NAME, {"imatrix": ()})


def alike(fmt: Format | None, weight: Weight) -> str | None:
    """A tied head and embedding are one tensor."""
    return "tied" if weight.tied else None
