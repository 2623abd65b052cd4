"""Errors of a recipe inside the model as parts of documents."""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec import UNSET, UnsetType

from engine.report import schema as s
from engine.report.json import finite
from engine.session import Session, recipe_hash


def errors_part(session: Session, recipe: Mapping[str, str]) -> s.ErrorsPart | UnsetType:
    """What the figures are of; missing if they were not measured.

    Args:
        session: with the errors.
        recipe: formats by layer.
    """
    hash = recipe_hash(recipe)
    drift = session.errors.drifts.get(hash)
    if drift is None:
        return UNSET
    errors = {name: session.output_error(name, held, hash) for name, held in recipe.items()}
    reasons = {name: error.why for name, error in errors.items() if error and error.why}
    return s.ErrorsPart(
        recipe=dict(recipe),
        tokens=drift.tokens,
        embedding=finite(drift.embedding),
        attention_windows=drift.attention_windows or UNSET,
        attention_tokens=drift.attention_tokens or UNSET,
        no_attention=drift.no_attention or UNSET,
        not_split=drift.not_split or UNSET,
        not_measured=reasons or UNSET,
    )


def drift_parts(session: Session, recipe: Mapping[str, str]) -> list[s.DriftPart] | UnsetType:
    """Every block of a recipe; missing if it was not measured.

    Args:
        session: with the errors.
        recipe: formats by layer.
    """
    drift = session.errors.drifts.get(recipe_hash(recipe))
    if drift is None:
        return UNSET
    return [
        s.DriftPart(
            block=each.block,
            drift=finite(each.drift),
            injected=_known(each.injected),
            propagated=_known(each.propagated),
            control=_known(each.control),
            attention=[finite(kl) for kl in each.attention] or UNSET,
        )
        for each in drift.blocks
    ]


def _known(value: float) -> s.Number | UnsetType:
    return UNSET if math.isnan(value) else finite(value)
