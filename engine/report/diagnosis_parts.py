"""Verdict, findings and formats tried as parts of documents."""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec import UNSET, UnsetType

from engine.diagnosis.finding import Finding
from engine.diagnosis.findings import findings
from engine.diagnosis.fixes import best_fix, layer_fixes, verdict_of
from engine.diagnosis.serving import Serving
from engine.diagnosis.thresholds import thresholds
from engine.diagnosis.verdict import verdict
from engine.diagnosis.worst import worst_layers
from engine.formats.storage import can_hold
from engine.report import schema as s
from engine.report.entry import Template
from engine.report.figures import Context
from engine.report.figures.registry import json_figures
from engine.report.finding_parts import finding_part
from engine.report.json import finite
from engine.report.sweep_parts import of_fact
from engine.report.verdicts import sentence
from engine.session import Session, recipe_hash
from engine.session.artefact import OUTSIDE

LISTED = 10
"""Worst layers whose formats are listed."""


def verdict_part(
    session: Session, format: str, serving: Serving | None = None
) -> s.VerdictPart | UnsetType:
    """The verdict on a format; missing while an effect is not known.

    Args:
        session: with effects.
        format: canonical.
        serving: what the mix may have; None for what some serving kernel takes.
    """
    found = verdict(session, format, serving)
    if found is None:
        return UNSET
    mix: s.MixPart | UnsetType = UNSET
    if found.mix:
        mix = s.MixPart(
            kl=finite(found.mix_kl),
            ppl=finite(found.mix_ppl),
            bits_per_weight=finite(found.mix_bits),
            bytes=found.mix_bytes,
            layers={
                name: held
                for row, name in enumerate(session.layers.names)
                if session.layers.roles[row] not in OUTSIDE
                and (held := found.mix.get(name, session.kept(row))) != found.format
            },
        )
    return s.VerdictPart(
        format=found.format,
        kl=finite(found.kl),
        kl_se=finite(found.kl_se),
        ppl=finite(found.ppl),
        measured=found.measured,
        top5_share=finite(found.share),
        worst=list(found.worst),
        to=found.to or UNSET,
        unable=found.unable or UNSET,
        kernels=list(found.kernels),
        mix=mix,
        sentence=sentence(found),
    )


def finding_parts(session: Session, format: str) -> list[s.FindingPart]:
    """What stands out, the most severe first.

    Args:
        session: with weights and effects.
        format: canonical; whose effects are judged.
    """
    return [
        finding_part(each, UNSET if each.fix is None else _fix(session, each))
        for each in findings(session, format)
    ]


def _fix(session: Session, found: Finding) -> s.FixPart:
    fix = found.fix
    assert fix is not None
    return s.FixPart(
        format=fix.format or session.kept(session.index[found.layer]),
        kl=finite(fix.kl),
        kl_se=finite(fix.kl_se),
        measured=fix.measured,
        recovered=finite(fix.recovered),
        bits=finite(fix.bits),
    )


def diagnosed_layers(
    session: Session, format: str, recipe: Mapping[str, str], fixes: int = 0
) -> list[s.DiagnosedLayer]:
    """The worst layers in every format that was tried or is known, then the others of a recipe.

    Args:
        session: with effects.
        format: canonical; whose effects say which are the worst.
        recipe: whose errors of outputs were measured, by layer; empty if none were.
        fixes: on how many layers formats were tried: these are listed. 0 lists `LISTED`.
    """
    worst = worst_layers(session, format)
    worst = [name for name in worst if name in session.fixes][:fixes] if fixes else worst[:LISTED]
    listed = json_figures("diagnose", "row")
    of_output = json_figures("diagnose", "output")
    template = Template(s.DiagnosedLayer, [*(p for p, _ in (*listed, *of_output)), "fixes"])
    readers = [figure.read.bind(Context(session)) for _, figure in listed]
    hash = recipe_hash(recipe)
    found = []
    for name in dict.fromkeys((*worst, *sorted(recipe, key=session.index.__getitem__))):
        error = session.output_error(name, recipe.get(name, ""), hash)
        error = None if error is None or error.why else error
        values = [read(session.index[name]) for read in readers]
        tried = fix_parts(session, name, format) if name in worst else []
        found.append(template.fill([*values, *of_fact(of_output, error, session), tried]))
    return found


def tried_layers(session: Session, format: str) -> list[s.DiagnosedLayer]:
    """Layers on which other formats were tried, in the model's order.

    Args:
        session: with formats tried.
        format: canonical; to better. None are listed without one.
    """
    layers = session.layers
    return [
        s.DiagnosedLayer(name=name, fixes=fix_parts(session, name, format))
        for row, name in enumerate(layers.names)
        if format and name in session.fixes and can_hold(format, layers.shapes[row])
    ]


def fix_parts(session: Session, layer: str, format: str) -> list[s.TriedPart]:
    """One layer in every format that was tried or whose effect is known, the smallest first.

    Args:
        session: with effects, or formats tried.
        layer: a name.
        format: canonical; to better.
    """
    row = session.index[layer]
    weights = math.prod(session.layers.shapes[row])
    fixes = layer_fixes(session, layer, format)
    best = best_fix(fixes, format, thresholds(session).wins_back)

    def known(value: float) -> s.Number | UnsetType:
        return UNSET if math.isnan(value) else finite(value)

    return [
        s.TriedPart(
            format=fix.format or session.kept(row),
            weight_error=known(fix.weight_error),
            output_error=known(fix.output_error),
            kl_estimated=known(fix.kl_estimated),
            filled=fix.filled,
            kl_measured=known(fix.kl_measured),
            kl_se=known(fix.kl_se),
            recovered=known(fix.recovered),
            kl_per_megabyte=known(fix.per_megabyte),
            bits=fix.bits / weights,
            bytes=(fix.bits + 7) // 8,
            kernels=list(fix.kernels),
            verdict=verdict_of(fix, format, best),
            refused=fix.refused or UNSET,
        )
        for fix in fixes
    ]
