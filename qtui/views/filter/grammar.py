"""The filter of the layer table: ``kind:q_proj block<4 -is:kept kl>1e-3``.

Terms are separated by spaces and must all match; ``-`` or ``!`` before a term negates it.

| term | holds for |
|---|---|
| ``down`` | layers with this in their full name, in capitals or not |
| ``re:REGEX`` | layers in whose full name the regular expression is found |
| ``kind:up`` ``kind:*_proj`` | the last part of the name begins so, or fits the pattern |
| ``block:3`` ``block:2-5`` ``block<4`` | layers of these blocks; head and embedding are in none |
| ``fmt:int4`` ``fmt:kept`` | the format held now begins so, or fits the pattern |
| ``role:head`` | linear, conv1d, experts, head or embedding |
| ``is:changed`` | changed, kept, marked, measured, estimated (and not measured), finding |
| ``kl>1e-3`` ``error>=5%`` ``params<1M`` | a number of `engine.report.figures`, with < <= > >= = |

With ``=`` instead of ``:`` the whole word must be equal. An unknown figure matches no comparison,
so ``kl<1e-3`` lists layers known to be harmless, and its negation ``-kl<1e-3`` lists all others,
including those that nothing is known about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.report.figures import Context
from engine.report.figures.registry import filter_figures
from qtui.views.filter import terms
from qtui.views.filter.terms import Bind, Comparison, FilterError
from qtui.views.filter.words import TERM, expected_after, filter_fields, unknown_field


class Term(NamedTuple):
    """One condition."""

    text: str
    negated: bool
    bind: Bind
    reads: str
    """What its result depends on: ``names``, ``holds``, ``marks`` or ``facts``."""
    compares: Comparison | None = None
    """Of a number."""


@dataclass(frozen=True)
class Filter:
    """A conjunction of terms; two filters of one text are equal."""

    text: str = ""
    """The terms with one blank between them."""
    terms: tuple[Term, ...] = field(default=(), compare=False, repr=False)

    def __bool__(self) -> bool:
        return bool(self.terms)

    def reads(self, what: str) -> bool:
        """Whether the result depends on ``names``, ``holds``, ``marks`` or ``facts``."""
        return any(term.reads == what for term in self.terms)

    def rows(self, context: Context) -> list[int]:
        """The rows that fit, in the model's order."""
        rows: Iterable[int] = range(len(context.session.layers.names))
        for term in self.terms:
            test, negated = term.bind(context), term.negated
            rows = [row for row in rows if test(row) is not negated]
        return list(rows)

    def matches(self, context: Context, row: int) -> bool:
        """Whether one row fits."""
        return all(term.bind(context)(row) is not term.negated for term in self.terms)


def parse_filter(text: str) -> Filter:
    """Read a filter; an empty one fits every layer.

    Raises:
        FilterError: naming the term, what is wrong with it and what is expected.
    """
    terms = [_term(found.group(), found.start()) for found in re.finditer(r"\S+", text)]
    return Filter(" ".join(term.text for term in terms), tuple(terms))


OF_WORDS = {
    "kind": terms.kind,
    "fmt": terms.format_held,
    "role": terms.role,
    "is": terms.state,
}
"""Conditions on a word, by the field before it."""


def _term(text: str, start: int) -> Term:
    negated = text[0] in "-!"
    body = text[1:] if negated else text

    def fail(why: str, hint: str = "") -> FilterError:
        return FilterError(text, start, why, hint)

    if not body:
        after = f"write a condition after '{text}', as in {text}is:kept"
        raise fail(f"nothing after '{text}': {after}", after)
    if body.startswith("re:"):
        return Term(text, negated, terms.regex(body[3:], fail), "names")
    parts = TERM.fullmatch(body)
    if parts is None:
        return Term(text, negated, terms.name_has(body), "names")
    name, sign, value = parts.group(1).lower(), parts.group(2), parts.group(3)
    if name.endswith("!") and sign == "=":
        raise fail(f"there is no '!=': negate a condition with -, as in -{name[:-1]}={value}")
    if name not in filter_fields():
        raise fail(unknown_field(name))
    if not value:
        raise fail(f"nothing after '{sign}': expected {expected_after(name)}", expected_after(name))
    if (figure := filter_figures().get(name)) is not None:
        if sign == ":":
            raise fail(f"{name} is a number: expected {expected_after(name)}")
        asked = terms.comparison(name, sign, value, fail)
        return Term(text, negated, terms.compared(asked), figure.read.changes, asked)
    if name == "block":
        return Term(text, negated, terms.block(sign, value, fail), "names")
    if sign not in ":=" or name == "re":
        raise fail(f"'{sign}' does not apply to {name}: expected {expected_after(name)}")
    of_word = OF_WORDS[name]
    return Term(
        text, negated, of_word(value.lower(), sign == "=", fail), _reads(f"{name}:{value.lower()}")
    )


def _reads(what: str) -> str:
    if what == "is:marked":
        return "marks"
    if what.startswith("fmt:") or what in ("is:changed", "is:kept"):
        return "holds"
    return "names" if what.startswith(("kind:", "role:")) else "facts"
