"""The best recipe for a budget, and the whole frontier, from single effects that are known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine import protocol as p
from engine.errors import InfeasibleError
from engine.plan.knapsack import Choices, Frontier, Solution, cheapest
from engine.plan.units import Rules, Unit, choices_of, recipe_of, smallest_units
from engine.session import Session, recipe_hash
from engine.session.artefact import OUTSIDE
from engine.session.cache import cache_bytes

POINTS = 200
"""Recipes of a frontier that are listed, at most."""
GIB = 2**30


@dataclass(frozen=True)
class Limit:
    """A budget, in the bits of units."""

    bits: float
    """That units may take together; infinite for a budget of KL."""
    body: bool
    """Whether only layers of the body count."""


def limit_of(session: Session, budget: p.Budget) -> Limit:
    """What a budget leaves for layers.

    Raises:
        InfeasibleError: nothing is left, or there is nothing to count by.
    """
    if budget.bits is not None:
        rows = [row for row, role in enumerate(session.layers.roles) if role not in OUTSIDE]
        weights = sum(math.prod(session.layers.shapes[row]) for row in rows)
        if not weights:
            raise InfeasibleError(
                "no layer of the model is in a block: there are no bits per weight"
            )
        return Limit(math.floor(budget.bits * weights * (1 + 1e-12)), body=True)
    if budget.gib is None:
        return Limit(math.inf, body=False)
    cache = cache_bytes(session, budget)
    left = budget.gib * GIB - session.other_bytes - cache
    if left <= 0:
        raise InfeasibleError(
            f"{budget} leaves nothing for layers: {session.other_bytes / GIB:.3g} GiB are tensors "
            f"that are not layers, {cache / GIB:.3g} GiB the cache of keys and values"
        )
    return Limit(8.0 * math.floor(left), body=False)


def solved(session: Session, units: Sequence[Unit], budget: p.Budget) -> Solution:
    """The least KL within a budget, or for a budget of KL the fewest bits.

    Raises:
        InfeasibleError: even the smallest recipe does not fit, saying what the smallest is.
    """
    limit = limit_of(session, budget)
    choices = choices_of(units, body=limit.body)
    if budget.kl is not None:
        found = cheapest(_swapped(choices), budget.kl)
    else:
        found = cheapest(choices, limit.bits)
    if found is not None:
        return found
    if budget.kl is not None:
        raise InfeasibleError(f"no recipe has KL {budget.kl:g}: pinned layers alone have more")
    smallest = Frontier(choices).chosen(0).tolist()
    size = session.size_of(recipe_of(units, smallest))
    least = (
        f"{size.bits_per_weight:.4g} bits per weight"
        if budget.bits is not None
        else f"{(size.bytes + cache_bytes(session, budget)) / GIB:.4g} GiB"
    )
    raise InfeasibleError(
        f"no recipe fits {budget}: the smallest of these formats takes {least}. Allow smaller "
        "formats with --formats, or fewer pins and bans"
    )


def _swapped(choices: Choices) -> Choices:
    """Bits over KL instead of KL over bits."""
    there = np.isfinite(choices.cost)
    return Choices(np.where(there, choices.weight, np.inf), np.where(there, choices.cost, 0.0))


def check_size(session: Session, rules: Rules, budget: p.Budget) -> None:
    """Whether any recipe fits a budget of size, before anything is measured.

    Raises:
        InfeasibleError: none does, or pins leave a layer without a format.
    """
    units = smallest_units(session, rules)
    if budget.kl is None:
        solved(session, units, budget)


def bound_of(session: Session, budget: p.Budget, solution: Solution) -> float:
    """What no recipe within a budget can pass: KL, or bytes of the artefact for a budget of KL."""
    if budget.kl is None:
        return solution.bound
    return session.other_bytes + math.ceil(solution.bound / 8)


def point_of(session: Session, recipe: Mapping[str, str], kl: float) -> p.Point:
    """A recipe as a point beside the frontier; measured where its score is known."""
    size = session.size_of(recipe)
    score = session.scores.get(recipe_hash(recipe)) if session.scores else None
    return p.Point(
        bits_per_weight=size.bits_per_weight,
        bytes=size.bytes,
        kl=kl,
        score=score if score is not None and score.done else None,
    )


def frontier_of(session: Session, units: Sequence[Unit], *, body: bool) -> list[p.Point]:
    """The best recipes of all sizes, smallest first, `POINTS` of them at most.

    Args:
        session: whose layers they are.
        units: all units.
        body: whether size means bits of the body, or of all layers.
    """
    choices = choices_of(units, body=body)
    other = choices_of(units, body=not body)
    frontier = Frontier(choices)
    of_body, of_all = (choices, other) if body else (other, choices)
    layers = session.layers
    weights = sum(
        math.prod(shape)
        for role, shape in zip(layers.roles, layers.shapes, strict=True)
        if role not in OUTSIDE
    )
    measured = {score.bytes for score in session.scores.values() if score.done}
    found: list[p.Point] = []
    for at in _spread(len(frontier), POINTS):
        chosen = frontier.chosen(at)
        # Not the frontier's own running sum, which is rounded: as stored, KL is 0.
        kl = choices.total(chosen)[0]
        size = session.other_bytes + math.ceil(of_all.total(chosen)[1] / 8)
        if size in measured:
            found.append(point_of(session, recipe_of(units, chosen.tolist()), kl))
            continue
        bits = of_body.total(chosen)[1] / weights if weights else math.nan
        found.append(p.Point(bits_per_weight=bits, bytes=size, kl=kl))
    # Where head and embedding come in, sizes of the two kinds need not rise together.
    return sorted(found, key=lambda point: point.bytes)


def _spread(count: int, most: int) -> list[int]:
    """Indices at about equal distances, first and last among them."""
    return sorted({round(at) for at in np.linspace(0, count - 1, min(count, most))})


def planned_units(units: Sequence[Unit], chosen: Iterable[int]) -> list[p.PlanUnit]:
    """The units with their chosen formats."""
    return [
        p.PlanUnit(unit.layers, unit.choices[at].formats[0])
        for unit, at in zip(units, chosen, strict=True)
    ]
