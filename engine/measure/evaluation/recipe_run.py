"""A network that holds a recipe: its boundary states, and changes on top of it.

A toggle is measured from the first block in which the recipe differs from an earlier one, with that
recipe's states below; a layer restored in a quantised network from its own block on.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from engine.measure.block_loop import Crossing
from engine.measure.evaluation.divergence import Tally
from engine.measure.evaluation.reference import Reference, boundary_state
from engine.model.boundary_states import BoundaryStates
from engine.model.lanes import Lane
from engine.model.memory_tiers import KeptTensor
from engine.model.network import Held, held_bytes


class RecipeRun:
    """The network holding a recipe, on the windows of the reference, compared with it.

    Every figure equals that of a forward from the embedding with the whole recipe held.
    """

    def __init__(
        self,
        reference: Reference,
        recipe: Mapping[str, Held],
        made: Mapping[str, str] | None = None,
        *,
        keep: bool = True,
        room: int = 0,
    ) -> None:
        """
        Args:
            reference: of the unchanged network; it must run a micro-batch before this does.
            recipe: weights by layer. With ``made``, some may be added later: a forward needs those
                of the blocks that it runs.
            made: identifies how each layer's weight is made: if two recipes have equal values, the
                weights are equal.
            keep: whether boundary states are cached, within what is left of the budget.
            room: bytes that will be available, if more than now.
        """
        self.reference, self.recipe = reference, dict(recipe)
        self.made = dict(made or {})
        self.states = reference.new_states()
        self.room = room
        """Bytes that its states were planned for."""
        self._keep = keep
        self._planned = False
        self._tallies: dict[int, Tally] = {}

    def known(self, batch: int) -> bool:
        """Whether this micro-batch has been run."""
        return batch in self._tallies

    @property
    def batches(self) -> int:
        """Number of micro-batches that have been run."""
        return len(self._tallies)

    @property
    def start(self) -> int:
        """First block that the recipe changes, `Layer.start` of its first layer."""
        return _first(self.reference, {*self.recipe, *self.made})

    @torch.no_grad()
    def run(
        self, batch: int, below: BoundaryStates | None = None, start: int | None = None
    ) -> None:
        """Run one micro-batch and cache what fits; nothing if it was run before.

        Args:
            batch: index of the micro-batch.
            below: states of a network that differs from ``start`` on; the reference's if None.
            start: see `Reference.measure`; the recipe's own if None.

        Raises:
            Preempted: a more urgent job waits; nothing of this call is cached.
        """
        if self.known(batch):
            return
        self.plan()
        crossing = self.set_out(batch, below, start)
        crossing.lane.advance(len(self.reference.network.blocks))
        crossing.arrive()

    def plan(self) -> None:
        """Decide once which states to cache, by the memory available now."""
        if self._planned:
            return
        self.room = max(self.room, self.reference.memory.room.left)
        every = self.reference.choose(self.room, logits=False).every
        self.states.every = every if self._keep else 0
        self._planned = True

    def set_out(
        self, batch: int, below: BoundaryStates | None = None, start: int | None = None
    ) -> Crossing:
        """One micro-batch at the block where this recipe departs from ``below``; see `run`.

        It uses the recipe's weights as they are when it reaches their blocks.
        """
        reference = self.reference
        below = reference.states if below is None else below
        at = below.nearest(batch, self.start if start is None else start)
        collected = self.states.collect()
        ids, state = reference.batches[batch], below.read(batch, at)

        def take(k: int, state: Tensor) -> KeptTensor | None:
            return collected.take(k, state) or reference.waiting(k, state)

        lane = Lane(reference.network, ids, at, state, self.recipe, take)

        def arrive() -> None:
            tally = reference.tally(batch, lane.reached(), self._from(at))
            self.states.keep(batch, collected, below, at)
            self._tallies[batch] = tally

        return Crossing(lane, arrive)

    def tally(self, batch: int) -> Tally:
        """The recipe compared with the reference on one micro-batch, run if it was not before.

        Raises:
            Preempted: a more urgent job waits.
        """
        self.run(batch)
        return self._tallies[batch]

    @torch.no_grad()
    def state(self, batch: int, k: int) -> Tensor:
        """The input of block ``k`` (``n_blocks``: the output of the last), cached or recomputed.

        Raises:
            ValueError: there is no such boundary.
            Preempted: a more urgent job waits.
        """
        with self.reference.network.holding(self._from(self.states.nearest(batch, k))):
            return boundary_state(self.reference, self.states, batch, k)

    @torch.no_grad()
    def measure(self, batch: int, start: int, changed: Mapping[str, Held]) -> Tally:
        """Compare the network holding the recipe, overridden by ``changed``, with the reference.

        Args:
            batch: index of the micro-batch, already run by the reference; starts from the embedding
                if this run has not run it.
            start: first block that ``changed`` changes; see `Reference.measure`.
            changed: weights by layer, in place of the recipe's; `Network.weight` restores a layer.

        Raises:
            ValueError: ``changed`` changes a block before ``start``.
            Preempted: a more urgent job waits.
        """
        network = self.reference.network
        if early := [name for name in changed if network.layers[name].start < start]:
            raise ValueError(f"{early[0]} is before block {start}")
        at = self.states.nearest(batch, start)
        state = self.states.read(batch, at)
        weights = {**self._from(at), **changed}
        with network.holding(weights):
            last = network.final_state(self.reference.batches[batch], at, state)
        return self.reference.tally(batch, last, weights)

    def changed(
        self,
        batch: int,
        start: int,
        changed: dict[str, Held],
        take: Callable[[Tally], None],
    ) -> Crossing:
        """Like `measure`, as a crossing that goes through the blocks together with others.

        Args:
            changed: may be extended until the lane reaches their blocks; so may the recipe be, if
                blocks are streamed.
            take: called with the result.
            batch, start: see `measure`.
        """
        at = self.states.nearest(batch, start)
        state = self.states.read(batch, at)
        streamed = self.reference.network.streamed
        recipe = self.recipe if streamed else self._from(at)
        weights = ChainMap(changed, recipe)  # a view: the changes come as it goes
        ids = self.reference.batches[batch]
        waiting = self.reference.waiting
        lane = Lane(self.reference.network, ids, at, state, weights, waiting)
        return Crossing(lane, lambda: take(self.reference.tally(batch, lane.reached(), weights)))

    def drop_before(self, block: int) -> None:
        """Free the weights of blocks that all micro-batches of a run have passed."""
        layers = self.reference.network.layers
        for name in [n for n in self.recipe if layers[n].start >= 0 and layers[n].last < block]:
            del self.recipe[name]

    def _from(self, start: int) -> dict[str, Held]:
        """The recipe's weights that act in the blocks from ``start`` on, or after them."""
        layers = self.reference.network.layers
        return {name: held for name, held in self.recipe.items() if layers[name].last >= start}


