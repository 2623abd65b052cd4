"""Which of several sets of rules a plan follows: for what takes one format, or has one kernel."""

from __future__ import annotations

from collections.abc import Sequence

from engine import protocol as p
from engine.errors import InfeasibleError
from engine.plan.proposal import check_size, solved
from engine.plan.units import Rules, units_of
from engine.session import Session


def decided(session: Session, tiers: Sequence[Sequence[Rules]], budget: p.Budget) -> Rules:
    """The rules of the first tier that has a recipe for the budget: those of its best recipe.

    Args:
        session: with effects.
        tiers: rules to choose from, the preferred ones first; the last has some.
        budget: to solve for.

    Raises:
        InfeasibleError: no rules have a recipe that fits; of those that come nearest last.
    """
    if sum(map(len, tiers)) == 1:
        return next(rules for tier in tiers for rules in tier)
    why: InfeasibleError | None = None
    for tier in tiers:
        found: list[tuple[float, int]] = []
        for number, rules in enumerate(tier):
            try:
                found.append((solved(session, units_of(session, rules), budget).cost, number))
            except InfeasibleError as error:
                why = error
        if found:
            return tier[min(found)[1]]
    assert why is not None
    raise why


def check_sizes(session: Session, tiers: Sequence[Sequence[Rules]], budget: p.Budget) -> None:
    """Whether some rules have a recipe of a size, before anything is measured.

    Raises:
        InfeasibleError: none have; of those that come last.
    """
    why: InfeasibleError | None = None
    for rules in (rules for tier in tiers for rules in tier):
        try:
            check_size(session, rules, budget)
            return
        except InfeasibleError as error:
            why = error
    assert why is not None
    raise why
