"""What is wrong with a calibration set: told before measuring, and confirmed by it; no arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from engine import protocol as p
from engine.diagnosis.finding import ORDER, Finding
from engine.diagnosis.thresholds import Thresholds, thresholds
from engine.session import Session

ERRORS = 2.0
"""Standard errors of a difference that is no chance."""


def calibration_findings(session: Session, key: p.CalibratedKey) -> list[Finding]:
    """What is known against a set on one text, the worst first; none of a good one.

    Args:
        session: in which sets were compared.
        key: a method, a set with its samples and their length, and a text. What is told before
            anything was measured needs no method.
    """
    limits = thresholds(session)
    found: list[Finding] = []
    check = session.calibrating.checks.get(_of_no_method(key))
    if check is not None:
        found += _before(check, _evaluated_length(session), limits)
    score = session.calibrating.scores.get(key)
    if score is not None:
        found += [*_moves(session, score, limits), *_other_domain(session, score)]
    return sorted(found, key=lambda each: ORDER[each.severity])


def difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of ``one − other``, window by window; nan where they do not match."""
    count = len(one)
    if count < 2 or count != len(other):
        return math.nan, math.nan
    apart = [a - b for a, b in zip(one, other, strict=True)]
    mean = math.fsum(apart) / count
    variance = math.fsum((each - mean) ** 2 for each in apart) / (count - 1)
    return mean, math.sqrt(variance / count)


def best_sets(session: Session, method: str, text: str) -> list[p.CalibrationScore]:
    """The best set on a text, and all that differ from it by no more than chance."""
    scores = [
        score
        for key, score in session.calibrating.scores.items()
        if key.method == method and key.text == text and not key.part and math.isfinite(score.kl)
    ]
    scores.sort(key=lambda score: score.kl)
    return [each for each in scores if not _worse(each, scores[0])]


def _worse(one: p.CalibrationScore, other: p.CalibrationScore) -> bool:
    """Whether a set is worse than another by more than chance."""
    mean, se = difference(one.kls, other.kls)
    return mean > ERRORS * se


def _of_no_method(key: p.CalibratedKey) -> p.CalibratedKey:
    return p.CalibratedKey("", key.set, key.seq_len, key.samples, key.text)


def _evaluated_length(session: Session) -> int:
    known = session.measured_with
    return known.protocol.seq_len if known is not None else 0


def _before(check: p.CalibrationCheck, evaluated: int, limits: Thresholds) -> Iterator[Finding]:
    """What is told of the windows and of what layers are given, before anything is quantised."""
    limit = max(limits.far_text, limits.beyond_spread * check.spread)
    if check.distance > limit:
        yield Finding(
            id="wrong-domain",
            severity="warning",
            layer=check.worst,
            sentence=f"layers are given other inputs than on {check.text}: half of the channels "
            f"differ by {_times(check.distance)} on average (within that text by "
            f"{_times(check.spread)}); most at {check.worst}, where {check.fourfold:.0%} of the "
            "channels differ fourfold",
            evidence={"distance": check.distance, "spread": check.spread},
        )
    each = check.tokens / check.channels if check.channels else math.inf
    if each < limits.tokens_per_channel:
        yield Finding(
            id="few-tokens",
            severity="warning",
            sentence=f"{check.tokens:,} tokens for inputs of {check.channels:,} channels: fewer "
            "tokens than channels leave GPTQ's Hessian singular",
            evidence={"tokens_per_channel": each},
        )
    if check.samples < limits.few_windows:
        yield Finding(
            id="few-samples",
            severity="warning",
            sentence=f"{check.samples} samples: fewer than {limits.few_windows:.0f} show one or "
            "two documents",
            evidence={"samples": check.samples},
        )
    if check.seq_len < limits.short_window * evaluated:
        yield Finding(
            id="short-windows",
            severity="note",
            sentence=f"windows of {check.seq_len} tokens, and the text is evaluated in windows of "
            f"{evaluated}: late positions are never seen",
            evidence={"seq_len": check.seq_len},
        )
    if check.overlap > limits.shared_runs:
        yield Finding(
            id="overlap",
            severity="warning",
            sentence=f"{check.overlap:.1%} of {check.text}'s runs of 13 tokens occur in the set: "
            "it is judged on text it was calibrated on",
            evidence={"overlap": check.overlap},
        )
    if check.duplicates > limits.duplicate_windows:
        yield Finding(
            id="duplicates",
            severity="note",
            sentence=f"{check.duplicates:.0%} of the windows repeat earlier ones: they count as "
            "samples and show nothing new",
            evidence={"duplicates": check.duplicates},
        )
    if check.repetition > limits.repeated_runs:
        yield Finding(
            id="repetition",
            severity="note",
            sentence=f"{check.repetition:.0%} of its runs of 8 tokens occurred before",
            evidence={"repetition": check.repetition},
        )
    if check.unseen:
        yield Finding(
            id="unseen-experts",
            severity="warning",
            sentence=f"{check.unseen} of {check.experts} expert inputs received no token: those "
            "experts are rounded to nearest",
            evidence={"unseen": check.unseen},
        )


def _moves(session: Session, score: p.CalibrationScore, limits: Thresholds) -> Iterator[Finding]:
    """Whether the halves of a set do worse than all of it: then more samples would help."""
    halves: list[p.CalibrationScore] = []
    for key, found in session.calibrating.scores.items():
        if key.part and _whole(key) == score.key:
            halves.append(found)
    if score.part or len(halves) != 2 or not score.kl > 0:
        return
    one, other = halves
    if len(one.kls) != len(other.kls):
        return
    half = [(a + b) / 2 for a, b in zip(one.kls, other.kls, strict=True)]
    gain, se = difference(half, score.kls)
    if gain > ERRORS * se and gain > limits.still_moves * score.kl:
        yield Finding(
            id="too-few-samples",
            severity="warning",
            sentence=f"half of the samples raise KL by {gain / score.kl:.0%} (± "
            f"{se / score.kl:.0%}): more samples would lower it further",
            evidence={"gain": gain, "gain_se": se},
        )
    apart, se = difference(one.kls, other.kls)
    if abs(apart) > ERRORS * se and abs(apart) > limits.still_moves * score.kl:
        yield Finding(
            id="halves-differ",
            severity="note",
            sentence=f"its two halves differ by {abs(apart) / score.kl:.0%} of KL (± "
            f"{se / score.kl:.0%}): which samples are drawn still decides",
            evidence={"apart": apart, "apart_se": se},
        )


def _whole(key: p.CalibratedKey) -> p.CalibratedKey:
    return p.CalibratedKey(key.method, key.set, key.seq_len, key.samples, key.text)


def _other_domain(session: Session, score: p.CalibrationScore) -> Iterator[Finding]:
    """Another set of as many samples that does better, by more than chance."""
    key = score.key
    rivals = [
        other
        for known, other in session.calibrating.scores.items()
        if (known.method, known.text, known.part) == (key.method, key.text, "")
        and (known.seq_len, known.samples) == (key.seq_len, key.samples)
        and known.set != key.set
    ]
    best = min(rivals, key=lambda other: other.kl, default=None)
    if key.part or best is None or not score.kl > 0:
        return
    lost, se = difference(score.kls, best.kls)
    if lost > ERRORS * se:
        yield Finding(
            id="worse-set",
            severity="note",
            sentence=f"{best.set} gives {lost / score.kl:.0%} less KL (± {se / score.kl:.0%}) "
            "with as many samples",
            evidence={"lost": lost, "lost_se": se},
        )


def _times(logarithm: float) -> str:
    return f"{2**logarithm:.2g}×"
