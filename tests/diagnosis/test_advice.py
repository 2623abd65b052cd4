"""Advice: the smallest format within an even share of the damage, by brute force."""

from __future__ import annotations

import math

import msgspec
import pytest

from engine import protocol as p
from engine.diagnosis.advice import adviser, category
from engine.diagnosis.serving import Serving
from engine.formats.kernels import kernels_for
from engine.formats.storage import can_hold
from engine.report.figures import Context
from engine.report.figures.registry import figure
from engine.report.verdicts import advice_sentence, from_weights
from engine.session import KnownEffects, Session
from engine.session.artefact import OUTSIDE
from tests.diagnosis.test_findings import FORMATS, F, changed, clean
from tests.qtui import replay as r


def body(session: Session) -> list[int]:
    return [row for row, role in enumerate(session.layers.roles) if role not in OUTSIDE]


@pytest.mark.parametrize("unserved", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_advice_is_the_smallest_format_within_the_bound(seed: int, unserved: bool) -> None:
    session = clean(seed, layers__0__=30.0)
    session.settings = msgspec.structs.replace(session.settings, unserved=unserved)
    effects, names = KnownEffects(session), session.layers.names
    kl = {
        (row, held): known.kl
        for row in range(len(names))
        for held in ("", *FORMATS)
        if (known := effects.known(names[row], held)) is not None
    }
    damage = math.fsum(kl[row, F] for row in body(session))
    bound = damage / len(body(session))
    some: set[str] = set()
    for row in range(len(names)):
        within = [
            (session.bits_in(row, held), held)
            for held in ("", *FORMATS)
            if kl[row, held] <= bound
            and (not held or can_hold(held, shape := session.layers.shapes[row]))
            and (held in ("", F) or unserved or kernels_for(held, shape))
        ]
        found = adviser(session, F).advice(row)
        assert found is not None
        assert found.format == min(within)[1]
        assert found.share == pytest.approx(kl[row, found.format] / damage)
        assert found.now == pytest.approx(kl[row, F] / damage)
        some.add(found.format)
    assert len(some) > 1


def test_there_is_no_advice_before_all_effects_are_known() -> None:
    session = clean()
    session.effects.estimated[p.EffectKey("degrade", F)][4] = None
    assert adviser(session, F).advice(3) is None
    assert adviser(Session(), F)._known == (0.0, 0.0)


def test_the_adviser_follows_the_session() -> None:
    session = clean()
    before = adviser(session, F)
    assert adviser(session, F) is before
    session.seq += 1
    assert adviser(session, F) is not before


def test_what_a_target_does_not_hold_is_not_advised() -> None:
    session = clean()
    row = session.index["model.layers.2.mlp.down_proj"]
    usual = adviser(session, F).advice(row)
    assert usual is not None
    for held in (usual.format, ""):
        target = Serving(
            f"only {held}", lambda format, _, held=held: None if format == held else "no"
        )
        found = adviser(session, F, target).advice(row)
        assert found is not None
        assert found.format == held
        context = Context(session, p.EffectKey("degrade", F), serving=target)
        assert figure("advice").read.bind(context)(row) == (held or session.kept(row))
    assert adviser(session, F).advice(row) == usual


def test_places_and_parts_are_named() -> None:
    session = clean()
    expected = {
        "model.embed_tokens": "embedding",
        "model.layers.0.self_attn.q_proj": "first attention",
        "model.layers.2.mlp.down_proj": "middle MLP",
        f"model.layers.{r.BLOCKS - 1}.self_attn.o_proj": "last attention",
        "lm_head": "head",
    }
    read = figure("category").read.bind(Context(session, p.EffectKey("degrade", F)))
    for name, said in expected.items():
        assert category(session, session.index[name]) == said == read(session.index[name])


def test_figures_and_the_sentence_tell_the_same() -> None:
    session = clean(layers__0__=30.0)
    context = Context(session, p.EffectKey("degrade", F))
    row = session.index["model.layers.0.mlp.down_proj"]
    found = adviser(session, F).advice(row)
    assert found is not None
    values = {id: figure(id).read.bind(context)(row) for id in ("advice", "advised_bits", "damage")}
    assert values == {"advice": found.format, "advised_bits": found.bits, "damage": found.now}
    said = advice_sentence(found, F, "bf16")
    assert said.startswith(f"{found.format}: leaves ≈")
    assert "an even share of it is 2.9%" in said
    quiet = session.index["model.layers.2.mlp.down_proj"]
    assert "int" in str(figure("advice").read.bind(context)(quiet))
    restore = Context(session, p.EffectKey("restore", F))
    assert figure("advice").read.bind(restore)(row) is None


def test_without_effects_the_largest_weight_errors_are_told() -> None:
    session = r.folded(*r.opening(), *r.triaged())
    said = from_weights(session, F)
    errors = {
        known.layer: known.errors[F].relative
        for known in session.layers.weights
        if known is not None and ".layers." in known.layer
    }
    worst = max(errors, key=lambda name: errors[name])
    assert worst in said
    assert "qtui diagnose" in said
    changed(session, worst, errors={})
    assert worst not in from_weights(session, F)
    assert from_weights(Session(), F) == ""
