"""Which formats a recipe for an export target may use."""

from __future__ import annotations

from engine.diagnosis.serving import Serving, by_kernels
from engine.export.held import weights_of, why_not
from engine.export.target import target_named
from engine.formats.grammar import Format, parse_format
from engine.session import Session


def serving(session: Session, to: str) -> Serving:
    """What a target holds; without one, what some serving kernel takes.

    Args:
        session: whose layers they are; a later list of layers needs another one.
        to: name of the target; empty for none.

    Raises:
        UsageError: no target has this name.
    """
    if not to:
        return by_kernels(session)
    target, weights = target_named(to), weights_of(session)
    remembered: dict[tuple[object, ...], str | None] = {}

    def why(format: str, row: int) -> str | None:
        weight = weights[row]
        # A name counts outside of blocks alone, as `engine.export.held` has it.
        where = weight.kind if weight.block >= 0 else weight.name
        key = format, where, weight.shape, weight.role, weight.dtype, weight.tied
        if key not in remembered:
            remembered[key] = why_not(target, parse_format(format), weight)
        return remembered[key]

    def alike(format: Format | None, row: int) -> str | None:
        return target.alike(format, weights[row])

    return Serving(to, why, alike)
