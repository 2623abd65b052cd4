"""Effects of layers: which one to show, its change of perplexity, and its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import msgspec

from engine.diagnosis.thresholds import Thresholds
from engine.formats.grammar import Format, parse_format
from engine.formats.storage import stored_bits, why_not_held
from engine.protocol import EffectKey, Estimate, LayerWeights, Sensitivity
from engine.session import Session, TextCurvature, corrected, correction
from engine.session.artefact import OUTSIDE

Effect: TypeAlias = Sensitivity | Estimate


def finding(weights: LayerWeights | None, limits: Thresholds) -> bool:
    """Whether triage found something in a layer that needs attention."""
    return weights is not None and (
        weights.nan > 0 or weights.inf > 0 or weights.worst_column_sigma > limits.outlier_column
    )


def effects(session: Session, key: EffectKey) -> Callable[[int], Effect | None]:
    """Reader of a row's effect: the measured one, else the estimate, corrected if possible."""
    measured, estimated = session.effects.measured.get(key), session.effects.estimated.get(key)
    if measured is None and estimated is None:
        return lambda row: None
    if estimated is None:
        return (measured or []).__getitem__
    fit = correction(session, key)
    curvature = TextCurvature(session) if key.by == "layer" else None

    def read(row: int) -> Effect | None:
        if measured is not None and (known := measured[row]) is not None:
            return known
        if (guess := estimated[row]) is None:
            return None
        return corrected(guess, fit, 1.0 if curvature is None else curvature.of(row))

    return read


def kl_reader(session: Session, key: EffectKey) -> Callable[[int], float | None]:
    """The KL of `effects`, without building the effects: long tables are sorted by it."""
    measured, estimated = session.effects.measured.get(key), session.effects.estimated.get(key)
    fit = correction(session, key)
    if measured is None and estimated is None:
        return lambda row: None

    def read(row: int) -> float | None:
        if measured is not None and (known := measured[row]) is not None:
            return known.kl
        if estimated is None or (guess := estimated[row]) is None:
            return None
        return guess.kl if fit is None else fit.kl(guess.kl)

    return read


def delta_ppl(session: Session, effect: Effect | None) -> float:
    """Change of perplexity: measured, else computed from the estimated change of NLL.

    The effect of restoring a layer is estimated at the quantised model, whose perplexity differs
    from the baseline's: the result is nan.
    """
    if effect is None:
        return math.nan
    if isinstance(effect, Sensitivity):
        return effect.dppl
    if session.baseline is None or effect.direction != "degrade":
        return math.nan
    try:
        return session.baseline.ppl * math.expm1(effect.dnll)
    except OverflowError:
        return math.inf


def delta_ppl_bound(session: Session, effect: Effect, side: int) -> float:
    """The lower (``side`` −1) or upper (+1) end of the change of perplexity's interval.

    For an estimate it follows from the interval of ΔNLL.
    """
    if isinstance(effect, Sensitivity):
        return effect.dppl_low if side < 0 else effect.dppl_high
    half = session.interval_factor * effect.dnll_se
    return delta_ppl(session, msgspec.structs.replace(effect, dnll=effect.dnll + side * half))


def delta_ppl_margin(session: Session, effect: Effect | None) -> tuple[float, float]:
    """A change of perplexity, and half its 95% interval; nan where not known."""
    change = delta_ppl(session, effect)
    if isinstance(effect, Sensitivity):
        half = (effect.dppl_high - effect.dppl_low) / 2
    elif effect is None or session.baseline is None:
        return change, math.nan
    else:
        # The interval of exp(ΔNLL), to first order.
        half = session.interval_factor * effect.dnll_se * (session.baseline.ppl + change)
    # Always the same nan object: a new one would compare unequal to the one drawn before.
    return change, math.nan if math.isnan(half) else half


def below_floor(session: Session, effect: Effect | None) -> bool:
    """Whether a measured KL is below what rounding alone may cause."""
    control = session.control
    return (
        control is not None
        and isinstance(effect, Sensitivity)
        and abs(effect.kl) < control.floor_kl
    )


def size_changes(session: Session, format: str) -> Callable[[int], float | None]:
    """Reader of the bytes that the file grows by with one layer in a format, alone.

    Negative if it shrinks. A tied head or embedding needs a copy of its own as soon as one of the
    two is quantised.
    """
    if not format:
        return lambda row: None
    parsed, layers, tied = parse_format(format), session.layers, session.tied

    def read(row: int) -> float | None:
        shape = layers.shapes[row]
        bits = bits_held(parsed, shape)
        if bits is None:
            return None
        if tied and layers.roles[row] in OUTSIDE:
            return bits / 8
        return (bits - layers.own_bits[row]) / 8

    return read


@lru_cache(maxsize=4096)
def bits_held(format: Format, shape: tuple[int, ...]) -> int | None:
    """Stored bits of a shape in a format; None if it cannot hold it."""
    return None if why_not_held(format, shape) is not None else stored_bits(format, shape)


def corrected_kl(session: Session, estimate: Estimate) -> float | None:
    """The KL expected by the fit of measured to estimated KL; None without a fit."""
    fit = correction(session, estimate.key) if estimate.by == "layer" else None
    return None if fit is None else fit.kl(estimate.kl)
