"""Children of a recipe: within the limit, with no room left that a larger option would take."""

from __future__ import annotations

import random

import pytest

from engine.plan.units import Choice, Unit
from tests.bench.evolution import indices, mutated


def units(chance: random.Random) -> list[Unit]:
    found = []
    for row in range(chance.randint(5, 7)):
        size = chance.randint(1, 30)
        bits = sorted(chance.sample(range(1, 17), 4))
        choices = (Choice((f"f{b}" * (b < bits[-1]),), size * b, size * b, 0.0, 0.0) for b in bits)
        found.append(Unit((f"layer{row}",), tuple(choices)))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_children_fit_and_spend_what_there_is(seed: int) -> None:
    chance = random.Random(seed)
    every = units(chance)

    def bits(chosen: list[int]) -> int:
        return sum(unit.choices[at].body_bits for unit, at in zip(every, chosen, strict=True))

    least, most = bits([0] * len(every)), bits([3] * len(every))
    limit = chance.randint((2 * least + most) // 3, most - 1)
    parent = [0] * len(every)
    seen: set[tuple[int, ...]] = set()
    for _ in range(20):
        child = mutated(every, parent, limit, chance)
        assert bits(child) <= limit
        for row, at in enumerate(child):
            if at < 3:
                assert bits([*child[:row], at + 1, *child[row + 1 :]]) > limit
        seen.add(tuple(child))
        parent = child
    assert len(seen) > 2
    recipe = {u.name: u.choices[at].formats[0] for u, at in zip(every, parent, strict=True)}
    assert indices(every, {name: held for name, held in recipe.items() if held}) == parent
