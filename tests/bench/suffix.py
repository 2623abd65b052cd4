"""What the part of a model from a block on costs, timed by itself."""

from __future__ import annotations

import time

import torch

from engine.measure.evaluation.divergence import compare
from engine.measure.evaluation.reference import Reference, tiles


@torch.no_grad()
def suffix_cost(reference: Reference, start: int, batch: int = 0) -> tuple[float, float]:
    """The blocks from ``start`` on, the head, and the comparison, on one micro-batch.

    The arithmetic alone: the states it begins with and the reference's logits are there before,
    nothing is held in place of a weight, nothing is kept.

    Args:
        reference: whose micro-batches and chunks are used.
        start: `Layer.start` of what is changed: ``-1`` for all, the number of blocks for the head.
        batch: index of the micro-batch.

    Returns:
        Seconds by the clock, and of all processors that this process took: on a machine with other
        work the second tells more.
    """
    network, ids = reference.network, reference.batches[batch]
    blocks = len(network.blocks)
    state = reference.state(batch, start) if start >= 0 else None
    final = reference.state(batch, blocks)
    known = [network.logits(ids, final, chunk).float() for chunk in reference.chunks]
    lse = [torch.logsumexp(z, -1) for z in known]
    first = [z.argmax(-1, keepdim=True) for z in known]
    _wait(reference)
    begun, processor = time.perf_counter(), time.process_time()
    last = network.final_state(ids, start, state)
    for i, (a, b) in enumerate(reference.chunks):
        changed = network.logits(ids, last, (a, b)).float()
        for rows, at in tiles(changed):
            targets = ids[rows, a + 1 : b + 1][:, at]
            compare(
                known[i][rows, at], lse[i][rows, at], changed[rows, at], targets, first[i][rows, at]
            )
    _wait(reference)
    return time.perf_counter() - begun, time.process_time() - processor


def _wait(reference: Reference) -> None:
    if reference.network.device.type == "cuda":
        torch.cuda.synchronize(reference.network.device)
