"""Errors of a model that cannot be run block by block: outputs and drift, by whole forwards."""

from __future__ import annotations

import torch
from torch import Tensor

from engine import protocol as p
from engine.measure.calibration.approximate import recipe_inputs
from engine.measure.calibration.block_inputs import Events
from engine.measure.errors.drift import apart
from engine.measure.errors.run import Run
from engine.measure.errors.weights_in_use import WeightsInUse
from engine.measure.evaluation.beside import compact_weights
from engine.measure.evaluation.reference import reference_of
from engine.measure.preemption import repeated
from engine.model.inputs import watch_all


def whole_forwards(run: Run) -> Events[p.Drift]:
    """Three forwards a micro-batch: the reference, the recipe, and one that watches all layers.

    A block of such a model depends on more than its input, so what it adds is not separated from
    what it is given.
    """
    network, loaded, counts = run.network, run.loaded, run.counts
    weights = WeightsInUse(loaded, run.formats, counts)
    weights.states = yield from recipe_inputs(loaded, run.formats)
    what = "every layer of the recipe, beside the model,"
    compact = compact_weights(reference_of(loaded), run.formats, what)
    end = len(network.blocks)
    for region in range(-1, end + 1):
        yield from weights.settle(region, compact=compact)
    names = [name for region in range(-1, end + 1) for name in run.outputs.watched(region)]
    stage = counts.stage("measuring", len(run.batches))
    for batch, ids in enumerate(run.batches):
        yield stage.step(batch)

        def drifts(ids: Tensor = ids) -> list[Tensor]:
            reference: dict[int, Tensor] = {}
            found: list[Tensor] = []
            network.visit(ids, -1, None, reference.__setitem__)

            def compare(k: int, state: Tensor) -> None:
                found.append(apart(state, reference.pop(k)))

            with network.holding(weights.held):
                network.visit(ids, -1, None, compare)
            return found

        def outputs(ids: Tensor = ids) -> None:
            found = run.outputs.empty(names)
            take = found.taking(weights.held)
            watch_all(network, ids, lambda *one: take(*one) if one[0] in names else None, _ignore)
            run.outputs.merge(found)

        with torch.no_grad():
            first, *others = yield from repeated(counts.timed("errors_s", drifts))
        yield None
        run.embedding.add(first)
        for sums, values in zip(run.blocks, others, strict=True):
            sums.drift.add(values)
        yield from repeated(counts.timed("errors_s", outputs))
        yield None
    yield from run.outputs.passed(end, counts)
    yield from run.outputs.refused(counts)
    kind = type(network.model).__name__
    return run.drift(f"{kind} cannot be run block by block: {network.why_not_resumable}")


def _ignore(_layer: str, _output: Tensor) -> None:
    pass
