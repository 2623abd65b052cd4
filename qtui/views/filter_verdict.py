"""What a filter that is being typed leaves, or why it leaves nothing."""

from __future__ import annotations

import math
from collections.abc import Collection

from engine.protocol import Direction
from engine.report.figures import FIGURES
from engine.report.numbers import count, percent
from engine.session import Session
from qtui.views.filter import Comparison, FilterError, Term, parse_filter

THOUSANDTHS = ("kl", "dnll")
"""Figures that the table shows times a thousand."""


def judge_filter(
    text: str,
    session: Session,
    format: str,
    marked: Collection[str] = (),
    direction: Direction = "degrade",
) -> tuple[bool, str, str]:
    """Whether a text is a filter; what it leaves, or what is wrong; what may follow.

    The last is empty but where the last term is only not finished.
    """
    try:
        wanted = parse_filter(text)
    except FilterError as error:
        typing = error.start + len(error.term) == len(text)
        return False, str(error), error.hint if typing else ""
    rows = wanted.rows(session, format, marked, direction)
    says = f"{len(rows)} of {len(session.layers.names)} layers"
    reasons = (
        [] if rows else [_out_of_reach(term, session, format, direction) for term in wanted.terms]
    )
    return True, "; ".join([says, *filter(None, reasons)]), ""


def _out_of_reach(term: Term, session: Session, format: str, direction: Direction) -> str:
    """Why no layer can fit a condition on a number: nothing is known, or all are smaller."""
    asked = term.compares
    if asked is None or term.negated or not session.layers.names:
        return ""
    read = FIGURES[asked.figure].bind(session, format, direction)
    values = [read(row) for row in range(len(session.layers.names))]
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return f"{term.text}: {asked.figure} is not known of any layer yet"
    largest = max(known)
    if asked.sign in ("<", "<=") or asked.wanted < largest:
        return ""
    return f"{term.text}: the largest is {_figure(asked.figure, largest)}{_meant(asked)}"


def _meant(asked: Comparison) -> str:
    """What was probably meant by a number that is too large."""
    if asked.figure in THOUSANDTHS:
        return " (the column shows thousandths)"
    if FIGURES[asked.figure].share and asked.bare and asked.wanted > 1:
        return f" (write {asked.wanted:g}%)"
    return ""


def _figure(name: str, value: float) -> str:
    if FIGURES[name].share:
        return percent(value)
    if FIGURES[name].counted:
        return count(value)
    shown = f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return shown.replace("0.", ".", 1) if shown.startswith(("0.", "-0.")) else shown