class RecentRuns:
    """Runs of the last recipes, so that the next one resumes where it differs.

    Two are kept: the last, and among the earlier ones the one with most micro-batches. Their
    weights are kept too, if the budget allows.
    """

    def __init__(self) -> None:
        self._runs: list[RecipeRun] = []
        self._weights: dict[tuple[str, str], Held] = {}

    def of_recipe(
        self, reference: Reference, made: Mapping[str, str], *, keep: bool = True
    ) -> RecipeRun:
        """The run of a recipe, with the micro-batches it already has; a new one if there is none.

        Args:
            reference: of the unchanged network.
            made: see `RecipeRun`.
            keep: see `RecipeRun`.
        """
        for known in self._runs:
            if known.reference is reference and known.made == made:
                return known
        room = max((known.room for known in self._runs), default=0)
        return RecipeRun(reference, {}, made, keep=keep, room=room)

    def below(self, run: RecipeRun, batch: int) -> tuple[BoundaryStates, int]:
        """The states that save most of one micro-batch's forward, and the block to resume at.

        Returns:
            States of the reference or of an earlier recipe, and the first block that differs.
        """
        reference = run.reference
        found: list[tuple[int, BoundaryStates, int]] = []
        for known, made in [
            (reference.states, {}),
            *((other.states, other.made) for other in self._runs if other.known(batch)),
        ]:
            apart = _first(
                reference,
                {name for name in {*run.made, *made} if run.made.get(name) != made.get(name)},
            )
            found.append((known.nearest(batch, apart), known, apart))
        _, states, apart = max(found, key=lambda each: each[0])
        return states, apart

    def make_room(self, run: RecipeRun, batch: int, below: BoundaryStates, start: int) -> None:
        """Free what earlier recipes cached of a micro-batch that is about to run.

        Nothing is freed if the budget holds both, nor what is needed to run it.
        """
        reference = run.reference
        wanted = reference.sizes.states(1) // len(reference.batches)
        for other in self._runs:
            if reference.memory.room.left < wanted and other is not run:
                other.states.forget(batch, start if other.states is below else -1)

    def weight(self, run: RecipeRun, name: str) -> Held | None:
        """The weight of a layer from an earlier recipe, if it was made in the same way."""
        return self._weights.get((name, run.made[name]))

    def remember(self, run: RecipeRun) -> None:
        """Keep a run's results and, if there is memory, its weights."""
        recipe, run.recipe = run.recipe, {}
        if not run.batches:
            return
        others = [other for other in self._runs if other is not run]
        # The later of two that have as many.
        fullest = max(reversed(others), key=lambda other: other.batches, default=None)
        self._runs = [run] if fullest is None else [fullest, run]
        room = run.reference.memory.room
        used = {key for each in self._runs for key in each.made.items()}
        for key in [key for key in self._weights if key not in used]:
            room.give(held_bytes(self._weights.pop(key)))
        for name, held in recipe.items():
            key = (name, run.made[name])
            if key not in self._weights and room.take(held_bytes(held)):
                self._weights[key] = held


def _first(reference: Reference, names: Collection[str]) -> int:
    """First block that these layers change, as `Layer.start`."""
    network = reference.network
    return min((network.layers[name].start for name in names), default=len(network.blocks))
