"""Parts of a sweep's document: layers, units, and the reliability of the figures."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.report import schema as s
from engine.report.entry import Template
from engine.report.figures import Context, Figure, Value
from engine.report.figures.registry import json_figures
from engine.report.json import finite
from engine.session import Session

CORRECTED = "estimate.corrected_kl"


def layer_parts(
    session: Session, formats: Sequence[str], direction: p.Direction
) -> list[s.SweepLayer]:
    """Every layer in every format with known effects, in the model's order."""
    keys = [p.EffectKey(direction, format) for format in formats]
    listed = json_figures("sweep", "row")
    bound = [[each.read.bind(Context(session, key)) for _, each in listed] for key in keys]
    effects = _Effects(session)
    template = Template(s.SweepLayer, [*(path for path, _ in listed), *effects.paths, "format"])
    found = []
    for row in range(len(session.layers.names)):
        for key, readers in zip(keys, bound, strict=True):
            measured, estimate = session.sensitivity(row, key), session.estimate(row, key)
            if measured is None and estimate is None:
                continue
            values = [read(row) for read in readers]
            found.append(template.fill([*values, *effects.values(measured, estimate), key.format]))
    return found


def other_formats(
    session: Session, formats: Sequence[str], direction: p.Direction
) -> tuple[str, ...]:
    """Formats that were estimated in addition to those asked for."""
    known = (key.format for key in session.effects.estimated if key.direction == direction)
    return tuple(format for format in known if format not in formats)


def unit_parts(
    session: Session, formats: Sequence[str], direction: p.Direction, by: p.By
) -> list[s.SweepUnit]:
    """The effects of blocks, kinds or fused groups."""
    members, effects = _members(session, by), _Effects(session)
    template = Template(s.SweepUnit, ["name", "by", "format", "layers", *effects.paths])
    found = []
    for format in formats:
        key = p.EffectKey(direction, format, by)
        measured = session.effects.units.get(key, {})
        estimated = session.effects.estimated_units.get(key, {})
        for name in dict.fromkeys((*measured, *estimated)):
            about = name, by, format, members.get(name, [])
            values = effects.values(measured.get(name), estimated.get(name))
            found.append(template.fill([*about, *values]))
    return found


def _members(session: Session, by: p.By) -> dict[str, list[str]]:
    """Layers by the name of their unit; see `Sensitivity.by`."""
    layers = session.layers
    keys: list[str]
    if by == "block":
        keys = [str(block) if block >= 0 else "" for block in layers.blocks]
    elif by == "kind":
        keys = layers.kinds
    else:
        first: dict[int, str] = {}
        for name, group in zip(layers.names, layers.groups, strict=True):
            first.setdefault(group, name)
        keys = [
            first[group] if group >= 0 else name
            for name, group in zip(layers.names, layers.groups, strict=True)
        ]
    found: dict[str, list[str]] = {}
    for name, key in zip(layers.names, keys, strict=True):
        found.setdefault(key, []).append(name)
    return found


def agreement_parts(
    session: Session, formats: Sequence[str], direction: p.Direction
) -> dict[str, s.AgreementPart] | UnsetType:
    """How well estimates and measurements agree, by format."""
    found = {
        format: s.AgreementPart(
            layers=known.layers,
            rank_kl=finite(known.rank_kl),
            rank_dnll=finite(known.rank_dnll),
            ratio=finite(known.ratio),
        )
        for format in formats
        if (known := session.effects.agreement.get(p.EffectKey(direction, format))) is not None
    }
    return found or UNSET


def floor_part(session: Session) -> s.FloorPart | UnsetType:
    """What rounding alone may cause."""
    if (control := session.control) is None:
        return UNSET
    return s.FloorPart(kl=finite(control.floor_kl), dnll=finite(control.floor_dnll))


class _Effects:
    """Figures of effects: their paths in an entry, and their values for one effect."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._measured = json_figures("sweep", "effect")
        self._estimate = json_figures("sweep", "estimate")
        self.paths = [path for path, _ in (*self._measured, *self._estimate)]
        self._corrected = self.paths.index(CORRECTED)

    def values(
        self, measured: p.Sensitivity | None, estimate: p.Estimate | None
    ) -> list[Value | None]:
        """One value per path; None if not known."""
        found = of_fact(self._measured, measured, self.session)
        found += of_fact(self._estimate, estimate, self.session)
        if measured is not None:
            # The fit includes this measurement: its corrected estimate says nothing new.
            found[self._corrected] = None
        return found


def of_fact(
    figures: Sequence[tuple[str, Figure]], fact: object, session: Session
) -> list[Value | None]:
    """Figures of one fact, in order; None for each if there is no fact."""
    if fact is None:
        return [None] * len(figures)
    return [
        None if each.read.value is None else each.read.value(fact, session) for _, each in figures
    ]
