"""The protocol of stored forms: joining parts of rows, stacking experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from engine.quant.rows import matrices, restored


class StoredWeight(Protocol):
    """A weight as tensors that an export writes; a frozen dataclass.

    A field that is not a tensor, or is marked `for_the_whole`, is the same in every part.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def approx(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``Ŵ``, worked out in float32 and cast last."""
        ...


S = TypeVar("S", bound=StoredWeight)
Encoded: TypeAlias = Iterator[tuple[slice, Tensor | None, S]]
"""Rows of a weight ``[out, in]``, the positions of non-finite values if any, and their codes."""

FOR_THE_WHOLE = {"whole": True}
"""Metadata of a field that exists once per weight, not per part of its rows."""


def stored_bytes(stored: StoredWeight) -> int:
    """Bytes of the tensors of a stored form, and of those of a form within it."""
    total = 0
    for field in dataclasses.fields(stored):
        part = getattr(stored, field.name)
        if isinstance(part, Tensor):
            total += part.nbytes
        elif hasattr(part, "approx"):
            total += stored_bytes(part)
    return total


def moved(stored: S, device: torch.device) -> S:
    """A stored form on another device; one within it stays where it is."""
    tensors = {
        field.name: part.to(device)
        for field in dataclasses.fields(stored)
        if isinstance(part := getattr(stored, field.name), Tensor)
    }
    return dataclasses.replace(stored, **tensors)


def joined(encode: Callable[[Tensor], Encoded[S]], weight: Tensor) -> S:
    """The stored form of ``[out, in]``, or of ``[experts, out, in]``, each expert on its own."""
    experts = []
    for matrix in matrices(weight):
        parts = [part for _, _, part in encode(matrix)]
        per_row = [f.name for f in dataclasses.fields(parts[0]) if f.metadata != FOR_THE_WHOLE]
        experts.append(_combined(parts, torch.cat, per_row))
    if weight.dim() == 2:
        return experts[0]
    return _combined(experts, torch.stack, [f.name for f in dataclasses.fields(experts[0])])


def write_rows(weight: Tensor, parts: Encoded[S], out: Tensor) -> None:
    """Write the ``Ŵ`` of every part into ``out``; values that are not finite are copied."""
    for rows, broken, part in parts:
        out[rows] = restored(part.approx(), broken, weight[rows])


def _combined(
    parts: Sequence[S], combine: Callable[[list[Tensor]], Tensor], names: Sequence[str]
) -> S:
    """The first part, with the tensors of those names combined from all parts."""
    tensors = {
        name: combine([getattr(part, name) for part in parts])
        for name in names
        if isinstance(getattr(parts[0], name), Tensor)
    }
    return dataclasses.replace(parts[0], **tensors)
