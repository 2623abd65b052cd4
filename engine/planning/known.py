"""A plan from what is known already: nothing is measured."""

from __future__ import annotations

import math

from engine import protocol as p
from engine.errors import InfeasibleError
from engine.plan.baselines import baseline_points, baselines
from engine.plan.decided import decided
from engine.plan.proposal import bound_of, frontier_of, planned_units, point_of, solved
from engine.plan.units import Rules, recipe_of, units_of
from engine.planning.rules import rules_of, tiers_of
from engine.service.jobs import Outcome
from engine.session import KnownEffects, Session
from engine.session.artefact import OUTSIDE


def plan_known(session: Session, command: p.Plan, dtype: str) -> Outcome:
    """The best recipe by the effects that a session knows.

    Args:
        session: with effects.
        command: as accepted.
        dtype: of the checkpoint, by torch's name.

    Raises:
        InfeasibleError: no effect is known, or no recipe fits.
    """
    if not any(key.by == "layer" for key in session.effects.known("degrade")):
        raise InfeasibleError(
            "no effect of any layer is known yet, so there is nothing to plan from: sweep first"
        )
    rules = rules_of(session, command, dtype)
    unknown = _unknown(session, rules)
    if unknown:
        raise InfeasibleError(
            f"the effects of {unknown} of {len(session.layers.names)} layers are not known yet: "
            "plan again once all are estimated"
        )
    rules = decided(session, tiers_of(session, rules, command), command.budget)
    units = units_of(session, rules)
    solution = solved(session, units, command.budget)
    chosen = solution.chosen.tolist()
    choices = [unit.choices[at] for unit, at in zip(units, chosen, strict=True)]
    recipe = recipe_of(units, chosen)
    return Outcome(
        result=p.Planned(
            budget=command.budget,
            recipe=recipe,
            point=point_of(session, recipe, math.fsum(choice.kl for choice in choices)),
            kl_se=KnownEffects(session).error_of_sum(recipe),
            bound=bound_of(session, command.budget, solution),
            units=planned_units(units, chosen),
            frontier=frontier_of(session, units, body=command.budget.bits is not None),
            baselines=baseline_points(session, baselines(session, rules, command.budget)),
        )
    )


def _unknown(session: Session, rules: Rules) -> int:
    """Layers of the body that could take some format, without a known effect in any."""
    effects, layers = KnownEffects(session), session.layers
    count = 0
    for row, name in enumerate(layers.names):
        kind, shape = layers.kinds[row], layers.shapes[row]
        if layers.roles[row] in OUTSIDE or name in rules.pins:
            continue
        possible = [format for format in rules.formats if rules.allows(kind, shape, format, row)]
        count += bool(possible) and all(effects.known(name, each) is None for each in possible)
    return count
