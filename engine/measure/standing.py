"""A network that holds a recipe: its own boundary states, and what changes from there.

A toggle is measured from the first block in which the recipe differs from one before, with the
states that recipe had below; a layer given back in a quantised network from its own block on.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.measure.perplexity import Tally
from engine.measure.reference import Reference, boundary_state
from engine.measure.states import States
from engine.model.network import Held


class Standing:
    """The network holding a recipe, on the windows of the reference, and compared with it.

    Every figure is exactly that of a forward from the embedding with all of the recipe held.
    """

    def __init__(
        self, reference: Reference, recipe: Mapping[str, Held], *, keep: bool = True
    ) -> None:
        """
        Args:
            reference: of the unchanged network; its micro-batches are run before those of this.
            recipe: weights by layer. May be filled later: a forward needs the layers of the blocks
                that it runs.
            keep: whether boundary states are kept, within what is left of the budget.
        """
        self.reference, self.recipe = reference, recipe
        self.states = reference.new_states()
        self._keep = keep
        self._planned = False
        self._tallies: dict[int, Tally] = {}

    def known(self, batch: int) -> bool:
        """Whether this micro-batch has been run."""
        return batch in self._tallies

    @property
    def batches(self) -> int:
        """How many micro-batches have been run."""
        return len(self._tallies)

    @property
    def start(self) -> int:
        """First block that the recipe changes, `Layer.start` of its first layer."""
        network = self.reference.network
        return min((network.layers[n].start for n in self.recipe), default=len(network.blocks))

    @torch.no_grad()
    def run(self, batch: int, below: States | None = None, start: int | None = None) -> None:
        """Run one micro-batch and keep what the budget allows; nothing if it was run before.

        Args:
            batch: index of the micro-batch.
            below: states of a network that differs from ``start`` on; the reference's if None.
            start: as of `Reference.measure`; the recipe's own if None.

        Raises:
            Preempted: something more urgent came; nothing is kept of it.
        """
        if self.known(batch):
            return
        reference = self.reference
        network, ids = reference.network, reference.batches[batch]
        if not self._planned:
            room = reference.memory.room.left
            self.states.every = reference.choose(room, logits=False).every if self._keep else 0
            self._planned = True
        below = reference.states if below is None else below
        start = self.start if start is None else start
        at = below.nearest(batch, start)
        state = below.read(batch, at)
        collected = self.states.collect()
        final: list[Tensor] = []

        def take(k: int, state: Tensor) -> None:
            collected.take(k, state)
            if k == len(network.blocks):
                final.append(state)

        if at == len(network.blocks) and state is not None:
            final.append(state)
        else:
            with network.holding(self._from(at)):
                network.visit(ids, at, state, take)
        tally = reference.tally(batch, final[0], self._from(at))
        self.states.keep(batch, collected, below, at)
        self._tallies[batch] = tally

    def tally(self, batch: int) -> Tally:
        """The recipe compared with the reference on one micro-batch, run if it was not before.

        Raises:
            Preempted: something more urgent came.
        """
        self.run(batch)
        return self._tallies[batch]

    @torch.no_grad()
    def state(self, batch: int, k: int) -> Tensor:
        """The input of block ``k``, or the output of the last for ``n_blocks``; kept or made again.

        Raises:
            ValueError: there is no such boundary.
            Preempted: something more urgent came.
        """
        with self.reference.network.holding(self._from(self.states.nearest(batch, k))):
            return boundary_state(self.reference, self.states, batch, k)

    @torch.no_grad()
    def measure(self, batch: int, start: int, changed: Mapping[str, Held]) -> Tally:
        """Compare the network holding the recipe and ``changed`` over it with the reference.

        Args:
            batch: index of the micro-batch, run before by the reference; from the embedding on if
                it was not by this.
            start: first block that ``changed`` changes, as of `Reference.measure`.
            changed: weights by layer, in place of the recipe's; `Network.weight` gives a layer its
                own back.

        Raises:
            ValueError: ``changed`` changes a block before ``start``.
            Preempted: something more urgent came.
        """
        network = self.reference.network
        if early := [name for name in changed if network.layers[name].start < start]:
            raise ValueError(f"{early[0]} stands before block {start}")
        at = self.states.nearest(batch, start)
        state = self.states.read(batch, at)
        weights = {**self._from(at), **changed}
        with network.holding(weights):
            last = network.final_state(self.reference.batches[batch], at, state)
        return self.reference.tally(batch, last, weights)

    def _from(self, start: int) -> dict[str, Held]:
        """What the recipe holds in the blocks from ``start`` on, and in the head."""
        layers = self.reference.network.layers
        return {name: held for name, held in self.recipe.items() if layers[name].start >= start}
