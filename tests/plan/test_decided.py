"""A plan for what has one format, or one kernel, against every recipe of these."""

from __future__ import annotations

import math
from itertools import product

import pytest

from engine import protocol as p
from engine.errors import InfeasibleError
from engine.export.held import refused, weights_of
from engine.export.target import target_named
from engine.formats.kernels import KERNELS, kernels_for
from engine.planning.known import plan_known
from engine.session import Session
from tests.plan.test_proposal import LAYERS, effect, known, sizes

NAMES = LAYERS[1:5]
FOR_BITSANDBYTES = ("nf4", "fp4", "int8+a8")


def planned(session: Session, **given: object) -> p.Planned:
    command = p.Plan(forwards=0.0, **given)  # type: ignore[arg-type]
    found = plan_known(session, command, "bfloat16").result
    assert isinstance(found, p.Planned)
    return found


def total(session: Session, recipe: dict[str, str]) -> float:
    return math.fsum(effect(session, layer, held) for layer, held in recipe.items())


@pytest.mark.parametrize("bits", [4.6, 6.0, 8.2, 9.0, 12.0])
@pytest.mark.parametrize("seed", range(3))
def test_bitsandbytes_gets_the_best_recipe_of_one_format(bits: float, seed: int) -> None:
    session = known(layers=NAMES, seed=seed, formats=FOR_BITSANDBYTES)
    found = planned(
        session, budget=p.Budget(bits=bits), formats=FOR_BITSANDBYTES, to="bitsandbytes"
    )
    target, weights = target_named("bitsandbytes"), weights_of(session)
    assert refused(target, weights, found.recipe) == {}
    assert len(set(found.recipe.values())) == 1
    best = math.inf
    for format in FOR_BITSANDBYTES:
        for held in product(("", format), repeat=len(NAMES)):
            if held[0] != held[1]:
                continue  # q and k are fused
            recipe = {name: each for name, each in zip(NAMES, held, strict=True) if each}
            if sizes(session, recipe)[0] <= bits:
                best = min(best, total(session, recipe))
    assert total(session, found.recipe) == pytest.approx(best)


def test_pins_of_several_formats_are_refused_where_there_is_one() -> None:
    session = known(layers=NAMES, formats=FOR_BITSANDBYTES)
    pins = {NAMES[2]: "nf4", NAMES[3]: "int8+a8"}
    with pytest.raises(InfeasibleError, match=r"int8\+a8 and nf4, but bitsandbytes has"):
        planned(session, budget=p.Budget(bits=9.0), pins=pins, to="bitsandbytes",
                formats=FOR_BITSANDBYTES)  # fmt: skip
    one = planned(
        session, budget=p.Budget(bits=9.0), formats=FOR_BITSANDBYTES,
        pins={NAMES[2]: "nf4"}, to="bitsandbytes",
    )  # fmt: skip
    assert set(one.recipe.values()) == {"nf4"}


MANY = ("int3-g128", "int4-g128", "int6-g128", "int8", "q4_0", "q8_0", "nf4")


@pytest.mark.parametrize("bits", [4.4, 5.0, 7.0])
def test_what_is_served_runs_on_one_kernel_and_costs_the_least_of_all_that_do(bits: float) -> None:
    session = known(layers=NAMES, formats=MANY, seed=5)
    budget = p.Budget(bits=bits)
    found = planned(session, budget=budget, formats=MANY, served=True)
    shapes = {name: session.layers.shapes[session.index[name]] for name in NAMES}
    best = math.inf
    for held in product(("", *MANY), repeat=len(NAMES)):
        if held[0] != held[1]:
            continue
        recipe = {name: each for name, each in zip(NAMES, held, strict=True) if each}
        runs = any(
            all(kernel.name in kernels_for(each, shapes[name]) for name, each in recipe.items())
            for kernel in KERNELS
        )
        if runs and sizes(session, recipe)[0] <= bits:
            best = min(best, total(session, recipe))
    assert total(session, found.recipe) == pytest.approx(best)
    free = planned(session, budget=budget, formats=MANY)
    assert total(session, free.recipe) <= best * (1 + 1e-9)


def test_where_no_kernel_fits_the_budget_any_format_may_be_taken() -> None:
    session = known(layers=NAMES, formats=MANY)
    found = planned(session, budget=p.Budget(bits=3.5), formats=MANY, served=True)
    assert "int3-g128" in found.recipe.values()


def test_pinned_layers_need_no_kernel() -> None:
    session = known(layers=NAMES, formats=MANY)
    found = planned(
        session, budget=p.Budget(bits=5.0), formats=MANY, served=True,
        pins={NAMES[2]: "int6-g128"},
    )  # fmt: skip
    assert found.recipe[NAMES[2]] == "int6-g128"
    assert {held for name, held in found.recipe.items() if name != NAMES[2]} <= {
        "int4-g128", "int8",
    }  # fmt: skip
