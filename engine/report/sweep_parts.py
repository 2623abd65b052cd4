"""The parts of a sweep's document: layers, units, and how far the figures hold."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.report import schema as s
from engine.report.figures import below_floor
from engine.report.schema import finite
from engine.session import Session, correction


def layer_parts(
    session: Session, formats: Sequence[str], direction: p.Direction
) -> list[s.SweepLayer]:
    """Every layer in every format that something is known of, in the model's order."""
    layers = session.layers
    found = []
    for row, name in enumerate(layers.names):
        for format in formats:
            key = p.EffectKey(direction, format)
            measured, estimate = session.sensitivity(row, key), session.estimate(row, key)
            if measured is None and estimate is None:
                continue
            found.append(
                s.SweepLayer(
                    name=name,
                    kind=layers.kinds[row],
                    block=layers.blocks[row],
                    format=format,
                    estimate=_estimate(session, estimate, corrected=measured is None),
                    measured=_measured(session, measured),
                )
            )
    return found


def other_formats(
    session: Session, formats: Sequence[str], direction: p.Direction
) -> tuple[str, ...]:
    """Formats that were estimated beside those that were asked for."""
    known = (key.format for key in session.effects.estimated if key.direction == direction)
    return tuple(format for format in known if format not in formats)


def unit_parts(
    session: Session, formats: Sequence[str], direction: p.Direction, by: p.By
) -> list[s.SweepUnit]:
    """What was changed as a block, a kind or a fused group."""
    members = _members(session, by)
    found = []
    for format in formats:
        key = p.EffectKey(direction, format, by)
        measured = session.effects.units.get(key, {})
        estimated = session.effects.estimated_units.get(key, {})
        for name in dict.fromkeys((*measured, *estimated)):
            found.append(
                s.SweepUnit(
                    name=name,
                    by=by,
                    format=format,
                    layers=members.get(name, []),
                    estimate=_estimate(session, estimated.get(name)),
                    measured=_measured(session, measured.get(name)),
                )
            )
    return found


def _members(session: Session, by: p.By) -> dict[str, list[str]]:
    """Layers by the name of their unit, as `Sensitivity.by` has it."""
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
    """What rounding alone may measure."""
    if (control := session.control) is None:
        return UNSET
    return s.FloorPart(kl=finite(control.floor_kl), dnll=finite(control.floor_dnll))


def _estimate(
    session: Session, known: p.Estimate | None, *, corrected: bool = True
) -> s.EstimatePart | UnsetType:
    if known is None:
        return UNSET
    fit = None
    if corrected and known.by == "layer":  # of what is measured the fit knows the measurement
        fit = correction(session, known.key)
    return s.EstimatePart(
        kl=finite(known.kl),
        kl_se=finite(known.kl_se),
        dnll=finite(known.dnll),
        dnll_se=finite(known.dnll_se),
        tokens=known.tokens,
        draws=known.draws,
        doubt=known.doubt or UNSET,
        corrected_kl=UNSET if fit is None else finite(fit.kl(known.kl)),
    )


def _measured(session: Session, known: p.Sensitivity | None) -> s.MeasuredPart | UnsetType:
    if known is None:
        return UNSET
    return s.MeasuredPart(
        kl=finite(known.kl),
        kl_se=finite(known.kl_se),
        dnll=finite(known.dnll),
        dnll_se=finite(known.dnll_se),
        dppl=finite(known.dppl),
        dppl_ci95=(finite(known.dppl_low), finite(known.dppl_high)),
        tokens=known.tokens,
        top1_agreement=finite(known.top1),
        below_floor=True if below_floor(session, known) else UNSET,
    )
