"""One number of a layer by its name: what a filter compares and a column of the table sorts by.

A figure is bound to a session, a format and a direction once, and then read for row after row.
What is not known is ``nan``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from engine.protocol import Direction, EffectKey, Estimate, LayerWeights, Sensitivity
from engine.session import Session, correction

Reader: TypeAlias = Callable[[int], float]
"""The figure of a row; nan where it is not known."""

OUTLIER_COLUMN = 10.0
"""An input channel whose largest weight is so many σ is a finding."""


class Figure(NamedTuple):
    """A number that every layer has once it is known."""

    says: str
    """What it is, and its unit."""
    example: str
    """A comparison, as it would be typed after the name."""
    bind: Callable[[Session, str, Direction], Reader]
    share: bool = False
    """Whether it is a share, so that ``5%`` means .05."""
    counted: bool = False
    """Whether it is a count, so that ``1M`` means 1,000,000."""


def finding(weights: LayerWeights | None) -> bool:
    """Whether triage found something in a layer that a person should look at."""
    return weights is not None and (
        weights.nan > 0 or weights.inf > 0 or weights.worst_column_sigma > OUTLIER_COLUMN
    )


def delta_ppl(session: Session, effect: Sensitivity | Estimate | None) -> float:
    """Change of perplexity: as measured, else what an estimated change of NLL makes of it.

    A layer's restoring is estimated at the quantised model, whose perplexity is another than the
    baseline's: there it is nan.
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


def effects(
    session: Session, format: str, direction: Direction = "degrade"
) -> Callable[[int], Sensitivity | Estimate | None]:
    """Reader of a row's effect: the measured one, else the estimate, corrected where it can be."""
    key = EffectKey(direction, format)
    measured, estimated = session.effects.measured.get(key), session.effects.estimated.get(key)
    if measured is None and estimated is None:
        return lambda row: None
    if estimated is None:
        return (measured or []).__getitem__
    fit = correction(session, key)

    def read(row: int) -> Sensitivity | Estimate | None:
        if measured is not None and (known := measured[row]) is not None:
            return known
        guess = estimated[row]
        return guess if guess is None or fit is None else fit.apply(guess)

    return read


def below_floor(session: Session, effect: Sensitivity | Estimate | None) -> bool:
    """Whether a measured KL is smaller than what rounding alone may measure."""
    control = session.control
    return (
        control is not None
        and isinstance(effect, Sensitivity)
        and abs(effect.kl) < control.floor_kl
    )


def _kl(session: Session, format: str, direction: Direction) -> Reader:
    key = EffectKey(direction, format)
    measured, estimated = session.effects.measured.get(key), session.effects.estimated.get(key)
    fit = correction(session, key)
    if measured is None and estimated is None:
        return lambda row: math.nan

    def read(row: int) -> float:
        if measured is not None and (known := measured[row]) is not None:
            return known.kl
        if estimated is None or (guess := estimated[row]) is None:
            return math.nan
        # As `effects` has it, with nothing else made: tables of many rows are sorted by this.
        return guess.kl if fit is None else fit.kl(guess.kl)

    return read


def _dnll(session: Session, format: str, direction: Direction) -> Reader:
    of = effects(session, format, direction)

    def read(row: int) -> float:
        effect = of(row)
        return math.nan if effect is None else effect.dnll

    return read


def _dppl(session: Session, format: str, direction: Direction) -> Reader:
    of = effects(session, format, direction)
    return lambda row: delta_ppl(session, of(row))


def _top1(session: Session, format: str, direction: Direction) -> Reader:
    measured = session.effects.measured.get(EffectKey(direction, format))

    def read(row: int) -> float:
        effect = None if measured is None else measured[row]
        return math.nan if effect is None else effect.top1

    return read


def _error(session: Session, format: str, direction: Direction) -> Reader:
    weights = session.layers.weights

    def read(row: int) -> float:
        known = weights[row]
        error = None if known is None else known.errors.get(format)
        return math.nan if error is None else error.relative

    return read


def _outliers(session: Session, format: str, direction: Direction) -> Reader:
    weights = session.layers.weights

    def read(row: int) -> float:
        known = weights[row]
        return math.nan if known is None else known.outliers.fraction

    return read


def _kurtosis(session: Session, format: str, direction: Direction) -> Reader:
    weights = session.layers.weights

    def read(row: int) -> float:
        known = weights[row]
        return math.nan if known is None else known.kurtosis

    return read


def _bits(session: Session, format: str, direction: Direction) -> Reader:
    bits, shapes = session.layers.bits, session.layers.shapes
    return lambda row: bits[row] / (math.prod(shapes[row]) or math.nan)


def _params(session: Session, format: str, direction: Direction) -> Reader:
    shapes = session.layers.shapes
    return lambda row: float(math.prod(shapes[row]))


FIGURES: dict[str, Figure] = {
    "kl": Figure("KL, nats per token; measured, else estimated", ">1e-3", _kl),
    "dppl": Figure("change of perplexity; measured, else estimated", ">.05", _dppl),
    "dnll": Figure("change of NLL, nats per token; measured, else estimated", ">1e-3", _dnll),
    "error": Figure("relative weight error in the shown format", ">5%", _error, share=True),
    "outliers": Figure("share of weights far out", ">.1%", _outliers, share=True),
    "kurtosis": Figure("excess kurtosis of the weights", ">3", _kurtosis),
    "bits": Figure("bits per weight as the layer is held now", "<8", _bits),
    "params": Figure("number of weights", ">1M", _params, counted=True),
    "top1": Figure("share of tokens with the same first choice", "<99%", _top1, share=True),
}
