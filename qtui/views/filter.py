"""The filter of the layer table: ``kind:q_proj block<4 -is:kept kl>1e-3``.

Terms stand between blanks and must all hold; ``-`` or ``!`` before a term turns it round.

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

After ``=`` in place of ``:`` the whole word must be the same. What is not known fits no comparison,
so that ``kl<1e-3`` lists layers known to be harmless; turned round it fits: ``-kl<1e-3`` lists all
the others, those nothing is known about among them.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from fnmatch import translate
from typing import NamedTuple, Protocol, TypeAlias, get_args

from engine.errors import UsageError
from engine.protocol import Direction, EffectKey, Role
from engine.report.figures import FIGURES, finding
from engine.session import Session

Test: TypeAlias = Callable[[int], bool]
"""Whether a row fits."""

ROLES: tuple[str, ...] = get_args(Role)
STATES: dict[str, str] = {
    "changed": "holds another format than it is stored in",
    "kept": "as stored",
    "marked": "marked for the next toggle",
    "measured": "its effect was measured in the shown format",
    "estimated": "its effect is estimated, not measured",
    "finding": "NaN, infinities or an input channel far out",
}
WORDS: dict[str, str] = {
    "kind": "last part of the name, or a pattern with *",
    "block": "number, or a range such as 2-5",
    "fmt": "format held now, or how it begins",
    "role": "linear, conv1d, experts, head, embedding",
    "is": "changed, kept, marked, measured, estimated, finding",
    "re": "regular expression found in the full name",
}
FIELDS: tuple[str, ...] = (*WORDS, *FIGURES)
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
    "=": lambda found, wanted: math.isclose(found, wanted, rel_tol=1e-6),
}  # fmt: skip
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}

TERM = re.compile(r"([^:<>=]*)(:|<=|>=|<|>|=)(.*)", re.DOTALL)
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([%kKmMbBtT]?)")


class FilterError(UsageError):
    """A term that cannot be read.

    Attributes:
        term: as it was typed.
        start: where it begins in the text.
        hint: what may follow, where the term is only not finished; else empty.
    """

    def __init__(self, term: str, start: int, why: str, hint: str = "") -> None:
        super().__init__(f"filter term {term!r}: {why}")
        self.term, self.start, self.hint = term, start, hint


class Subject(NamedTuple):
    """What rows are looked at in."""

    session: Session
    format: str
    """Whose effects and errors are shown."""
    marked: Collection[str]
    direction: Direction = "degrade"
    """Which effects are shown."""


class Comparison(NamedTuple):
    """What a condition on a number compares."""

    figure: str
    sign: str
    wanted: float
    bare: bool
    """Whether it was typed without a unit."""


class Term(NamedTuple):
    """One condition."""

    text: str
    negated: bool
    bind: Callable[[Subject], Test]
    reads: str
    """What its outcome changes with: ``names``, ``holds``, ``marks`` or ``facts``."""
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
        """Whether the outcome may change with ``names``, ``holds``, ``marks`` or ``facts``."""
        return any(term.reads == what for term in self.terms)

    def rows(
        self,
        session: Session,
        format: str,
        marked: Collection[str] = (),
        direction: Direction = "degrade",
    ) -> list[int]:
        """The rows that fit, in the model's order."""
        subject = Subject(session, format, marked, direction)
        rows: Iterable[int] = range(len(session.layers.names))
        for term in self.terms:
            test, negated = term.bind(subject), term.negated
            rows = [row for row in rows if test(row) is not negated]
        return list(rows)

    def matches(
        self, session: Session, row: int, format: str, marked: Collection[str] = ()
    ) -> bool:
        """Whether one row fits."""
        subject = Subject(session, format, marked)
        return all(term.bind(subject)(row) is not term.negated for term in self.terms)


def parse_filter(text: str) -> Filter:
    """Read a filter; an empty one fits every layer.

    Raises:
        FilterError: naming the term, what is wrong with it and what is expected.
    """
    terms = [_term(found.group(), found.start()) for found in re.finditer(r"\S+", text)]
    return Filter(" ".join(term.text for term in terms), tuple(terms))


