"""The verdict against the knapsack, and against random mixes of its size."""

from __future__ import annotations

import math
import random

import msgspec
import pytest

from engine import protocol as p
from engine.diagnosis.verdict import MOST, Verdict, verdict
from engine.plan.knapsack import Frontier
from engine.plan.units import Rules, choices_of, units_of
from engine.recipes.changes import whole
from engine.report.verdicts import in_short, sentence
from engine.session import Session, apply, predict, recipe_hash
from engine.session.artefact import OUTSIDE
from tests.plan.test_proposal import FORMATS, effect, known, sizes
from tests.qtui import replay as r

LAYERS = [
    f"model.layers.{block}.{kind}"
    for block in range(4)
    for kind in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj")
] + ["lm_head"]
F = "int3-g128"


def found_in(session: Session) -> Verdict:
    found = verdict(session, F)
    assert found is not None
    return found


def body(session: Session) -> list[str]:
    rows = session.layers
    return [n for n, role in zip(rows.names, rows.roles, strict=True) if role not in OUTSIDE]


def total(session: Session, recipe: dict[str, str]) -> float:
    return math.fsum(effect(session, layer, held) for layer, held in recipe.items())


@pytest.mark.parametrize("seed", range(8))
def test_the_mix_is_on_the_frontier_and_leaves_half_of_the_damage_at_most(seed: int) -> None:
    session = known(layers=LAYERS, seed=seed)
    found = found_in(session)
    uniform = dict.fromkeys(body(session), F)
    assert found.kl == pytest.approx(total(session, uniform))
    assert total(session, found.mix) == pytest.approx(found.mix_kl)
    assert found.mix_kl <= MOST * found.kl * (1 + 1e-9)
    assert (found.mix_bits, found.mix_bytes) == sizes(session, found.mix)
    assert "lm_head" not in found.mix
    rules = Rules(FORMATS, pins={"lm_head": ""})
    frontier = Frontier(choices_of(units_of(session, rules), body=False))
    # Of its size none is better, and a smaller one of the frontier leaves more.
    bits = 8 * (found.mix_bytes - session.other_bytes)
    assert found.mix_kl == pytest.approx(frontier.bound(bits), rel=1e-6)
    smaller = frontier.within(bits) - 1
    assert smaller < 0 or frontier.cost[smaller] > MOST * found.kl * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_no_random_mix_of_its_size_has_a_smaller_sum(seed: int) -> None:
    session = known(layers=LAYERS, seed=seed)
    found = found_in(session)
    chance = random.Random(seed)
    for _ in range(200):
        held = {name: chance.choice(FORMATS) for name in body(session)}
        if sizes(session, held)[1] <= found.mix_bytes:
            assert total(session, held) >= found.mix_kl * (1 - 1e-9)


def test_the_worst_layers_and_their_share_are_said() -> None:
    session = known(layers=LAYERS)
    found = found_in(session)
    effects = {name: effect(session, name, F) for name in body(session)}
    worst = sorted(effects, key=lambda name: -effects[name])[:5]
    assert list(found.worst) == worst
    assert found.share == pytest.approx(math.fsum(effects[n] for n in worst) / found.kl)
    said = sentence(found)
    assert said.startswith("int3-g128 everywhere: PPL ≈")
    assert f"{found.share:.0%} of it from 5 of 16 layers" in said
    assert f"{found.mix_bits:.2f} bits" in said


def test_a_measured_uniform_recipe_takes_the_place_of_the_sum() -> None:
    session = known(layers=LAYERS)
    before = found_in(session)
    key = recipe_hash(dict.fromkeys(body(session), F))
    score = msgspec.structs.replace(r.score(key, ppl=30.0, half=0.1), kl=2 * before.kl, done=True)
    session.scores[key] = score
    after = found_in(session)
    assert (before.measured, after.measured) == (False, True)
    assert (after.kl, after.ppl) == (2 * before.kl, 30.0)
    assert after.mix == before.mix
    assert after.mix_kl == pytest.approx(2 * before.mix_kl)
    assert "≈" not in sentence(after).split("→")[0]


def test_a_mix_is_predicted_as_it_is_once_the_session_holds_it() -> None:
    """One figure in the verdict and beside the recipe, before it is measured and afterwards."""
    session = known(layers=LAYERS)
    key = recipe_hash(dict.fromkeys(body(session), F))
    score = msgspec.structs.replace(r.score(key, ppl=30.0, half=0.1), kl=2.0, dnll=0.3, done=True)
    session.scores[key] = score
    found = found_in(session)
    assert found.mix_measured is False
    event = whole(session, found.mix)
    assert event is not None
    apply(session, event)
    held = predict(session)
    assert held is not None
    assert (held.kl, held.ppl) == (found.mix_kl, found.mix_ppl)
    assert found_in(session) == found
    key = recipe_hash(found.mix)
    session.scores[key] = msgspec.structs.replace(score, recipe=key, kl=0.5, ppl=27.0)
    after = found_in(session)
    assert (after.mix_kl, after.mix_ppl, after.mix_measured) == (0.5, 27.0, True)
    assert "≈" not in sentence(after)


def test_layers_left_as_stored_are_said_to_be() -> None:
    session = known(layers=LAYERS)
    for columns in (session.effects.measured, session.effects.estimated):
        for key in [key for key in columns if key.format != F]:
            del columns[key]
    found = found_in(session)
    many = len(body(session)) - len(found.mix)
    assert f"{many} layers kept as stored: PPL" in sentence(found)
    assert f"{many} as stored: ≈" in in_short(found)[1]


def test_there_is_none_before_every_layer_of_the_body_is_known() -> None:
    session = known(layers=LAYERS)
    key = p.EffectKey("degrade", F)
    for columns in (session.effects.measured, session.effects.estimated):
        for name, column in columns.items():
            if name.format == F or len(columns) == 3:
                column[3] = None
    assert verdict(session, F) is None
    assert key.format == F
    assert verdict(Session(), F) is None


def test_without_a_better_format_there_is_no_mix() -> None:
    session = known(layers=LAYERS)
    for columns in (session.effects.measured, session.effects.estimated):
        for key in [key for key in columns if key.format != "int8"]:
            del columns[key]
    found = verdict(session, "int8")
    assert found is not None
    # Leaving layers as stored is always possible.
    assert set(found.mix.values()) <= {"int8"}
    assert ("kept", len(body(session)) - len(found.mix)) in found.better


def test_effects_filled_in_from_other_formats_are_no_verdict() -> None:
    session = known(layers=LAYERS)
    for columns in (session.effects.measured, session.effects.estimated):
        for column in columns.values():
            column[:] = [None, None, None, column[3], *[None] * (len(column) - 4)]
    assert verdict(session, F) is None
