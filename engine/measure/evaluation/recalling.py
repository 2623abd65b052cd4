"""Scores of recipes that a session has held before, from the store: nothing is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine import protocol as p
from engine.errors import EngineError
from engine.formats.grammar import parse_format
from engine.measure.counts import JobCounts
from engine.measure.evaluation.evaluate import score_key, sized
from engine.service.jobs import Steps
from engine.workspace import Loaded


def recall(loaded: Loaded, recipes: Iterable[Mapping[str, str]], job: str) -> Steps:
    """Find the scores of recipes, as far as they were measured on this text in this way.

    Args:
        loaded: the model.
        recipes: formats by name of the layers that are not kept.
        job: id of the job.

    Yields:
        `Learned` with `RecipeScore`.
    """
    counts = JobCounts(job=job)
    for layers in recipes:
        try:
            formats = {name: parse_format(text) for name, text in layers.items()}
            if not formats.keys() <= loaded.network.layers.keys():
                continue
            key = yield from score_key(loaded, formats)
        except EngineError:
            # Its calibration text is gone, or a plugin with its format: it is not this score.
            continue
        if isinstance(known := loaded.known([key]).get(key), p.RecipeScore):
            yield from counts.found([key], [sized(loaded, known)])
        yield None
    return counts.outcome()
