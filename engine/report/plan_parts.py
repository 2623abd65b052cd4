"""A plan as parts of its document."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.diagnosis.serving import kernels_of
from engine.report import schema as s
from engine.report.json import finite
from engine.session import Session


def plan_parts(session: Session, planned: p.Planned) -> dict[str, Any]:
    """The fields of a document that are the plan's own.

    Args:
        session: whose layers they are.
        planned: what was found.
    """
    point = planned.point
    layers = session.layers
    kernels, unserved = kernels_of(session, planned.recipe)
    return {
        "budget": dict(planned.budget.given),
        "bits_per_weight": finite(point.bits_per_weight),
        "bytes": point.bytes,
        "predicted": s.PredictedPart(kl=finite(point.kl), kl_se=finite(planned.kl_se)),
        "measured": _score(point.score),
        "bound": (
            s.BoundPart(kl=finite(planned.bound))
            if planned.budget.kl is None
            else s.BoundPart(bytes=finite(planned.bound))
        ),
        "forwards": finite(planned.forwards),
        "layers": {
            name: planned.recipe.get(name, session.kept(row))
            for row, name in enumerate(layers.names)
        },
        "kernels": list(kernels),
        "unserved": unserved or UNSET,
        "units": [
            s.UnitPart(
                name=unit.layers[0],
                layers=list(unit.layers),
                format=unit.format or session.kept(session.index[unit.layers[0]]),
            )
            for unit in planned.units
        ],
        "frontier": [point_part(each) for each in planned.frontier],
        "baselines": {name: point_part(each) for name, each in planned.baselines.items()},
        "recovered": finite(planned.recovered),
    }


def point_part(point: p.Point) -> s.PointPart:
    """A recipe by its size and KL."""
    return s.PointPart(
        bits=finite(point.bits_per_weight),
        bytes=point.bytes,
        kl=finite(point.kl),
        measured=_score(point.score),
    )


def _score(score: p.RecipeScore | None) -> s.ScorePart | UnsetType:
    if score is None:
        return UNSET
    return s.ScorePart(kl=finite(score.kl), kl_se=finite(score.kl_se), ppl=finite(score.ppl))
