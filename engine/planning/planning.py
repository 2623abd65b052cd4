"""Plans a recipe for a budget: solve, measure, estimate again at what was found, solve again.

The first solution comes from the effects of single layers at the unchanged model. Layers of a
recipe also act together; that is seen in the gradient at the recipe (`engine.measure.estimate.
further`), which prices every further change. Each recipe tried is measured, and the best one
measured is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from engine import protocol as p
from engine.errors import InfeasibleError
from engine.formats.grammar import parse_format
from engine.measure.calibration.calibration import calibration_key
from engine.measure.counts import JobCounts
from engine.measure.estimate.estimate import estimate, stored_estimates
from engine.measure.estimate.further import Further, further
from engine.measure.evaluation.evaluate import baseline, forward_seconds, score
from engine.measure.sweep.agreement import agreement
from engine.measure.sweep.candidates import SweepTable
from engine.measure.sweep.stored import from_store
from engine.plan.baselines import baseline_points, baselines
from engine.plan.decided import check_sizes, decided
from engine.plan.proposal import bound_of, check_size, frontier_of, planned_units, point_of, solved
from engine.plan.units import Choice, Unit, recipe_of, units_of
from engine.planning.changes import TRUST, TRUSTS, Change, Changes
from engine.planning.known import plan_known
from engine.planning.rules import rules_of, tiers_of
from engine.service.jobs import Steps
from engine.session import KnownEffects, Session, apply
from engine.workspace import Loaded

ESTIMATING = 7.0
"""Plain forward passes that estimating at a recipe takes, about."""
ENOUGH = 0.01
"""Relative improvement of KL below which no further estimate is made."""
READINGS = 2
"""Recipes measured for one estimate at a recipe, at most."""
TRIES = 5
"""Recipes measured for a budget of KL, at most."""

Events = Generator[p.AnyEvent | None, None, None]
Scored = Generator[p.AnyEvent | None, None, p.RecipeScore]


@dataclass(frozen=True)
class Tried:
    """A recipe that was measured."""

    recipe: dict[str, str]
    chosen: list[int]
    """Index of every unit's choice."""
    predicted: float
    kl_se: float
    score: p.RecipeScore


