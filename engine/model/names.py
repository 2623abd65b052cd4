"""Maps the model's tensor names to the names on disk.

transformers renames and fuses tensors when it loads them, by a table (`conversion_of`); the order
of the steps here is that of
``transformers.core_model_loading.convert_and_load_state_dict_in_model``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine.errors import CheckpointError
from engine.model.transformers_internals import conversion_of, in_loading_order, renamed


def join_names(model: Any, on_disk: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For every ``state_dict`` key the disk names it is made from."""
    conversion = conversion_of(model)
    inside = conversion.inside
    made_from: dict[str, list[tuple[int, str]]] = {}
    for name in in_loading_order(on_disk):
        key, source = renamed(conversion, name)
        if key not in inside and name in inside:
            key, source = renamed(conversion, name, converted=False)
        place, targets = 0, [key]
        if source is not None:
            step = conversion.by_source[source]
            place = step.source_patterns.index(source)
            first = step.target_patterns[0]
            targets = [key.replace(first, other) for other in step.target_patterns]
        for target in targets:
            if target in inside:
                made_from.setdefault(target, []).append((place, name))
    return {key: _by_expert(parts) for key, parts in made_from.items()}


def converted_weights(model: Any, on_disk: Iterable[str]) -> frozenset[str]:
    """The weights on disk that are merged, split or turned, not only renamed."""
    conversion = conversion_of(model)
    weights = {
        source
        for source, step in conversion.by_source.items()
        if all(each.endswith(".weight") for each in step.source_patterns)
    }
    if not weights:
        return frozenset()
    return frozenset(name for name in on_disk if renamed(conversion, name)[1] in weights)


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
