"""Parts of the document on symptoms that are about tasks."""

from __future__ import annotations

from typing import Any

import msgspec

from engine import protocol as p
from engine.diagnosis.proportions import mcnemar, paired_difference, wilson
from engine.report import schema as s
from engine.report.json import finite


def task_part(result: p.TaskResult) -> s.TaskPart:
    """A task that reference and recipe answered, with intervals."""
    first, *others = result.metrics
    return s.TaskPart(
        name=result.name,
        items=first.items,
        changed=result.changed,
        other_metrics=[s.TaskMetric(**_metric(each)) for each in others],
        changed_items=[s.TaskItem(**msgspec.structs.asdict(each)) for each in result.items],
        **_metric(first),
    )


def _metric(found: p.Agreeing) -> dict[str, Any]:
    """The fields of a `TaskMetric`."""
    items = found.items
    reference, recipe = found.both + found.lost, found.both + found.gained
    difference, low, high = paired_difference(found.both, found.lost, found.gained, found.neither)
    return {
        "metric": found.metric,
        "accuracy_reference": finite(reference / items),
        "accuracy_reference_ci95": wilson(reference, items),
        "accuracy": finite(recipe / items),
        "accuracy_ci95": wilson(recipe, items),
        "difference": finite(difference),
        "difference_ci95": (low, high),
        "flips": found.flips,
        "flips_ci95": wilson(found.flips, items),
        "lost": found.lost,
        "gained": found.gained,
        "chance": mcnemar(found.lost, found.gained),
    }
