"""A weight rearranged so that neighbours share a scale, for layouts whose groups lie otherwise.

`engine.measure.compare.rounding` reads the grid from runs of neighbours in a row. Groups that an
index puts together, that run down the columns, or that are counted over the flattened weight are
brought into rows first; and columns that were scaled after rounding are divided by that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.packed.grid import Grid
from engine.checkpoint.weight import QuantisedWeight

Arrange: TypeAlias = Callable[[Tensor], Tensor]
"""``[out, in]`` into another shape, the same for original and stored."""

_GROUP = re.compile(r"-g(\d+)")
_COLUMNS = ".pre_quant_scale"


def arrangement(stored: QuantisedWeight, raw: Callable[[], Checkpoint]) -> Arrange:
    """How to bring the groups of a weight into rows.

    Args:
        stored: the weight.
        raw: opens the checkpoint as it is in the files.
    """
    size = _GROUP.search(stored.form)
    columns = next((name for name in stored.pieces if name.endswith(_COLUMNS)), "")
    if columns:
        scale = raw().read(columns).float().reshape(-1)
        return lambda weight: weight.float() / scale
    if stored.form.endswith("axis 0") and size is not None:
        group = int(size[1])
        return lambda weight: weight.reshape(group, -1).T.contiguous()
    if stored.layout == "bitsandbytes" and size is not None and stored.shape[-1] % int(size[1]):
        return _flattened(int(size[1]))
    loaded = stored.load()
    if isinstance(loaded, Grid) and loaded.index is not None:
        order = loaded.index.argsort(stable=True)
        return lambda weight: weight[..., order]
    return lambda weight: weight


def _flattened(block: int) -> Arrange:
    def arrange(weight: Tensor) -> Tensor:
        flat = weight.reshape(-1)
        whole = len(flat) // block * block
        if not whole:
            return flat[None]
        return torch.reshape(flat[:whole], (-1, block))

    return arrange
