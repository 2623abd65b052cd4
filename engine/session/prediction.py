"""Predicted effects of layers and of a recipe, before they are measured."""

from __future__ import annotations

import math

import msgspec

from engine import protocol as p
from engine.session.correction import Correction, fitted
from engine.session.state import Session


class Prediction(msgspec.Struct, frozen=True):
    """The sum of the known single effects of the changed layers."""

    dnll: float
    kl: float
    ppl: float
    missing: int
    """Changed layers whose effect is unknown, and not in the sum."""


def correction(session: Session, key: p.EffectKey) -> Correction | None:
    """The correction of estimates from measurements; None if there is none."""
    return fitted(session.effects.agreement.get(key))


def expected(session: Session, row: int, key: p.EffectKey) -> p.Estimate | None:
    """The estimated effect of one layer, corrected by measurements of others."""
    estimate = session.estimate(row, key)
    if estimate is None or (fit := correction(session, key)) is None:
        return estimate
    return fit.apply(estimate)


def predict(session: Session) -> Prediction | None:
    """Predicted score of the current recipe; None until the baseline is known."""
    if session.baseline is None:
        return None
    dnll = kl = 0.0
    missing = 0
    keys = {held: p.EffectKey("degrade", held) for held in set(session.changed.values())}
    fits = {held: correction(session, key) for held, key in keys.items()}
    for layer, held in session.changed.items():
        row, key, fit = session.index[layer], keys[held], fits[held]
        known = session.sensitivity(row, key) or session.estimate(row, key)
        if known is None:
            missing += 1
            continue
        if fit is not None and isinstance(known, p.Estimate):
            known = fit.apply(known)
        dnll += known.dnll
        kl += known.kl
    try:
        ppl = session.baseline.ppl * math.exp(dnll)
    except OverflowError:
        ppl = math.inf
    return Prediction(dnll, kl, ppl, missing)
