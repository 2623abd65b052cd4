"""The error of a recipe inside the model, block by block, reference and recipe side by side.

With ``h`` the reference's input of a block ``B`` and ``h′`` the recipe's, ``B̂`` the block in the
recipe's formats, each output is compared with ``B(h)``:

    drift       B̂(h′)   what the recipe does
    injected    B̂(h)    what this block adds
    propagated  B(h′)    what came in, passed on
    control     B(h + ε)  the same with noise of the norm of ``h′ − h`` at every token

Noise is spread over all directions, an error of quantised blocks is not: where ``propagated`` is
above ``control``, later blocks amplify this error more than chance would. The first windows of the
evaluation text are used. All of them go through one block together, so that no more than one block
of quantised weights is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from engine import protocol as p
from engine.errors import is_out_of_memory
from engine.measure.calibration.approximate import recipe_inputs
from engine.measure.calibration.block_inputs import Events
from engine.measure.errors.attention import POSITIONS, WINDOWS, divergence, probabilities
from engine.measure.errors.drift import apart, with_noise
from engine.measure.errors.run import Run
from engine.measure.errors.weights_in_use import WeightsInUse
from engine.measure.preemption import repeated
from engine.model.inputs import watch_inputs
from engine.model.lanes import Lane
from engine.model.network import Held, Network
from engine.model.selfcheck import CANNOT_RUN

SHARE = 8
"""This fraction of the budget is for the states of one group of micro-batches."""


def block_by_block(run: Run) -> Events[p.Drift]:
    """All micro-batches through one block after another; see the module's docstring."""
    return (yield from _BlockByBlock(run).measure())


