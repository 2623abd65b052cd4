"""A finished checkpoint as a model of its own, run on the original's windows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.measure.block_loop import Crossing
from engine.measure.evaluation.divergence import Positions, Tally
from engine.measure.evaluation.reference import Reference
from engine.model.boundary_states import BoundaryStates
from engine.model.lanes import Lane
from engine.model.memory_tiers import KeptTensor
from engine.model.network import Held, Network


class ArtefactRun:
    """The network of a finished checkpoint on the windows of its original.

    Its states are cached, so that giving one layer back its original weight is measured from that
    layer's block on. All figures are those of whole forwards.
    """

    def __init__(self, reference: Reference, network: Network, *, keep: bool) -> None:
        """
        Args:
            reference: of the original.
            network: the finished checkpoint's, on the same device.
            keep: whether its states are cached, within what is left of the reference's budget.

        Raises:
            CheckpointError: it is another architecture.
        """
        ours, theirs = reference.network, network
        if len(ours.blocks) != len(theirs.blocks) or ours.state_size != theirs.state_size:
            raise CheckpointError(
                f"it has {len(theirs.blocks)} blocks of width {theirs.state_size} and the original "
                f"{len(ours.blocks)} of {ours.state_size}: give checkpoints of the same model"
            )
        self.reference, self.network = reference, network
        self.states = BoundaryStates(
            reference.memory,
            len(network.blocks),
            resumable=network.resumable,
            head_resumable=network.head_resumable,
        )
        self.states.every = 0
        self._keep = keep
        if network.streamed:
            reference.memory.use_all()
        self._tallies: dict[int, Tally] = {}
        self.positions: list[Positions] = []
        """What was found at every position of the micro-batches that were run."""

    @torch.no_grad()
    def run(self, batch: int) -> Tally:
        """Run one micro-batch, run by the reference before, and compare it.

        Raises:
            Preempted: a more urgent job waits; nothing of this call is cached.
        """
        if batch not in self._tallies:
            crossing = self.set_out(batch)
            crossing.lane.advance(len(self.network.blocks))
            crossing.arrive()
        return self._tallies[batch]

    def set_out(self, batch: int) -> Crossing:
        """One micro-batch before the embedding, to be run through all blocks."""
        if self._keep:
            room = self.reference.memory.room.left
            self.states.every = self.reference.choose(room, logits=False).every
        collected = self.states.collect()
        ids = self.reference.batches[batch]

        def take(k: int, state: Tensor) -> KeptTensor | None:
            return collected.take(k, state) or self._waiting(k, state)

        lane = Lane(self.network, ids, -1, None, take=take)

        @torch.no_grad()
        def arrive() -> None:
            found: list[Positions] = []
            tally = self.reference.tally(batch, lane.reached(), {}, self.network, found.append)
            self.states.keep(batch, collected)
            self._tallies[batch] = tally
            self.positions += found

        return Crossing(lane, arrive)

    def giving_back(
        self, batch: int, layer: str, weight: Tensor, take: Callable[[Tally], None]
    ) -> Crossing:
        """Like `restored`, as a crossing that goes through the blocks together with others."""
        held: dict[str, Held] = {layer: weight}
        at = self.states.nearest(batch, self.network.layers[layer].start)
        state, ids = self.states.read(batch, at), self.reference.batches[batch]
        lane = Lane(self.network, ids, at, state, held, self._waiting)
        return Crossing(
            lane, lambda: take(self.reference.tally(batch, lane.reached(), held, self.network))
        )

    def _waiting(self, _k: int, state: Tensor) -> KeptTensor | None:
        """Keep the state of a lane that waits while others run, if its blocks are streamed."""
        return self.reference.memory.must_put(state) if self.network.streamed else None

    @torch.no_grad()
    def restored(self, batch: int, layer: str, weight: Tensor) -> Tally:
        """The same micro-batch with one layer at another weight, compared with the reference.

        Args:
            batch: run before.
            layer: a layer of this network.
            weight: ``[out, in]`` or ``[experts, out, in]``.

        Raises:
            Preempted: a more urgent job waits.
        """
        network, held = self.network, {layer: weight}
        at = self.states.nearest(batch, network.layers[layer].start)
        state = self.states.read(batch, at)
        with network.holding(held):
            last = network.final_state(self.reference.batches[batch], at, state)
        return self.reference.tally(batch, last, held, network)