def _term(text: str, start: int) -> Term:
    negated = text[0] in "-!"
    body = text[1:] if negated else text

    def fail(why: str, hint: str = "") -> FilterError:
        return FilterError(text, start, why, hint)

    if not body:
        after = f"write a condition behind '{text}', as in {text}is:kept"
        raise fail(f"nothing stands after '{text}': {after}", after)
    if body.startswith("re:"):
        return Term(text, negated, _regex(body[3:], fail), "names")
    parts = TERM.fullmatch(body)
    if parts is None:
        return Term(text, negated, _name_has(body), "names")
    name, sign, value = parts.group(1).lower(), parts.group(2), parts.group(3)
    if name.endswith("!") and sign == "=":
        raise fail(f"there is no '!=': turn a condition round with -, as in -{name[:-1]}={value}")
    if name not in FIELDS:
        raise fail(_unknown(name))
    if not value:
        raise fail(f"nothing stands after '{sign}': expected {_wanted(name)}", _wanted(name))
    if name in FIGURES:
        if sign == ":":
            raise fail(f"{name} is a number: expected {_wanted(name)}")
        compared = _comparison(name, sign, value, fail)
        return Term(text, negated, _compare(compared), _reads(name), compared)
    if name == "block":
        return Term(text, negated, _block(sign, value, fail), "names")
    if sign not in ":=" or name == "re":
        raise fail(f"'{sign}' does not go with {name}: expected {_wanted(name)}")
    bind = {"kind": _kind, "fmt": _fmt, "role": _role, "is": _state}[name]
    return Term(
        text, negated, bind(value.lower(), sign == "=", fail), _reads(f"{name}:{value.lower()}")
    )


class _Fail(Protocol):
    def __call__(self, why: str, hint: str = "") -> FilterError: ...


def _reads(what: str) -> str:
    if what == "is:marked":
        return "marks"
    if what.startswith("fmt:") or what in ("is:changed", "is:kept", "bits"):
        return "holds"
    return "names" if what == "params" or what.startswith(("kind:", "role:")) else "facts"


def _unknown(name: str) -> str:
    if not name:
        return f"no field stands before the operator; fields are {', '.join(FIELDS)}"
    near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.5)
    guess = f", did you mean {near[0]!r}?" if near else ";"
    return f"there is no field {name!r}{guess} fields are {', '.join(FIELDS)}"


def _wanted(name: str) -> str:
    """What a field is followed by."""
    if name in FIGURES:
        return f"< <= > >= or = and a number, as in {name}{FIGURES[name].example}"
    return f"{name}: and {WORDS[name]}"


def _one_of(value: str, name: str, known: Iterable[str], fail: _Fail) -> None:
    known = tuple(known)
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
        guess = f", did you mean {near[0]!r}?" if near else ";"
        begun = any(word.startswith(value) for word in known)
        raise fail(
            f"{value!r} is none of these{guess} expected {', '.join(known)}",
            _wanted(name) if begun else "",
        )


