"""What a condition of the filter tests, bound to a session once and then asked row by row."""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Callable, Iterable
from fnmatch import translate
from typing import NamedTuple, Protocol, TypeAlias, cast

from engine.diagnosis.thresholds import thresholds
from engine.errors import UsageError
from engine.patterns import Pattern
from engine.report.figures import Context, Number, figure
from engine.report.figures.effects import finding
from qtui.views.filter.words import NUMBER, OPERATORS, ROLES, STATES, UNITS, expected_after

Test: TypeAlias = Callable[[int], bool]
"""Whether a row fits."""
Bind: TypeAlias = Callable[[Context], Test]


SEARCH_SECONDS = 0.1
"""Processor time that a regular expression may take on all names: it is tried at every key."""


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


class Comparison(NamedTuple):
    """What a condition on a number compares."""

    figure: str
    sign: str
    wanted: float
    bare: bool
    """Whether it was typed without a unit."""


class Fail(Protocol):
    def __call__(self, why: str, hint: str = "") -> FilterError: ...


def _one_of(value: str, name: str, known: Iterable[str], fail: Fail) -> None:
    known = tuple(known)
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
        guess = f", did you mean {near[0]!r}?" if near else ";"
        begun = any(word.startswith(value) for word in known)
        raise fail(
            f"{value!r} is none of these{guess} expected {', '.join(known)}",
            expected_after(name) if begun else "",
        )


def regex(text: str, fail: Fail) -> Bind:
    """Names in which a regular expression is found; the test raises if that takes too long."""
    if not text:
        hint = "a regular expression, as in re:down_proj$"
        raise fail(f"nothing after 're:': expected {hint}", f"re: and {hint}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later version may read in another way
            pattern = Pattern(text, seconds=SEARCH_SECONDS)
    except UsageError as error:
        raise fail(_why(text, error)) from error
    known: dict[str, bool] = {}

    def is_found(name: str) -> bool:
        if (answer := known.get(name)) is None:  # the table is filtered anew with every result
            try:
                answer = known[name] = pattern.search(name)
            except UsageError as error:
                raise fail(_why(text, error)) from error
        return answer

    def bind(context: Context) -> Test:
        names = context.session.layers.names
        return lambda row: is_found(names[row])

    return bind


def _why(pattern: str, error: UsageError) -> str:
    """What is wrong with a pattern that the term names already."""
    return f"it {str(error).removeprefix(f'{pattern!r} ')}"


def name_has(part: str) -> Bind:
    """Names with a part, in capitals or not."""
    part = part.lower()

    def bind(context: Context) -> Test:
        names = context.session.layers.names
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


def kind(wanted: str, whole: bool, fail: Fail) -> Bind:
    """Kinds: the last parts of names."""
    test = _word(wanted, whole)

    def bind(context: Context) -> Test:
        kinds = context.session.layers.kinds
        return lambda row: test(kinds[row])

    return bind


def format_held(wanted: str, whole: bool, fail: Fail) -> Bind:
    """Formats held now."""
    if wanted == "kept":
        return lambda context: _states(context)["kept"]
    test = _word(wanted, whole)

    def bind(context: Context) -> Test:
        holds = context.session.layers.holds
        return lambda row: test(holds[row])

    return bind


def role(wanted: str, whole: bool, fail: Fail) -> Bind:
    """Roles."""
    begun = [role for role in ROLES if role.startswith(wanted)]
    if whole or not begun:
        _one_of(wanted, "role", ROLES, fail)
    test = _word(wanted, whole)

    def bind(context: Context) -> Test:
        roles = context.session.layers.roles
        return lambda row: test(roles[row])

    return bind


def state(wanted: str, whole: bool, fail: Fail) -> Bind:
    """States, such as ``is:kept``."""
    _one_of(wanted, "is", STATES, fail)
    return lambda context: _states(context)[wanted]


def _states(context: Context) -> dict[str, Test]:
    session, marked = context.session, context.marked
    layers, changed = session.layers, session.changed
    nothing: list[None] = [None] * len(layers.names)
    limits = thresholds(session)
    measured = session.effects.measured.get(context.key, nothing)
    estimated = session.effects.estimated.get(context.key, nothing)
    return {
        "changed": lambda row: layers.names[row] in changed,
        "kept": lambda row: layers.names[row] not in changed,
        "marked": lambda row: layers.names[row] in marked,
        "measured": lambda row: measured[row] is not None,
        "estimated": lambda row: measured[row] is None and estimated[row] is not None,
        "finding": lambda row: finding(layers.weights[row], limits),
    }


def block(sign: str, value: str, fail: Fail) -> Bind:
    """Numbers of blocks, or a range of them."""
    span = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", value, re.ASCII)
    if span is None or (span.group(2) and sign not in ":="):
        raise fail("expected a block's number, or a range after ':', as in block:3 or block:2-5")
    first = int(span.group(1))
    last = int(span.group(2)) if span.group(2) else first
    if last < first:
        raise fail(f"the range {value} is empty: write block:{last}-{first}")
    compare = OPERATORS.get(sign)

    def bind(context: Context) -> Test:
        blocks = context.session.layers.blocks
        if sign in ":=" or compare is None:
            return lambda row: first <= blocks[row] <= last
        return lambda row: blocks[row] >= 0 and compare(blocks[row], first)

    return bind


def comparison(name: str, sign: str, value: str, fail: Fail) -> Comparison:
    """A condition on a figure: ``error>=5%``."""
    quantity = figure(name).quantity
    parts = NUMBER.fullmatch(value)
    if parts is None:
        begun = NUMBER.fullmatch(f"{value}0") is not None
        raise fail(
            f"{value!r} is not a number: expected {expected_after(name)}",
            expected_after(name) if begun else "",
        )
    unit = parts.group(2).lower()
    if unit == "%" and not quantity.share:
        after = expected_after(name)
        raise fail(f"{name} is not a share, so '%' does not apply: expected {after}")
    if unit in UNITS and not quantity.counted:
        raise fail(f"'{parts.group(2)}' does not apply to {name}: expected {expected_after(name)}")
    wanted = float(parts.group(1)) * (0.01 if unit == "%" else UNITS.get(unit, 1.0))
    if not math.isfinite(wanted):
        raise fail(f"{value!r} is too large a number")
    return Comparison(name, sign, wanted, not unit)


def compared(asked: Comparison) -> Bind:
    """The test of a condition on a figure; what is not known fits none."""
    reading, compare, wanted = figure(asked.figure).read, OPERATORS[asked.sign], asked.wanted

    def bind(context: Context) -> Test:
        read = cast("Number", reading.bind(context))
        return lambda row: (found := read(row)) is not None and compare(found, wanted)

    return bind
