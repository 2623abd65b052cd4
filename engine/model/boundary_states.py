"""Boundary states cached within a budget: on the device, in host memory, or on disk.

A state is the input of a block, or the output of the last, on one micro-batch. States that are not
cached are recomputed from the nearest one below: where a state is, or whether it is cached, changes
how long a measurement takes, never its value.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from engine.model.memory_tiers import KeptTensor, TieredMemory


@dataclass(frozen=True)
class CachePlan:
    """What to cache on the device."""

    every: int
    """States of every ``every``-th block, and the last; 0 keeps none anywhere."""
    logits: bool


@dataclass(frozen=True)
class CacheSizes:
    """The sizes that a plan is made from."""

    blocks: int
    state: int
    """Bytes of one boundary's states on all windows."""
    logits: int
    """Bytes of the logits on all windows."""
    head: float
    """Work of the head, in blocks."""

    def states(self, every: int) -> int:
        """Bytes of the states of every ``every``-th block, the first being made again for nothing,
        and of the last."""
        return ((self.blocks - 1) // every + 1) * self.state


def choose(sizes: CacheSizes, room: int, reading: float | None, *, logits: bool) -> CachePlan:
    """The plan with the lowest cost per measurement.

    Without cached logits the reference's head runs again for each measurement; with states of every
    *k*-th block, ``(k − 1) / 2`` blocks on average, or one state is read from another tier.

    Args:
        sizes: of the model and its windows.
        room: bytes on the device.
        reading: cost of reading a state from another tier, in blocks; None if there is none.
        logits: whether logits are wanted.
    """
    steps = [1]
    while steps[-1] < sizes.blocks:
        steps.append(2 * steps[-1])
    best, least = CachePlan(steps[-1], False), float("inf")
    for every in steps:
        again = (every - 1) / 2
        if reading is not None:
            again = min(again, (1 - 1 / every) * reading)
        for kept in (True, False) if logits else (False,):
            needed = sizes.states(every) + (sizes.logits if kept else 0)
            cost = again + (0 if kept else sizes.head)
            if needed <= room and cost < least:
                best, least = CachePlan(every, kept), cost
    return best


class BoundaryStates:
    """Cached boundary states of one set of weights, by micro-batch and block.

    Args:
        memory: where they are kept.
        blocks: how many the model has.
        resumable: it can be resumed at every block; else the last state alone is of use.
        head_resumable: the last state is of use.
    """

    def __init__(
        self, memory: TieredMemory, blocks: int, *, resumable: bool, head_resumable: bool
    ) -> None:
        self.every = 1
        """See `CachePlan.every`."""
        self.required = False
        """Whether there must be room for every state."""
        self.first = False
        """Whether the input of the first block is kept too: making it again costs reading the
        embedding."""
        self._memory, self._blocks = memory, blocks
        self._resumable, self._head_resumable = resumable, head_resumable
        self._kept: dict[int, dict[int, KeptTensor]] = {}

    def nearest(self, batch: int, k: int) -> int:
        """The last boundary up to ``k`` whose state is kept; -1 where there is none."""
        return max((i for i in self._kept.get(batch, ()) if i <= k), default=-1)

    def read(self, batch: int, k: int) -> Tensor | None:
        """The state before block ``k``, if it is kept; of ``n_blocks`` the last one's output."""
        stored = self._kept.get(batch, {}).get(k)
        return None if stored is None else stored.read()

    def collect(self) -> Collected:
        """States to cache from a running forward: all of them together, or none."""
        return Collected(self)

    def keep(
        self, batch: int, collected: Collected, below: BoundaryStates | None = None, upto: int = -1
    ) -> None:
        """Cache the states of a forward.

        Args:
            batch: the micro-batch it ran.
            collected: its states.
            below: of the weights that it was resumed from: theirs is shared up to ``upto``.
            upto: the last boundary below which the weights are the same.
        """
        shared = below._kept.get(batch, {}) if below is not None and self.every else {}
        mine = {k: stored for k, stored in shared.items() if k <= upto}
        self._kept[batch] = {**mine, **collected.stored}

    def forget(self, batch: int, above: int) -> None:
        """Free the states of a micro-batch after boundary ``above``."""
        kept = self._kept.get(batch, {})
        self._kept[batch] = {k: stored for k, stored in kept.items() if k <= above}

    def store(self, k: int, state: Tensor) -> KeptTensor | None:
        """Cache one state if it is useful; see `collect`.

        Raises:
            EngineError: it is required, and there is no room for it.
        """
        last = k == self._blocks
        if not self.every or k < (0 if self.first else 1):
            return None
        if not (self._head_resumable if last else self._resumable):
            return None
        if self.required:
            return self._memory.must_put(state)
        return self._memory.put(state, on_device=last or k % self.every == 0)


class Collected:
    """States of one forward, cached once it has ended."""

    def __init__(self, states: BoundaryStates) -> None:
        self._states = states
        self.stored: dict[int, KeptTensor] = {}

    def take(self, k: int, state: Tensor) -> KeptTensor | None:
        """Cache the state before block ``k``, if there is room."""
        if (stored := self._states.store(k, state)) is not None:
            self.stored[k] = stored
        return stored
