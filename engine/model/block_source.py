"""Where a block's weights come from when it runs: resident in memory, or streamed from disk.

A model's blocks are modules that always exist: hooks and forwards attach to them, and names refer
to them. Their weights may come and go: only inside `BlockSource.block` may a block be run or its
parameters be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor, nn


class BlockSource(Protocol):
    """The blocks of one model, with access to their weights.

    A source that reads weights fills the parameters that the modules have (their ``data``), and
    empties them afterwards: the parameters themselves stay the same objects, of the same dtype and
    device.
    """

    modules: Sequence[nn.Module]
    """The blocks in order, with or without their weights."""
    at_once: int
    """How many blocks can have their weights at once: a loop over blocks runs this many in one
    forward, and finishes everything that needs them before the next ones."""

    outside: bool
    """Whether embedding and head come and go like blocks: numbers -1 and ``len(modules)``."""

    @property
    def pace(self) -> float:
        """Seconds that reading a block takes, as far as is known; 0 where none is read."""

    def __len__(self) -> int:
        """Number of blocks."""

    def block(self, k: int) -> AbstractContextManager[nn.Module | None]:
        """Block ``k`` with its weights, ready to run; they may be freed afterwards.

        Entering a block again inside costs nothing. It may stay open over a job's yield: a loaded
        block is memory, not a change of the network.
        """

    def reference(self, k: int, parameter: nn.Parameter) -> Tensor:
        """The values of a parameter of block ``k``, or of embedding and head, whether it is loaded
        or not."""


class ResidentBlocks:
    """Blocks whose weights are in memory as long as the model."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        self.at_once = len(modules)
        self.outside, self.pace = False, 0.0

    def __len__(self) -> int:
        return len(self.modules)

    def block(self, k: int) -> AbstractContextManager[nn.Module]:
        """The block itself."""
        return nullcontext(self.modules[k])

    def reference(self, k: int, parameter: nn.Parameter) -> Tensor:
        """The parameter itself."""
        return parameter
