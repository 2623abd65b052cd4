"""A recipe as few lines of a recipe file: a default, patterns, and exact names where they must be.

What is written reads back to the same formats; where a shorter form would not, exact names are
written. Head and embedding have lines of their own, since no default is theirs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from engine.formats.catalogue import KEPT
from engine.session import Session
from engine.session.artefact import OUTSIDE

PATTERN = "re:"


def shortened(session: Session, recipe: Mapping[str, str]) -> tuple[str, list[tuple[str, str]]]:
    """A recipe as a default for the body and lines, the first match of which wins.

    Args:
        session: whose layers they are.
        recipe: formats of the layers that are not kept.

    Returns:
        The default, and pairs of an exact name or pattern and its format.
    """
    exact = [(exactly(name), recipe[name]) for name in session.layers.names if name in recipe]
    roles = session.layers.roles
    body = [
        name for name, role in zip(session.layers.names, roles, strict=True) if role not in OUTSIDE
    ]
    counted = Counter(recipe.get(name, KEPT) for name in body)
    default = counted.most_common(1)[0][0] if counted else KEPT
    lines = list(_lines(session, recipe, body, default))
    if len(lines) < len(exact) and _read(session, default, lines) == dict(recipe):
        return default, lines
    return KEPT, exact


def exactly(name: str) -> str:
    """A layer's name; one that looks like a pattern becomes a pattern that matches it alone."""
    return f"{PATTERN}{re.escape(name)}$" if name.startswith(PATTERN) else name


def _lines(
    session: Session, recipe: Mapping[str, str], body: list[str], default: str
) -> Iterator[tuple[str, str]]:
    """Layers that are not as the default says; kinds of which most are alike, as a pattern."""
    yield from (
        (exactly(name), recipe[name])
        for name, role in zip(session.layers.names, session.layers.roles, strict=True)
        if role in OUTSIDE and name in recipe
    )
    by_kind: dict[str, list[str]] = {}
    for name in body:
        by_kind.setdefault(session.layers.kinds[session.index[name]], []).append(name)
    patterns: list[tuple[str, str]] = []
    for kind, names in by_kind.items():
        held = Counter(recipe.get(name, KEPT) for name in names)
        usual, many = held.most_common(1)[0]
        others = len(names) - held[default]
        if usual != default and 1 + len(names) - many < others:
            patterns.append((f"{PATTERN}.*\\.{re.escape(kind)}$", usual))
        else:
            usual = default
        yield from (
            (exactly(name), recipe.get(name, KEPT))
            for name in names
            if recipe.get(name, KEPT) != usual
        )
    # Behind exact names: the first match wins.
    yield from patterns


def _read(session: Session, default: str, lines: list[tuple[str, str]]) -> dict[str, str]:
    """The recipe that lines give, as a recipe file is read."""
    tests = [
        (re.compile(line.removeprefix(PATTERN)).match if line.startswith(PATTERN) else line, held)
        for line, held in lines
    ]
    named = {test: held for test, held in tests if isinstance(test, str)}
    patterns = [(test, held) for test, held in tests if not isinstance(test, str)]
    found: dict[str, str] = {}
    for name, role in zip(session.layers.names, session.layers.roles, strict=True):
        held = named.get(name)
        if held is None:
            held = next((held for match, held in patterns if match(name)), None)
        if held is None:
            held = KEPT if role in OUTSIDE else default
        if held != KEPT:
            found[name] = held
    return found
