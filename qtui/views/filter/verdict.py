"""How many rows a filter matches while it is typed, or why none."""

from __future__ import annotations

import math
from typing import cast

from engine.report.figures import Context, Number, figure
from qtui.views.filter.grammar import Term, parse_filter
from qtui.views.filter.terms import Comparison, FilterError


def judge_filter(text: str, context: Context) -> tuple[bool, str, str]:
    """Whether a text is a filter; what it leaves, or what is wrong; what may follow.

    The last is empty but where the last term is only not finished.
    """
    try:
        wanted = parse_filter(text)
        rows = wanted.rows(context)
    except FilterError as error:
        typing = error.start + len(error.term) == len(text)
        return False, str(error), error.hint if typing else ""
    says = f"{len(rows)} of {len(context.session.layers.names)} layers"
    reasons = [] if rows else [_why_none_match(term, context) for term in wanted.terms]
    return True, "; ".join([says, *filter(None, reasons)]), ""


def _why_none_match(term: Term, context: Context) -> str:
    """Why no layer can fit a condition on a number: nothing is known, or all are smaller."""
    asked = term.compares
    if asked is None or term.negated or not context.session.layers.names:
        return ""
    read = cast("Number", figure(asked.figure).read.bind(context))
    values = [read(row) for row in range(len(context.session.layers.names))]
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return f"{term.text}: {asked.figure} is not known for any layer yet"
    largest = max(known)
    if asked.sign in ("<", "<=") or asked.wanted < largest:
        return ""
    return f"{term.text}: the largest is {_figure(asked.figure, largest)}{_suggestion(asked)}"


def _suggestion(asked: Comparison) -> str:
    """What was probably meant by a number that is too large."""
    quantity = figure(asked.figure).quantity
    if quantity.thousandths:
        return " (the column shows thousandths)"
    if quantity.share and asked.bare and asked.wanted > 1:
        return f" (write {asked.wanted:g}%)"
    return ""


def _figure(name: str, value: float) -> str:
    quantity = figure(name).quantity
    if quantity.share or quantity.counted:
        return quantity.text(value)
    shown = f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return shown.replace("0.", ".", 1) if shown.startswith(("0.", "-0.")) else shown
