"""The model's own tensor names joined to the names on disk.

transformers renames and fuses tensors when it loads them; the table it does this by is
``get_model_conversion_mapping``, and the order of the steps here is that of
``transformers.core_model_loading.convert_and_load_state_dict_in_model``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine.errors import CheckpointError


def join_names(model: Any, on_disk: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For every ``state_dict`` key the disk names it is made from."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    inside = model.state_dict()
    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    by_source = {source: step for step in converters for source in step.source_patterns}
    made_from: dict[str, list[tuple[int, str]]] = {}
    for name in sorted(on_disk, key=dot_natural_key):
        key, source = rename_source_key(
            name, renamings, converters, model.base_model_prefix, inside
        )
        if key not in inside and name in inside:
            key, source = rename_source_key(name, [], [], model.base_model_prefix, inside)
        place, targets = 0, [key]
        if source is not None:
            step = by_source[source]
            place = step.source_patterns.index(source)
            first = step.target_patterns[0]
            targets = [key.replace(first, other) for other in step.target_patterns]
        for target in targets:
            if target in inside:
                made_from.setdefault(target, []).append((place, name))
    return {key: _by_expert(parts) for key, parts in made_from.items()}


def _by_expert(parts: list[tuple[int, str]]) -> tuple[str, ...]:
    """Sources of one fusion, expert by expert, gate before up."""
    seen: dict[int, int] = {}
    placed = []
    for place, name in parts:
        seen[place] = seen.get(place, -1) + 1
        placed.append((seen[place], place, name))
    return tuple(name for _expert, _place, name in sorted(placed))


def check_covered(
    model: Any, made_from: dict[str, tuple[str, ...]], excused: Iterable[str]
) -> None:
    """Raises CheckpointError when a tensor of the model has no known source on disk.

    Args:
        excused: keys that are tied to others, or that the model computes for itself.
    """
    uncovered = sorted(set(model.state_dict()) - set(made_from) - set(excused))
    if uncovered:
        raise CheckpointError(
            f"{uncovered[0]} ({len(uncovered)} such tensors) was loaded from a disk name that "
            "cannot be traced; please report this architecture: "
            f"{type(model).__name__}"
        )
