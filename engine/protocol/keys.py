"""What identifies a figure: typed keys, never strings that are spelled by hand."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Direction: TypeAlias = Literal["degrade", "restore"]
By: TypeAlias = Literal["layer", "block", "kind", "group"]
"""What is changed at once: a layer; all of a block, of a kind, or of a fused group."""


class EffectKey(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which effects: of what is quantised or kept, in which format, how much of it at once.

    Hashable; a dict that it is a key of goes through MessagePack as it is, but not through JSON.
    """

    direction: Direction
    format: str
    """Canonical."""
    by: By = "layer"
