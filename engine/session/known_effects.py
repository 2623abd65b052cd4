"""Effects of single layers as they are known: measured, else estimated, else filled in.

An estimate is corrected by the measurements of other layers, and of its own layer in other formats.
An effect that is not known is filled in from the same layer's effect in another format: KL grows
with the square of the weight error.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from functools import lru_cache

import msgspec

from engine import protocol as p
from engine.errors import FormatError
from engine.formats.grammar import Format, parse_format
from engine.session.correction import Correction, corrected, fitted
from engine.session.state import Session
from engine.session.text_curvature import TextCurvature
from engine.steps import ROWS, drained

ALIKE = frozenset({"integer", "gguf"})
"""Families whose weight error halves with every bit, about."""


def correction(session: Session, key: p.EffectKey) -> Correction | None:
    """The correction of estimates from measurements; None if there is none."""
    return fitted(session.effects.agreement.get(key))


class KnownEffect(msgspec.Struct, frozen=True):
    """The effect of one layer changed alone, in nats per token."""

    kl: float
    dnll: float
    kl_se: float = 0.0
    measured: bool = False
    """Measured rather than estimated."""
    filled: bool = False
    """Filled in from another format of the layer."""


class KnownEffects:
    """Effects of single layers: measured, else estimated, else filled in."""

    def __init__(self, session: Session) -> None:
        """
        Args:
            session: whose effects they are.
        """
        self._session = session
        self._fits: dict[p.EffectKey, Correction | None] = {}
        self._columns: dict[str, list[tuple[float, float, float] | None]] = {}
        self._curvature = TextCurvature(session)
        self._known = [key for key in session.effects.known("degrade") if key.by == "layer"]

    def of(self, layer: str, held: str) -> KnownEffect | None:
        """The effect of one layer in a format, empty for as stored; None if nothing tells it."""
        if not held:
            return KnownEffect(0.0, 0.0, measured=True)
        row = self._session.index[layer]
        key = p.EffectKey("degrade", held)
        known = self._session.sensitivity(row, key) or self._session.estimate(row, key)
        if known is not None:
            # One that is not finite is known to be bad, and filled in from nothing.
            return self._read(row, key)
        return self._filled(row, held)

    def known(self, layer: str, held: str) -> KnownEffect | None:
        """The same without what is filled in from another format."""
        found = self.of(layer, held)
        return None if found is None or found.filled else found

    def column(self, held: str) -> list[tuple[float, float, float] | None]:
        """KL, ΔNLL and the standard error of KL of every layer, as `known` has them.

        None where it is not known; those of a whole column cost far less than one by one, and are
        read once.

        Args:
            held: a format; empty for as stored.
        """
        return drained(self.column_in_steps(held))

    def column_in_steps(
        self, held: str
    ) -> Generator[None, None, list[tuple[float, float, float] | None]]:
        """The same in steps of some milliseconds."""
        if held not in self._columns:
            self._columns[held] = yield from self._whole(held)
        return self._columns[held]

    def _whole(self, held: str) -> Generator[None, None, list[tuple[float, float, float] | None]]:
        session = self._session
        count = len(session.layers.names)
        if not held:
            return [(0.0, 0.0, 0.0)] * count
        key = p.EffectKey("degrade", held)
        nothing: list[None] = [None] * count
        measured = session.effects.measured.get(key, nothing)
        estimated = session.effects.estimated.get(key, nothing)
        fit = correction(session, key)
        found: list[tuple[float, float, float] | None] = []
        for row, (exact, guess) in enumerate(zip(measured, estimated, strict=True)):
            if not row % ROWS:
                yield
            known = exact if exact is not None else guess
            if known is None:
                found.append(None)
                continue
            kl, dnll, se = known.kl, known.dnll, known.kl_se
            if exact is None:
                before = kl
                if fit is not None:
                    kl = fit.kl(kl)
                    se *= kl / before if before else 1.0
                dnll += self._curvature.of(row) * kl - before
            found.append((kl, dnll, se) if math.isfinite(kl) and math.isfinite(dnll) else None)
        return found

    def error_of_sum(self, recipe: Mapping[str, str]) -> float:
        """Standard error of the sum of a recipe's single effects, in nats per token.

        Errors of measured effects add up: they come from the same windows, of which some are
        harder than others in every layer. Those of estimates are their own, and no smaller than
        measurements of other layers show them to be; but that of their correction adds up too.

        Args:
            recipe: formats by layer; a layer whose effect is not known counts as 0.
        """
        by_format: dict[str, list[int]] = {}
        for layer, held in recipe.items():
            by_format.setdefault(held, []).append(self._session.index[layer])
        windows = own = common = 0.0
        for held, rows in by_format.items():
            key, column = p.EffectKey("degrade", held), self.column(held)
            measured = self._session.effects.measured.get(key)
            fit, corrected = correction(self._session, key), 0.0
            spread = fit.spread if fit is not None else 0.0
            for row in rows:
                if (effect := column[row]) is None:
                    continue
                if measured is not None and measured[row] is not None:
                    windows += effect[2]
                else:
                    own += max(effect[2], spread * abs(effect[0])) ** 2
                    corrected += abs(effect[0])
            common += corrected * (0.0 if fit is None else self._common_error(key, fit))
        return math.hypot(windows, math.sqrt(own), common)

    def _common_error(self, key: p.EffectKey, fit: Correction) -> float:
        """Standard error, as a share, that the corrected estimates of a format have in common."""
        effects = self._session.effects
        measured, estimated = effects.measured.get(key, []), effects.estimated.get(key, [])
        every = [each.kl for each in estimated if each is not None and math.isfinite(each.kl)]
        some = [
            guess.kl
            for exact, guess in zip(measured, estimated, strict=False)
            if exact is not None and guess is not None and math.isfinite(guess.kl)
        ]
        return fit.common(some, every)

    def _read(self, row: int, key: p.EffectKey) -> KnownEffect | None:
        known = self._session.sensitivity(row, key) or self._session.estimate(row, key)
        if known is None:
            return None
        if isinstance(known, p.Estimate):
            if key not in self._fits:
                self._fits[key] = correction(self._session, key)
            known = corrected(known, self._fits[key], self._curvature.of(row))
        if not math.isfinite(known.kl) or not math.isfinite(known.dnll):
            return None
        measured = isinstance(known, p.Sensitivity)
        return KnownEffect(known.kl, known.dnll, known.kl_se, measured)

    def _filled(self, row: int, held: str) -> KnownEffect | None:
        """From the format of this layer whose weight error is nearest."""
        found: list[tuple[float, p.EffectKey]] = []
        for key in self._known:
            if self._read(row, key) is not None:
                ratio = self._error_ratio(row, held, key.format)
                if ratio is not None:
                    found.append((ratio, key))
        if not found:
            return None
        ratio, key = min(found, key=lambda each: abs(math.log(each[0])))
        near = self._read(row, key)
        assert near is not None
        # What is of first order has a sign that another rounding does not share.
        kl = near.kl * ratio**2
        dnll = self._curvature.of(row) * kl
        return KnownEffect(kl, dnll, near.kl_se * ratio**2, filled=True)

    def _error_ratio(self, row: int, held: str, known: str) -> float | None:
        """Weight error in one format over that in another: read, else about what bits tell."""
        one, other = without_methods(held), without_methods(known)
        if str(one) == str(other):
            return 1.0
        if (weights := self._session.layers.weights[row]) is not None:
            errors = weights.errors
            mine, theirs = errors.get(held) or errors.get(str(one)), errors.get(str(other))
            if mine is not None and theirs is not None and mine.relative > 0 < theirs.relative:
                return mine.relative / theirs.relative
        if one.family not in ALIKE or other.family not in ALIKE:
            return None
        return (2.0**other.bits - 1) / (2.0**one.bits - 1)


@lru_cache(maxsize=1024)
def without_methods(format: str) -> Format:
    """A format without its methods, unless it cannot be without them."""
    parsed = parse_format(format)
    try:
        return msgspec.structs.replace(parsed, methods=())
    except FormatError:
        return parsed
