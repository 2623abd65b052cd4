"""A weight that is stored quantised, as its tensors and the config tell together.

A layout finds its weights from headers and config alone; `QuantisedWeight.load` reads the tensors
of one weight, from which rows are dequantised a span at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

SPAN = 1 << 20
"""Weights that are dequantised at a time: what that takes besides the result stays in the cache."""


@dataclass(frozen=True)
class Codes:
    """Codes of some rows, with what turns them into weights."""

    codes: Tensor
    """Integers from 0 to ``levels - 1``, ``[rows, in]``."""
    levels: int
    """How many codes there are."""
    scale: Tensor
    """Any shape, as stored but in float32."""
    zero: Tensor | None = None
    """The zero points of these rows, from 0 on; None where the layout has none."""


class Loaded(Protocol):
    """The tensors of one weight, in memory as they are stored."""

    def rows(self, first: int, last: int) -> Tensor:
        """Dequantised rows ``[last - first, in]``, in the dtype that the weight counts as."""

    def codes(self, first: int, last: int) -> Codes:
        """The codes of these rows."""


@dataclass(frozen=True)
class QuantisedWeight:
    """One weight of the model, made of several tensors on disk."""

    name: str
    """Of the weight in the model: ``P.weight``."""
    shape: tuple[int, ...]
    """``[out, in]`` or ``[experts, out, in]``; rows of experts are one below the other."""
    dtype: str
    """What it counts as: the dtype that its own tool dequantises to."""
    layout: str
    """The reader's name."""
    form: str
    """The format it is stored in: a canonical one if it can be written so, as ``int4-g128``; else
    the layout and its bits."""
    pieces: tuple[str, ...]
    """Its tensors on disk, codes first."""
    bits: int
    """Of all its pieces."""
    load: Callable[[], Loaded]
    """Read its pieces.

    Raises:
        CheckpointError: a piece cannot be read, or holds what it cannot mean.
    """
    packed: Callable[[], object] | None = None
    """The same as `load`, without torch: an `engine.checkpoint.packed.four_bits.FourBits`, which a
    compiled loop takes; None if it does not know the layout."""
    declared: str = ""
    """What the config says of it, where that is not what it is read as."""
    read_as: str = ""
    """What it is read as, and why, where the config says something else."""
    otherwise: tuple[QuantisedWeight, ...] = ()
    """Other ways to read the same tensors, each with what was `declared` and what it is `read_as`:
    an original at hand decides between them."""
    places: tuple[tuple[Path, int, int], ...] = ()
    """Where its pieces lie: file, first byte and bytes of each."""

    @property
    def height(self) -> int:
        """Rows, those of all experts together."""
        return prod(self.shape[:-1])

    def spans(self) -> Iterator[tuple[int, int]]:
        """Rows in spans of `SPAN` weights."""
        step = max(1, SPAN // max(1, self.shape[-1]))
        for first in range(0, self.height, step):
            yield first, min(self.height, first + step)

    def read(self) -> Tensor:
        """The whole weight, in `dtype`."""
        return self._filled(self.load(), 0, self.height).view(self.shape)

    def read_rows(self, first: int, last: int) -> Tensor:
        """Rows of its first dimension, in `dtype`."""
        each = prod(self.shape[1:-1])
        found = self._filled(self.load(), first * each, last * each)
        return found.view(last - first, *self.shape[1:])

    def _filled(self, loaded: Loaded, first: int, last: int) -> Tensor:
        import torch

        whole = torch.empty(last - first, self.shape[-1], dtype=getattr(torch, self.dtype))
        step = max(1, SPAN // max(1, self.shape[-1]))
        for a in range(first, last, step):
            b = min(last, a + step)
            whole[a - first : b - first] = loaded.rows(a, b)
        return whole
