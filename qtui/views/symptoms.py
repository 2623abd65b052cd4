"""Prompts continued by reference and recipe, as lines: a list, both texts of one beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich.cells import cell_len

from engine import protocol as p
from engine.diagnosis.causes import Cause, causes
from engine.diagnosis.detectors import WORDS
from engine.diagnosis.of_symptoms import Shown, alarms, rates
from engine.report import wording as n
from engine.report.tables.symptoms import left_out
from engine.session import Job, Session, Traced
from qtui.views.text import Glyphs, Words, fit, printable

FINDING = 18
"""Columns of what was found."""
FIGURES = 16
"""Columns of the first difference and of KL."""


@dataclass(frozen=True)
class Row:
    """A prompt: continued, or being continued."""

    id: str
    shown: Shown | None = None
    reference: str = ""
    """What is there so far, where it is being written."""
    changed: str = ""


class Prompts:
    """The prompts of the last run, and what was found in them; figures are computed once."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.asked: list[p.FindSymptoms] = []
        """What was asked for, the last of it last."""
        self.rows: list[Row] = []
        self.traced: Traced | None = None
        self._shown: dict[tuple[str, str], Shown] = {}

    def take(self, session: Session) -> None:
        """Look at the session anew."""
        jobs = [
            job
            for job in session.jobs.values()
            if isinstance(job.command, p.FindSymptoms) and (job.command.prompts or job.command.file)
        ]
        self.asked = [job.command for job in jobs if isinstance(job.command, p.FindSymptoms)]
        self.job = jobs[-1] if jobs else None
        self.rows, self.traced = [], None
        if self.job is None:
            return
        self.rows = [Row(each.fact.id, each) for each in self._facts(session, jobs)]
        self.traced = self._traced(session, jobs)
        live = session.continuing
        if live is not None and live.job == self.job.id:
            there = {row.id for row in self.rows}
            for id, one, other in zip(live.ids, live.reference, live.changed, strict=True):
                if id not in there:
                    self.rows.append(Row(id, None, one, other))

    def _facts(self, session: Session, jobs: Sequence[Job]) -> list[Shown]:
        """Prompts in the order in which they were given; while they are written, as they arrive."""
        last = jobs[-1]
        known = session.continued.get(last.recipe, {})
        order: dict[str, None] = {}
        for job in jobs:
            if job.recipe == last.recipe and job.status == "done" and job.result:
                order |= dict.fromkeys(job.read(p.Symptoms).prompts)
        found = []
        for key in [*order, *(each for each in known if each not in order)]:
            fact = known.get(key)
            if fact is None or fact.sampling != self.asked[-1].sampling:
                continue
            old = self._shown.get((last.recipe, key))
            if old is None or old.fact is not fact:
                old = self._shown[last.recipe, key] = Shown(fact)
            found.append(old)
        return found

    def _traced(self, session: Session, jobs: Sequence[Job]) -> Traced | None:
        """What causes the symptoms, unless those of prompts that were continued in another way."""
        last = jobs[-1]
        traced = session.traced.get(last.recipe)
        others = {
            job.read(p.Symptoms).failing
            for job, command in zip(jobs, self.asked, strict=True)
            if command.sampling != self.asked[-1].sampling and job.status == "done" and job.result
        }
        return None if traced is None or traced.prompts in others else traced

    @property
    def shown(self) -> list[Shown]:
        """Those that are done."""
        return [row.shown for row in self.rows if row.shown is not None]

    def causes(self, session: Session) -> list[Cause]:
        """Causes that were measured."""
        return causes(session, self.shown, self.traced, list(session.changed.values()))


def summary(prompts: Prompts, width: int, glyphs: Glyphs) -> list[Words]:
    """How many prompts show what, in a line; then how often both show each symptom, if any."""
    done = prompts.shown
    if not done:
        return [[]]
    failing = len(alarms(done))
    said = (
        f"{how(done[0].fact.sampling)}: {n.counted(len(done), 'prompt')}, {failing} with a symptom "
        "of the recipe alone"
    )
    lines: list[Words] = [[(fit(said, width, glyphs), "$finding" if failing else "$dim")]]
    seen = [
        f"{WORDS[each.kind]} {each.changed.count} ({each.reference.count})" for each in rates(done)
    ]
    if seen:
        said = f"of the recipe (of the reference): {', '.join(seen)}"
        lines.append([(fit(said, width, glyphs), "$dim")])
    return lines


