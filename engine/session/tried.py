"""Recipes that a session has held: a tree, in which each says how it differs from the one before.

`engine.session.fold` grows it from the same events as the history of undo, which forgets what was
undone and then done otherwise; this does not. Number 0 is the model as stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import msgspec

from engine import protocol as p
from engine.session.state import Session


def line_of(session: Session, number: int) -> Iterator[int]:
    """A recipe, the one it was made from, and so on, down to the model as stored."""
    while number >= 0:
        yield number
        number = session.tried[number].parent


def held_in(session: Session, number: int, layers: Collection[str]) -> dict[str, str]:
    """The formats of some layers in a recipe; those that are missing are as stored."""
    found: dict[str, str] = {}
    left = set(layers)
    for each in line_of(session, number):
        step = session.tried[each]
        for layer, held in zip(step.layers, step.held, strict=True):
            if layer in left:
                found[layer] = held
        left -= found.keys()
        if not left:
            break
    return {layer: held for layer, held in found.items() if not is_kept(session, layer, held)}


def layers_of(session: Session, number: int) -> dict[str, str]:
    """The layers of a recipe that are not kept, with their formats; only those that exist."""
    recipe: dict[str, str] = {}
    for each in reversed(list(line_of(session, number))):
        step = session.tried[each]
        recipe.update(zip(step.layers, step.held, strict=True))
    return {
        layer: held
        for layer, held in recipe.items()
        if layer in session.index and not is_kept(session, layer, held)
    }


def made_of(session: Session, number: int) -> str:
    """``25 int4-g128, 10 int8``: what the layers of a recipe hold, the most frequent first."""
    held = Counter(layers_of(session, number).values())
    return ", ".join(f"{many} {format}" for format, many in held.most_common())


def is_kept(session: Session, layer: str, held: str) -> bool:
    """Whether a format leaves a layer as stored."""
    row = session.index.get(layer)
    return row is not None and held == session.kept(row)


class Line(msgspec.Struct, frozen=True):
    """A recipe in the list of those that were tried."""

    number: int
    """Its place in `Session.tried`."""
    name: str
    score: p.RecipeScore | None
    """None if it was not measured with the text that is open."""
    changed: int
    """Layers that are not kept."""
    current: bool
    frontier: bool
    """Whether no measured recipe is better: none has less KL in as few bytes."""


def listed(session: Session) -> list[Line]:
    """The recipes that were measured once or have a name, and the current one; each once.

    In the order in which they were first tried.
    """
    first: dict[str, int] = {}
    for number, tried in enumerate(session.tried):
        if not (tried.measured or tried.name or number in (0, session.at)):
            continue
        # Made twice, it is one recipe: with its name, else where the session is.
        same = first.setdefault(tried.recipe or f"number {number}", number)
        known = session.tried[same]
        if same != number and ((tried.name and not known.name) or number == session.at):
            first[tried.recipe] = number
    here = session.tried[session.at].recipe
    scores = {number: score_of(session, number) for number in first.values()}
    best = frontier({number: score for number, score in scores.items() if score is not None})
    return [
        Line(
            number,
            session.tried[number].name or _name(session, key),
            scores[number],
            len(layers_of(session, number)),
            number == session.at or (bool(here) and session.tried[number].recipe == here),
            number in best,
        )
        for key, number in first.items()
    ]


def _name(session: Session, recipe: str) -> str:
    """The name that a recipe has under another number."""
    return next((t.name for t in session.tried if t.name and t.recipe == recipe), "")


def score_of(session: Session, number: int) -> p.RecipeScore | None:
    """The measured score of a recipe; None for the model as stored, which has a baseline."""
    return session.scores.get(session.tried[number].recipe)


def frontier(scores: Mapping[int, p.RecipeScore]) -> set[int]:
    """Those that no other is better than: with less KL in as few bytes, or as little in fewer."""
    best: set[int] = set()
    least = float("inf")
    for number in sorted(scores, key=lambda number: (scores[number].bytes, scores[number].kl)):
        if scores[number].kl < least:
            best.add(number)
            least = scores[number].kl
    return best


def differing(session: Session, one: int, other: int) -> dict[str, tuple[str, str]]:
    """Layers that two recipes hold in different formats, in the model's order, with both."""
    first, second = layers_of(session, one), layers_of(session, other)
    found: dict[str, tuple[str, str]] = {}
    for row, name in enumerate(session.layers.names):
        pair = first.get(name, session.kept(row)), second.get(name, session.kept(row))
        if pair[0] != pair[1]:
            found[name] = pair
    return found
