"""Predicted effects of layers and of a recipe, before they are measured.

A recipe is predicted from the last one that was measured, or from one format everywhere if that was
measured and differs in fewer layers: its score, and the differences of the effects of the layers
that differ, as much larger as that recipe's KL is than the sum of its single effects. What layers
do together is then measured, not assumed.
`engine.session.known_effects` has the single effects.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Mapping
from functools import cached_property

import msgspec

from engine import protocol as p
from engine.formats.storage import can_hold
from engine.session.artefact import OUTSIDE
from engine.session.correction import corrected
from engine.session.known_effects import KnownEffect, KnownEffects, correction
from engine.session.state import Session, recipe_hash
from engine.session.text_curvature import TextCurvature
from engine.session.tried import held_in, layers_of, line_of, score_of
from engine.steps import ROWS, drained

MOST_TOGETHER = 4.0
"""How many times larger or smaller than their sum single effects may be taken to be together."""
AT_ONCE = 500
"""Layers of a step."""


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
    start: str = ""
    """Hash of that recipe; empty for the model as stored."""

    @property
    def vague(self) -> bool:
        """Whether most of it is unknown."""
        return 2 * self.missing > self.changed or 0 < self.missing == self.changed


def uniform_recipe(session: Session, format: str) -> dict[str, str]:
    """One format for every layer of the body that can hold it."""
    return drained(uniform_in_steps(session, format))


def uniform_in_steps(session: Session, format: str) -> Generator[None, None, dict[str, str]]:
    """The same in steps of some milliseconds."""
    layers = session.layers
    held = {shape: can_hold(format, shape) for shape in set(layers.shapes)}
    found = {}
    for row, (name, role, shape) in enumerate(
        zip(layers.names, layers.roles, layers.shapes, strict=True)
    ):
        if not row % ROWS:
            yield
        if role not in OUTSIDE and held[shape]:
            found[name] = format
    return found


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

    def __init__(
        self,
        session: Session,
        effects: KnownEffects | None = None,
        *,
        itself: bool = True,
        at: int | None = None,
    ) -> None:
        """
        Args:
            session: with a recipe and effects.
            effects: of the session, if some of their columns may have been read already.
            itself: whether to start from the recipe itself, if that is measured.
            at: its place in `Session.tried`; None for the current one.
        """
        self.session = session
        self._at = session.at if at is None else at
        self._effects = KnownEffects(session) if effects is None else effects
        self._since, self._start, self._score = _since(session, self._at, itself=itself)

    @cached_property
    def _together(self) -> float:
        """`_ratio` of the recipe that it starts from."""
        if self._score is None:
            return 1.0
        return drained(self._ratio(layers_of(self.session, self._start), self._score))

    def _ratio(
        self, recipe: Mapping[str, str], score: p.RecipeScore
    ) -> Generator[None, None, float]:
        """KL of a measured recipe over the sum of its layers' single effects.

        1 where that says little: with effects that are unknown, or nothing changed.
        """
        alone = 0.0
        for number, (layer, held) in enumerate(recipe.items()):
            if number % AT_ONCE == 0:
                yield
            effect = self._effect(layer, held, many=len(recipe))
            if effect is None:
                return 1.0
            alone += effect.kl
        if not alone > 0 or not score.kl > 0:
            return 1.0
        return min(max(score.kl / alone, 1 / MOST_TOGETHER), MOST_TOGETHER)

    def _effect(self, layer: str, held: str, *, many: int) -> KnownEffect | None:
        """The effect of one layer, one of ``many``; of more than a step's from its whole column."""
        if held and many > AT_ONCE:
            known = self._effects.column(held)[self.session.index[layer]]
            if known is not None:
                return KnownEffect(*known)
        return self._effects.of(layer, held)

    def predict(self, further: Mapping[str, str]) -> Prediction | None:
        """The score of the current recipe with further formats; None until the baseline is known.

        Args:
            further: formats by layer.
        """
        return drained(self.in_steps(further))

    def in_steps(self, further: Mapping[str, str]) -> Generator[None, None, Prediction | None]:
        """The same in steps of some milliseconds."""
        session, score = self.session, self._score
        if session.baseline is None:
            return None
        held = session.changed
        if self._at != session.at:
            held = held_in(session, self._at, self._since)
        now = {layer: held.get(layer, "") for layer in self._since}
        for layer, wanted in further.items():
            now[layer] = "" if wanted == session.kept(session.index[layer]) else wanted
        before = held_in(session, self._start, now)
        changed = {
            layer: (old, new) for layer, new in now.items() if new != (old := before.get(layer, ""))
        }
        yield
        start = "" if score is None else score.recipe
        uniform = self._nearer_uniform(changed, now)
        yield
        if uniform is not None:
            recipe, score, changed = uniform
            start = score.recipe
            together = yield from self._ratio(recipe, score)
        else:
            together = self._together
        dnll = kl = 0.0
        missing = filled = 0
        for number, (layer, (old, new)) in enumerate(changed.items()):
            if number % AT_ONCE == 0:
                yield
            gained = self._effect(layer, new, many=len(changed))
            lost = self._effect(layer, old, many=len(changed))
            if gained is None or lost is None:
                missing += 1
                continue
            filled += gained.filled or lost.filled
            dnll += gained.dnll - lost.dnll
            kl += gained.kl - lost.kl
        if score is not None:
            kl = max(0.0, score.kl + together * kl)
            dnll = score.dnll + together * dnll
        try:
            ppl = session.baseline.ppl * math.exp(dnll)
        except OverflowError:
            ppl = math.inf
        return Prediction(dnll, kl, ppl, missing, filled, len(changed), start)

    def _nearer_uniform(
        self, changed: Mapping[str, tuple[str, str]], now: Mapping[str, str]
    ) -> tuple[dict[str, str], p.RecipeScore, dict[str, tuple[str, str]]] | None:
        """One format everywhere, if that was measured and fewer layers differ from it.

        Args:
            changed: formats of layers that differ from the recipe that it starts from, before and
                now.
            now: formats of these layers, and of others; empty for as stored.

        Returns:
            The recipe, its score, and the formats of layers that differ from it, before and now.
        """
        session = self.session
        if 2 * len(changed) <= len(session.layers.names):
            return None
        recipe = {**layers_of(session, self._start), **now}
        counted = Counter(held for held in recipe.values() if held)
        if not counted:
            return None
        uniform = uniform_recipe(session, counted.most_common(1)[0][0])
        score = session.scores.get(recipe_hash(uniform))
        if score is None or not score.done or not math.isfinite(score.kl):
            return None
        differs = {
            layer: (before, held)
            for layer in uniform | recipe
            if (before := uniform.get(layer, "")) != (held := recipe.get(layer, ""))
        }
        return (uniform, score, differs) if len(differs) < len(changed) else None


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
