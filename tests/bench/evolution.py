"""The ceiling: an evolutionary search over whole recipes, far longer than any plan may take.

    python -m tests.bench.evolution MODEL --bits 3.5,4.5 --kept FILE.json [--tokens-spent 2000000]

After EvoPress (Sieberling et al. 2024, arXiv 2410.14649): a parent; offspring that move some units
up and others down, at no more than the budget; selection in rounds on more and more tokens, with
fewer and fewer offspring; the best becomes the parent. It starts from the best recipe known, so
that what it finds is what a plan of the same options leaves; run again, it goes on from there. What
it says of a recipe is measured on all windows. Beside it stand the simpler rules: a plan can be at
most as much better than they are as the best recipe there is.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from engine import protocol as p
from engine.formats.grammar import parse_format
from engine.measure.calibration.approximate import approximated
from engine.measure.counts import JobCounts
from engine.measure.evaluation.evaluate import whole_reference
from engine.measure.evaluation.reference import reference_of
from engine.model.network import Held
from engine.plan.baselines import baselines
from engine.plan.proposal import solved
from engine.plan.units import Choice, Unit, recipe_of
from engine.planning.rules import rules_of
from tests.bench import rivals
from tests.bench.against_exact import through
from tests.bench.truth import machine

ROUNDS = ((16, 1), (6, 2), (2, 0))
"""Offspring and micro-batches of every round of a generation; 0 means all."""
MUTATIONS = 100
"""Tries to find a child that fits and is not its parent."""
CHANGES = 3
"""Units moved up by one mutation, at most."""


class Measured:
    """KL of recipes on some micro-batches; every weight is rounded once."""

    def __init__(self, bench: rivals.Bench) -> None:
        self.bench = bench
        through(whole_reference(bench.loaded, JobCounts()))
        self.reference = reference_of(bench.loaded)
        self.weights: dict[tuple[str, str], Held] = {}
        self.known: dict[tuple[tuple[int, ...], int], Tensor] = {}
        self.tokens = 0

    def kl(self, chosen: Sequence[int], batches: Sequence[int]) -> float:
        """Mean over some micro-batches, nats per token."""
        found = [self._of(tuple(chosen), batch) for batch in batches]
        return float(torch.cat(found).mean()) / self.reference.windows.targets

    def recipe(self, recipe: rivals.Recipe, batches: Sequence[int]) -> float:
        """Mean of a recipe that need not be a choice of the units."""
        held = {name: self._held(name, text) for name, text in recipe.items()}
        start = min((self.reference.network.layers[n].start for n in held), default=0)
        found = [self.reference.measure(batch, start, held).kl for batch in batches]
        return float(torch.cat(found).mean()) / self.reference.windows.targets

    def _of(self, chosen: tuple[int, ...], batch: int) -> Tensor:
        if (chosen, batch) not in self.known:
            held = {
                name: self._held(name, text)
                for name, text in recipe_of(self.bench.units, chosen).items()
            }
            start = min((self.reference.network.layers[n].start for n in held), default=0)
            self.known[chosen, batch] = self.reference.measure(batch, start, held).kl
            self.tokens += len(self.reference.batches[batch]) * self.reference.windows.seq_len
        return self.known[chosen, batch]

    def _held(self, name: str, text: str) -> Held:
        if (name, text) not in self.weights:
            steps = approximated(self.bench.loaded, name, parse_format(text), JobCounts())
            self.weights[name, text] = through(steps)
        return self.weights[name, text]


def mutated(
    units: Sequence[Unit], parent: Sequence[int], limit: float, chance: random.Random
) -> list[int]:
    """A child within a limit: some units take a larger option, others a smaller one until it fits.

    Args:
        units: every unit's choices by their bits, the smallest first.
        parent: within the limit.
        limit: on the bits of the body.
        chance: what decides.
    """

    def choice(child: Sequence[int], row: int) -> Choice:
        return units[row].choices[child[row]]

    for _ in range(MUTATIONS):
        child = list(parent)
        rows = list(range(len(units)))
        up = set(chance.sample(rows, chance.randint(1, min(CHANGES, len(rows)))))
        for row in up:
            child[row] = min(child[row] + chance.choice((1, 1, 2, 3)), len(units[row].choices) - 1)
        down = [row for row in rows if row not in up]
        while sum(choice(child, row).body_bits for row in rows) > limit:
            if not (possible := [row for row in down if child[row]]):
                break
            row = chance.choice(possible)
            child[row] = max(0, child[row] - chance.choice((1, 1, 2, 3)))
        fits = sum(choice(child, row).body_bits for row in rows) <= limit
        if fits and (child := filled(units, child, limit, chance)) != list(parent):
            return child
    return filled(units, list(parent), limit, chance)


def filled(
    units: Sequence[Unit], child: list[int], limit: float, chance: random.Random
) -> list[int]:
    """Room that is left is spent, on units in random order."""
    room = limit - sum(u.choices[at].body_bits for u, at in zip(units, child, strict=True))
    for row in chance.sample(range(len(units)), len(units)):
        choices = units[row].choices
        while child[row] + 1 < len(choices):
            more = choices[child[row] + 1].body_bits - choices[child[row]].body_bits
            if more > room:
                break
            child[row] += 1
            room -= more
    return child


def evolve(
    measured: Measured, start: Sequence[int], limit: float, tokens: int, seed: int
) -> tuple[list[int], float, int]:
    """The best recipe of a search, its KL on all windows, and the tokens it took."""
    chance = random.Random(seed)
    batches = list(range(len(measured.reference.batches)))
    begun = measured.tokens
    parent, best = list(start), measured.kl(start, batches)
    generation = 0
    while measured.tokens - begun < tokens:
        generation += 1
        children = {
            tuple(mutated(measured.bench.units, parent, limit, chance)) for _ in range(ROUNDS[0][0])
        }
        ranked = list(children)
        for count, some in ROUNDS:
            # Other windows in every generation, so that none of them is learnt by heart.
            part = chance.sample(batches, some) if 0 < some < len(batches) else batches
            ranked = sorted(ranked[:count], key=lambda child: measured.kl(child, part))
        found = measured.kl(ranked[0], batches)
        if found < best:
            parent, best = list(ranked[0]), found
            print(f"  generation {generation}: {1000 * best:.3f}", flush=True)
    return parent, best, measured.tokens - begun


def indices(units: Sequence[Unit], recipe: rivals.Recipe) -> list[int]:
    """Every unit's choice in a recipe."""
    return [
        next(
            at
            for at, choice in enumerate(unit.choices)
            if all(recipe.get(n, "") == f for n, f in zip(unit.layers, choice.formats, strict=True))
        )
        for unit in units
    ]


