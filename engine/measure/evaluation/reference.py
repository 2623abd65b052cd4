"""Outputs of the unchanged network on every micro-batch, cached within a budget of bytes.

A change at block *k* is measured from the hidden state before block *k*, against the reference's
logits. States and logits that do not fit are recomputed when needed: the cache changes how long a
measurement takes, never its value.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from engine.measure.block_loop import Crossing
from engine.measure.evaluation.divergence import Positions, Tally, at_positions
from engine.measure.evaluation.not_finite import check_finite
from engine.model.boundary_states import (
    BoundaryStates,
    CachePlan,
    CacheSizes,
    Collected,
    choose,
)
from engine.model.cost import cost_of
from engine.model.lanes import Lane
from engine.model.memory_tiers import KeptTensor, TieredMemory
from engine.model.network import Held, Network
from engine.texts.windows import Windows
from engine.workspace import Loaded

CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Logits of one chunk of positions, in bytes of float32. Each chunk is a pass through the model's
Python code, which a fast device would wait for."""
TILE_BYTES = 1 << 19
"""Logits compared at once on a CPU, in bytes of float32: intermediate results fit a cache."""
CHUNK_MULTIPLE = 16
"""Positions come in multiples of this: odd sizes round differently."""
FOR_RECIPES = 4
"""This fraction of the budget is reserved for the states of recipes, if they would not all fit
anyway."""


