"""Parts of the document of calibration sets, made from a session."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.diagnosis.of_calibration import (
    Against,
    above_best,
    above_more,
    above_rival,
    best_sets,
    calibration_findings,
)
from engine.report import schema as s
from engine.report.finding_parts import finding_part
from engine.report.json import finite
from engine.session import Session


def set_parts(
    session: Session, method: str, sets: Sequence[str], texts: Sequence[str]
) -> list[s.CalibrationSetPart]:
    """Every set with every number of samples, as far as anything is known of it.

    Args:
        session: in which they were compared.
        method: canonical.
        sets: names, in order.
        texts: names, in order.
    """
    best = {text: {each.key for each in best_sets(session, method, text)} for text in texts}
    known = {
        (key.set, key.seq_len, key.samples)
        for key in session.calibrating.checks
        if key.text in texts
    }
    found: list[s.CalibrationSetPart] = []
    for name in sets:
        for of, seq_len, samples in sorted(known):
            if of == name:
                found += _part(session, method, (name, seq_len, samples), texts, best)
    return found


def compared_sets(session: Session) -> list[s.CalibrationSetsPart]:
    """Calibration sets that were compared, by method."""
    known = session.calibrating
    found = []
    for method in dict.fromkeys(key.method for key in known.scores):
        of = [key for key in known.scores if key.method == method]
        sets = list(dict.fromkeys(key.set for key in of))
        texts = list(dict.fromkeys(key.text for key in of))
        parts = [
            part
            for part in set_parts(session, method, sets, texts)
            if any(not isinstance(each.kl, UnsetType) for each in part.texts)
        ]
        found.append(s.CalibrationSetsPart(method=method, texts=texts, sets=parts))
    return found


def _part(
    session: Session,
    method: str,
    row: tuple[str, int, int],
    texts: Sequence[str],
    best: dict[str, set[p.CalibratedKey]],
) -> list[s.CalibrationSetPart]:
    name, seq_len, samples = row
    keys = [p.CalibratedKey(method, name, seq_len, samples, text) for text in texts]
    judged = [part for key in keys for part in _judged(session, key, best[key.text])]
    if not judged:
        return []
    checks = session.calibrating.checks
    check = checks[p.CalibratedKey("", name, seq_len, samples, judged[0].text)]
    sentences = [each.sentence for part in judged for each in part.findings]
    return [
        s.CalibrationSetPart(
            name=name,
            samples=samples,
            seq_len=seq_len,
            tokens=check.tokens,
            documents=check.documents,
            kl=judged[0].kl,
            kl_se=judged[0].kl_se,
            ppl=judged[0].ppl,
            distance=finite(check.distance),
            repetition=finite(check.repetition),
            duplicates=finite(check.duplicates),
            unseen_experts=check.unseen if check.experts else UNSET,
            warnings=list(dict.fromkeys(sentences)),
            texts=judged,
        )
    ]


def _judged(
    session: Session, key: p.CalibratedKey, best: set[p.CalibratedKey]
) -> list[s.JudgedPart]:
    calibrating = session.calibrating
    check = calibrating.checks.get(p.CalibratedKey("", key.set, key.seq_len, key.samples, key.text))
    if check is None:
        return []
    score = calibrating.scores.get(key)
    findings = [finding_part(each) for each in calibration_findings(session, key)]
    distance, overlap = finite(check.distance), finite(check.overlap)
    if score is None:
        return [s.JudgedPart(text=key.text, distance=distance, overlap=overlap, findings=findings)]
    halves = {
        part: calibrating.scores.get(
            p.CalibratedKey(key.method, key.set, key.seq_len, key.samples, key.text, part)
        )
        for part in _HALVES
    }
    first, second = (halves[part] for part in _HALVES)
    return [
        s.JudgedPart(
            text=key.text,
            distance=distance,
            overlap=overlap,
            kl=finite(score.kl),
            kl_se=finite(score.kl_se),
            nll=finite(score.nll),
            ppl=finite(score.ppl),
            ppl_reference=finite(_exp(score)),
            top1_agreement=finite(score.top1),
            first_half_kl=UNSET if first is None else finite(first.kl),
            second_half_kl=UNSET if second is None else finite(second.kl),
            best=key in best,
            above_best=_against(above_best(session, score)),
            above_rival=_against(above_rival(session, score)),
            above_more=_against(above_more(session, score)),
            findings=findings,
        )
    ]


def _against(found: Against | None) -> s.AgainstPart | UnsetType:
    if found is None:
        return UNSET
    low, high = found.kl.interval
    return s.AgainstPart(
        name=found.other.set,
        samples=found.other.samples,
        seq_len=found.other.seq_len,
        kl=finite(found.kl.mean),
        kl_se=finite(found.kl.se),
        kl_ci95=(finite(low), finite(high)),
    )


_HALVES: tuple[p.CalibratedOn, p.CalibratedOn] = ("first half", "second half")


def _exp(score: p.CalibrationScore) -> float:
    """Perplexity of the original."""
    try:
        return math.exp(score.nll_reference)
    except OverflowError:
        return math.inf
