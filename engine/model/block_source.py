"""Where a block's weights come from when it runs: resident in memory, or read for the time being.

A model's blocks are modules that are always there: hooks and forwards go on them, and names point
into them. Their weights are another matter: only inside `BlockSource.block` may a block be run or
its parameters be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor, nn


class BlockSource(Protocol):
    """The blocks of one model, and the way to their weights.

    A source that reads weights fills the parameters that the modules have (their ``data``), and
    empties them afterwards: the parameters themselves stay the same objects, of the same dtype and
    device.
    """

    modules: Sequence[nn.Module]
    """The blocks in order, with their weights or without."""
    at_once: int
    """How many blocks can have their weights together: a loop over blocks runs so many in one
    forward, and all that needs them before it goes on to the next."""

    def __len__(self) -> int:
        """How many blocks there are."""

    def block(self, k: int) -> AbstractContextManager[nn.Module]:
        """Block ``k`` with its weights, ready to run; they may be gone afterwards.

        To enter a block again inside costs nothing. It may stay open over a job's yield: a block
        that is at hand is memory, not a change of the network.
        """

    def reference(self, k: int, parameter: nn.Parameter) -> Tensor:
        """The values of a parameter of block ``k``, whether the block is at hand or not."""


class ResidentBlocks:
    """Blocks whose weights are in memory as long as the model is."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        self.at_once = len(modules)

    def __len__(self) -> int:
        return len(self.modules)

    def block(self, k: int) -> AbstractContextManager[nn.Module]:
        """The block as it is."""
        return nullcontext(self.modules[k])

    def reference(self, k: int, parameter: nn.Parameter) -> Tensor:
        """The parameter as it is."""
        return parameter