class Reference:
    """The unchanged network on one set of windows.

    Batch and chunk shapes are fixed here, and are the same for reference and candidates.
    """

    def __init__(
        self,
        network: Network,
        windows: Windows,
        batch_tokens: int,
        budget: int,
        memory: TieredMemory | None = None,
    ) -> None:
        """
        Args:
            network: at its reference weights.
            windows: the evaluation text.
            batch_tokens: tokens in a micro-batch; at least one window.
            budget: bytes for cached states and logits together, including those of recipes. A few
                bytes per token are kept in any case.
            memory: where they are cached, within that budget; None uses what the machine has.
        """
        self.network, self.windows = network, windows
        self.memory = memory or TieredMemory(network.device, budget)
        rows = max(1, batch_tokens // windows.seq_len)
        self.batches = [ids.to(network.device) for ids in torch.split(windows.ids, rows)]
        text = network.config.get_text_config()
        vocabulary = text.vocab_size
        chunk = CHUNK_BYTES.get(network.device.type, 16 << 20) // (rows * vocabulary * 4)
        chunk = max(CHUNK_MULTIPLE, chunk - chunk % CHUNK_MULTIPLE)
        first, last = windows.first, windows.seq_len - 1
        self.chunks = [(a, min(a + chunk, last)) for a in range(first, last, chunk)]
        self.sizes = CacheSizes(
            blocks=len(network.blocks),
            state=windows.tokens * network.state_size * network.dtype.itemsize,
            logits=windows.count * windows.targets * vocabulary * 4,
            head=cost_of(network).head_in_blocks,
        )
        self.plan: CachePlan | None = None
        """What to cache; known once the first micro-batch was run."""
        self.states = self._new_states()
        self._logits: dict[tuple[int, int], KeptTensor | None] = {}
        self._lse: dict[tuple[int, int], Tensor] = {}
        self._first: dict[tuple[int, int], Tensor] = {}
        self._nll: dict[int, Tensor] = {}

    def known(self, batch: int) -> bool:
        """Whether this micro-batch has been run."""
        return batch in self._nll

    @torch.no_grad()
    def run(self, batch: int) -> None:
        """Run one micro-batch and cache what fits; nothing if it was run before.

        Raises:
            Preempted: a more urgent job waits; nothing of this call is cached.
        """
        if self.known(batch):
            return
        crossing = self.set_out(batch)
        crossing.lane.advance(len(self.network.blocks))
        crossing.arrive()

    def set_out(self, batch: int) -> Crossing:
        """One micro-batch before the embedding, to be run through all blocks."""
        if self.plan is None:
            room = self.memory.room.left
            room -= min(room // FOR_RECIPES, self.sizes.states(1))
            self.plan = self.choose(room, logits=True)
            self.states.every = self.plan.every
        collected = self.states.collect()

        def take(k: int, state: Tensor) -> KeptTensor | None:
            return collected.take(k, state) or self.waiting(k, state)

        lane = Lane(self.network, self.batches[batch], -1, None, take=take)
        return Crossing(lane, partial(self._arrive, batch, lane, collected))

    def together(self, batch: int) -> range:
        """Micro-batches that go through the blocks together, starting with this one.

        Only this one if blocks are resident: its figures come early, and only its states are in
        memory. If blocks are streamed, all: a block is read once for them, and states that do not
        fit the budget wait on disk.
        """
        last = len(self.batches) if self.network.streamed else batch + 1
        return range(batch, last)

    @property
    def lanes(self) -> int:
        """How many micro-batches may be in progress at once.

        One if blocks are resident. Otherwise as many as an eighth of the budget holds states of; or
        more, which wait on disk, as long as writing and reading them takes no more bytes than
        reading the block that they are carried through.
        """
        if not self.network.streamed:
            return 1
        state = max(1, self.sizes.state // len(self.batches))
        spilled = self.network.largest_block // (2 * state)
        return max(1, self.memory.room.limit // 8 // state, spilled)

    @torch.no_grad()
    def _arrive(self, batch: int, lane: Lane, collected: Collected) -> None:
        assert self.plan is not None
        ids = self.batches[batch]
        # Added up on the device: reading a number from it waits for all work before.
        sums = torch.zeros(ids.shape[0], dtype=torch.float64, device=ids.device)
        lses, logits, first = {}, {}, {}
        with _head_of(self.network):
            for chunk, (a, b) in enumerate(self.chunks):
                z = self.network.logits(ids, lane.reached(), (a, b)).float()
                lse = torch.logsumexp(z, -1)
                target = z.gather(-1, ids[:, a + 1 : b + 1, None]).squeeze(-1)
                sums += (lse - target).double().sum(-1)
                lses[batch, chunk] = lse
                first[batch, chunk] = z.argmax(-1, keepdim=True)
                if self.plan.logits:
                    logits[batch, chunk] = self.memory.device.put(z)
        nll = sums.cpu()
        check_finite(self.network, ids, nll)
        # All at once, so that an abandoned forward leaves nothing behind.
        for table in (*lses.values(), *first.values()):
            self.memory.room.take(table.nbytes, always=True)
        self._lse.update(lses)
        self._first.update(first)
        self._logits.update(logits)
        self.states.keep(batch, collected)
        self._nll[batch] = nll

    @torch.no_grad()
    def plain(self, batch: int) -> None:
        """The model's own forward on one micro-batch with all logits; caches nothing.

        Waits for the device: it is timed.
        """
        self.network.run(self.batches[batch], None)
        if self.network.device.type == "cuda":
            torch.cuda.synchronize(self.network.device)

    def plain_crossing(self, batch: int) -> Crossing:
        """Like `plain`, as a crossing that goes through the blocks together with others."""
        ids = self.batches[batch]
        lane = Lane(self.network, ids, -1, None, take=self.waiting)

        @torch.no_grad()
        def arrive() -> None:
            self.network.logits(ids, lane.reached(), slice(None))

        return Crossing(lane, arrive)

    def nll_sums(self) -> Tensor:
        """Summed NLL of each window, ``[windows]`` float64, once every micro-batch was run."""
        return torch.cat([self._nll[batch] for batch in range(len(self.batches))])

    def state(self, batch: int, k: int) -> Tensor:
        """The input of block ``k`` (``n_blocks``: the output of the last), cached or recomputed.

        Both are bitwise equal on a CPU. ``[windows, seq_len, hidden]``, read-only.

        Raises:
            ValueError: there is no such boundary; before the embedding there are only tokens.
            Preempted: a more urgent job waits.
        """
        return boundary_state(self, self.states, batch, k)

    @torch.no_grad()
    def measure(
        self,
        batch: int,
        start: int,
        weights: Mapping[str, Held],
        take: Callable[[Positions], None] | None = None,
    ) -> Tally:
        """Compare the network holding ``weights`` with the reference on one micro-batch.

        Args:
            batch: index of the micro-batch, run before.
            start: first block that ``weights`` change: ``-1`` for the embedding, the number of
                blocks for the head.
            weights: layers' weights by name, oriented as `Network.weight` gives them.
            take: see `tally`.

        Raises:
            Preempted: a more urgent job waits.
        """
        at = self.states.nearest(batch, start)
        state = self.states.read(batch, at)
        with self.network.holding(weights):
            last = self.network.final_state(self.batches[batch], at, state)
        return self.tally(batch, last, weights, take=take)

    def changed(
        self,
        batch: int,
        start: int,
        weights: dict[str, Held],
        take: Callable[[Tally], None],
    ) -> Crossing:
        """Like `measure`, as a crossing that goes through the blocks together with others.

        Args:
            weights: may be added until the lane reaches their blocks, and removed after them; those
                of the head stay.
            take: called with the result.
            batch, start: see `measure`.
        """
        at = self.states.nearest(batch, start)
        state = self.states.read(batch, at)
        lane = Lane(self.network, self.batches[batch], at, state, weights, self.waiting)
        return Crossing(lane, lambda: take(self.tally(batch, lane.reached(), weights)))

    def waiting(self, _k: int, state: Tensor) -> KeptTensor | None:
        """Keep the state of a lane that waits while others run, if blocks are streamed."""
        return self.memory.put(state) if self.network.streamed else None

    def tally(
        self,
        batch: int,
        last: Tensor,
        weights: Mapping[str, Held],
        other: Network | None = None,
        take: Callable[[Positions], None] | None = None,
    ) -> Tally:
        """Compare the logits of a final hidden state with the reference on one micro-batch.

        Args:
            batch: index of the micro-batch, run before.
            last: output of the last block of the network holding ``weights``.
            weights: all weights that it holds.
            other: the network whose state it is, if not this one: another checkpoint of the same
                model. Of a vocabulary that was padded or cut, the tokens of both are compared.
            take: called with what is found at every position, in some order.
        """
        network = self.network if other is None else other
        with torch.no_grad(), _head_of(self.network), _head_of(network):
            return self._tally(batch, last, weights, network, take)

    def _tally(
        self,
        batch: int,
        last: Tensor,
        weights: Mapping[str, Held],
        network: Network,
        take: Callable[[Positions], None] | None,
    ) -> Tally:
        ids = self.batches[batch]
        if network.head_resumable:  # no block runs again, so weights of blocks need not be held
            end = len(network.blocks)
            after = range(end, end + 1)
            weights = {n: w for n, w in weights.items() if network.layers[n].acts_in(after)}
        final: Tensor | None = None
        sums = torch.zeros(3, ids.shape[0], dtype=torch.float64, device=ids.device)
        for chunk, (a, b) in enumerate(self.chunks):
            stored = self._logits.get((batch, chunk))
            if stored is not None:
                reference = stored.read()
            else:
                final = self.state(batch, len(network.blocks)) if final is None else final
                reference = self.network.logits(ids, final, (a, b)).float()
            with network.holding(weights):
                changed = network.logits(ids, last, (a, b)).float()
            lse, first = self._lse[batch, chunk], self._first[batch, chunk]
            if changed.shape != reference.shape:
                reference, changed, lse = _of_both(reference, changed)
                first = reference.argmax(-1, keepdim=True)
            for rows, at in tiles(reference):
                each = at_positions(
                    reference[rows, at],
                    lse[rows, at],
                    changed[rows, at],
                    ids[rows, a + 1 : b + 1][:, at],
                    first[rows, at],
                )
                if take is not None:
                    take(replace(each, row=rows.start, first=a + at.start))
                found = each.sums()
                for total, part in zip(sums, (found.dnll, found.kl, found.agree), strict=True):
                    total[rows] += part
        return Tally(*sums.cpu())

    # -- caching the states of recipes ------------------------------------------------------------

    def new_states(self) -> BoundaryStates:
        """An empty cache for states of these windows, of any weights."""
        network = self.network
        states = BoundaryStates(
            self.memory,
            len(network.blocks),
            resumable=network.resumable,
            head_resumable=network.head_resumable,
        )
        states.first = network.blocks.outside
        return states

    def _new_states(self) -> BoundaryStates:
        states = self.new_states()
        states.required = self.network.streamed  # to make one again, blocks would be read again
        return states

    @torch.no_grad()
    def choose(self, room: int, *, logits: bool) -> CachePlan:
        """What to cache within ``room`` bytes, by the cost of reading a state or running a block.

        If not all of it fits, both are timed, once.

        Raises:
            Preempted: a more urgent job waits.
        """
        network, sizes = self.network, self.sizes
        needed = sizes.states(1) + (sizes.logits if logits else 0)
        if network.streamed:
            self.memory.use_all()
            return CachePlan(1, logits and needed <= room)
        if needed > room and self.memory.beyond is None and network.resumable:
            ids, blocks = self.batches[0], len(network.blocks)
            first: list[Tensor] = []
            network.visit(ids, -1, None, lambda _i, state: first.append(state), until=0)
            sample = first[0]
            on_gpu = network.device.type == "cuda"
            if on_gpu:
                torch.cuda.synchronize(network.device)
            begun = time.perf_counter()
            network.final_state(ids, blocks - 1, sample)
            if on_gpu:
                torch.cuda.synchronize(network.device)
            self.memory.weigh(sample, time.perf_counter() - begun)
        reading = self.memory.reading if self.memory.beyond else None
        return choose(sizes, room, reading, logits=logits)


def _head_of(network: Network) -> AbstractContextManager[None]:
    """The head at hand, for several positions."""
    return network.at_hand([len(network.blocks)])


def reference_of(loaded: Loaded) -> Reference:
    """The reference of a loaded model on its windows; created on first use."""

    def make() -> Reference:
        # If a budget is set, the other half is for calibration and estimates.
        budget = loaded.pressure.cached(loaded.beside() // 2)
        return Reference(loaded.network, loaded.windows, loaded.batch_tokens, budget)

    return loaded.part(Reference, make)


def _of_both(reference: Tensor, changed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the tokens that both have, and the log-sum-exp of the reference's."""
    width = min(reference.shape[-1], changed.shape[-1])
    reference, changed = reference[..., :width], changed[..., :width].contiguous()
    return reference, changed, torch.logsumexp(reference, -1)


def tiles(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Windows and positions to compare at once, of a chunk ``[windows, positions, …]``."""
    windows, positions, vocabulary = logits.shape
    count = windows * positions
    if logits.device.type == "cpu":
        count = max(1, TILE_BYTES // (4 * vocabulary))
    height, width = max(1, count // positions), min(count, positions)
    for top in range(0, windows, height):
        for left in range(0, positions, width):
            yield slice(top, top + height), slice(left, left + width)


def boundary_state(reference: Reference, states: BoundaryStates, batch: int, k: int) -> Tensor:
    """The state before block ``k`` from cached states; call it holding their weights.

    Raises:
        ValueError: there is no such boundary.
        Preempted: a more urgent job waits.
    """
    network = reference.network
    if not 0 <= k <= len(network.blocks):
        raise ValueError(f"there is no boundary {k} in {len(network.blocks)} blocks")
    at = states.nearest(batch, k)
    state = states.read(batch, at)
    if at == k and state is not None:
        return state
    reached: list[Tensor] = []

    def take(i: int, state: Tensor) -> None:
        if i == k:
            reached.append(state)

    network.visit(reference.batches[batch], at, state, take, until=k)
    return reached[0]
