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
    """Of the export target."""

    def allows(self, kind: str, shape: tuple[int, ...], format: str) -> bool:
        """Whether a layer can hold a format, the target can store it, and no ban forbids it."""
        if any(of in ("", kind) and no == format for of, no in self.bans):
            return False
        return can_hold(format, shape) and self.why_not(parse_format(format), shape) is None


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
    found: dict[tuple[str, int], list[int]] = {}
    for row, (role, group) in enumerate(zip(layers.roles, layers.groups, strict=True)):
        if role in OUTSIDE and tied:
            home = ("tied", 0)
        elif rules.grouped and group >= 0:
            home = ("group", group)
        else:
            home = ("layer", row)
        found.setdefault(home, []).append(row)
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
            yield from product(*each)
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
        possible = (f for f in rules.formats if f != kept and rules.allows(kind, shape, f))
        return ["", *possible]

    def _why_no_pin(self, row: int) -> str:
        """Why a layer cannot take the format it is pinned to, as an end of a sentence."""
        name, shape = self._session.layers.names[row], self._session.layers.shapes[row]
        held = self._rules.pins[name]
        if not held:
            return ""
        parsed = parse_format(held)
        why = why_not_held(parsed, shape) or self._rules.why_not(parsed, shape)
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
