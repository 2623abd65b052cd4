"""Lanes: micro-batches on their way through the blocks, each with the weights held for it.

A loop over blocks takes all its lanes through one stretch of blocks before it goes on to the next:
windows, recipes and layers changed alone are lanes like any other, and a block is read once for all
of them. What each lane computes is what it would compute by itself.

    for stretch in network.stretches(start, until):
        with network.at_hand(stretch):
            for lane in lanes:
                yield from repeated(lambda lane=lane: lane.advance(stretch.stop))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.model.memory_tiers import KeptTensor
from engine.model.network import Held, Network

Take = Callable[[int, Tensor], KeptTensor | None]
"""Takes a boundary and the state there: the input of that block, or the last one's output. May
return where it is kept."""


def _ignore(_k: int, _state: Tensor) -> None:
    return None


@dataclass(eq=False)
class Lane:
    """One micro-batch, at the boundary it has reached.

    A network that cannot be resumed is run from the embedding for every lane, and only once: see
    `Network.stretches`.
    """

    network: Network
    ids: Tensor
    """``[windows, tokens]``."""
    at: int
    """The block that comes next; -1 before the embedding."""
    state: Tensor | KeptTensor | None
    """Its input ``[windows, tokens, hidden]``; None at -1, or not resumable."""
    held: Mapping[str, Held] = field(default_factory=dict)
    """What the network holds for it, by layer; what acts in a block may be added until it comes."""
    take: Take = _ignore
    """Is given the states on the way; one boundary's again where a stretch was interrupted. If
    blocks are streamed, the lane waits with what it returns, not with the state itself."""

    @torch.no_grad()
    def advance(self, until: int) -> None:
        """Advance to boundary ``until``; nothing if it was reached already.

        Raises:
            Preempted: a more urgent job waits; the lane stays where it was.
        """
        if self.at >= until:
            return
        found: list[Tensor | KeptTensor] = []

        def take(k: int, state: Tensor) -> None:
            kept = self.take(k, state)
            if k == until:
                found.append(state if kept is None or not self.network.streamed else kept)

        with self.network.holding(self._held_until(until)):
            state = None if self.state is None else self.reached()
            self.network.visit(self.ids, self.at, state, take, until)
        self.at, self.state = until, found[0]

    def reached(self) -> Tensor:
        """The state at the boundary it has reached."""
        assert self.state is not None, "it has not set out"
        return self.state if isinstance(self.state, Tensor) else self.state.read()

    def _held_until(self, until: int) -> dict[str, Held]:
        """Of what it holds, what the next blocks compute with."""
        layers, regions = self.network.layers, range(self.at, until)
        return {name: held for name, held in self.held.items() if layers[name].acts_in(regions)}
