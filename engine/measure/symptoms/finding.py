"""Everything that is asked of a recipe's symptoms, one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.formats.grammar import parse_format
from engine.measure.counts import JobCounts
from engine.measure.symptoms.divergence import measure_divergence
from engine.measure.symptoms.symptoms import find_symptoms
from engine.measure.symptoms.weights import recipe_weights
from engine.measure.tasks.tasks import score_tasks
from engine.service.jobs import Outcome, Steps
from engine.session import recipe_hash
from engine.workspace import Loaded


def find_all(loaded: Loaded, command: p.FindSymptoms, layers: Mapping[str, str], job: str) -> Steps:
    """Continue prompts and answer tasks, where there are any, by the reference and by a recipe.

    Args:
        loaded: the model.
        command: names prompts and tasks.
        layers: the recipe: formats by name of the layers that are not kept.
        job: id, for progress.

    Yields:
        See `find_symptoms` and `score_tasks`.

    Raises:
        UsageError: no layer is changed; see `find_symptoms` and `score_tasks` for the rest.
    """
    if not layers:
        raise UsageError("every layer is as stored: give some layer a format first")
    if unknown := [name for name in layers if name not in loaded.network.layers]:
        raise UsageError(f"the model has no layer {unknown[0]!r}")
    formats = {name: parse_format(text) for name, text in sorted(layers.items())}
    recipe = recipe_hash({name: str(format) for name, format in formats.items()})
    found = p.Symptoms(recipe, ())
    outcomes: list[Outcome] = []
    if command.prompts or command.file:
        outcomes.append((yield from find_symptoms(loaded, command, layers, job)))
        assert isinstance(outcomes[-1].result, p.Symptoms)
        found = outcomes[-1].result
    if command.tasks:
        counts = JobCounts(timings={"load_s": loaded.load_s}, job=job)
        tasks = yield from score_tasks(
            loaded, command.tasks, formats, lambda: recipe_weights(loaded, formats, counts), counts
        )
        outcomes.append(counts.outcome())
        found = msgspec.structs.replace(found, tasks=tuple(tasks))
    if command.divergence:
        counts = JobCounts(timings={"load_s": loaded.load_s}, job=job)
        table = yield from measure_divergence(
            loaded, formats, lambda: recipe_weights(loaded, formats, counts), counts
        )
        outcomes.append(counts.outcome())
        found = msgspec.structs.replace(found, divergence=table)
    return Outcome(
        sum(each.measured for each in outcomes),
        sum(each.resumed for each in outcomes),
        _together([each.timings for each in outcomes]),
        found,
    )


def _together(timings: list[dict[str, float]]) -> dict[str, float]:
    """Sums by name; the model was loaded once."""
    found: dict[str, float] = {}
    for each in timings:
        for name, seconds in each.items():
            found[name] = seconds + (0.0 if name == "load_s" else found.get(name, 0.0))
    return found
