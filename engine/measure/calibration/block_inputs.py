"""Where the inputs of a layer's block come from when its inputs are gathered.

A sweep calibrates on the unchanged network. A whole recipe calibrates block after block, each on
what the blocks before give as the recipe has them: what GPTQ calls true sequential, with the layers
of one block all on the block as it was (Frantar et al. 2022, arXiv 2210.17323, section 4).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from engine import protocol as p
from engine.formats.grammar import Format
from engine.measure.counts import JobCounts
from engine.measure.preemption import again
from engine.model.blocks import Forward, Reached, hidden_of
from engine.model.network import Held, Network
from engine.quant.methods.gptq import Solved
from engine.session import recipe_hash

T = TypeVar("T")
Events = Generator[p.AnyEvent | None, None, T]


class BlockInputs(Protocol):
    """Where the input of a block comes from."""

    prefix: str
    """What stands for the weights of the blocks before; empty for the reference."""

    def prepare(self, block: int, counts: JobCounts) -> Events[None]:
        """Do what `before` of this block takes and does not do by itself."""

    def before(self, batch: int, block: int) -> Tensor | None:
        """The input of a block on one micro-batch; None where only whole forwards give it."""

    def held(self) -> Mapping[str, Held]:
        """What the blocks before hold, where the whole forward is run."""


class ReferenceInputs:
    """Inputs of the unchanged network's blocks, those of every k-th block kept.

    Args:
        network: at its reference weights.
        batches: micro-batches of the calibration text.
        budget: bytes of states.
    """

    prefix = ""

    def __init__(self, network: Network, batches: list[Tensor], budget: int) -> None:
        self._network, self._batches = network, batches
        self._kept: list[dict[int, Tensor]] = [{} for _ in batches]
        hidden = network.config.get_text_config().hidden_size
        size = sum(ids.numel() for ids in batches) * hidden * network.dtype.itemsize
        blocks = len(network.blocks)
        self._every = 1
        while self._every < blocks and -(-blocks // self._every) * size > budget:
            self._every *= 2
        self._keeps = network.resumable and -(-blocks // self._every) * size <= budget

    def prepare(self, block: int, counts: JobCounts) -> Events[None]:
        """Nothing: states are made as they are asked for."""
        yield from ()

    def held(self) -> Mapping[str, Held]:
        """Nothing: the blocks before are as they are."""
        return {}

    @torch.no_grad()
    def before(self, batch: int, block: int) -> Tensor | None:
        """The input of a block; of the number of blocks, the last one's output.

        Raises:
            Preempted: something more urgent waits.
        """
        if not self._network.resumable or block < 0:
            return None
        kept = self._kept[batch]
        nearest = max((k for k in kept if k <= block), default=-1)
        if nearest == block:
            return kept[block]
        state = kept.get(nearest)
        passed, found = advance(self._network, self._batches[batch], nearest, state, block)
        if self._keeps:
            kept.update({k: each for k, each in passed.items() if k % self._every == 0})
        return found


def advance(
    network: Network, ids: Tensor, start: int, state: Tensor | None, block: int
) -> tuple[dict[int, Tensor], Tensor]:
    """The input of ``block``, from that of block ``start`` on, or from the embedding at -1.

    Returns:
        The inputs of the blocks on the way, and that of ``block``.
    """
    passed: dict[int, Tensor] = {}
    if block == len(network.blocks):
        return passed, network.final_state(ids, start, state)
    forwards = network.resuming(max(start, 0), state)

    def passing(i: int, forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            passed[i] = hidden_of(args, kwargs)
            if i == block:
                raise Reached
            return forward(*args, **kwargs)

        return run

    for i in range(max(start + 1, 0), block + 1):
        forwards[i] = passing(i, forwards[i])
    network.run_until_reached(ids, forwards)
    return passed, passed[block]


class RecipeInputs:
    """Inputs of blocks with a recipe in the blocks before, from the first to the last.

    Only as far as the recipe leaves them alone are they those of the reference.

    Args:
        reference: the unchanged network's.
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
        """What layers compute with, where it is known."""
        self.forms: dict[str, Solved] | None = None
        """Where an export asks for them, the codes that ``+gptq`` finds, in main memory."""
        self.forgets = False
        """Whether what blocks compute with is let go of once the text has passed them: for who
        goes from the first block to the last, once."""
        self._first = min(network.layers[name].start for name in formats)
        self._at = -2
        self._states: list[Tensor] = []

    def unsettled(self, block: int) -> list[str]:
        """Layers before a block of which it is not known, the first blocks' first."""
        layers = self._network.layers
        passed = self._at if self.forgets else -2
        names = [
            n for n in self.formats if n not in self.settled and passed <= layers[n].start < block
        ]
        return sorted(names, key=lambda name: layers[name].start)

    def of(self, block: int) -> BlockInputs:
        """Those that lead to this block."""
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

    def walk(self, block: int, counts: JobCounts) -> Events[None]:
        """Run the calibration text up to a block; all layers before it are settled."""
        if not self._network.resumable or self._at == block:
            return
        start = self._at if 0 <= self._at < block else self._first
        layers = self._network.layers
        between = {n: h for n, h in self.held(block).items() if layers[n].start >= start}
        states: list[Tensor] = []
        for batch, ids in enumerate(self._batches):

            def step(batch: int = batch, ids: Tensor = ids) -> Tensor:
                state = None
                if start == self._at:
                    state = self._states[batch]
                elif start >= 0:
                    state = self._reference.before(batch, start)
                with torch.no_grad(), self._network.holding(between):
                    return advance(self._network, ids, start, state, block)[1]

            states.append((yield from again(counts.timed("calibrate_s", step))))
            yield None
        self._states, self._at = states, block
        if self.forgets:
            self.settled = {n: h for n, h in self.settled.items() if layers[n].start >= block}

    def before(self, batch: int, block: int) -> Tensor | None:
        """The input of the block that was walked to."""
        if not self._network.resumable:
            return None
        assert self._at == block, "a block is walked to before its input is asked for"
        return self._states[batch]


class _InputsOfBlock:
    """The states of a recipe that lead to one block."""

    def __init__(self, recipe: RecipeInputs, block: int) -> None:
        self._recipe, self._block = recipe, block
        self.prefix = recipe.prefix(block)

    def prepare(self, block: int, counts: JobCounts) -> Events[None]:
        yield from self._recipe.walk(block, counts)

    def before(self, batch: int, block: int) -> Tensor | None:
        return self._recipe.before(batch, block)

    def held(self) -> Mapping[str, Held]:
        return self._recipe.held(self._block)
