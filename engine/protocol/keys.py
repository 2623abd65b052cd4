"""What identifies a figure: typed keys, never strings that are spelled by hand."""

from __future__ import annotations

from typing import Literal, TypeAlias

Direction: TypeAlias = Literal["degrade", "restore"]
By: TypeAlias = Literal["layer", "block", "kind", "group"]
"""What is changed at once: a layer; all of a block, of a kind, or of a fused group."""
