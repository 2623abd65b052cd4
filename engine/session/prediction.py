"""Predicted effects of layers and of a recipe, before they are measured.

A recipe is predicted from the last one that was measured: its score, and the differences of the
effects of the layers that changed since, as much larger as that recipe's KL is than the sum of its
single effects. What layers do together is then measured, not assumed. An effect that is not known
is filled in from the same layer's effect in another format: KL grows with the square of the weight
error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property, lru_cache

import msgspec

from engine import protocol as p
from engine.errors import FormatError
from engine.formats.grammar import Format, parse_format
from engine.session.correction import Correction, fitted
from engine.session.state import Session
from engine.session.tried import held_in, layers_of, line_of, score_of

MOST_TOGETHER = 4.0
"""How many times larger or smaller than their sum single effects may be taken to be together."""
ALIKE = frozenset({"integer", "gguf"})
"""Families whose weight error halves with every bit, about."""


class Prediction(msgspec.Struct, frozen=True):
    """The score of the last measured recipe, and the effects of what has changed since."""

    dnll: float
    kl: float
    ppl: float
    missing: int
    """Changed layers whose effect is unknown, and not in the sum."""
    filled: int = 0
    """Changed layers whose effect was filled in from another format of the layer."""
    changed: int = 0
    """Layers that differ from the recipe that it starts from."""
    start: int = 0
    """Number of that recipe in `Session.tried`; 0 is the model as stored."""

    @property
    def vague(self) -> bool:
        """Whether most of it is unknown."""
        return 2 * self.missing > self.changed or 0 < self.missing == self.changed


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
    """Predicted score of the current recipe; None until the baseline is known.

    It starts from the recipe that was measured last before this one, so it stays what it was when
    this one is measured.
    """
    return None if session.baseline is None else Predictor(session, itself=False).predict({})


class Predictor:
    """Predicts the current recipe with further changes."""

    def __init__(self, session: Session, *, itself: bool = True) -> None:
        """
        Args:
            session: with a recipe and effects.
            itself: whether to start from the current recipe, if that is measured.
        """
        self.session = session
        self._effects = _Effects(session)
        self._since, self.start, self._score = _since(session, itself=itself)

    @cached_property
    def _together(self) -> float:
        """KL of the recipe that it starts from, over the sum of its layers' single effects.

        1 where that says little: with effects that are unknown, or nothing changed.
        """
        if self._score is None:
            return 1.0
        effects = [self._effects.of(*held) for held in layers_of(self.session, self.start).items()]
        alone = sum(effect.kl for effect in effects if effect is not None)
        if None in effects or not alone > 0 or not self._score.kl > 0:
            return 1.0
        return min(max(self._score.kl / alone, 1 / MOST_TOGETHER), MOST_TOGETHER)

    def predict(self, further: Mapping[str, str]) -> Prediction | None:
        """The score of the current recipe with further formats; None until the baseline is known.

        Args:
            further: formats by layer.
        """
        session, effects, score = self.session, self._effects, self._score
        if session.baseline is None:
            return None
        now = {layer: session.changed.get(layer, "") for layer in self._since}
        for layer, held in further.items():
            now[layer] = "" if held == session.kept(session.index[layer]) else held
        before = held_in(session, self.start, now)
        dnll = kl = 0.0
        missing = filled = changed = 0
        for layer, held in now.items():
            if held == (old := before.get(layer, "")):
                continue
            changed += 1
            gained, lost = effects.of(layer, held), effects.of(layer, old)
            if gained is None or lost is None:
                missing += 1
                continue
            filled += gained.filled or lost.filled
            dnll += gained.dnll - lost.dnll
            kl += gained.kl - lost.kl
        if score is not None:
            kl = max(0.0, score.kl + self._together * kl)
            dnll = score.dnll + self._together * dnll
        try:
            ppl = session.baseline.ppl * math.exp(dnll)
        except OverflowError:
            ppl = math.inf
        return Prediction(dnll, kl, ppl, missing, filled, changed, self.start)


def _since(session: Session, *, itself: bool) -> tuple[dict[str, None], int, p.RecipeScore | None]:
    """Layers changed since the last measured recipe, its number and its score."""
    layers: dict[str, None] = {}
    start, score = 0, None
    for start in line_of(session, session.at):
        score = score_of(session, start) if itself or start != session.at else None
        if score is not None and math.isfinite(score.kl):
            break
        step = session.tried[start]
        layers.update((layer, None) for layer in step.layers if layer in session.index)
    else:
        score = None
    return layers, start, score


class _Effect(msgspec.Struct, frozen=True):
    kl: float
    dnll: float
    filled: bool = False


class _Effects:
    """Effects of single layers: measured, else estimated, else filled in."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._fits: dict[p.EffectKey, Correction | None] = {}
        self._known = [key for key in session.effects.known("degrade") if key.by == "layer"]

    def of(self, layer: str, held: str) -> _Effect | None:
        """The effect of one layer in a format, empty for as stored; None if nothing tells it."""
        if not held:
            return _Effect(0.0, 0.0)
        row = self._session.index[layer]
        return self._read(row, p.EffectKey("degrade", held)) or self._filled(row, held)

    def _read(self, row: int, key: p.EffectKey) -> _Effect | None:
        known = self._session.sensitivity(row, key) or self._session.estimate(row, key)
        if known is None:
            return None
        if isinstance(known, p.Estimate):
            if key not in self._fits:
                self._fits[key] = correction(self._session, key)
            if (fit := self._fits[key]) is not None:
                known = fit.apply(known)
        return _Effect(known.kl, known.dnll)

    def _filled(self, row: int, held: str) -> _Effect | None:
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
        return _Effect(kl, kl, filled=True)

    def _error_ratio(self, row: int, held: str, known: str) -> float | None:
        """Weight error in one format over that in another: read, else about what bits tell."""
        one, other = _plain(held), _plain(known)
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
def _plain(format: str) -> Format:
    """A format without its methods, unless it cannot be without them."""
    parsed = parse_format(format)
    try:
        return msgspec.structs.replace(parsed, methods=())
    except FormatError:
        return parsed
