"""Who uses an engine, in words."""

from __future__ import annotations

from collections import Counter

from engine import protocol as p
from qtui.views.text import printable


def used_by(others: p.Clients, *, of_run: bool) -> str:
    """A sentence that says who else needs the engine; empty if nobody does.

    Args:
        others: clients besides this one.
        of_run: whether it belongs to a command without an interface, which ends with it.
    """
    if of_run:
        return "a command without an interface runs this engine, and ends with it"
    names: list[str] = []
    if others.terminals:
        names.append(_times("another terminal", "other terminals", others.terminals))
    for name, count in Counter(others.commands).items():
        names.append(f"`{printable(name)}`" if count == 1 else f"`{printable(name)}` ({count})")
    if not names:
        return ""
    listed = ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
    many = len(names) > 1 or others.terminals > 1
    return f"{listed} {'use' if many else 'uses'} this engine too"


def _times(one: str, many: str, count: int) -> str:
    return one if count == 1 else f"{count} {many}"
