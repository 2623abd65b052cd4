"""No copy of a whole layer is made while it is told what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.measure.compare.explained import explanation
from engine.measure.compare.folded import columns_alone, fitted, scales
from engine.measure.compare.rounding import grid_of

OUT, IN = 4096, 2048


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operation has made; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {each.untyped_storage().data_ptr() for each in _tensors((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for each in _tensors(found):
            storage = each.untyped_storage()
            if storage.data_ptr() not in given:
                self.bytes = max(self.bytes, storage.nbytes())
        return found


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def largest() -> Iterator[_Largest]:
    with torch.no_grad(), _Largest() as found:
        yield found


LOOKS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "scales": scales,
    "fitted": fitted,
    "columns": columns_alone,
    "explanation": lambda weight, stored: explanation(weight, stored, 16),
    "grid": grid_of,
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_wide_layer_is_looked_at_in_blocks(look: str) -> None:
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(OUT, IN, generator=chance).bfloat16()
    stored = weight * 1.5
    with largest() as found:
        LOOKS[look](weight, stored)
    assert 0 < found.bytes < weight.nbytes
