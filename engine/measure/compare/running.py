"""A finished checkpoint as a model of its own, run on the original's windows."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.measure.evaluation.divergence import Positions, Tally
from engine.measure.evaluation.reference import Reference
from engine.model.boundary_states import BoundaryStates
from engine.model.lanes import Lane
from engine.model.network import Network


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
        self._tallies: dict[int, Tally] = {}
        self.positions: list[Positions] = []
        """What was found at every position of the micro-batches that were run."""

    @torch.no_grad()
    def run(self, batch: int) -> Tally:
        """Run one micro-batch, run by the reference before, and compare it.

        Raises:
            Preempted: a more urgent job waits; nothing of this call is cached.
        """
        if batch in self._tallies:
            return self._tallies[batch]
        if self._keep:
            room = self.reference.memory.room.left
            self.states.every = self.reference.choose(room, logits=False).every
        collected = self.states.collect()
        ids = self.reference.batches[batch]
        lane = Lane(self.network, ids, -1, None, take=collected.take)
        lane.advance(len(self.network.blocks))
        found: list[Positions] = []
        tally = self.reference.tally(batch, lane.reached(), {}, self.network, found.append)
        self.states.keep(batch, collected)
        self._tallies[batch] = tally
        self.positions += found
        return tally

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
