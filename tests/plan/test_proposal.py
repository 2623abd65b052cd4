"""Plans against every recipe there is: budgets, groups, pins, bans, tied tensors, the cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
import pytest

from engine import protocol as p
from engine.checkpoint import fused_groups
from engine.errors import InfeasibleError, UsageError
from engine.formats.grammar import parse_format
from engine.formats.storage import stored_bits
from engine.plan.baselines import baselines
from engine.plan.decided import check_sizes
from engine.plan.knapsack import Frontier
from engine.plan.pins import pinned_layers
from engine.plan.proposal import GIB, check_size, frontier_of, solved
from engine.plan.units import Rules, Unit, choices_of, recipe_of, units_of
from engine.planning.known import plan_known
from engine.planning.rules import rules_of
from engine.recipes.changes import resolve
from engine.session import Session
from engine.session.artefact import artefact_size, bits_as_stored
from engine.session.cache import cache_bytes
from tests.qtui import replay as r

FORMATS = ("int3-g128", "int4-g128", "int8")
LAYERS = [
    "model.embed_tokens",
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.k_proj",
    "model.layers.0.mlp.down_proj",
    "model.layers.1.mlp.down_proj",
    "lm_head",
]
Q, K, DOWN = LAYERS[1], LAYERS[2], LAYERS[3]


def known(
    *,
    tied: bool = False,
    layers: list[str] | None = None,
    seed: int = 1,
    formats: tuple[str, ...] = FORMATS,
) -> Session:
    """A session with effects of all its layers, some measured and some estimated."""
    layers = layers or LAYERS
    rows = r.listed(layers)
    groups = fused_groups(rows.names, rows.blocks, rows.roles)
    read, *rest = r.opening(msgspec.structs.replace(rows, groups=groups, tied=tied))
    rest = [
        msgspec.structs.replace(e, tied=tied) if isinstance(e, p.ModelReady) else e for e in rest
    ]
    random = np.random.default_rng(seed)
    facts: list[p.AnyFact] = []
    for name in layers:
        worst = float(np.exp(random.normal(-5, 1.5)))
        for format in formats:
            kl = worst * 4.0 ** (3 - parse_format(format).bits) * float(random.uniform(0.7, 1.3))
            if random.uniform() < 0.5:
                facts.append(
                    p.Estimate(
                        layer=name, format=format, kl=kl, kl_se=kl / 10, dnll=kl, dnll_se=kl / 10,
                        tokens=100,
                    )
                )  # fmt: skip
            else:
                facts.append(
                    p.Sensitivity(
                        layer=name, format=format, kl=kl, kl_se=kl / 20, dnll=kl, dnll_se=kl / 20,
                        dppl=kl, dppl_low=0.0, dppl_high=kl, tokens=100,
                    )
                )  # fmt: skip
    return r.folded(read, *rest, p.Learned(("",) * len(facts), tuple(facts)))


def effect(session: Session, layer: str, held: str) -> float:
    row, key = session.index[layer], p.EffectKey("degrade", held)
    found = session.sensitivity(row, key) or session.estimate(row, key)
    assert found is not None
    return found.kl


def recipes(session: Session, *, grouped: bool = True) -> Iterator[tuple[dict[str, str], float]]:
    """Every recipe of these formats, with its sum of effects."""
    for held in itertools.product(("", *FORMATS), repeat=len(session.layers.names)):
        recipe = {n: h for n, h in zip(session.layers.names, held, strict=True) if h}
        if grouped and recipe.get(Q, "") != recipe.get(K, ""):
            continue
        yield recipe, math.fsum(effect(session, layer, h) for layer, h in recipe.items())


def sizes(session: Session, recipe: Mapping[str, str]) -> tuple[float, int]:
    """Bits per weight and bytes, from the sizes of each layer."""
    rows = session.layers
    bits = [
        stored_bits(parse_format(recipe[name]), shape)
        if name in recipe
        else bits_as_stored(shape, dtype)
        for name, shape, dtype in zip(rows.names, rows.shapes, rows.dtypes, strict=True)
    ]
    quantised = [name in recipe for name in rows.names]
    size = artefact_size(
        rows.roles, rows.shapes, bits, quantised, session.other_bytes, tied=session.tied
    )
    return size.bits_per_weight, size.bytes


def best(session: Session, units: list[Unit], budget: p.Budget) -> tuple[dict[str, str], float]:
    found = solved(session, units, budget)
    recipe = recipe_of(units, found.chosen.tolist())
    return recipe, math.fsum(effect(session, layer, held) for layer, held in recipe.items())


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("bits", [3.2, 4.0, 4.5, 9.0])
def test_no_recipe_within_the_bits_has_less_kl(bits: float, grouped: bool) -> None:
    session = known()
    units = units_of(session, Rules(FORMATS, grouped=grouped))
    recipe, kl = best(session, units, p.Budget(bits=bits))
    within = [k for r_, k in recipes(session, grouped=grouped) if sizes(session, r_)[0] <= bits]
    assert sizes(session, recipe)[0] <= bits
    assert kl == pytest.approx(min(within), rel=1e-9)
    assert grouped is False or recipe.get(Q) == recipe.get(K)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
def test_no_artefact_of_the_size_has_less_kl_also_where_head_and_embedding_are_tied(
    tied: bool, share: float
) -> None:
    session = known(tied=tied)
    gib = share * sizes(session, {})[1] / GIB
    recipe, kl = best(session, units_of(session, Rules(FORMATS)), p.Budget(gib=gib))
    within = [k for r_, k in recipes(session) if sizes(session, r_)[1] <= gib * GIB]
    assert session.size_of(recipe).bytes == sizes(session, recipe)[1] <= gib * GIB
    assert kl == pytest.approx(min(within), rel=1e-9)


def test_for_a_kl_the_smallest_artefact_is_found() -> None:
    session = known()
    limit = 0.02
    recipe, kl = best(session, units_of(session, Rules(FORMATS)), p.Budget(kl=limit))
    within = [sizes(session, r_)[1] for r_, k in recipes(session) if k <= limit]
    assert kl <= limit
    assert sizes(session, recipe)[1] == min(within)


def test_pins_bans_and_a_target_hold() -> None:
    session = known()
    rules = Rules(
        FORMATS,
        pins=pinned_layers(session, {"re:.*0.*q_proj": "int8", K: "int8", "lm_head": "int3-g128"}),
        bans=(("down_proj", "int3-g128"),),
        why_not=lambda format, shape: "not stored" if format.name == "int4" else None,
    )
    recipe, _ = best(session, units_of(session, rules), p.Budget(bits=8.5))
    assert (recipe[Q], recipe[K], recipe["lm_head"]) == ("int8", "int8", "int3-g128")
    assert "int4-g128" not in recipe.values()
    assert "int3-g128" not in {held for layer, held in recipe.items() if "down" in layer}


def test_pins_that_differ_within_a_group_and_unknown_names_are_errors() -> None:
    session = known()
    with pytest.raises(InfeasibleError, match=r"q_proj is pinned to int8.*ungrouped"):
        units_of(session, Rules(FORMATS, pins={Q: "int8", K: "int4-g128"}))
    with pytest.raises(UsageError, match=rf"did you mean '{DOWN}'"):
        pinned_layers(session, {DOWN.replace("proj", "prj"): "int8"})
    with pytest.raises(UsageError, match="no regular expression"):
        pinned_layers(session, {"re:(": "int8"})


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (p.Budget(bits=2.0), "takes 3.1"),
        (p.Budget(gib=1e-6), "leaves nothing for layers"),
        (p.Budget(gib=3e-4), r"takes 0\.00"),
    ],
)
def test_a_budget_that_nothing_fits_names_the_smallest(budget: p.Budget, says: str) -> None:
    session = known()
    with pytest.raises(InfeasibleError, match=says):
        solved(session, units_of(session, Rules(FORMATS)), budget)


def test_the_frontier_only_falls_and_each_point_is_a_recipe_no_smaller_one_equals() -> None:
    session = known()
    points = frontier_of(session, units_of(session, Rules(FORMATS)), body=False)
    every = [(sizes(session, recipe)[1], kl) for recipe, kl in recipes(session)]
    for one, other in itertools.pairwise(points):
        assert one.bytes < other.bytes
        assert one.kl > other.kl
    for point in points:
        least = min(kl for size, kl in every if size <= point.bytes)
        assert point.kl == pytest.approx(least, rel=1e-9, abs=1e-15)


def test_the_cache_takes_its_share_of_a_card() -> None:
    session = known()
    assert session.checkpoint is not None
    blocks = [p.CacheBlocks(3, 100), p.CacheBlocks(5, 40, window=64)]
    session.checkpoint = msgspec.structs.replace(session.checkpoint, cache=blocks)
    budget = p.Budget(gib=1.0, context=1000, batch=2, cache_bits=8)
    assert cache_bytes(session, budget) == 2 * (3 * 100 * 1000 + 5 * 40 * 64)
    session.checkpoint = msgspec.structs.replace(session.checkpoint, cache=None)
    with pytest.raises(InfeasibleError, match="does not say"):
        cache_bytes(session, budget)


def test_simple_rules_stay_within_the_budget_and_no_better_than_the_plan() -> None:
    layers = [
        f"model.layers.{block}.{kind}"
        for block in range(4)
        for kind in ("self_attn.o_proj", "mlp.down_proj")
    ]
    session = known(layers=layers)
    rules, budget = Rules(FORMATS), p.Budget(bits=6.5)
    _, kl = best(session, units_of(session, rules), budget)
    found = baselines(session, rules, budget)
    assert set(found) == {"uniform", "first-last", "greedy"}
    for recipe in found.values():
        assert sizes(session, recipe)[0] <= 6.5
        assert math.fsum(effect(session, layer, held) for layer, held in recipe.items()) >= kl
    assert set(found["uniform"].values()) == {"int4-g128"}
    raised = {layer for layer, held in found["first-last"].items() if held == "int8"}
    assert raised
    assert all(".0." in layer or ".3." in layer for layer in raised)
    worst = max(layers, key=lambda layer: effect(session, layer, "int4-g128"))
    assert found["greedy"][worst] == "int8"


def test_the_best_mix_of_llama_cpp_within_the_budget_is_one_of_the_simple_rules() -> None:
    types = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
    layers = [
        f"model.layers.{block}.{kind}"
        for block in range(8)
        for kind in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    ]
    session = known(layers=["model.embed_tokens", *layers, "lm_head"], formats=types)
    found = {
        bits: baselines(session, Rules(types), p.Budget(bits=bits))
        for bits in np.arange(2.5, 7.0, 0.05)
    }
    simple = {"uniform", "first-last", "greedy"}
    named = {bits: set(rules) - simple for bits, rules in found.items()}
    chosen: set[str] = set().union(*named.values())
    assert {"Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M"} & chosen
    assert len(chosen) >= 4
    assert "Q6_K" not in chosen  # one format: that is `uniform`
    for bits, rules in found.items():
        for name in named[bits]:
            recipe = rules[name]
            whole, _ = resolve(session, "kept", {}, named=name)
            assert recipe == {layer: held for layer, held in whole.items() if layer in layers}
            assert sizes(session, recipe)[0] <= bits
    assert all(len(names) <= 1 for names in named.values())
    kls = [
        math.fsum(effect(session, layer, held) for layer, held in rules[name].items())
        for bits, rules in found.items()
        for name in named[bits]
    ]
    assert kls == sorted(kls, reverse=True)
    without = baselines(session, Rules(types, bans=(("", "q5_k"), ("", "q6_k"))), p.Budget(bits=6))
    assert set(without) - simple == {"Q2_K"}
    session = known(layers=["model.embed_tokens", *layers, "lm_head"], formats=("q3_k", "q4_k"))
    assert set(baselines(session, Rules(types), p.Budget(bits=6.0))) <= simple


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_effect_that_is_not_finite_is_no_choice_and_is_filled_in_from_nothing(
    bad: float,
) -> None:
    session = known()
    for columns in (session.effects.measured, session.effects.estimated):
        for key, column in columns.items():
            if key.format == "int3-g128" and (fact := column[3]) is not None:
                column[3] = msgspec.structs.replace(fact, kl=bad)
    units = units_of(session, Rules(FORMATS))
    (unit,) = [unit for unit in units if unit.layers == (DOWN,)]
    assert ("int3-g128",) not in [choice.formats for choice in unit.choices]
    with pytest.raises(InfeasibleError, match="its effect in that format is not known"):
        units_of(session, Rules(FORMATS, pins={DOWN: "int3-g128"}))


def test_a_pin_must_be_possible_for_its_layer_and_its_target() -> None:
    session = known()
    rules = Rules(FORMATS, pins={DOWN: "int8"}, why_not=lambda f, s: f"no {f.name} here")
    with pytest.raises(InfeasibleError, match="pinned to int8, but no int8 here"):
        units_of(session, rules)
    narrow = known(layers=[DOWN])
    narrow.layers.shapes[0] = (256, 100)
    with pytest.raises(InfeasibleError, match="do not divide"):
        units_of(narrow, Rules(FORMATS, pins={DOWN: "q4_k"}))


def test_sizes_are_checked_before_anything_is_known() -> None:
    session = known()
    for columns in (session.effects.measured, session.effects.estimated):
        columns.clear()
    check_size(session, Rules(FORMATS), p.Budget(bits=3.2))
    check_size(session, Rules(FORMATS), p.Budget(kl=1e-9))
    with pytest.raises(InfeasibleError, match="smallest"):
        check_size(session, Rules(FORMATS), p.Budget(bits=3.0))


def test_what_no_rules_allow_is_refused_before_anything_is_known() -> None:
    """Small formats of two families fit together only, and one file holds one family."""
    session = known()
    tiers = [[Rules(("int8",))], [Rules(("int4-g128",)), Rules(("int8",))]]
    check_sizes(session, tiers, p.Budget(bits=5.0))
    with pytest.raises(InfeasibleError, match="the smallest of these formats"):
        check_sizes(session, tiers, p.Budget(bits=4.0))


def test_for_a_kl_the_bound_is_in_bytes_of_the_whole_artefact() -> None:
    session = known()
    found = plan_known(
        session, p.Plan(budget=p.Budget(kl=0.02), formats=FORMATS), "bfloat16"
    ).result
    assert isinstance(found, p.Planned)
    assert 0.9 * found.point.bytes < found.bound <= found.point.bytes


def test_points_of_the_frontier_have_the_sizes_of_their_recipes() -> None:
    session = known(tied=True)
    units = units_of(session, Rules(FORMATS))
    choices = choices_of(units, body=False)
    frontier = Frontier(choices)
    expected = {
        sizes(session, recipe_of(units, frontier.chosen(at).tolist()))
        for at in range(len(frontier))
    }
    found = {(x.bits_per_weight, x.bytes) for x in frontier_of(session, units, body=False)}
    assert found == expected


def test_bans_and_targets_hold_for_simple_rules_too() -> None:
    session = known()
    rules = Rules(
        FORMATS, bans=(("", "int8"),), why_not=lambda f, s: (f.name == "int3" and "x") or None
    )
    for recipe in baselines(session, rules, p.Budget(bits=6.0)).values():
        assert set(recipe.values()) == {"int4-g128"}
    with pytest.raises(UsageError, match="did you mean 'down_proj'"):
        rules_of(session, p.Plan(budget=p.Budget(bits=4), bans=(("down_prj", "int8"),)), "bfloat16")


def _units_for(target: str, *, tied: bool = False, grouped: bool = True) -> list[Unit]:
    session = known(tied=tied)
    command = p.Plan(budget=p.Budget(bits=4.0), formats=FORMATS, to=target, grouped=grouped)
    return units_of(session, rules_of(session, command, "float16"))


def test_a_target_that_knows_layers_by_kind_gets_one_unit_for_all_blocks() -> None:
    wanted = {DOWN, LAYERS[4]}
    assert any(set(unit.layers) == wanted for unit in _units_for("hqq"))
    assert not any(set(unit.layers) == wanted for unit in _units_for("torchao"))
    # Formats without what HQQ does to zero points are no choice.
    assert all(len(unit.choices) == 1 for unit in _units_for("hqq"))


def test_fused_layers_and_layers_that_must_be_alike_are_one_unit() -> None:
    session = known()
    rules = Rules(FORMATS, alike=lambda row: "all" if row in (1, 3) else None)
    units = units_of(session, rules)
    assert [unit.layers for unit in units] == [
        (LAYERS[0],), (Q, K, DOWN), (LAYERS[4],), (LAYERS[5],),
    ]  # fmt: skip


def test_a_target_is_not_offered_what_it_has_no_place_for() -> None:
    (embedding,) = [
        unit for unit in _units_for("torchao") if unit.layers == ("model.embed_tokens",)
    ]
    assert [choice.formats for choice in embedding.choices] == [("",)]
    (pair,) = [unit for unit in _units_for("mlx", tied=True) if "lm_head" in unit.layers]
    assert all(head == embedding for head, embedding in (choice.formats for choice in pair.choices))
