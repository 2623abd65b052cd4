"""The history of a layer: its format changes, each with the recipe's score."""

from __future__ import annotations

from typing import NamedTuple

from engine.protocol import RecipeScore
from engine.session import Change, Layers, Session, recipe_hash

SHOWN = 6
"""Steps of a layer that are shown: the last ones."""
QUICK = 1000
"""Changed layers up to which a recipe is hashed at once; a longer one waits for a rest."""


class Step(NamedTuple):
    """A change of one layer."""

    before: str
    after: str
    layers: int
    """How many layers the change touched, this one among them."""
    in_force: bool
    score: RecipeScore | None
    """Of the whole recipe after the change, where it was measured."""
    others: int = 0
    """Other layers that were changed in that recipe; 0 where there is no score."""


class _Recipe(NamedTuple):
    hash: str
    changed: int
    """Layers that are not kept."""


class LayerHistory:
    """Reads the history of one session, keeping what it worked out while the history grows."""

    def __init__(self) -> None:
        self._history: list[Change] = []
        self._where: list[dict[str, int]] = []
        """Of each change: the place of every layer in its columns."""
        self._recipes: list[_Recipe | None] = []
        """Of each change: the recipe after it."""
        self.pending = False
        """Whether scores were left out for want of time."""
        self._layers: Layers | None = None
        """The rows that the recipes were worked out for."""

    def steps(self, session: Session, layer: str, *, rested: bool = True) -> tuple[int, list[Step]]:
        """How many steps of a layer there are, and the last `SHOWN` of them, oldest first.

        Args:
            session: whose history.
            layer: the layer's name.
            rested: whether there is time to hash a long recipe; `pending` says whether scores
                may still be missing.
        """
        self._follow(session)
        touched = [at for at, where in enumerate(self._where) if layer in where]
        shown = touched[-SHOWN:]
        missing = {at for at in shown if self._recipes[at] is None} if session.scores else set()
        quick = len(session.changed) <= QUICK
        if missing and (rested or quick):
            # Of long recipes one a call, the latest first: a key pressed meanwhile has its turn.
            wanted = missing if quick else {max(missing)}
            self._hash(session, wanted)
            missing -= wanted
        self.pending = bool(missing)
        return len(touched), [self._step(session, at, layer) for at in shown]

    def _step(self, session: Session, at: int, layer: str) -> Step:
        change, place, recipe = self._history[at], self._where[at][layer], self._recipes[at]
        score = session.scores.get(recipe.hash) if recipe is not None else None
        others = 0
        if recipe is not None and score is not None:
            row = session.row(layer)
            here = row is not None and change.after[place] != session.kept(row)
            others = recipe.changed - here
        return Step(
            change.before[place],
            change.after[place],
            len(change.layers),
            at < session.position,
            score,
            others,
        )

    def _follow(self, session: Session) -> None:
        """Take up a history that grew, or that went on otherwise from an earlier step."""
        history = session.history
        if session.layers is not self._layers:
            self._layers, self._recipes = session.layers, [None] * len(self._recipes)
        if history is self._history:
            return
        same = 0
        while same < min(len(history), len(self._history)) and history[same] is self._history[same]:
            same += 1
        del self._where[same:], self._recipes[same:]
        for change in history[same:]:
            self._where.append({layer: place for place, layer in enumerate(change.layers)})
            self._recipes.append(None)
        self._history = history

    def _hash(self, session: Session, missing: set[int]) -> None:
        """Work out the recipes after these changes, walking from the one in force."""
        recipe = dict(session.changed)
        for at in range(session.position - 1, min(missing) - 1, -1):
            if at in missing:
                self._recipes[at] = _Recipe(recipe_hash(recipe), len(recipe))
            change = self._history[at]
            _hold(session, recipe, change.layers, change.before)
        if max(missing) < session.position:
            return
        recipe = dict(session.changed)
        for at in range(session.position, max(missing) + 1):
            change = self._history[at]
            _hold(session, recipe, change.layers, change.after)
            if at in missing:
                self._recipes[at] = _Recipe(recipe_hash(recipe), len(recipe))


def _hold(session: Session, recipe: dict[str, str], layers: list[str], formats: list[str]) -> None:
    for layer, format in zip(layers, formats, strict=True):
        row = session.row(layer)
        if row is None or format == session.kept(row):
            recipe.pop(layer, None)
        else:
            recipe[layer] = format
