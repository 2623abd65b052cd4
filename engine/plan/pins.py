"""Formats of layers that are decided before planning, by name or pattern."""

from __future__ import annotations

from collections.abc import Mapping

from engine.errors import UsageError
from engine.patterns import pattern_of
from engine.recipes.file import nearest
from engine.session import Session


def pinned_layers(session: Session, pins: Mapping[str, str]) -> dict[str, str]:
    """Formats by layer name; empty for as stored. The first pin that matches a layer counts.

    Raises:
        UsageError: a pin is no pattern, or matches no layer.
    """
    found: dict[str, str] = {}
    for pin, held in pins.items():
        pattern = pattern_of(pin)
        matching = [
            name
            for name in session.layers.names
            if (pin == name if pattern is None else pattern.match(name))
        ]
        if not matching:
            near = nearest(pin, session.layers.names)
            hint = f"did you mean {near!r}?" if near else "give a whole name, or re: and a pattern"
            raise UsageError(f"{pin!r} is pinned, and no layer is called so: {hint}")
        for name in matching:
            kept = held in ("kept", session.kept(session.index[name]))
            found.setdefault(name, "" if kept else held)
    return found
