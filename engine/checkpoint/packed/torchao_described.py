"""What the metadata of a safetensors file says of a tensor of torchao, compared with what may be.

torchao looks dtypes up among all names of torch; here they are text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from engine.checkpoint.packed.declared import model_dtype
from engine.checkpoint.packed.pieces import FLOATS, Pieces
from engine.errors import CheckpointError

CODES, SCALE, ZERO = "._weight_qdata", "._weight_scale", "._weight_zero_point"
SCALE_AND_ZERO = "._weight_scale_and_zero"
"""Scales and zero points side by side, in the order of a kernel."""


@dataclass(frozen=True)
class Described:
    """One tensor of torchao."""

    pieces: Pieces
    kind: str
    """The name of its class."""
    about: dict[str, Any]
    """Its settings."""

    @property
    def dtype(self) -> str:
        """The dtype that it counts as."""
        for key in ("dtype", "orig_dtype"):
            if (found := self.text(key)) in FLOATS:
                return str(found)
        return model_dtype(self.pieces.checkpoint)

    def text(self, key: str) -> str | None:
        """A dtype among its settings, by name."""
        value = self.about.get(key)
        found = value.get("_data") if isinstance(value, dict) else None
        return found if isinstance(found, str) else None

    def sizes(self, key: str) -> tuple[int, ...]:
        """Sizes among its settings; empty if there are none."""
        value = self.about.get(key)
        whole = isinstance(value, list) and all(type(size) is int and size > 0 for size in value)
        return tuple(value) if isinstance(value, list) and whole else ()

    def group(self) -> int:
        """Inputs that share a scale, of a weight of two dimensions.

        Raises:
            CheckpointError: its blocks are of more than one row, or not known.
        """
        block = self.sizes("block_size")
        if len(block) != 2 or block[0] != 1:
            raise self.refusal(f"its blocks are {self.about.get('block_size')!r}, not [1, inputs]")
        return block[1]

    def refusal(self, why: str) -> CheckpointError:
        """That it cannot be read, with a reason."""
        return self.pieces.refusal(f"{why}; open the checkpoint it was made from")


def described(pieces: Pieces, text: str) -> Described:
    """The type of a weight and its settings, from the metadata.

    Raises:
        CheckpointError: there are none, or they are no JSON.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    about = found.get("_data") if isinstance(found, dict) else None
    if not isinstance(about, dict):
        raise pieces.refusal("the file's metadata does not describe it; download or save it again")
    return Described(pieces, str(found.get("_type")), about)
