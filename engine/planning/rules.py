"""What a plan may choose, from its command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec

from engine import protocol as p
from engine.diagnosis.serving import runs_on
from engine.errors import InfeasibleError, UsageError
from engine.export.held import weights_of, why_not
from engine.export.target import target_named
from engine.formats.grammar import parse_format
from engine.formats.kernels import KERNELS
from engine.plan.pins import pinned_layers
from engine.plan.units import Rules
from engine.recipes.file import nearest
from engine.session import Session


def tiers_of(session: Session, rules: Rules, command: p.Plan) -> list[list[Rules]]:
    """Rules of which a plan follows those with the best recipe, the preferred ones first.

    A target with one format for all layers has one for each format. What is to run somewhere, none
    knows where, has one for each serving kernel, since a recipe of several runs nowhere; where none
    of these fits the budget, one for each family of formats, since one file holds no other mix.

    Args:
        session: whose layers they are.
        rules: of the command; see `rules_of`.
        command: as accepted.

    Raises:
        InfeasibleError: layers are pinned to several formats, and the target has one for all.
    """
    if command.to:
        return [_of_one_format(session, rules, command)]
    if not command.served:
        return [[rules]]
    return [_of_one_kernel(session, rules), _of_one_family(rules)]


def _of_one_family(rules: Rules) -> list[Rules]:
    families: dict[str, list[str]] = {}
    for format in rules.formats:
        families.setdefault(parse_format(format).family, []).append(format)
    return [replace(rules, formats=tuple(some)) for some in families.values()] or [rules]


def _of_one_format(session: Session, rules: Rules, command: p.Plan) -> list[Rules]:
    target, weights = target_named(command.to), weights_of(session)
    single = any(
        target.alike(None, weight) is None and target.alike(fmt, weight) is not None
        for fmt in map(parse_format, rules.formats)
        for weight in weights
    )
    if not single:
        return [rules]
    pinned = sorted({held for held in rules.pins.values() if held})
    if len(pinned) > 1:
        raise InfeasibleError(
            f"layers are pinned to {' and '.join(pinned)}, but {target.why_alike}: pin one format"
        )
    formats = tuple(pinned) or rules.formats
    return [replace(rules, formats=(format,)) for format in formats] or [rules]


def _of_one_kernel(session: Session, rules: Rules) -> list[Rules]:
    layers = session.layers
    some = {
        (shape, role == "embedding"): row
        for row, (shape, role) in enumerate(zip(layers.shapes, layers.roles, strict=True))
    }
    taken: dict[str, frozenset[tuple[str, int]]] = {
        kernel.name: frozenset(
            (format, row)
            for format in rules.formats
            for row in some.values()
            if runs_on(session, kernel.name, format, row)
        )
        for kernel in KERNELS
    }
    found = []
    for name, mine in taken.items():
        others = [other for each, other in taken.items() if each != name]
        first = next(each for each, other in taken.items() if other == mine) == name
        if mine and first and not any(mine < other for other in others):
            found.append(replace(rules, why_unserved=_only_on(session, name)))
    return found


def _only_on(session: Session, kernel: str) -> Callable[[str, int], str | None]:
    def why(format: str, row: int) -> str | None:
        return None if runs_on(session, kernel, format, row) else f"{kernel} does not take it"

    return why


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
