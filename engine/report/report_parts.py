"""What a report has of its own: layers with their effects, recipes tried, the last plan."""

from __future__ import annotations

import math

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.diagnosis.advice import adviser, category
from engine.diagnosis.serving import Serving
from engine.report import schema as s
from engine.report.json import finite
from engine.report.plan_parts import point_part
from engine.session import Session, expected
from engine.session.tried import Line, layers_of, listed, made_of


def judged_format(session: Session, wanted: str = "") -> str:
    """The format that a report is about.

    Args:
        session: with effects, or none.
        wanted: canonical; if empty, or not known, the first known one of the settings' sweep
            formats, else the one with most known effects.

    Returns:
        Its canonical name; empty if no effect is known.
    """
    known = [key.format for key in session.effects.known("degrade") if key.by == "layer"]
    usual = [format for format in session.settings.sweep_formats if format in known]
    for format in (wanted, *usual):
        if format and format in known:
            return format
    return max(known, key=lambda format: _count(session, format)) if known else wanted


def _count(session: Session, format: str) -> int:
    key = p.EffectKey("degrade", format)
    columns = session.effects.measured.get(key), session.effects.estimated.get(key)
    return sum(sum(one is not None for one in column) for column in columns if column)


def report_layers(
    session: Session, judged: str = "", serving: Serving | None = None
) -> list[s.ReportLayer]:
    """Every layer, in the model's order, with advice by the effects of the format judged."""
    layers = session.layers
    keys = [key for key in session.effects.known("degrade") if key.by == "layer"]
    formats = list(dict.fromkeys(key.format for key in keys))
    found = []
    for row, name in enumerate(layers.names):
        weights, held = layers.weights[row], layers.holds[row]
        stored = session.bits_in(row, "" if held == session.kept(row) else held)
        found.append(
            s.ReportLayer(
                name=name,
                kind=layers.kinds[row],
                block=layers.blocks[row] if layers.blocks[row] >= 0 else None,
                role=layers.roles[row],
                shape=list(layers.shapes[row]),
                dtype=layers.dtypes[row],
                holds=session.shown(row),
                bits=finite(stored / max(1, math.prod(layers.shapes[row]))),
                bytes=-(-stored // 8),
                errors={}
                if weights is None
                else {format: finite(e.relative) for format, e in weights.errors.items()},
                outliers=UNSET if weights is None else finite(weights.outliers.fraction),
                effects={
                    format: effect
                    for format in formats
                    if (effect := _effect(session, row, format)) is not None
                },
                category=category(session, row),
                advice=_advice(session, row, judged, serving),
            )
        )
    return found


def _advice(
    session: Session, row: int, format: str, serving: Serving | None
) -> s.AdvicePart | UnsetType:
    found = adviser(session, format, serving).advice(row) if format else None
    if found is None:
        return UNSET
    held = found.format or session.kept(row)
    return s.AdvicePart(format=held, bits=finite(found.bits), share=finite(found.share))


def _effect(session: Session, row: int, format: str) -> s.ReportEffect | None:
    key = p.EffectKey("degrade", format)
    measured = session.sensitivity(row, key)
    known = measured or expected(session, row, key)
    if known is None:
        return None
    base = session.baseline
    change = UNSET if base is None else finite(base.ppl * math.expm1(known.dnll))
    return s.ReportEffect(
        kl=finite(known.kl),
        kl_se=finite(known.kl_se) if math.isfinite(known.kl_se) else UNSET,
        dppl=change,
        measured=measured is not None,
    )


def report_recipe(session: Session) -> s.ReportRecipe:
    """The current recipe, and its size."""
    size, stored = session.size(), session.size_of({})
    score = session.score()
    return s.ReportRecipe(
        changed=len(session.changed),
        bits_per_weight=finite(size.bits_per_weight),
        bits_all=finite(size.bits_all),
        bytes=size.bytes,
        stored_bytes=stored.bytes,
        measured=scored(score),
        layers=dict(session.changed),
    )


def scored(score: p.RecipeScore | None) -> s.ScoredPart | UnsetType:
    """A measured score; one that is still being measured is none."""
    if score is None or not score.done:
        return UNSET
    return s.ScoredPart(
        ppl=finite(score.ppl),
        ppl_ci95=(finite(score.ppl_low), finite(score.ppl_high)),
        kl=finite(score.kl),
        kl_se=finite(score.kl_se),
        top1_agreement=finite(score.top1),
    )


def tried_parts(session: Session) -> list[s.TriedRecipe]:
    """Recipes that were measured or named, the smallest first."""
    found = [_tried(session, line) for line in listed(session) if line.number]
    return sorted(found, key=lambda each: each.bytes)


def _tried(session: Session, line: Line) -> s.TriedRecipe:
    size = session.size_of(layers_of(session, line.number))
    return s.TriedRecipe(
        name=line.name or made_of(session, line.number) or "as stored",
        changed=line.changed,
        bits_per_weight=finite(size.bits_per_weight),
        bytes=size.bytes,
        measured=scored(line.score),
        current=line.current,
        frontier=line.frontier,
    )


def plan_part(session: Session) -> s.ReportPlan | UnsetType:
    """The last plan that ended."""
    for job in reversed(session.jobs.values()):
        if job.kind == "plan" and job.status == "done" and job.result:
            planned = job.read(p.Planned)
            return s.ReportPlan(
                budget={name: finite(value) for name, value in planned.budget.given.items()},
                frontier=[point_part(each) for each in planned.frontier],
                baselines={name: point_part(each) for name, each in planned.baselines.items()},
            )
    return UNSET
