"""All weights of a recipe at once: a token goes through every block."""

from __future__ import annotations

from collections.abc import Mapping

from engine.formats.grammar import Format
from engine.measure.calibration.approximate import recipe_inputs
from engine.measure.calibration.block_inputs import Events
from engine.measure.counts import JobCounts
from engine.measure.errors.weights_in_use import WeightsInUse
from engine.measure.evaluation.beside import compact_weights
from engine.measure.evaluation.reference import reference_of
from engine.measure.whole_model import refuse_streamed
from engine.model.network import Held
from engine.workspace import Loaded


class RecipeWeights:
    """The weights of the recipe that was used last; a part of the model."""

    def __init__(self) -> None:
        self.formats: dict[str, str] = {}
        self.held: dict[str, Held] = {}


def recipe_weights(
    loaded: Loaded, formats: Mapping[str, Format], counts: JobCounts
) -> Events[dict[str, Held]]:
    """What each layer of a recipe computes with, as an evaluation of the recipe has it.

    Raises:
        UsageError: the model's blocks are read from disk while it runs.
        OutOfMemoryError: the weights do not fit beside the model.
    """
    network = loaded.network
    refuse_streamed(
        network, "tasks and tables of divergence", "once for every few texts",
        "score the recipe with qtui eval",
    )  # fmt: skip
    kept = loaded.part(RecipeWeights, RecipeWeights)
    named = {name: str(format) for name, format in formats.items()}
    if kept.formats == named:
        return kept.held
    kept.formats, kept.held = {}, {}
    what = "every layer of the recipe, beside the model,"
    compact = compact_weights(reference_of(loaded), formats, what)
    weights = WeightsInUse(loaded, formats, counts)
    weights.states = yield from recipe_inputs(loaded, formats)
    stage = counts.stage("quantising", len(formats))
    for region in range(-1, len(network.blocks) + 1):
        yield stage.step(len(weights.held))
        yield from weights.settle(region, compact=compact)
    kept.formats, kept.held = named, weights.held
    return kept.held
