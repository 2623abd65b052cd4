"""Calibration sets as lines: sets by texts, a curve over samples, what is against one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from engine import protocol as p
from engine.diagnosis.of_calibration import (
    Against,
    above_best,
    above_more,
    best_sets,
    calibration_findings,
)
from engine.errors import EngineError
from engine.formats.grammar import needs_calibration, parse_format
from engine.report import wording as n
from engine.session import Session
from engine.texts.sets import GENERATED, NAMED
from qtui.views.completion import Completion
from qtui.views.findings import STYLES, plain
from qtui.views.text import Glyphs, Words, bar, fit, printable

KIND = "calibrate"
METHOD = "int4-g128+gptq"
"""What is calibrated where no method is named."""
COLUMN = 21
"""Cells of the figures on one text."""
NAME = 40
"""Cells of a set's name, at most."""
CUT = 13
"""Cells of samples and their length."""
ON = "on"
"""The word before evaluation texts."""


@dataclass(frozen=True)
class Row:
    """So many samples of a set."""

    set: str
    seq_len: int
    samples: int


def method_of(session: Session) -> str:
    """The method that is shown: of the newest command, else of what is known."""
    jobs = [job.command for job in session.jobs.values() if isinstance(job.command, p.Calibrate)]
    if jobs:
        return jobs[-1].method
    return next((key.method for key in reversed(session.calibrating.scores)), METHOD)


def texts_of(session: Session) -> list[str]:
    """The evaluation texts, in order of arrival."""
    return list(dict.fromkeys(key.text for key in session.calibrating.checks))


def rows_of(session: Session) -> list[Row]:
    """Every set with every number of samples: sets in order of arrival, the fewest first."""
    known = session.calibrating.checks
    order = {name: at for at, name in enumerate(dict.fromkeys(key.set for key in known))}
    rows = {Row(key.set, key.seq_len, key.samples) for key in known}
    return sorted(rows, key=lambda row: (order[row.set], row.seq_len, row.samples))


def key_of(row: Row, method: str, text: str) -> p.CalibratedKey:
    """What a row is on one text."""
    return p.CalibratedKey(method, row.set, row.seq_len, row.samples, text)


