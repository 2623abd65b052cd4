"""Give the demo checkpoint outlier channels, which large models develop by themselves.

A channel between two linear maps is scaled up by a power of two on one side and down by the same
factor on the other, so the function is unchanged (exactly, except for numbers below float16's
normal range). But one layer becomes harder to quantise: one input channel now spoils the scale of
every group that contains it. ``python -m engine.demo.plant FOLDER`` rescales a folder in place.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

FACTOR = 8.0
"""A power of two: multiplying by it is exact."""

HEAD_DIM = 32
QUERIES_PER_KEY = 2


@dataclass(frozen=True)
class Planted:
    """One channel, large in the columns of ``layer`` and small in the rows of ``before``."""

    layer: str
    columns: tuple[int, ...]
    before: str
    row: int


def _attention(block: int, row: int) -> Planted:
    """A value channel: every query head that shares its key-value head reads it."""
    head, place = divmod(row, HEAD_DIM)
    queries = range(head * QUERIES_PER_KEY, (head + 1) * QUERIES_PER_KEY)
    return Planted(
        layer=f"model.layers.{block}.self_attn.o_proj",
        columns=tuple(query * HEAD_DIM + place for query in queries),
        before=f"model.layers.{block}.self_attn.v_proj",
        row=row,
    )


def _mlp(block: int, row: int) -> Planted:
    """An intermediate channel: ``up_proj`` enters the product linearly."""
    return Planted(
        layer=f"model.layers.{block}.mlp.down_proj",
        columns=(row,),
        before=f"model.layers.{block}.mlp.up_proj",
        row=row,
    )


PLANTED = (_attention(0, 37), _mlp(2, 211), _mlp(4, 500), _mlp(4, 77))
"""The first block's attention, a middle block, and the last block's ``down_proj`` (two
channels)."""


def rescale(state: dict[str, Tensor], factor: float) -> None:
    """Scale every planted channel by ``factor``, in place; ``1 / FACTOR`` reverses it.

    Args:
        state: weights by name, with ``.weight``; a Llama of the demo's configuration.
        factor: a power of two.
    """
    for planted in PLANTED:
        state[f"{planted.layer}.weight"][:, list(planted.columns)] *= factor
        state[f"{planted.before}.weight"][planted.row] /= factor


def main() -> None:
    from safetensors.torch import load_file, save_file

    file = Path(sys.argv[1]) / "model.safetensors"
    state = load_file(file)
    rescale(state, FACTOR)
    save_file(state, file, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
