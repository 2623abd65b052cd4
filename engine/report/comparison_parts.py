"""Parts of the document of a comparison, made from a session."""

from __future__ import annotations

import math

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.diagnosis.of_artefacts import artefact_findings
from engine.diagnosis.thresholds import thresholds
from engine.report import schema as s
from engine.report.finding_parts import finding_part
from engine.report.json import finite
from engine.session import Compared, Session


def compared_parts(session: Session) -> list[s.ArtefactPart]:
    """Every finished checkpoint that was compared, the one with the least KL first."""
    return [artefact_part(session, each) for each in session.by_kl()]


def artefact_part(session: Session, compared: Compared) -> s.ArtefactPart:
    """A finished checkpoint, with its score where it has one.

    Args:
        session: in which it was compared.
        compared: what is known of it.
    """
    opened, score = compared.opened, compared.score
    names = session.layers.names if compared.layers else list(compared.stored)
    limits = thresholds(session)
    return s.ArtefactPart(
        path=opened.path,
        name=opened.name,
        fingerprint=opened.fingerprint,
        layout=opened.layout,
        declared=opened.declared,
        bits_per_weight=finite(opened.bits_per_weight),
        bits_all=finite(opened.bits_all),
        bytes=opened.bytes,
        nll=UNSET if score is None else finite(score.nll),
        ppl=UNSET if score is None else finite(score.ppl),
        ppl_ci95=UNSET if score is None else (finite(score.ppl_low), finite(score.ppl_high)),
        dnll=UNSET if score is None else finite(score.dnll),
        dnll_se=UNSET if score is None else finite(score.dnll_se),
        kl=UNSET if score is None else finite(score.kl),
        kl_se=UNSET if score is None else finite(score.kl_se),
        top1_agreement=UNSET if score is None else finite(score.top1),
        divergence=UNSET if compared.table is None else divergence_part(compared.table),
        layers=[
            _layer(compared, name) for name in names if name in (compared.layers or compared.stored)
        ],
        unmatched=list(opened.unmatched),
        findings=[finding_part(each) for each in artefact_findings(compared, limits)],
    )


def _layer(compared: Compared, name: str) -> s.ComparedLayer:
    alone = compared.stored.get(name)
    codes = UNSET if alone is None or alone.codes is None else _codes(alone.codes)
    fact, win = compared.layers.get(name), compared.restored.get(name)
    if fact is None:
        assert alone is not None
        return s.ComparedLayer(
            name=name,
            format=alone.holds,
            bits=finite(alone.bits),
            stored=codes,
            refused=alone.refused or UNSET,
        )
    error = fact.error
    return s.ComparedLayer(
        name=fact.layer,
        format=fact.holds,
        bits=finite(fact.bits),
        stored=codes,
        errors=s.ErrorPart(
            frobenius=finite(error.frobenius),
            relative=finite(error.relative),
            max_abs=finite(error.max_abs),
            mean_abs=finite(error.mean_abs),
            sqnr_db=finite(error.sqnr_db),
        ),
        rounding=fact.rounding,
        displaced=finite(fact.displaced),
        steps=finite(fact.steps),
        folded=finite(fact.folded),
        sensitivity=UNSET
        if win is None
        else s.RestoredPart(
            kl=finite(win.kl),
            kl_se=finite(win.kl_se),
            dnll=finite(win.dnll),
            dnll_se=finite(win.dnll_se),
        ),
        declared=fact.declared or UNSET,
        read_as=fact.read_as or UNSET,
        mistake=fact.mistake or UNSET,
        left=finite(fact.left) if fact.mistake else UNSET,
        rotated=fact.rotated or UNSET,
        clipping=_clipping(fact),
        divisor=UNSET if math.isnan(fact.divisor) else fact.divisor,
        refused=fact.refused or UNSET,
    )


def _clipping(fact: p.ArtefactLayer) -> s.ClippedPart | UnsetType:
    if math.isnan(fact.clipped):
        return UNSET
    return s.ClippedPart(
        share=fact.clipped,
        input_channel=fact.clipped_input,
        input_share=finite(fact.clipped_in_input),
        output_channel=fact.clipped_output,
        output_share=finite(fact.clipped_in_output),
    )


def divergence_part(table: p.DivergenceTable) -> s.DivergencePart:
    """The tables of llama.cpp, for a document."""
    return s.DivergencePart(
        tokens=table.tokens,
        ppl=finite(table.ppl),
        ppl_se=finite(table.ppl_se),
        ppl_base=finite(table.ppl_base),
        ppl_base_se=finite(table.ppl_base_se),
        correlation=finite(table.correlation),
        ln_ratio=finite(table.ln_ratio),
        ln_ratio_se=finite(table.ln_ratio_se),
        kld={name: finite(value) for name, value in table.kld.items()},
        delta_p={name: finite(value) for name, value in table.delta_p.items()},
        same_top=finite(table.same_top),
        same_top_se=finite(table.same_top_se),
    )


def _codes(codes: p.StoredCodes) -> s.StoredPart:
    zeros = codes.zero_min >= 0
    return s.StoredPart(
        layout=codes.layout,
        levels=codes.levels or UNSET,
        unused=codes.unused if codes.levels else UNSET,
        saturated=finite(codes.saturated) if codes.levels else UNSET,
        scales=codes.scales,
        scale_min=finite(codes.scale_min),
        scale_max=finite(codes.scale_max),
        bad_scales=codes.scales_zero + codes.scales_not_finite,
        zero_min=codes.zero_min if zeros else UNSET,
        zero_max=codes.zero_max if zeros else UNSET,
    )