def _regex(pattern: str, fail: _Fail) -> Callable[[Subject], Test]:
    if not pattern:
        hint = "a regular expression, as in re:down_proj$"
        raise fail(f"nothing stands after 're:': expected {hint}", f"re: and {hint}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python may read in another way
            found = re.compile(pattern).search
    except (re.error, OverflowError, RecursionError, ValueError) as error:
        raise fail(f"not a regular expression: {error}") from error

    def bind(subject: Subject) -> Test:
        names = subject.session.layers.names
        return lambda row: found(names[row]) is not None

    return bind


def _name_has(part: str) -> Callable[[Subject], Test]:
    part = part.lower()

    def bind(subject: Subject) -> Test:
        names = subject.session.layers.names
        return lambda row: part in names[row].lower()

    return bind


def _word(wanted: str, whole: bool) -> Callable[[str], bool]:
    """Test of a word: the same, fitting a pattern, or beginning so; each word is tried once."""
    fits = re.compile(translate(wanted)).match if any(c in wanted for c in "*?[") else None
    known: dict[str, bool] = {}

    def test(word: str) -> bool:
        if (answer := known.get(word)) is None:
            low = word.lower()
            if fits is not None:
                answer = fits(low) is not None
            else:
                answer = low == wanted if whole else low.startswith(wanted)
            known[word] = answer
        return answer

    return test


def _kind(wanted: str, whole: bool, fail: _Fail) -> Callable[[Subject], Test]:
    test = _word(wanted, whole)

    def bind(subject: Subject) -> Test:
        kinds = subject.session.layers.kinds
        return lambda row: test(kinds[row])

    return bind


def _fmt(wanted: str, whole: bool, fail: _Fail) -> Callable[[Subject], Test]:
    if wanted == "kept":
        return lambda subject: _states(subject)["kept"]
    test = _word(wanted, whole)

    def bind(subject: Subject) -> Test:
        holds = subject.session.layers.holds
        return lambda row: test(holds[row])

    return bind


def _role(wanted: str, whole: bool, fail: _Fail) -> Callable[[Subject], Test]:
    begun = [role for role in ROLES if role.startswith(wanted)]
    if whole or not begun:
        _one_of(wanted, "role", ROLES, fail)
    test = _word(wanted, whole)

    def bind(subject: Subject) -> Test:
        roles = subject.session.layers.roles
        return lambda row: test(roles[row])

    return bind


def _state(wanted: str, whole: bool, fail: _Fail) -> Callable[[Subject], Test]:
    _one_of(wanted, "is", STATES, fail)
    return lambda subject: _states(subject)[wanted]


def _states(subject: Subject) -> dict[str, Test]:
    session, marked = subject.session, subject.marked
    layers, changed = session.layers, session.changed
    key = EffectKey(subject.direction, subject.format)
    nothing: list[None] = [None] * len(layers.names)
    measured = session.effects.measured.get(key, nothing)
    estimated = session.effects.estimated.get(key, nothing)
    return {
        "changed": lambda row: layers.names[row] in changed,
        "kept": lambda row: layers.names[row] not in changed,
        "marked": lambda row: layers.names[row] in marked,
        "measured": lambda row: measured[row] is not None,
        "estimated": lambda row: measured[row] is None and estimated[row] is not None,
        "finding": lambda row: finding(layers.weights[row]),
    }


def _block(sign: str, value: str, fail: _Fail) -> Callable[[Subject], Test]:
    span = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", value, re.ASCII)
    if span is None or (span.group(2) and sign not in ":="):
        raise fail("expected a block's number, or a range after ':', as in block:3 or block:2-5")
    first = int(span.group(1))
    last = int(span.group(2)) if span.group(2) else first
    if last < first:
        raise fail(f"the range {value} is empty: write block:{last}-{first}")
    compare = OPERATORS.get(sign)

    def bind(subject: Subject) -> Test:
        blocks = subject.session.layers.blocks
        if sign in ":=" or compare is None:
            return lambda row: first <= blocks[row] <= last
        return lambda row: blocks[row] >= 0 and compare(blocks[row], first)

    return bind


def _comparison(name: str, sign: str, value: str, fail: _Fail) -> Comparison:
    figure = FIGURES[name]
    parts = _NUMBER.fullmatch(value)
    if parts is None:
        begun = _NUMBER.fullmatch(f"{value}0") is not None
        raise fail(
            f"{value!r} is not a number: expected {_wanted(name)}", _wanted(name) if begun else ""
        )
    unit = parts.group(2).lower()
    if unit == "%" and not figure.share:
        raise fail(f"{name} is no share, so '%' does not go with it: expected {_wanted(name)}")
    if unit in UNITS and not figure.counted:
        raise fail(f"'{parts.group(2)}' does not go with {name}: expected {_wanted(name)}")
    wanted = float(parts.group(1)) * (0.01 if unit == "%" else UNITS.get(unit, 1.0))
    if not math.isfinite(wanted):
        raise fail(f"{value!r} is too large a number")
    return Comparison(name, sign, wanted, not unit)


def _compare(asked: Comparison) -> Callable[[Subject], Test]:
    figure, compare = FIGURES[asked.figure], OPERATORS[asked.sign]

    def bind(subject: Subject) -> Test:
        read = figure.bind(subject.session, subject.format, subject.direction)
        return lambda row: compare(read(row), asked.wanted)  # nan fits none

    return bind
