"""How large the artefact of a recipe is, from columns with one entry a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from engine.protocol import Role


class Size(msgspec.Struct, frozen=True):
    """How large a recipe's artefact is."""

    bits_per_weight: float
    bytes: int


def artefact_size(
    roles: Sequence[Role],
    shapes: Sequence[tuple[int, ...]],
    bits: Sequence[int],
    quantised: Sequence[bool],
    other_bytes: int,
    *,
    tied: bool,
) -> Size:
    """Bits per weight and bytes of an artefact; columns have one entry a layer.

    Bits per weight counts codes, scales and zero points of the body, and of head and embedding
    where they are quantised. A tied head is stored once, with the embedding, as long as both are
    kept.

    Args:
        roles: of each layer.
        shapes: of each layer.
        bits: stored bits of each layer in the format it holds.
        quantised: whether it is not kept.
        other_bytes: bytes of what is no layer.
        tied: whether head and embedding are one tensor in the checkpoint.
    """
    outside = ("head", "embedding")
    counted = [i for i, role in enumerate(roles) if role not in outside or quantised[i]]
    weights = sum(math.prod(shapes[i]) for i in counted)
    once = tied and not any(quantised[i] for i, role in enumerate(roles) if role in outside)
    stored = sum(bits[i] for i, role in enumerate(roles) if not (once and role == "head"))
    return Size(
        sum(bits[i] for i in counted) / weights if weights else math.nan,
        other_bytes + (stored + 7) // 8,
    )


def bits_as_stored(shape: tuple[int, ...], dtype: str) -> int:
    """Bits of a tensor as stored, by torch's dtype name."""
    digits = "".join(c for c in dtype.split("_")[0] if c.isdigit())
    return math.prod(shape) * int(digits or 8)
