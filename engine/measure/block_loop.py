"""Loops over blocks for jobs: everything that needs a block runs while the block is in memory.

Windows, recipes and layers changed alone are lanes of one loop. With resident blocks the loop is
one stretch, and each lane one forward; with streamed blocks, a block is read once for all lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple

from engine import protocol as p
from engine.measure.counts import JobCounts
from engine.measure.preemption import repeated
from engine.model.lanes import Lane
from engine.model.network import Network

Prepare = Callable[[range], Generator[Any, None, None]]
"""Called with the blocks of a stretch while they are in memory, before the lanes run them."""


class Crossing(NamedTuple):
    """A micro-batch to run through all blocks, and what to do at the end."""

    lane: Lane
    arrive: Callable[[], None]
    """Runs head and comparison once the lane is at the end; called again after `Preempted`."""


def through_blocks(
    network: Network,
    lanes: Sequence[Lane],
    until: int,
    counts: JobCounts,
    timing: str,
    prepare: Prepare | None = None,
    phase: p.Phase = "",
    then: float = 0.0,
) -> Generator[Any, None, None]:
    """Advance lanes to boundary ``until``, all of them through one stretch of blocks at a time.

    Args:
        network: at rest between two steps; blocks in memory stay there over a yield.
        lanes: of this network.
        until: a boundary; lanes beyond it stay where they are.
        counts: accumulates the seconds.
        timing: the name they are counted under.
        prepare: called with each stretch first, for example to quantise its layers.
        phase: where blocks are streamed, what progress calls the pass; none if empty.
        then: blocks that the job takes as long as afterwards, for the time left.
    """
    start = min((lane.at for lane in lanes), default=until)
    stretches = network.stretches(start, until)
    stage = counts.stage(phase, len(stretches), then) if phase and network.streamed else None
    for done, stretch in enumerate(stretches):
        if stage is not None:
            yield stage.step(done, detail=reading(stretch, len(network.blocks)))
        with network.at_hand(stretch):
            if prepare is not None:
                yield from prepare(stretch)
            for lane in lanes:
                if lane.at < stretch.stop:
                    step = counts.timed(timing, partial(lane.advance, stretch.stop))
                    yield from repeated(step)
                    yield None


def reading(stretch: range, blocks: int) -> str:
    """What is read for a stretch, for progress."""
    return f"reading block {stretch.stop} of {blocks}" if stretch.stop else "reading the embedding"


def with_head(stretch: range, blocks: int) -> range:
    """The regions whose weights are needed for a stretch: its blocks, and the head after the last.

    Args:
        stretch: of blocks; -1 is what lies before them.
        blocks: how many the model has.
    """
    return range(stretch.start, stretch.stop + (stretch.stop == blocks))


def cross(
    network: Network,
    crossings: Sequence[Crossing],
    counts: JobCounts,
    timing: str = "measure_s",
    prepare: Prepare | None = None,
    phase: p.Phase = "",
    then: float = 0.0,
) -> Generator[Any, None, None]:
    """Run micro-batches through all blocks, and what follows; see `through_blocks`.

    If nothing needs to run (all lanes are at the end), ``prepare`` is not called.
    """
    lanes = [crossing.lane for crossing in crossings]
    end = len(network.blocks)
    yield from through_blocks(network, lanes, end, counts, timing, prepare, phase, then)
    with network.at_hand([end]):  # the head, for all of them
        for crossing in crossings:
            yield from repeated(counts.timed(timing, crossing.arrive))
            yield None
