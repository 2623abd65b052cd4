"""The verdict's mix beside others of its size, measured: random ones, and first and last blocks.

    python -m tests.bench.mixes MODEL --format int4-g128 --random 10 [--profile P --text FILE]

Random mixes give fused groups, in random order, the better formats that the verdict's mix
uses, until they have as many bytes. First and last: the same formats for the blocks from both
ends inwards.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence

import engine
from engine.diagnosis.verdict import verdict
from engine.formats.grammar import parse_format
from engine.formats.storage import stored_bits
from engine.session import Session
from engine.session.artefact import OUTSIDE

TOLERANCE = 0.002
"""Relative difference of sizes that counts as none."""


def units(session: Session) -> list[list[str]]:
    """Fused groups of the body, and other layers each alone, in the model's order."""
    layers = session.layers
    found: dict[object, list[str]] = {}
    for row, name in enumerate(layers.names):
        if layers.roles[row] in OUTSIDE:
            continue
        group = layers.groups[row]
        found.setdefault(group if group >= 0 else name, []).append(name)
    return list(found.values())


def bits(session: Session, recipe: Mapping[str, str]) -> int:
    """Stored bits of the layers of a recipe."""
    shapes = dict(zip(session.layers.names, session.layers.shapes, strict=True))
    return sum(stored_bits(parse_format(held), shapes[name]) for name, held in recipe.items())


def filled(
    session: Session, order: Sequence[list[str]], base: str, better: Sequence[str], room: int
) -> dict[str, str]:
    """A recipe of ``base`` whose units get better formats, in this order, while there is room."""
    recipe = {name: base for unit in units(session) for name in unit}
    used = bits(session, recipe)
    for unit in order:
        for held in better:
            change = bits(session, dict.fromkeys(unit, held)) - bits(
                session, {name: recipe[name] for name in unit}
            )
            if change > 0 and used + change <= room * (1 + TOLERANCE):
                recipe.update(dict.fromkeys(unit, held))
                used += change
                break
    return recipe


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--format", default="int4-g128")
    parser.add_argument("--random", type=int, default=10)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--text")
    given = parser.parse_args()
    rng = random.Random(1)
    settings = {"text": given.text} if given.text else {}
    with engine.open(given.model, profile=given.profile, **settings) as model:
        formats = [given.format, "int5-g128", "int6-g128", "int8"]
        print(model.sweep(formats=formats, exact="none").to_dict()["timings"])
        session = model.session
        found = verdict(session, given.format)
        assert found is not None, "no verdict"
        assert found.mix, "the verdict has no mix"
        better = [held for held, _ in found.better]
        room = bits(session, found.mix)
        everything = units(session)
        blocks = {name: session.layers.blocks[row] for row, name in enumerate(session.layers.names)}
        last = max(blocks.values())
        ends = sorted(everything, key=lambda unit: min(blocks[unit[0]], last - blocks[unit[0]]))
        recipes = {"verdict": found.mix, "first-last": filled(
            session, ends, given.format, better, room
        )}  # fmt: skip
        for number in range(given.random):
            order = rng.sample(everything, len(everything))
            recipes[f"random {number + 1}"] = filled(session, order, given.format, better, room)
        print("| mix | bits of the body | KL·10³ |\n|---|---|---|")
        for name, recipe in recipes.items():
            score = model.evaluate(recipe=recipe).to_dict()["recipe"]
            print(
                f"| {name} | {score['bits_per_weight']:.3f} | {1000 * score['kl']:.2f} ± "
                f"{1000 * score['kl_se']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
