"""llama.cpp's tables of a recipe: KL divergence and Δp at every position of the windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine import protocol as p
from engine.formats.grammar import Format
from engine.measure.calibration.block_inputs import Events
from engine.measure.calibration.calibration import calibration_key, with_scales
from engine.measure.counts import JobCounts
from engine.measure.evaluation.divergence import Positions
from engine.measure.evaluation.divergence_table import divergence_table
from engine.measure.evaluation.evaluate import run_reference
from engine.measure.evaluation.reference import Reference, reference_of
from engine.measure.preemption import repeated
from engine.model.network import Held
from engine.session import recipe_hash
from engine.store import keys
from engine.workspace import Loaded


def measure_divergence(
    loaded: Loaded,
    formats: Mapping[str, Format],
    weights: Callable[[], Events[Mapping[str, Held]]],
    counts: JobCounts,
) -> Events[p.DivergenceTable]:
    """Compare a recipe with the reference at every position of the evaluation windows.

    Args:
        loaded: the model.
        formats: the recipe; layers that are not named are kept.
        weights: makes its weights.
        counts: of the job.

    Yields:
        `Learned` with a `RecipeTable`, `Progress`.

    Raises:
        OutOfMemoryError: the weights do not fit beside the model.
    """
    recipe = {name: str(format) for name, format in sorted(formats.items())}
    calibration = yield from calibration_key(loaded, formats.values(), "sequential")
    address = keys.RecipeTable(
        on=loaded.evaluation,
        recipe=recipe,
        scale_dtype=loaded.scale_dtype,
        calibration=with_scales(loaded, calibration, formats),
    ).address
    known = loaded.known([address]).get(address)
    if isinstance(known, p.RecipeTable):
        yield from counts.found([address], [known])
        return known.table
    held = yield from weights()
    reference = reference_of(loaded)
    found: list[Positions] = []
    stage = counts.stage("comparing", len(reference.batches))
    for batch in range(len(reference.batches)):
        yield stage.step(batch)
        yield from run_reference(reference, batch, counts)
        step = counts.timed("measure_s", lambda batch=batch: _positions(reference, batch, held))  # type: ignore[misc]
        found += yield from repeated(step)
        yield None
    fact = p.RecipeTable(recipe_hash(recipe), divergence_table(found))
    yield counts.learnt(address, fact)
    return fact.table


def _positions(reference: Reference, batch: int, held: Mapping[str, Held]) -> list[Positions]:
    """Both models at every counted position of one micro-batch, in some order.

    Raises:
        Preempted: a more urgent job waits.
    """
    found: list[Positions] = []
    network = reference.network
    with network.holding(held):
        last = network.final_state(reference.batches[batch], -1, None)
    reference.tally(batch, last, held, take=found.append)
    return found
