"""Size of a recipe's artefact, from columns with one entry per layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from engine.ggml_types import QUANTISED
from engine.protocol import Role

OUTSIDE = ("head", "embedding")
"""Roles of layers outside the body."""


class Size(msgspec.Struct, frozen=True):
    """Size of a recipe's artefact."""

    bits_per_weight: float
    """Of the body; nan without one. The same layers count in every recipe."""
    bits_all: float
    """Of every layer, head and embedding among them. The weights of a tied pair count once, its
    bits as they are stored: twice where one of the two is quantised."""
    bytes: int
    """Of the whole artefact."""


def artefact_size(
    roles: Sequence[Role],
    shapes: Sequence[tuple[int, ...]],
    bits: Sequence[int],
    quantised: Sequence[bool],
    other_bytes: int,
    *,
    tied: bool,
) -> Size:
    """Bits per weight and bytes of an artefact; columns have one entry per layer.

    Bits are those of codes, scales and zero points. A tied head is stored once, with the embedding,
    while both are kept.

    Args:
        roles: of each layer.
        shapes: of each layer.
        bits: stored bits of each layer in the format it holds.
        quantised: whether each layer is quantised rather than kept.
        other_bytes: bytes outside of layers.
        tied: whether head and embedding are one tensor in the checkpoint.
    """
    body = [i for i, role in enumerate(roles) if role not in OUTSIDE]
    once = tied and not any(quantised[i] for i, role in enumerate(roles) if role in OUTSIDE)
    stored = sum(bits[i] for i, role in enumerate(roles) if not (once and role == "head"))
    weights = sum(
        math.prod(shape)
        for role, shape in zip(roles, shapes, strict=True)
        if not (tied and role == "head")
    )
    return Size(
        _per(sum(bits[i] for i in body), sum(math.prod(shapes[i]) for i in body)),
        _per(stored, weights),
        other_bytes + (stored + 7) // 8,
    )


def _per(bits: int, weights: int) -> float:
    return bits / weights if weights else math.nan


class StoredSums:
    """Sums over all layers as stored, computed once, so that the size of a recipe is quick to find.

    Equals `artefact_size`, at a cost proportional to the number of changed layers.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        shapes: Sequence[tuple[int, ...]],
        bits: Sequence[int],
    ) -> None:
        """Takes the arguments of `artefact_size`, with the bits of each layer as it is stored."""
        self._weights = [math.prod(shape) for shape in shapes]
        self._bits = bits
        self._roles = roles
        body = [row for row, role in enumerate(roles) if role not in OUTSIDE]
        self._body_weights = sum(self._weights[row] for row in body)
        self._body_bits = sum(self._bits[row] for row in body)
        self._all_bits = sum(self._bits)
        self._all_weights = sum(self._weights)
        heads = [row for row, role in enumerate(roles) if role == "head"]
        self._head_weights = sum(self._weights[row] for row in heads)
        self._head_bits = sum(self._bits[row] for row in heads)

    def size(self, changed: Mapping[int, int], other_bytes: int, *, tied: bool) -> Size:
        """The size if these rows take this many bits and all others are as stored."""
        in_body, stored = self._body_bits, self._all_bits
        once = tied
        for row, bits in changed.items():
            stored += bits - self._bits[row]
            if self._roles[row] in OUTSIDE:
                once = False
            else:
                in_body += bits - self._bits[row]
        if once:
            stored -= self._head_bits
        return Size(
            _per(in_body, self._body_weights),
            _per(stored, self._all_weights - (self._head_weights if tied else 0)),
            other_bytes + (stored + 7) // 8,
        )


def bits_as_stored(shape: tuple[int, ...], dtype: str) -> int:
    """Bits of a tensor as stored, by torch's dtype name, or that of a type of ggml."""
    if (blocks := QUANTISED.get(dtype)) is not None:
        return math.prod(shape) // blocks.block * blocks.bytes * 8
    digits = "".join(c for c in dtype.split("_")[0] if c.isdigit())
    return math.prod(shape) * int(digits or 8)
