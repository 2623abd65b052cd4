"""What is wrong with a calibration set: told before measuring, and confirmed by it; no arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from engine import protocol as p
from engine.diagnosis.finding import ORDER, Finding
from engine.diagnosis.paired import Paired, paired
from engine.diagnosis.thresholds import Thresholds, thresholds
from engine.session import Session


class Against(NamedTuple):
    """The KL of a set less that of another score on the same text."""

    other: p.CalibrationScore
    kl: Paired
    """Nats per token."""


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


def best_sets(session: Session, method: str, text: str) -> list[p.CalibrationScore]:
    """The best set on a text, and all that differ from it by no more than chance."""
    scores = _scores(session, method, text)
    return [each for each in scores if not paired(each.kls, scores[0].kls).above]


def above_best(session: Session, score: p.CalibrationScore) -> Against | None:
    """How much KL a set has above the best on its text; None for the best itself."""
    return _above(score, _scores(session, score.method, score.text)[:1])


def above_rival(session: Session, score: p.CalibrationScore) -> Against | None:
    """The same above the best set of as many samples of the same length; None without another."""
    cut = (score.seq_len, score.samples)
    scores = _scores(session, score.method, score.text)
    return _above(score, [each for each in scores if (each.seq_len, each.samples) == cut][:1])


def above_more(session: Session, score: p.CalibrationScore) -> Against | None:
    """How much KL the next smaller number of samples of the set has above this; None without one.

    The interval says whether more samples help still. Both are on the same windows of the text, but
    the samples are one draw: what another draw would give is not in it.
    """
    fewer = [
        each
        for each in _scores(session, score.method, score.text)
        if (each.set, each.seq_len) == (score.set, score.seq_len) and each.samples < score.samples
    ]
    if score.part or not fewer:
        return None
    before = max(fewer, key=lambda each: each.samples)
    return Against(before, paired(before.kls, score.kls))


def _scores(session: Session, method: str, text: str) -> list[p.CalibrationScore]:
    """All whole sets on a text, the best first."""
    scores = [
        score
        for key, score in session.calibrating.scores.items()
        if key.method == method and key.text == text and not key.part and math.isfinite(score.kl)
    ]
    return sorted(scores, key=lambda score: score.kl)


def _above(score: p.CalibrationScore, best: list[p.CalibrationScore]) -> Against | None:
    if score.part or not best or best[0].key == score.key:
        return None
    return Against(best[0], paired(score.kls, best[0].kls))


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
    raised = paired(half, score.kls)
    gain, se = raised.mean, raised.se
    if raised.above and gain > limits.still_moves * score.kl:
        yield Finding(
            id="too-few-samples",
            severity="warning",
            sentence=f"half of the samples raise KL by {gain / score.kl:.0%} (± "
            f"{se / score.kl:.0%}): more samples would lower it further",
            evidence={"gain": gain, "gain_se": se},
        )
    between = paired(one.kls, other.kls)
    apart, se = between.mean, between.se
    if abs(apart) > between.half and abs(apart) > limits.still_moves * score.kl:
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
    found = above_rival(session, score)
    if found is None or not score.kl > 0 or not found.kl.above or found.other.set == score.set:
        return
    lost, se = found.kl.mean, found.kl.se
    yield Finding(
        id="worse-set",
        severity="note",
        sentence=f"{found.other.set} gives {lost / score.kl:.0%} less KL (± {se / score.kl:.0%}) "
        "with as many samples",
        evidence={"lost": lost, "lost_se": se},
    )


def _times(logarithm: float) -> str:
    return f"{2**logarithm:.2g}×"
