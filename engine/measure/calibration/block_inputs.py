"""Where the inputs of a block come from during calibration.

A sweep calibrates on the unchanged network. A whole recipe calibrates block by block, each on the
outputs of the quantised blocks before: GPTQ's "true sequential", except that the layers of one
block all use the unquantised block (Frantar et al. 2022, arXiv 2210.17323, section 4).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from functools import partial
from typing import Protocol, TypeVar

from torch import Tensor

from engine import protocol as p
from engine.formats.grammar import Format
from engine.measure.block_loop import reading
from engine.measure.counts import JobCounts
from engine.measure.preemption import repeated
from engine.model.boundary_states import BoundaryStates, CacheSizes, Collected, choose
from engine.model.lanes import Lane
from engine.model.memory_tiers import KeptTensor, TieredMemory
from engine.model.network import Held, Network
from engine.session import recipe_hash

T = TypeVar("T")
Events = Generator[p.AnyEvent | None, None, T]


class BlockInputs(Protocol):
    """Where the input of a block comes from."""

    prefix: str
    """Identifies the weights of the blocks before; empty for the reference."""

    def prepare(self, block: int, counts: JobCounts) -> Events[None]:
        """Do the work that `before` of this block needs but does not do itself."""

    def before(self, batch: int, block: int) -> Tensor | None:
        """The input of a block on one micro-batch; None if it needs a whole forward."""

    def held(self) -> Mapping[str, Held]:
        """The weights of the blocks before, for a whole forward."""


class ReferenceInputs:
    """Inputs of the unchanged network's blocks: the last block asked for, and others that fit; all
    of them if blocks are streamed, within the budget and then on disk.

    Args:
        network: at its reference weights.
        batches: micro-batches of the calibration text.
        budget: bytes of states.
    """

    prefix = ""

    def __init__(self, network: Network, batches: list[Tensor], budget: int) -> None:
        self._network, self._batches = network, batches
        values = sum(ids.numel() for ids in batches) * network.state_size
        size = values * network.dtype.itemsize
        self._together = size <= budget or network.streamed
        """Whether the states of all micro-batches at one boundary fit."""
        if network.streamed:  # to make a state again, blocks would be read again
            room = budget
            self._memory = TieredMemory(network.device, room)
            self._memory.use_all()
        else:
            room = max(0, budget - size)
            self._memory = TieredMemory(network.device, room, [])
        self._states = BoundaryStates(
            self._memory,
            len(network.blocks),
            resumable=network.resumable,
            head_resumable=network.head_resumable,
        )
        self._states.required = network.streamed
        self._states.first = network.blocks.outside
        sizes = CacheSizes(blocks=len(network.blocks), state=size, logits=0, head=0.0)
        every = 1 if network.streamed else choose(sizes, room, None, logits=False).every
        self._states.every = every
        self._asked: dict[int, Lane] = {}
        """Micro-batches at the block asked for last."""

    def prepare(self, block: int, counts: JobCounts) -> Events[None]:
        """Advance all micro-batches to a block, if their states fit the budget."""
        if not self._together or not self._network.resumable or block < 0:
            return
        lanes = {batch: self._lane(batch, block) for batch in range(len(self._batches))}
        self._asked.clear()
        start = min((lane.at for lane, _ in lanes.values()), default=block)
        stretches = self._network.stretches(start, block)
        stage = counts.stage("calibrating", len(stretches))
        for done, stretch in enumerate(stretches):
            if self._network.streamed:
                yield stage.step(done, detail=reading(stretch, len(self._network.blocks)))
            with self._network.at_hand(stretch):
                for lane, _ in lanes.values():
                    if lane.at < stretch.stop:
                        step = partial(lane.advance, stretch.stop)
                        yield from repeated(counts.timed("calibrate_s", step))
                        yield None
        for batch, (lane, passed) in lanes.items():
            self._keep(batch, lane, passed)

    def held(self) -> Mapping[str, Held]:
        """Nothing: the blocks before are unchanged."""
        return {}

    def before(self, batch: int, block: int) -> Tensor | None:
        """The input of a block; for the number of blocks, the output of the last.

        Raises:
            Preempted: a more urgent job waits.
        """
        if not self._network.resumable or block < 0:
            return None
        asked = self._asked.get(batch)
        if asked is not None and asked.at == block:
            return asked.reached()
        lane, passed = self._lane(batch, block)
        lane.advance(block)
        self._keep(batch, lane, passed)
        return lane.reached()

    def waiting(self, _block: int, state: Tensor) -> KeptTensor | None:
        """Keep the state of a lane that waits while others run, if blocks are streamed.

        Raises:
            EngineError: there is no room.
        """
        return self._memory.must_put(state) if self._network.streamed else None

    def _lane(self, batch: int, block: int) -> tuple[Lane, Collected]:
        """A micro-batch at the nearest boundary up to a block, and the states cached on its way."""
        nearest = self._states.nearest(batch, block)
        state = self._states.read(batch, nearest)
        asked = self._asked.get(batch)
        if asked is not None and nearest < asked.at <= block:
            nearest, state = asked.at, asked.reached()
        passed = self._states.collect()

        def take(k: int, state: Tensor) -> KeptTensor | None:
            return passed.take(k, state) or self.waiting(k, state)

        return Lane(self._network, self._batches[batch], nearest, state, take=take), passed

    def _keep(self, batch: int, lane: Lane, passed: Collected) -> None:
        self._states.keep(batch, passed, self._states, len(self._network.blocks))
        if self._together:
            self._asked[batch] = lane


class RecipeInputs:
    """Inputs of blocks with a recipe in the blocks before, from the first to the last.

    They equal the reference's up to the first changed block.

    Args:
        reference: inputs of the unchanged network.
        network: at its reference weights.
        batches: micro-batches of the calibration text.
        formats: the recipe.
    """

    def __init__(
        self,
        reference: ReferenceInputs,
        network: Network,
        batches: list[Tensor],
        formats: Mapping[str, Format],
    ) -> None:
        self._reference, self._network, self._batches = reference, network, batches
        self.formats = dict(formats)
        self.settled: dict[str, Held] = {}
        """What layers compute with, as far as known."""
        self.forgets = False
        """Whether weights are freed once the text has passed their blocks: for a caller that goes
        once from the first block to the last."""
        self._first = min(network.layers[name].start for name in formats)
        self._at = -2
        self._states: list[Tensor | KeptTensor | None] = []
        """Of every micro-batch, the input of the block that the text has reached."""

    def unsettled(self, block: int) -> list[str]:
        """Layers before a block that are not quantised yet, first blocks first."""
        layers = self._network.layers
        passed = self._at if self.forgets else -2
        names = [
            n
            for n in self.formats
            if n not in self.settled and layers[n].start < block and layers[n].last >= passed
        ]
        return sorted(names, key=lambda name: layers[name].start)

    def of(self, block: int) -> BlockInputs:
        """The inputs of this block."""
        if block <= self._first:
            return self._reference
        return _InputsOfBlock(self, block)

    def prefix(self, block: int) -> str:
        """The part of the recipe that the input of a block depends on."""
        layers = self._network.layers
        return recipe_hash({n: str(f) for n, f in self.formats.items() if layers[n].start < block})

    def held(self, block: int) -> dict[str, Held]:
        """What the layers before a block compute with."""
        layers = self._network.layers
        return {name: held for name, held in self.settled.items() if layers[name].start < block}

    def advance(self, block: int, counts: JobCounts) -> Events[None]:
        """Run the calibration text up to a block; all layers before it must be quantised."""
        if not self._network.resumable or self._at == block:
            return
        network, layers = self._network, self._network.layers
        start = self._at if 0 <= self._at < block else self._first
        if start != self._at:
            yield from self._reference.prepare(start, counts)
        between = {n: h for n, h in self.held(block).items() if layers[n].last >= start}
        lanes: dict[int, Lane] = {}

        def step(batch: int, until: int) -> None:
            if batch not in lanes:
                known = start == self._at
                before = self._reference.before
                state = self._states[batch] if known else before(batch, start)
                ids, waiting = self._batches[batch], self._reference.waiting
                lanes[batch] = Lane(network, ids, start, state, between, waiting)
            lanes[batch].advance(until)

        for stretch in network.stretches(start, block):
            with network.at_hand(stretch):
                for batch in range(len(self._batches)):
                    one = partial(step, batch, stretch.stop)
                    yield from repeated(counts.timed("calibrate_s", one))
                    yield None
        self._states = [lanes[batch].state for batch in range(len(self._batches))]
        self._at = block
        if self.forgets:
            self.settled = {n: h for n, h in self.settled.items() if layers[n].last >= block}

    def before(self, batch: int, block: int) -> Tensor | None:
        """The input of the block that the text has reached."""
        if not self._network.resumable:
            return None
        assert self._at == block, "the text must reach a block before its input is asked for"
        state = self._states[batch]
        return state if state is None or isinstance(state, Tensor) else state.read()


class _InputsOfBlock:
    """The states of a recipe before one block."""

    def __init__(self, recipe: RecipeInputs, block: int) -> None:
        self._recipe, self._block = recipe, block
        self.prefix = recipe.prefix(block)

    def prepare(self, block: int, counts: JobCounts) -> Events[None]:
        yield from self._recipe.advance(block, counts)

    def before(self, batch: int, block: int) -> Tensor | None:
        return self._recipe.before(batch, block)

    def held(self) -> Mapping[str, Held]:
        return self._recipe.held(self._block)
