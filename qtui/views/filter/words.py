"""The words of the filter: fields, states, operators and units, and what follows a field."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable
from typing import get_args

from engine.protocol import Role
from engine.report.figures.registry import filter_figures

ROLES: tuple[str, ...] = get_args(Role)
STATES: dict[str, str] = {
    "changed": "its format was changed",
    "kept": "as stored",
    "marked": "marked for the next toggle",
    "measured": "its effect was measured in the shown format",
    "estimated": "its effect is estimated, not measured",
    "finding": "NaN, Inf or an outlier input channel",
}
WORDS: dict[str, str] = {
    "kind": "last part of the name, or a pattern with *",
    "block": "number, or a range such as 2-5",
    "fmt": "current format, or its beginning",
    "role": "linear, conv1d, experts, head, embedding",
    "is": "changed, kept, marked, measured, estimated, finding",
    "re": "regular expression, searched in the full name",
}
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
    "=": lambda found, wanted: math.isclose(found, wanted, rel_tol=1e-6),
}  # fmt: skip
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}

TERM = re.compile(r"([^:<>=]*)(:|<=|>=|<|>|=)(.*)", re.DOTALL)
NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([%kKmMbBtT]?)")


def filter_fields() -> tuple[str, ...]:
    """The names that may precede an operator: the words, then the figures."""
    return (*WORDS, *filter_figures())


def expected_after(name: str) -> str:
    """What a field is followed by."""
    if (figure := filter_figures().get(name)) is not None and figure.filter is not None:
        return f"< <= > >= or = and a number, as in {name}{figure.filter.example}"
    return f"{name}: and {WORDS[name]}"


def unknown_field(name: str) -> str:
    """What to say of a name that is no field."""
    fields = filter_fields()
    if not name:
        return f"no field before the operator; fields are {', '.join(fields)}"
    near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
    guess = f", did you mean {near[0]!r}?" if near else ";"
    return f"there is no field {name!r}{guess} fields are {', '.join(fields)}"