def main() -> None:
    """Search for every budget, and print what it found beside plans in the same file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--text")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--formats")
    parser.add_argument("--bits", default=rivals.BITS)
    parser.add_argument("--tokens-spent", type=int, default=1_000_000, help="for each budget")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kept", type=Path, required=True, help="of tests.bench.rivals")
    given = parser.parse_args(namespace=argparse.Namespace(others=False))
    print(f"{machine()}\n", flush=True)
    bench = rivals.bench_of(given)
    measured = Measured(bench)
    for bits in map(float, given.bits.split(",")):
        budget = p.Budget(bits=bits)
        plans = bench.kept.all.get("plans", {}).get(f"{bits:g}", {})
        found = bench.kept.all.setdefault("evolution", {})
        known = found.get(f"{bits:g}")
        earlier = [*plans.values(), *([known] if known else [])]
        starts = [indices(bench.units, each["recipe"]) for each in earlier]
        alone = solved(bench.planner.session, bench.units, budget)
        starts.append(alone.chosen.tolist())
        every = range(len(measured.reference.batches))
        start = min(starts, key=lambda chosen: measured.kl(chosen, every))
        chosen, kl, tokens = evolve(
            measured, start, bench.limit(budget), given.tokens_spent, given.seed
        )
        ours = {n: measured.kl(indices(bench.units, e["recipe"]), every) for n, e in plans.items()}
        beside = ", ".join(f"{name} {1000 * of:.2f} ({of / kl:.3f})" for name, of in ours.items())
        print(f"{bits:g} bits: {1000 * kl:.3f} after {tokens} tokens; {beside}", flush=True)
        rules = baselines(
            bench.planner.session,
            rules_of(bench.planner.session, bench.command, "float32"),
            budget,
        )
        for name, recipe in rules.items():
            of = measured.recipe(recipe, every)
            print(
                f"  {name} {1000 * of:.2f}: the search has {kl / of:.3f} of it, the least sum of "
                f"single effects {alone.bound / of:.3f}",
                flush=True,
            )
        if known is None or kl < known["kl"]:
            recipe = recipe_of(bench.units, chosen)
            found[f"{bits:g}"] = {"recipe": recipe, "kl": kl, "tokens": tokens}
            bench.kept.path.write_text(msgspec.json.encode(bench.kept.all).decode())


if __name__ == "__main__":
    main()
