"""Verdict, findings and formats tried as parts of documents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.diagnosis.finding import Finding, Looked
from engine.diagnosis.findings import findings
from engine.diagnosis.thresholds import thresholds
from engine.diagnosis.verdict import verdict
from engine.formats.grammar import parse_format
from engine.formats.storage import stored_bits, why_not_held
from engine.report import schema as s
from engine.report.entry import Template
from engine.report.figures import Context
from engine.report.figures.registry import json_figures
from engine.report.json import finite
from engine.report.sweep_parts import of_fact
from engine.report.verdicts import sentence
from engine.session import Session, expected, recipe_hash
from engine.session.artefact import OUTSIDE

LISTED = 10
"""Worst layers whose formats are listed."""


def verdict_part(session: Session, format: str) -> s.VerdictPart | UnsetType:
    """The verdict on a format; missing while an effect is not known.

    Args:
        session: with effects.
        format: canonical.
    """
    found = verdict(session, format)
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
        s.FindingPart(
            id=each.id,
            severity=each.severity,
            layer=each.layer or UNSET,
            channels=list(each.channels) or UNSET,
            sentence=each.sentence,
            evidence={name: finite(value) for name, value in each.evidence.items()},
            fix=UNSET if each.fix is None else _fix(session, each),
        )
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
    session: Session, format: str, recipe: Mapping[str, str]
) -> list[s.DiagnosedLayer]:
    """The worst layers in every format whose effect is known, then the others of a recipe.

    Args:
        session: with effects.
        format: canonical; whose effects say which are the worst.
        recipe: whose errors of outputs were measured, by layer; empty if none were.
    """
    kl = Looked(session, format, thresholds(session)).kl
    known = [k.format for k in session.effects.known("degrade") if k.by == "layer"]
    formats = list(dict.fromkeys(known))
    worst = sorted(kl, key=lambda name: -kl[name])[:LISTED]
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
        tried = _tried(session, name, formats)
        found.append(template.fill([*values, *of_fact(of_output, error, session), tried]))
    return found


def _tried(session: Session, layer: str, formats: Sequence[str]) -> list[s.TriedPart]:
    row = session.index[layer]
    shape, weights = session.layers.shapes[row], session.layers.weights[row]
    found = []
    for format in formats:
        key = p.EffectKey("degrade", format)
        measured, estimate = session.sensitivity(row, key), expected(session, row, key)
        parsed = parse_format(format)
        if (measured is None and estimate is None) or why_not_held(parsed, shape) is not None:
            continue
        bits = stored_bits(parsed, shape)
        error = weights.errors.get(format) if weights is not None else None
        part = s.TriedPart(
            format=format,
            weight_error=UNSET if error is None else finite(error.relative),
            kl_estimated=UNSET if estimate is None else finite(estimate.kl),
            kl_measured=UNSET if measured is None else finite(measured.kl),
            bits=bits / math.prod(shape),
            bytes=(bits + 7) // 8,
        )
        found.append(part)
    return sorted(found, key=lambda part: part.bytes)