class Planner:
    """One plan while it is made."""

    def __init__(self, loaded: Loaded, command: p.Plan, job: str) -> None:
        """
        Args:
            loaded: the model.
            command: as accepted.
            job: id, for progress.
        """
        self.loaded, self.command, self.job = loaded, command, job
        self.counts = JobCounts(timings={"load_s": loaded.load_s}, job=job)
        self.session = Session()
        """What is known of the layers: the job's own, since other threads change the engine's."""
        apply(self.session, loaded.opened.listed())
        self.session.layers.tied = loaded.network.tied
        self.session.source = str(loaded.opened.path)
        self.session.checkpoint = loaded.opened.read()
        # Pinned formats are no choice for others, but their effects are needed.
        pinned = (held for held in command.pins.values() if held != "kept")
        self.formats = [parse_format(text) for text in dict.fromkeys((*command.formats, *pinned))]
        self.nll = math.nan
        self.spent = 0.0
        """Plain forward passes that measuring took so far, an estimate counted as `ESTIMATING`."""

    def learn(self, *, stored: bool = False) -> Events:
        """Estimate every layer in every format, and find what was measured of them.

        Args:
            stored: whether to take what the store has, and estimate nothing.
        """
        base = yield from baseline(self.loaded, self.counts)
        self.nll = base.nll
        before = self.counts.measured
        if stored:
            estimates = yield from stored_estimates(
                self.loaded, self.formats, "degrade", self.counts
            )
        else:
            estimates = yield from estimate(
                self.loaded, self.formats, "degrade", self.counts, self.job
            )
        self.spent += ESTIMATING * (self.counts.measured > before)
        for of_format in estimates.values():
            self._fold(tuple(of_format.values()))
        for format in self.formats:
            calibration = yield from calibration_key(self.loaded, [format], "reference")
            table = SweepTable(format, "degrade", "layer", calibration)
            for event in from_store(self.loaded, table, "", self.counts):
                if isinstance(event, p.Learned):
                    yield event
            self._fold(tuple(table.found.values()))
            found = agreement(str(format), "degrade", estimates.get(str(format), {}), table.found)
            if found is not None:
                apply(self.session, found)

    def _fold(self, facts: tuple[p.AnyFact, ...]) -> None:
        apply(self.session, p.Learned(("",) * len(facts), facts))

    def measured(self, recipe: Mapping[str, str]) -> Scored:
        """A recipe's score."""
        before = self.counts.measured
        found = yield from score(self.loaded, recipe, self.nll, self.counts, self.job)
        self._fold((found,))
        self.spent += self.counts.measured > before
        return found

    def room(self, forwards: float) -> bool:
        """Whether that many plain forward passes more are within what the command allows."""
        return self.spent + forwards <= self.command.forwards

    def attempt(
        self, units: Sequence[Unit], budget: p.Budget, offset: float = 0.0
    ) -> Generator[p.AnyEvent | None, None, tuple[Tried, float]]:
        """Solve and measure.

        Args:
            units: with the KL of every choice.
            budget: to solve for.
            offset: KL of a recipe that the choices are further changes of.

        Returns:
            What was tried, and the bound of the solution.
        """
        solution = solved(self.session, units, budget)
        chosen = solution.chosen.tolist()
        recipe = recipe_of(units, chosen)
        choices = [unit.choices[at] for unit, at in zip(units, chosen, strict=True)]
        predicted = offset + math.fsum(choice.kl for choice in choices)
        if offset:
            error = math.sqrt(math.fsum(choice.variance for choice in choices))
        else:
            error = KnownEffects(self.session).error_of_sum(recipe)
        found = yield from self.measured(recipe)
        bound = bound_of(self.session, budget, solution)
        return Tried(recipe, chosen, predicted, error, found), bound + offset

    def at_recipe(
        self, units: Sequence[Unit], tried: Tried
    ) -> Generator[p.AnyEvent | None, None, Changes]:
        """What every other choice adds to the KL of a recipe."""
        recipe = {name: parse_format(held) for name, held in tried.recipe.items()}
        kept = dict.fromkeys(
            parse_format(self.session.kept(self.session.index[name])) for name in recipe
        )
        before = self.counts.measured
        formats = [*self.formats, *kept]
        found = yield from further(self.loaded, recipe, formats, self.counts, self.job)
        self.spent += ESTIMATING * (self.counts.measured > before)
        return Changes(
            units,
            tried.chosen,
            [
                [self._further(unit, choice, unit.choices[at], found) for choice in unit.choices]
                for unit, at in zip(units, tried.chosen, strict=True)
            ],
        )

    def _further(self, unit: Unit, choice: Choice, now: Choice, found: Further) -> Change:
        expected = choice.kl - now.kl
        if choice.formats == now.formats:
            return Change(0.0, 0.0, 0.0)
        kl = variance = 0.0
        for layer, held, before in zip(unit.layers, choice.formats, now.formats, strict=True):
            if held == before:
                continue
            known = found.get(layer, {}).get(held or self.session.kept(self.session.index[layer]))
            if known is None or not math.isfinite(known.kl):
                return Change(expected, math.nan, choice.variance)
            kl += known.kl
            variance += known.kl_se**2
        return Change(expected, kl, variance)


def plan_stored(loaded: Loaded, command: p.Plan, job: str) -> Steps:
    """Plan from what any run stored: no effect is estimated or measured.

    Args:
        loaded: the model.
        command: as accepted.
        job: id, for progress.

    Raises:
        InfeasibleError: effects are missing, or no recipe fits the budget.
    """
    planner = Planner(loaded, command, job)
    yield from planner.learn(stored=True)
    found = plan_known(planner.session, command, loaded.opened.checkpoint.dtype)
    return msgspec.structs.replace(planner.counts.outcome(), result=found.result)


