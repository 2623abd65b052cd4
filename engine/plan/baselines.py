"""Simpler rules for the same budget, to compare a plan with.

``uniform``: the best single format of the body that fits. ``first-last``: that format, and what is
left of the budget spent on the first and last blocks, from the ends inwards. ``greedy``: the same,
spent on the layers with the largest effects, as most published scripts do. And the best of
llama.cpp's mixes, by its own name, where the effects of its types are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from engine import protocol as p
from engine.formats.grammar import parse_format
from engine.plan.proposal import Limit, limit_of, point_of
from engine.plan.units import Rules
from engine.recipes.changes import resolve
from engine.recipes.mixes import MIXES
from engine.session import KnownEffects, Session
from engine.session.artefact import OUTSIDE

BETTER_BITS = 8
"""Bits of the format that ``first-last`` and ``greedy`` raise layers to."""


def baselines(session: Session, rules: Rules, budget: p.Budget) -> dict[str, dict[str, str]]:
    """What each rule finds within a budget, by its name; a rule that finds nothing is missing.

    They know no units and no pins, since they are what people use otherwise; but bans and what the
    target stores hold for them too. None changes head and embedding. For a budget of KL there are
    only ``uniform`` and the mix, the smallest ones that are good enough.
    """
    body = _Body(session, rules)
    found = {
        name: recipe for name, rule in _RULES.items() if (recipe := rule(body, budget)) is not None
    }
    return found | _best_mix(body, budget)


def predicted(session: Session, recipe: Mapping[str, str]) -> float:
    """The sum of a recipe's single effects; nan if one is not known."""
    effects = KnownEffects(session)
    known = [effects.known(layer, held) for layer, held in recipe.items()]
    return math.fsum(max(0.0, each.kl) if each is not None else math.nan for each in known)


def baseline_points(
    session: Session, recipes: Mapping[str, Mapping[str, str]]
) -> dict[str, p.Point]:
    """The recipes of rules as points beside the frontier."""
    return {
        name: point_of(session, recipe, predicted(session, recipe))
        for name, recipe in recipes.items()
    }


class _Body:
    """The layers of the body, with formats and effects."""

    def __init__(self, session: Session, rules: Rules) -> None:
        self.session, self.rules = session, rules
        layers = session.layers
        self.rows = [row for row, role in enumerate(layers.roles) if role not in OUTSIDE]
        self.effects = KnownEffects(session)
        self.fixed = sum(
            session.bits_in(row, "")
            for row in layers.outside
            if not (session.tied and layers.roles[row] == "head")
        )

    def limit(self, budget: p.Budget) -> float:
        """Bits that the body may take."""
        limit: Limit = limit_of(self.session, budget)
        return limit.bits if limit.body else limit.bits - self.fixed

    def uniform(self, format: str) -> dict[str, str]:
        """One format for every layer that can hold it."""
        names = self.session.layers.names
        return {names[row]: format for row in self.rows if self.allowed(row, format)}

    def allowed(self, row: int, format: str) -> bool:
        """Whether a layer can hold a format, the target can store it, and nobody banned it."""
        layers = self.session.layers
        return self.rules.allows(layers.kinds[row], layers.shapes[row], format, row)

    def total(self, recipe: Mapping[str, str]) -> int:
        names = self.session.layers.names
        return sum(self.session.bits_in(row, recipe.get(names[row], "")) for row in self.rows)

    def kl(self, recipe: Mapping[str, str]) -> float:
        known = [self.effects.known(layer, held) for layer, held in recipe.items()]
        return math.fsum(each.kl if each is not None else math.inf for each in known)

    def better(self) -> str | None:
        """The smallest format of enough bits."""
        formats = [f for f in self.rules.formats if parse_format(f).bits >= BETTER_BITS]
        return min(formats, key=lambda f: self.total(self.uniform(f)), default=None)

    def raised(
        self, recipe: Mapping[str, str], order: Iterable[Sequence[int]], limit: float
    ) -> dict[str, str]:
        """A recipe with rows in a better format, in an order, as long as the limit holds."""
        better, found = self.better(), dict(recipe)
        if better is None:
            return found
        left = limit - self.total(found)
        for rows in order:
            names = [self.session.layers.names[row] for row in rows]
            possible = {
                name: row
                for name, row in zip(names, rows, strict=True)
                if name in found and self.allowed(row, better)
            }
            more = sum(
                self.session.bits_in(row, better) - self.session.bits_in(row, found[name])
                for name, row in possible.items()
            )
            if 0 < more <= left:
                found.update(dict.fromkeys(possible, better))
                left -= more
        return found

    def best(self, recipes: Iterable[dict[str, str]], budget: p.Budget) -> dict[str, str] | None:
        """The one of least KL that fits, or the smallest one that is good enough."""
        if budget.kl is not None:
            enough = [recipe for recipe in recipes if self.kl(recipe) <= budget.kl]
            return min(enough, key=self.total, default=None)
        limit = self.limit(budget)
        fitting = [recipe for recipe in recipes if self.total(recipe) <= limit]
        return min(fitting, key=self.kl, default=None)

    def mix(self, name: str) -> dict[str, str] | None:
        """One of llama.cpp's mixes; None if it is one format, not allowed or not known."""
        session, layers = self.session, self.session.layers
        asked, _ = resolve(session, "kept", {}, named=name, tied=session.tied)
        rows = {layers.names[row]: row for row in self.rows}
        recipe = {layer: held for layer, held in asked.items() if layer in rows}
        allowed = all(self.allowed(rows[layer], held) for layer, held in recipe.items())
        mixes = len(set(recipe.values())) > 1
        return recipe if mixes and allowed and math.isfinite(self.kl(recipe)) else None


def _uniform(body: _Body, budget: p.Budget) -> dict[str, str] | None:
    return body.best([body.uniform(format) for format in body.rules.formats], budget)


def _best_mix(body: _Body, budget: p.Budget) -> dict[str, dict[str, str]]:
    """By its name; empty if none is known and fits."""
    known = {key.format for key in body.session.effects.known("degrade") if key.by == "layer"}
    if sum(parse_format(format).family == "gguf" for format in known) < 2:
        return {}  # a mix has several types, and what each gives every layer takes long to tell
    mixes = {name: recipe for name in MIXES if (recipe := body.mix(name)) is not None}
    best = body.best(mixes.values(), budget)
    return {name: recipe for name, recipe in mixes.items() if recipe is best}


def _first_last(body: _Body, budget: p.Budget) -> dict[str, str] | None:
    if budget.kl is not None or (start := _uniform(body, budget)) is None:
        return None
    by_block: dict[int, list[int]] = {}
    for row in body.rows:
        by_block.setdefault(body.session.layers.blocks[row], []).append(row)
    blocks = sorted(by_block)
    inwards = [blocks[at // 2] if at % 2 else blocks[-1 - at // 2] for at in range(len(blocks))]
    order = (by_block[block] for block in dict.fromkeys(inwards))
    return body.raised(start, order, body.limit(budget))


def _greedy(body: _Body, budget: p.Budget) -> dict[str, str] | None:
    if budget.kl is not None or (start := _uniform(body, budget)) is None:
        return None
    names = body.session.layers.names

    def effect(row: int) -> float:
        known = body.effects.known(names[row], start.get(names[row], ""))
        return known.kl if known is not None else 0.0

    order = ([row] for row in sorted(body.rows, key=effect, reverse=True))
    return body.raised(start, order, body.limit(budget))


_RULES: dict[str, Callable[[_Body, p.Budget], dict[str, str] | None]] = {
    "uniform": _uniform,
    "first-last": _first_last,
    "greedy": _greedy,
}
