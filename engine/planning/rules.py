"""What a plan may choose, from its command."""

from __future__ import annotations

from engine import protocol as p
from engine.export.target import target_named
from engine.plan.pins import pinned_layers
from engine.plan.units import Rules
from engine.session import Session


def rules_of(session: Session, command: p.Plan, dtype: str) -> Rules:
    """The formats, pins, bans and units of a plan.

    Args:
        session: whose layers they are.
        command: as accepted.
        dtype: of the checkpoint, by torch's name, which decides what a target can store.
    """
    pins = pinned_layers(session, command.pins)
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