def plan(loaded: Loaded, command: p.Plan, job: str) -> Steps:
    """Plan a recipe for a budget.

    Args:
        loaded: the model.
        command: as accepted.
        job: id, for progress.

    Yields:
        `Learned` with `Estimate`, `FurtherEstimate` and `RecipeScore` facts, and `Progress`.

    Returns:
        An outcome whose result is a `Planned`.

    Raises:
        InfeasibleError: no recipe fits the budget.
    """
    planner = Planner(loaded, command, job)
    rules = rules_of(planner.session, command, loaded.opened.checkpoint.dtype)
    tiers = tiers_of(planner.session, rules, command)
    # Before hours of estimating; what no rules allow is said of all formats together.
    check_size(planner.session, rules, command.budget)
    check_sizes(planner.session, tiers, command.budget)
    yield from planner.learn()
    rules = decided(planner.session, tiers, command.budget)
    units = units_of(planner.session, rules)
    search = _within_kl if command.budget.kl is not None else _least_kl
    best, bound = yield from search(planner, units)
    others = baselines(planner.session, rules, command.budget)
    for recipe in others.values():
        if planner.room(1):
            yield from planner.measured(recipe)
    forward = yield from forward_seconds(loaded, job)
    planner.counts.timings["forward_s"] = forward
    session = planner.session
    found = p.Planned(
        budget=command.budget,
        recipe=best.recipe,
        point=point_of(session, best.recipe, best.predicted),
        kl_se=best.kl_se,
        bound=bound,
        units=planned_units(units, best.chosen),
        frontier=frontier_of(session, units, body=command.budget.bits is not None),
        baselines=baseline_points(session, others),
        forwards=planner.spent,
    )
    return msgspec.structs.replace(planner.counts.outcome(), result=found)


def _least_kl(
    planner: Planner, units: Sequence[Unit]
) -> Generator[p.AnyEvent | None, None, tuple[Tried, float]]:
    """The least KL within a size."""
    budget = planner.command.budget
    best, bound = yield from planner.attempt(units, budget)
    while planner.room(ESTIMATING + 1) and best.score.kl > 0:
        start = best
        changes = yield from planner.at_recipe(units, start)
        seen: list[tuple[list[int], float]] = []
        while len(seen) < READINGS and planner.room(1):
            reading = yield from _believed(planner, changes, budget, seen)
            tried, _ = yield from planner.attempt(reading, budget, start.score.kl)
            if seen:
                added = changes.together(tried.chosen, changes.coupling(seen))
                tried = replace(tried, predicted=start.score.kl + added)
            best = tried if tried.score.kl < best.score.kl else best
            seen.append((tried.chosen, tried.score.kl - start.score.kl))
        if 1 - best.score.kl / start.score.kl < ENOUGH:
            break
    return best, bound


def _believed(
    planner: Planner,
    changes: Changes,
    budget: p.Budget,
    seen: Sequence[tuple[list[int], float]],
) -> Generator[None, None, list[Unit]]:
    """The units with the trust whose solution is the best by what was measured so far."""
    best, least = changes.priced(TRUST), math.inf
    if not seen:
        return best
    coupling = changes.coupling(seen)
    for trust in TRUSTS:
        units = changes.priced(trust)
        chosen = solved(planner.session, units, budget).chosen.tolist()
        if (kl := changes.together(chosen, coupling)) < least:
            best, least = units, kl
        yield None
    return best


def _within_kl(
    planner: Planner, units: Sequence[Unit]
) -> Generator[p.AnyEvent | None, None, tuple[Tried, float]]:
    """The smallest size within a KL: effects are scaled to what recipes measure."""
    asked = planner.command.budget
    assert asked.kl is not None
    best: tuple[Tried, float] | None = None
    aim = asked.kl
    for _ in range(TRIES):
        if best is not None and not planner.room(1):
            break
        try:
            found = yield from planner.attempt(units, msgspec.structs.replace(asked, kl=aim))
        except InfeasibleError:
            if best is None:
                raise
            break
        measured = found[0].score.kl
        if best is None or _nearer(found[0].score, best[0].score, asked.kl):
            best = found
        if not measured > 0 or (abs(measured / asked.kl - 1) < ENOUGH and measured <= asked.kl):
            break
        aim *= 0.995 * asked.kl / measured
    assert best is not None
    if best[0].score.kl > asked.kl:
        raise InfeasibleError(
            f"no recipe measured within KL {asked.kl:g}: the nearest has {best[0].score.kl:.4g} in "
            f"{best[0].score.bytes:,} bytes. Allow more --forwards, or a larger KL"
        )
    return best


def _nearer(one: p.RecipeScore, other: p.RecipeScore, kl: float) -> bool:
    """Whether the first of two scores answers a budget of KL better."""
    if (one.kl <= kl) != (other.kl <= kl):
        return one.kl <= kl
    return one.bytes < other.bytes if one.kl <= kl else one.kl < other.kl