def how(sampling: p.Sampling) -> str:
    """``greedy, 64 tokens`` or ``sampled at .8, 64 tokens``."""
    drawn = f"sampled at {n.short(sampling.temperature)}" if sampling.temperature else "greedy"
    top = (
        f", top-p {n.short(sampling.top_p)}" if sampling.temperature and sampling.top_p < 1 else ""
    )
    chat = ", chat" if sampling.chat else ""
    return f"{drawn}{top}{chat}, {sampling.new_tokens} tokens"


def heading(width: int, glyphs: Glyphs) -> Words:
    """The titles of the columns."""
    room = width - FINDING - FIGURES - 2
    what = fit("prompt, in the order given", room, glyphs)
    figures = f"{'1st diff.':>9} {f'KL{glyphs.kilo}':>6}"
    return [(f"  {what}{'symptom':<{FINDING}}{figures}", "$dim")]


def line_of(row: Row, width: int, glyphs: Glyphs, *, here: bool) -> Words:
    """A prompt in the list."""
    room = width - FINDING - FIGURES - 2
    cursor = (f"{glyphs.cursor if here else ' '} ", "$primary")
    style = "bold" if here else ""
    if row.shown is None:
        name = fit(printable(row.id), room, glyphs)
        return [cursor, (name, style), ("being written", "$dim")]
    fact = row.shown.fact
    name = fit(f"{printable(fact.id)}: {printable(fact.text)}", room, glyphs)
    added = row.shown.added
    found = WORDS[added[0].kind] if added else ""
    mark = f"{glyphs.finding} {found}" if found else ""
    where = "same" if fact.first < 0 else str(fact.first)
    return [
        cursor,
        (name, style),
        (fit(mark, FINDING, glyphs), "$finding"),
        (f"{where:>9} {n.short(1000 * fact.kl):>6}", style or "$dim"),
    ]


def texts(row: Row, width: int, height: int, glyphs: Glyphs) -> list[Words]:
    """Both texts side by side, with a mark where they first differ.

    Args:
        row: the prompt.
        width: cells.
        height: lines, at most.
        glyphs: what to draw with.
    """
    one, other = row.reference, row.changed
    if row.shown is not None:
        one, other = row.shown.fact.reference.text, row.shown.fact.changed.text
    room = (width - 3) // 2
    columns = [column(one, other, room, glyphs), column(other, one, room, glyphs)]
    # The place where they differ stays visible.
    first = min(at for _, at in columns)
    top = max(0, min(first - 1, max(len(lines) for lines, _ in columns) - height + 1))
    between = ("| " if glyphs.ascii else "\u2502 ", "$dim")
    found: list[Words] = [
        [(fit("reference", room, glyphs), "$dim"), between, (fit("recipe", room, glyphs), "$dim")]
    ]
    for at in range(top, top + height - 1):
        if at >= max(len(lines) for lines, _ in columns):
            break
        pieces = [lines[at] if at < len(lines) else [] for lines, _ in columns]
        left = pieces[0]
        used = sum(cell_len(text) for text, _ in left)
        found.append([*left, (" " * (room - used), ""), between, *pieces[1]])
    return found


