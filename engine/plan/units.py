"""What a plan chooses from: units of layers, and the formats that each may take.

A unit is a fused group, because serving engines store it as one tensor with one format; or a single
layer. Head and embedding that are one tensor in the files are one unit too: quantising either
stores both. A format that some layer of a unit cannot hold, or whose effect is not known, is no
choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple, TypeAlias

import numpy as np

from engine.errors import InfeasibleError
from engine.formats.grammar import Format, parse_format
from engine.formats.storage import can_hold, why_not_held
from engine.plan.knapsack import Choices
from engine.session import KnownEffects, Session
from engine.session.artefact import OUTSIDE

WhyNot: TypeAlias = Callable[[Format, Sequence[int]], str | None]
"""Why a weight of a shape cannot be written in a format; None if it can."""


class Choice(NamedTuple):
    """A format for every layer of a unit."""

    formats: tuple[str, ...]
    """Canonical, empty for a layer that is left as stored."""
    body_bits: int
    """Stored bits of its layers in the body."""
    bits: int
    """Stored bits of all its layers."""
    kl: float
    """Sum of the effects of its layers, nats per token."""
    variance: float
    """Of that sum."""


class Unit(NamedTuple):
    """Layers that are decided together."""

    layers: tuple[str, ...]
    choices: tuple[Choice, ...]

    @property
    def name(self) -> str:
        """The name of its first layer."""
        return self.layers[0]


@dataclass(frozen=True)
class Rules:
    """What a plan may choose."""

    formats: tuple[str, ...]
    """Canonical formats; leaving a layer as stored is always allowed."""
    pins: Mapping[str, str] = field(default_factory=dict)
    """Formats of layers that are decided already; empty for as stored."""
    bans: tuple[tuple[str, str], ...] = ()
    """Kinds of layers and formats that they may not take; an empty kind is every kind."""
    grouped: bool = True
    """Whether the layers of a fused group take one format."""
    why_not: WhyNot = lambda format, shape: None
    """Of the export target, for a weight of a shape."""
    why_not_row: Callable[[Format, int], str | None] = lambda format, row: None
    """Of the export target, for the layer on a row of the session."""
    alike: Callable[[int], str | None] = lambda row: None
    """Rows with the same key must take one format for the export target; None if any."""

    why_unserved: Callable[[str, int], str | None] = lambda format, row: None
    """Why the layer on a row should not take a canonical format, since it would not run fast;
    pinned layers may."""

    def allows(self, kind: str, shape: tuple[int, ...], format: str, row: int) -> bool:
        """Whether a layer can hold a format, the target can store it, it runs, and no ban forbids
        it."""
        if any(of in ("", kind) and no == format for of, no in self.bans):
            return False
        if self.why_unserved(format, row) is not None:
            return False
        return can_hold(format, shape) and self.why_target_not(
            parse_format(format), shape, row
        ) is (None)

    def why_target_not(self, format: Format, shape: Sequence[int], row: int) -> str | None:
        """Why the export target cannot store a layer in a format; None if it can."""
        return self.why_not(format, shape) or self.why_not_row(format, row)


def units_of(session: Session, rules: Rules) -> list[Unit]:
    """All units with their choices, in the model's order.

    Raises:
        InfeasibleError: a unit has no choice left, naming it.
    """
    return _units(session, rules, KnownEffects(session))


def smallest_units(session: Session, rules: Rules) -> list[Unit]:
    """All units as if no format had an effect: to see what sizes are possible, before anything is
    measured.

    Raises:
        InfeasibleError: as `units_of`.
    """
    return _units(session, rules, None)


def _units(session: Session, rules: Rules, effects: KnownEffects | None) -> list[Unit]:
    of_unit = [_Layers(session, rules, rows, effects) for rows in _rows(session, rules)]
    return [each.unit() for each in of_unit]


def choices_of(units: Sequence[Unit], *, body: bool) -> Choices:
    """KL over stored bits: of the body, or of all layers."""
    width = max(len(unit.choices) for unit in units)
    cost, weight = np.full((len(units), width), np.inf), np.zeros((len(units), width))
    for row, unit in enumerate(units):
        count = len(unit.choices)
        cost[row, :count] = [choice.kl for choice in unit.choices]
        weight[row, :count] = [c.body_bits if body else c.bits for c in unit.choices]
    return Choices(cost, weight)


def recipe_of(units: Sequence[Unit], chosen: Iterable[int]) -> dict[str, str]:
    """The layers that are not left as stored, with their formats.

    Args:
        units: all units.
        chosen: the index of every unit's choice.
    """
    return {
        layer: held
        for unit, at in zip(units, chosen, strict=True)
        for layer, held in zip(unit.layers, unit.choices[at].formats, strict=True)
        if held
    }


def _rows(session: Session, rules: Rules) -> list[list[int]]:
    """The rows of every unit."""
    layers = session.layers
    tied = session.tied and len(layers.outside) > 1
    found: dict[int, list[int]] = {}
    """Rows by the first row of their unit."""
    unit_of: list[int] = []
    first: dict[tuple[str, object], int] = {}
    for row, (role, group) in enumerate(zip(layers.roles, layers.groups, strict=True)):
        keys: list[tuple[str, object]] = []
        if role in OUTSIDE and tied:
            keys.append(("tied", 0))
        elif rules.grouped and group >= 0:
            keys.append(("group", group))
        if (alike := rules.alike(row)) is not None:
            keys.append(("alike", alike))
        homes = {unit_of[first[key]] for key in keys if key in first}
        home = min(homes, default=row)
        for other in homes - {home}:
            # Two units have one member now: they are one.
            for moved in found[other]:
                unit_of[moved] = home
            found[home] = sorted(found[home] + found.pop(other))
        found.setdefault(home, []).append(row)
        unit_of.append(home)
        for key in keys:
            first.setdefault(key, row)
    return list(found.values())


class _Layers:
    """The choices of one unit's layers."""

    def __init__(
        self, session: Session, rules: Rules, rows: Sequence[int], effects: KnownEffects | None
    ) -> None:
        self._session, self._rules, self._effects = session, rules, effects
        self._rows = rows
        self._names = [session.layers.names[row] for row in rows]
        # Head and embedding take formats of their own.
        self._apart = session.layers.roles[rows[0]] in OUTSIDE

    def unit(self) -> Unit:
        found = [choice for formats in self._formats() if (choice := self._choice(formats))]
        if not found:
            pinned = [
                f"{name} is pinned to {self._rules.pins[name] or 'its stored dtype'}"
                + self._why_no_pin(row)
                for row, name in zip(self._rows, self._names, strict=True)
                if name in self._rules.pins
            ]
            together = "they take one format (see --ungrouped)" if len(self._rows) > 1 else ""
            why = "; ".join(part for part in (*pinned, together) if part)
            raise InfeasibleError(f"{', '.join(self._names)}: no format is possible: {why}")
        return Unit(tuple(self._names), tuple(found))

    def _formats(self) -> Iterator[tuple[str, ...]]:
        """Candidates for all layers together."""
        each = [self._of_layer(row) for row in self._rows]
        if self._apart:
            keys = [self._rules.alike(row) for row in self._rows]
            for formats in product(*each):
                if len({*zip(keys, formats, strict=True)}) == len({*keys}) or None in keys:
                    yield formats
            return
        for format in each[0]:
            if all(format in others for others in each[1:]):
                yield (format,) * len(each)

    def _of_layer(self, row: int) -> list[str]:
        layers, rules = self._session.layers, self._rules
        name, kind, shape = layers.names[row], layers.kinds[row], layers.shapes[row]
        if name in rules.pins:
            return [] if self._why_no_pin(row) else [rules.pins[name]]
        kept = self._session.kept(row)
        possible = (f for f in rules.formats if f != kept and rules.allows(kind, shape, f, row))
        return ["", *possible]

    def _why_no_pin(self, row: int) -> str:
        """Why a layer cannot take the format it is pinned to, as an end of a sentence."""
        name, shape = self._session.layers.names[row], self._session.layers.shapes[row]
        held = self._rules.pins[name]
        if not held:
            return ""
        parsed = parse_format(held)
        why = why_not_held(parsed, shape) or self._rules.why_target_not(parsed, shape, row)
        if why is None and self._effects is not None and self._effects.known(name, held) is None:
            why = "its effect in that format is not known"
        return f", but {why}" if why else ""

    def _choice(self, formats: Sequence[str]) -> Choice | None:
        """What a format for every layer costs; None if an effect is not known."""
        body_bits = bits = 0
        kl = variance = 0.0
        layers = self._session.layers
        for row, name, held in zip(self._rows, self._names, formats, strict=True):
            if self._effects is not None:
                effect = self._effects.known(name, held)
                if effect is None:
                    return None
                kl += max(0.0, effect.kl)
                variance += effect.kl_se**2
            stored = self._session.bits_in(row, held)
            bits += stored
            body_bits += 0 if layers.roles[row] in OUTSIDE else stored
        if self._session.tied and not any(formats):
            # One tensor while both are left as they are.
            bits -= sum(
                self._session.bits_in(row, "") for row in self._rows if layers.roles[row] == "head"
            )
        return Choice(tuple(formats), body_bits, bits, kl, variance)
