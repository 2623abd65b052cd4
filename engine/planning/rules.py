"""What a plan may choose, from its command."""

from __future__ import annotations

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.export.held import weights_of, why_not
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
    weights = [msgspec.structs.replace(weight, dtype=dtype) for weight in weights_of(session)]

    def alike(row: int) -> str | None:
        # Where kept layers may differ from the others, no unit says so: the export refuses a mix.
        return target.alike(None, weights[row])

    return Rules(
        command.formats,
        pins,
        command.bans,
        command.grouped,
        why_not_row=lambda format, row: why_not(target, format, weights[row]),
        alike=alike,
    )