class _BlockByBlock:
    def __init__(self, run: Run) -> None:
        self.run, self.network, self.counts = run, run.network, run.counts
        self._states: dict[int, tuple[Tensor, Tensor]] = {}
        """The reference's and the recipe's state of each micro-batch; the same tensor as long as
        nothing has changed it."""

    def measure(self) -> Events[p.Drift]:
        """All micro-batches through one block after another."""
        end = len(self.network.blocks)
        groups = list(self._groups())
        stage = self.counts.stage("measuring", len(groups) * (end + 2))
        done = 0
        for group in groups:
            weights = WeightsInUse(self.run.loaded, self.run.formats, self.counts)
            weights.states = yield from recipe_inputs(self.run.loaded, self.run.formats)
            if weights.states is not None:
                weights.states.forgets = True
            for region in range(-1, end + 1):
                yield stage.step(done, f"block {region}" if 0 <= region < end else "")
                with self.network.at_hand([region]):
                    yield from weights.settle(region)
                    for batch in group:
                        yield from self._region(region, batch, weights.held)
                if group is groups[-1]:
                    yield from self.run.outputs.passed(region, self.counts)
                weights.drop_after(region)
                done += 1
            self._states.clear()
        yield from self.run.outputs.refused(self.counts)
        return self.run.drift()

    def _groups(self) -> Iterator[Sequence[int]]:
        """Micro-batches that go through the blocks together, as many as the budget has room for."""
        state = self.run.batches[0].numel() * self.network.state_size * self.network.dtype.itemsize
        size = max(1, self.run.loaded.budget() // SHARE // (2 * state))
        every = range(len(self.run.batches))
        for at in range(0, len(every), size):
            yield every[at : at + size]

    def _region(self, region: int, batch: int, held: Mapping[str, Held]) -> Events[None]:
        layers = self.network.layers
        here = {n: h for n, h in held.items() if layers[n].acts_in(range(region, region + 1))}
        if region < 0:
            yield from self._before(batch, here, held)
        elif region < len(self.run.blocks):
            yield from self._block(region, batch, here, held)
        else:
            reference, _ = self._states[batch]
            yield from self._watch(region, batch, reference, held)

    def _before(self, batch: int, here: dict[str, Held], held: Mapping[str, Held]) -> Events[None]:
        """From the tokens to the first block."""
        reference = yield from self._advance(batch, -1, None)
        recipe = reference
        if here:
            recipe = yield from self._advance(batch, -1, None, here)
        yield from self._watch(-1, batch, None, held)
        self.run.embedding.add(apart(recipe, reference))
        self._states[batch] = reference, recipe

    def _block(
        self, block: int, batch: int, here: dict[str, Held], held: Mapping[str, Held]
    ) -> Events[None]:
        before, recipe_before = self._states[batch]
        drifted = recipe_before is not before
        after = yield from self._watch(block, batch, before, held)
        if after is None:
            after = yield from self._advance(batch, block, before)
        injected = propagated = control = after
        if here:
            injected = yield from self._advance(batch, block, before, here)
        recipe_after = injected
        if drifted:
            noisy = with_noise(before, recipe_before, self._seeds(block, batch))
            control = yield from self._advance(batch, block, noisy)
            propagated = yield from self._advance(batch, block, recipe_before)
            recipe_after = propagated
            if here:
                recipe_after = yield from self._advance(batch, block, recipe_before, here)
        heads = yield from self._attention(block, batch, here)
        sums = self.run.blocks[block]
        sums.drift.add(apart(recipe_after, after))
        sums.injected.add(apart(injected, after))
        sums.propagated.add(apart(propagated, after))
        sums.control.add(apart(control, after))
        sums.attention += heads
        self._states[batch] = after, recipe_after

    def _seeds(self, block: int, batch: int) -> list[int]:
        first = self.run.firsts[batch]
        windows = range(first, first + len(self.run.batches[batch]))
        seed = self.run.loaded.settings.seed
        return [((seed << 40) + (block << 24) + window) % 2**63 for window in windows]

    def _advance(
        self, batch: int, at: int, state: Tensor | None, held: Mapping[str, Held] | None = None
    ) -> Events[Tensor]:
        """A micro-batch through one block, or up to the first."""
        lane = Lane(self.network, self.run.batches[batch], at, state, held or {})
        step = self.counts.timed("errors_s", partial(lane.advance, at + 1))
        yield from repeated(step)
        yield None
        return lane.reached()

    def _watch(
        self, region: int, batch: int, state: Tensor | None, held: Mapping[str, Held]
    ) -> Events[Tensor | None]:
        """Add the errors of the layers in a region; its output, if it is that of a plain run."""
        names = self.run.outputs.watched(region)
        if not names:
            return None
        network, ids = self.network, self.run.batches[batch]

        def step() -> Tensor | None:
            found = self.run.outputs.empty(names)  # a step that is preempted has added nothing
            output = watch_inputs(network, ids, region, state, found.taking(held), names=names)
            self.run.outputs.merge(found)
            return output

        output = yield from repeated(self.counts.timed("errors_s", step))
        yield None
        # Experts run one by one while they are watched, which rounds otherwise on some devices.
        experts = any(network.layers[name].role == "experts" for name in names)
        return None if experts else output

    def _attention(
        self, block: int, batch: int, here: Mapping[str, Held]
    ) -> Events[list[list[float]]]:
        """For each window that is compared, the KL of each head."""
        found: list[list[float]] = []
        before, recipe_before = self._states[batch]
        if self.run.no_attention:
            return found
        if before.dim() != 3 or len(before) != len(self.run.batches[batch]):
            self.run.no_attention = "the hidden state has several streams, so it cannot be cut"
            return found
        for at in range(min(WINDOWS - self.run.firsts[batch], len(before))):
            some = slice(at, at + 1), slice(0, POSITIONS)
            step = partial(
                _of_window, self.network, self.run.batches[batch][some], block,
                (before[some], recipe_before[some]), here,
            )  # fmt: skip
            try:
                heads = yield from repeated(self.counts.timed("errors_s", step))
            except CANNOT_RUN as error:
                if is_out_of_memory(error):
                    raise
                kind = type(self.network.model).__name__
                self.run.no_attention = f"{kind} cannot compute attention step by step: {error}"
                return []
            yield None
            if heads:
                found.append(heads)
        return found


def _of_window(
    network: Network,
    ids: Tensor,
    block: int,
    states: tuple[Tensor, Tensor],
    here: Mapping[str, Held],
) -> list[float]:
    """KL of each head in a block, on one window; none if the block has no attention."""
    reference = probabilities(network, ids, block, states[0], {})
    recipe = probabilities(network, ids, block, states[1], here)
    pairs = zip(reference, recipe, strict=True)
    return [kl for one, other in pairs for kl in divergence(one, other)]
