"""Loops over blocks, as jobs run them: all that is alive in a block while the block is at hand.

Windows, recipes and layers changed alone are lanes of one loop. Where blocks are resident a loop is
one stretch, and each lane one forward; where they are read, a block is read once for all lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple

from engine.measure.counts import JobCounts
from engine.measure.preemption import again
from engine.model.lanes import Lane
from engine.model.network import Network

Prepare = Callable[[range], Generator[Any, None, None]]
"""Is given the blocks of a stretch while they are at hand, before the lanes go through."""


class Crossing(NamedTuple):
    """A micro-batch that is to go through all blocks, and what comes afterwards."""

    lane: Lane
    arrive: Callable[[], None]
    """Head and comparison, once the lane is at the end; called again if it raises Preempted."""


def through_blocks(
    network: Network,
    lanes: Sequence[Lane],
    until: int,
    counts: JobCounts,
    timing: str,
    prepare: Prepare | None = None,
) -> Generator[Any, None, None]:
    """Take lanes to boundary ``until``, all of them through one stretch of blocks after the other.

    Args:
        network: at rest between two steps; the blocks at hand stay so over a yield.
        lanes: of this network.
        until: a boundary; lanes that are beyond stay where they are.
        counts: counts the seconds.
        timing: the name they are counted under.
        prepare: what is done with a stretch first, such as quantising its layers.
    """
    start = min((lane.at for lane in lanes), default=until)
    for stretch in network.stretches(start, until):
        with network.at_hand(stretch):
            if prepare is not None:
                yield from prepare(stretch)
            for lane in lanes:
                if lane.at < stretch.stop:
                    step = counts.timed(timing, partial(lane.advance, stretch.stop))
                    yield from again(step)
                    yield None


def cross(
    network: Network,
    crossings: Sequence[Crossing],
    counts: JobCounts,
    timing: str = "measure_s",
    prepare: Prepare | None = None,
) -> Generator[Any, None, None]:
    """Take micro-batches through all blocks, and do what comes afterwards; see `through_blocks`.

    Where nothing has to be run (all lanes are at the end), ``prepare`` is not called.
    """
    lanes = [crossing.lane for crossing in crossings]
    yield from through_blocks(network, lanes, len(network.blocks), counts, timing, prepare)
    for crossing in crossings:
        yield from again(counts.timed(timing, crossing.arrive))
        yield None