def shown_texts(texts: Sequence[str], at: int, width: int) -> list[str]:
    """The texts that have a column at this width; the one under the cursor is among them."""
    room = max(1, (width - 2 - 16 - CUT) // COLUMN)
    first = max(0, min(at, len(texts) - room))
    return list(texts[first : first + room])


def heading(texts: Sequence[str], here: str, width: int, glyphs: Glyphs) -> Words:
    """The titles of the columns; that of the text under the cursor is bold."""
    words: Words = [(f"  {fit('set', _room(texts, width), glyphs)}{'samples':>{CUT}}", "$dim")]
    for text in texts:
        title = fit(f"KL{glyphs.kilo} {printable(text)}", COLUMN - 2, glyphs)
        words.append((f"  {title}", "bold" if text == here else "$dim"))
    return words


def line_of(
    session: Session,
    row: Row,
    method: str,
    texts: Sequence[str],
    width: int,
    glyphs: Glyphs,
    *,
    here: bool,
) -> Words:
    """A set on every text: KL with its standard error, the best marked, and those that something is
    against.

    Args:
        session: what is known.
        row: what to draw.
        method: whose scores.
        texts: that have a column.
        width: cells there are.
        glyphs: what to draw with.
        here: whether the cursor is on it.
    """
    style = "bold" if here else ""
    cut = f"{row.samples} {glyphs.times} {row.seq_len}"
    words: Words = [
        (f"{glyphs.cursor if here else ' '} ", "$primary"),
        (fit(printable(row.set), _room(texts, width), glyphs), style),
        (f"{cut:>{CUT}}", style),
    ]
    for text in texts:
        words += _cell(session, key_of(row, method, text), glyphs, style)
    return words


def _cell(session: Session, key: p.CalibratedKey, glyphs: Glyphs, style: str) -> Words:
    score = session.calibrating.scores.get(key)
    found = calibration_findings(session, key)
    doubt = any(each.severity in ("alert", "warning") for each in found)
    mark = (f" {glyphs.finding}" if doubt else "  ", "$finding")
    if score is None:
        waits = "checked" if _check(session, key) is not None else ""
        return [(f"{waits:>{COLUMN - 4}}", "$dim"), ("  ", ""), mark]
    best = any(each.key == key for each in best_sets(session, key.method, key.text))
    error = f"{glyphs.plus_minus}{n.short(1000 * score.kl_se)}"
    figures = f"{n.short(1000 * score.kl):>9} {error:<7}"
    return [
        (f"{figures:>{COLUMN - 4}}", f"{style} $better".strip() if best else style),
        (f" {glyphs.frontier if best else ' '}", "$better"),
        mark,
    ]


def _check(session: Session, key: p.CalibratedKey) -> p.CalibrationCheck | None:
    return session.calibrating.checks.get(
        p.CalibratedKey("", key.set, key.seq_len, key.samples, key.text)
    )


def _room(texts: Sequence[str], width: int) -> int:
    """Cells of a set's name."""
    return max(10, min(NAME, width - 2 - CUT - COLUMN * len(texts)))


def curve(
    session: Session, row: Row, method: str, text: str, width: int, glyphs: Glyphs
) -> list[Words]:
    """KL of a set on one text over its samples, a bar for each number; halves of the set last."""
    scores = [
        score
        for key, score in session.calibrating.scores.items()
        if (key.method, key.set, key.seq_len, key.text) == (method, row.set, row.seq_len, text)
        and math.isfinite(score.kl)
    ]
    title = f"KL{glyphs.kilo} of {printable(row.set)} on {printable(text)} over samples"
    lines: list[Words] = [[(fit(title, width, glyphs), "bold")]]
    if not scores:
        return [*lines, [("not measured yet", "$dim")]]
    most = max(score.kl for score in scores) or 1.0
    names = {"": "", "first half": "1st half of ", "second half": "2nd half of "}
    scores.sort(key=lambda score: (bool(score.part), score.samples, score.part))
    for score in scores:
        label = f"{names[score.part]}{score.samples}"
        error = f"{glyphs.plus_minus}{n.short(1000 * score.kl_se)}"
        figures = f"{n.short(1000 * score.kl):>7} {error:<7}"
        left = max(0, width - 18 - len(figures) - 1)
        tone = "$dim" if score.part else ""
        lines.append(
            [
                (f"{label:>17} ", tone),
                (bar(score.kl / most, left, glyphs), tone or "$primary"),
                (f" {figures}", tone),
            ]
        )
    return lines


def warnings(
    session: Session, row: Row, method: str, text: str, width: int, glyphs: Glyphs
) -> list[Words]:
    """What is known of a set on one text: what is against it, else that nothing is."""
    key = key_of(row, method, text)
    check, score = _check(session, key), session.calibrating.scores.get(key)
    if check is None:
        return [[("not looked at yet", "$dim")]]
    cut = f"{check.tokens:,} tokens, {check.documents:,} documents" if check.documents else (
        f"{check.tokens:,} tokens"
    )  # fmt: skip
    said = f"{cut}, distance {check.distance:.2f}, {check.spread:.2f} within {printable(text)}"
    if score is not None:
        before = n.perplexity(math.exp(min(score.nll_reference, 700)))
        said += f", PPL {before} {glyphs.arrow} {n.perplexity(score.ppl)}"
    lines: list[Words] = [[(line, "$dim")] for line in wrap(plain(said, glyphs), max(20, width))]
    if score is not None:
        lines += _apart(session, score, width, glyphs)
    found = calibration_findings(session, key)
    for each in found:
        tone = STYLES.get(each.severity, "$dim")
        first, *rest = wrap(plain(each.sentence, glyphs), max(20, width - 2)) or [""]
        lines.append([(f"{glyphs.finding} ", tone), (first, tone)])
        lines += [[("  ", ""), (line, tone)] for line in rest]
    if not found:
        lines.append([("nothing is against it", "$better")])
    return lines


def _apart(session: Session, score: p.CalibrationScore, width: int, glyphs: Glyphs) -> list[Words]:
    """How far a set is above the best, and fewer samples of it above this, with 95% intervals."""
    lines: list[Words] = []
    best, more = above_best(session, score), above_more(session, score)
    if best is not None:
        other = f"{printable(best.other.set)} {best.other.samples} {glyphs.times}"
        said = f"{_kilo(best, glyphs)} above the best, {other} {best.other.seq_len}"
        lines += [[(line, "")] for line in wrap(plain(said, glyphs), max(20, width))]
    if more is not None:
        gains = "" if more.kl.above else ": no gain beyond chance"
        said = f"{more.other.samples} samples are {_kilo(more, glyphs)} above these{gains}"
        lines += [[(line, "")] for line in wrap(plain(said, glyphs), max(20, width))]
    return lines


def _kilo(found: Against, glyphs: Glyphs) -> str:
    low, high = (n.short(1000 * end) for end in found.kl.interval)
    return f"KL{glyphs.kilo} {n.short(1000 * found.kl.mean)} ({low} {glyphs.ellipsis} {high})"


def parse_ask(value: str) -> p.Calibrate:
    """What was typed, ``SETS [METHOD] [on TEXTS]``, as a command.

    Raises:
        EngineError: it is not that; the message says why.
    """
    words = value.split()
    texts: tuple[str, ...] = ()
    if ON in words:
        at = words.index(ON)
        texts = tuple(part for word in words[at + 1 :] for part in word.split(",") if part)
        words = words[:at]
    if not words:
        raise EngineError("sets separated by commas, as in code,prose,random")
    if len(words) > 2:
        raise EngineError("sets, then a method, then `on` and texts")
    method = METHOD if len(words) < 2 else str(parse_format(words[1]))
    if not needs_calibration(parse_format(method)):
        raise EngineError(f"{method} uses no calibration text: add +gptq or +awq")
    sets = tuple(part for part in words[0].split(",") if part)
    if not sets:
        raise EngineError("sets separated by commas, as in code,prose,random")
    return p.Calibrate(sets=sets, method=method, texts=texts)


def complete_sets(typed: str) -> list[Completion]:
    """Names of sets for the last of those typed."""
    if " " in typed.strip():
        return []
    before, comma, last = typed.rpartition(",")
    known = {name: each.help for name, each in NAMED.items()} | dict(GENERATED)
    given = set(before.split(","))
    return [
        Completion(f"{before}{comma}{name}", says)
        for name, says in known.items()
        if name.startswith(last) and name not in given
    ]