def _in_common(one: str, other: str) -> int:
    """Characters that both begin with."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))


def column(text: str, other: str, width: int, glyphs: Glyphs) -> tuple[list[Words], int]:
    """A text in lines of so many cells, and the number of the line where it leaves the other.

    What both say is dim. Lines end at line breaks, and between words where they are too long, as
    far as words fit; all control characters but line breaks are escaped.
    """
    common = _in_common(text, other)
    lines: list[Words] = []
    left_at = 0
    at = 0
    for written in text.split("\n"):
        pieces: Words = []
        marked = None
        for char in f"{written}\n":
            if at == common and at < len(text):
                marked = len(pieces)
                pieces.append((glyphs.finding, "$finding"))
            if char != "\n":
                pieces += [(piece, "$dim" if at < common else "") for piece in printable(char)]
            at += 1
        for start, end in _broken([piece for piece, _ in pieces], width):
            if marked is not None and start <= marked < end:
                left_at = len(lines)
            lines.append(_joined(pieces[start:end]))
    if common >= len(text):
        left_at = len(lines) - 1
    return lines, left_at


def _broken(pieces: Sequence[str], width: int) -> list[tuple[int, int]]:
    """Where a line is broken: after a space behind its first word if there is one; a space that no
    longer fits is left out.
    """
    ends: list[tuple[int, int]] = []
    start = used = 0
    between = None
    for at, piece in enumerate(pieces):
        size = cell_len(piece)
        if used + size > width and at > start:
            end = at if piece == " " or between is None else between
            ends.append((start, end))
            start, between = end + (piece == " "), None
            used = sum(map(cell_len, pieces[start:at]))
            if piece == " ":
                continue
        used += size
        if piece == " " and any(before != " " for before in pieces[start:at]):
            between = at + 1
    return [*ends, (start, len(pieces))]


def _joined(pieces: Words) -> Words:
    """Pieces of the same style next to each other as one."""
    line: Words = []
    for piece, style in pieces:
        if line and line[-1][1] == style:
            line[-1] = (line[-1][0] + piece, style)
        else:
            line.append((piece, style))
    return line


def difference(row: Row, width: int, glyphs: Glyphs) -> list[Words]:
    """What both would have said at the first token that differs."""
    if row.shown is None or row.shown.fact.first < 0:
        return []
    fact = row.shown.fact

    def said(top: tuple[p.Choice, ...]) -> str:
        return "  ".join(f"'{printable(each.token)}' {each.p:.0%}" for each in top[:4])

    return [
        [(fit(f"token {fact.first}  reference  {said(fact.reference_top)}", width, glyphs), "")],
        [(fit(f"{'':>{len(f'token {fact.first}')}}  recipe     {said(fact.changed_top)}", width,
              glyphs), "")],
    ]  # fmt: skip


def findings(row: Row, width: int, glyphs: Glyphs) -> list[Words]:
    """What is wrong with the recipe's text, with the figures behind it."""
    if row.shown is None:
        return []
    lines: list[Words] = []
    for each in row.shown.added:
        figures = ", ".join(f"{name} {n.short(value)}" for name, value in each.evidence.items())
        said = f"{glyphs.finding} {WORDS[each.kind]}" + (f": {figures}" if figures else "")
        lines.append([(fit(said.replace("_", "-"), width, glyphs), "$finding")])
    return lines


def contrast_lines(prompts: Prompts, width: int, glyphs: Glyphs) -> list[Words]:
    """What is most different inside the model where prompts fail, whether or not by chance."""
    contrast = None if prompts.traced is None else prompts.traced.contrast
    if contrast is None:
        return []
    if not contrast.healthy:
        none = "every prompt fails: nothing to compare with"
        if contrast.reference_fails:
            none = f"no prompt on which neither fails; {left_out(contrast.reference_fails)}"
        return [[(fit(none, width, glyphs), "$dim")]]
    parts = [
        *(
            f"|x| {printable(each.layer)} {each.channel}: {each.failing:.2g} ({each.healthy:.2g})"
            for each in contrast.channels[:1]
        ),
        *(
            f"error {printable(each.layer)} {each.failing:.0%} ({each.healthy:.0%})"
            for each in contrast.layers[:1]
        ),
        *(
            f"KL of head {each.head} of block {each.block}: {each.failing:.2g} ({each.healthy:.2g})"
            for each in contrast.heads[:1]
        ),
    ]
    where = f"of {contrast.failing} that fail (of {contrast.healthy} others): "
    if contrast.reference_fails:
        parts.append(left_out(contrast.reference_fails))
    said = wrap(where + "; ".join(parts), width) if parts else []
    return [[(fit(line, width, glyphs), "$dim")] for line in said]


def cause_lines(found: list[Cause], width: int, glyphs: Glyphs) -> list[Words]:
    """The surest cause, and what helps."""
    lines: list[Words] = []
    for cause in found[:2]:
        lines += [[(line, "$finding")] for line in wrap(printable(cause.sentence), width)]
        for cure in cause.cures[:1]:
            said = f"{'cures it' if cure.tried else 'to try'}: {printable(cure.sentence)}"
            lines += [[(line, "$better" if cure.tried else "")] for line in wrap(said, width)]
    return lines
