"""What a plan may choose, from its command."""

from __future__ import annotations

from engine import protocol as p
from engine.errors import UsageError
from engine.export.target import target_named
from engine.plan.pins import pinned_layers
from engine.plan.units import Rules
from engine.recipes.file import nearest
from engine.session import Session


def rules_of(session: Session, command: p.Plan, dtype: str) -> Rules:
    """The formats, pins, bans and units of a plan.

    Args:
        session: whose layers they are.
        command: as accepted.
        dtype: of the checkpoint, by torch's name, which decides what a target can store.

    Raises:
        UsageError: a pin or a ban matches no layer.
    """
    pins = pinned_layers(session, command.pins)
    for kind, format in command.bans:
        if kind and kind not in session.layers.kinds:
            near = nearest(kind, list(dict.fromkeys(session.layers.kinds)))
            hint = f"did you mean {near!r}?" if near else "a kind is the last part of a name"
            raise UsageError(
                f"{format} is banned for {kind!r}, and no layer is of that kind: {hint}"
            )
    if not command.to:
        return Rules(command.formats, pins, command.bans, command.grouped)
    target = target_named(command.to)
    return Rules(
        command.formats,
        pins,
        command.bans,
        command.grouped,
        lambda format, shape: target.why_not_expressed(format, shape, dtype),
    )
