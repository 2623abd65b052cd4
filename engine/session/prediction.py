"""Predicted effects of layers and of a recipe, before they are measured.

A recipe is predicted from the last one that was measured: its score, and the differences of the
effects of the layers that changed since, as much larger as that recipe's KL is than the sum of its
single effects. What layers do together is then measured, not assumed.
`engine.session.known_effects` has the single effects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import msgspec

from engine import protocol as p
from engine.session.correction import corrected
from engine.session.known_effects import KnownEffects, correction
from engine.session.state import Session
from engine.session.text_curvature import TextCurvature
from engine.session.tried import held_in, layers_of, line_of, score_of

MOST_TOGETHER = 4.0
"""How many times larger or smaller than their sum single effects may be taken to be together."""


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


def expected(session: Session, row: int, key: p.EffectKey) -> p.Estimate | None:
    """The estimated effect of one layer, corrected by measurements of others."""
    estimate = session.estimate(row, key)
    if estimate is None:
        return None
    curvature = TextCurvature(session).of(row) if key.by == "layer" else 1.0
    return corrected(estimate, correction(session, key), curvature)


def predict(session: Session) -> Prediction | None:
    """Predicted score of the current recipe; None until the baseline is known.

    It starts from the recipe that was measured last before this one, so it stays what it was when
    this one is measured.
    """
    return None if session.baseline is None else Predictor(session, itself=False).predict({})


def predict_tried(session: Session, number: int) -> Prediction | None:
    """Predicted score of a recipe that was tried, as `predict` has it when it is the current one.

    Args:
        session: that has held it.
        number: its place in `Session.tried`.
    """
    if session.baseline is None:
        return None
    return Predictor(session, itself=False, at=number).predict({})


class Predictor:
    """Predicts a recipe, the current one or another that was tried, with further changes."""

    def __init__(self, session: Session, *, itself: bool = True, at: int | None = None) -> None:
        """
        Args:
            session: with a recipe and effects.
            itself: whether to start from the recipe itself, if that is measured.
            at: its place in `Session.tried`; None for the current one.
        """
        self.session = session
        self._at = session.at if at is None else at
        self._effects = KnownEffects(session)
        self._since, self.start, self._score = _since(session, self._at, itself=itself)

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
        held = session.changed
        if self._at != session.at:
            held = held_in(session, self._at, self._since)
        now = {layer: held.get(layer, "") for layer in self._since}
        for layer, wanted in further.items():
            now[layer] = "" if wanted == session.kept(session.index[layer]) else wanted
        before = held_in(session, self.start, now)
        dnll = kl = 0.0
        missing = filled = changed = 0
        for layer, new in now.items():
            if new == (old := before.get(layer, "")):
                continue
            changed += 1
            gained, lost = effects.of(layer, new), effects.of(layer, old)
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


def _since(
    session: Session, at: int, *, itself: bool
) -> tuple[dict[str, None], int, p.RecipeScore | None]:
    """Layers changed since the last measured recipe, its number and its score."""
    layers: dict[str, None] = {}
    start, score = 0, None
    for start in line_of(session, at):
        score = score_of(session, start) if itself or start != at else None
        if score is not None and math.isfinite(score.kl):
            break
        step = session.tried[start]
        layers.update((layer, None) for layer in step.layers if layer in session.index)
    else:
        score = None
    return layers, start, score
