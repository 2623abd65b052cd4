"""From what was measured to causes: nothing is said that was not."""

from __future__ import annotations

import msgspec
import pytest
from scipy.stats import fisher_exact

from engine import protocol as p
from engine.diagnosis.causes import causes, fisher
from engine.diagnosis.of_symptoms import shown
from engine.session import Session, Traced, order_of_wins

FORMATS = ["int4-g128"]


def continued(id: str, *, failing: bool, topic: str = "") -> p.Continued:
    fine = p.Continuation(text="fine", tokens=tuple(range(30)), ended=False, surprise=1.0)
    stuck = p.Continuation(text="no", tokens=(3, 4) * 15, ended=False, surprise=1.0)
    return p.Continued(
        prompt=id, recipe="r", id=id, text="", topic=topic, sampling=p.Sampling(), prompt_tokens=1,
        reference=fine, changed=stuck if failing else fine,
    )  # fmt: skip


def traced(*wins: float, cured: int | None = None, zeroed: float = 0.0) -> Traced:
    """Layers a, b, c… with what they win of 1, and cures of 1, 2 and 4 of them."""
    names = "abcdefgh"[: len(wins)]
    found = Traced("k")
    for name, kl in zip(names, wins, strict=True):
        found.restored[name] = p.SymptomRestored(
            recipe="r", prompts="k", unit=name, layers=(name,), by="layer", kl=kl, kl_se=0.01,
            whole=1.0, texts=4, zeroed=zeroed if name == "a" else 0.0,
        )  # fmt: skip
    for count in (1, 2, 4):
        left = 0 if cured is not None and count >= cured else 3
        back = tuple(names[:count])
        found.cures.append(
            p.SymptomCure(recipe="r", prompts="k", layers=back, failing=4, left=left)
        )
        if not left:
            break
    return found


SET = [continued(str(at), failing=at < 4) for at in range(10)]


def test_without_symptoms_there_are_no_causes() -> None:
    healthy = [continued(str(at), failing=False) for at in range(10)]
    assert causes(Session(), shown(healthy), traced(0.9, cured=1), FORMATS) == []


def test_without_a_measurement_no_cause_is_named() -> None:
    assert causes(Session(), shown(SET), None, FORMATS) == []


def test_layers_that_cure_it_are_the_cause_and_the_fix_was_tried() -> None:
    (found,) = causes(Session(), shown(SET), traced(0.8, 0.1, 0.05, 0.01, cured=2), FORMATS)
    assert (found.symptom, found.id, found.layers) == ("loop", "layers", ("a", "b"))
    assert found.evidence["kl_back"] == 0.8
    (cure,) = found.cures
    assert cure.tried
    assert cure.layers == ("a", "b")


def test_damage_that_no_few_layers_cure_is_spread_and_nothing_was_tried() -> None:
    (found,) = causes(Session(), shown(SET), traced(0.1, 0.1, 0.05, 0.01), FORMATS)
    assert found.id == "spread"
    assert found.evidence["share"] == pytest.approx(0.26)
    assert not any(cure.tried for cure in found.cures)
    sentences = [cure.sentence for cure in found.cures]
    assert "smaller group" in sentences[0]  # the cheapest first
    assert "plan" in sentences[-1]
    (solved,) = causes(Session(), shown(SET), traced(0.1, 0.1), ["int4-g32+gptq"])
    assert "calibration" in solved.cures[0].sentence
    (more,) = causes(Session(), shown(SET), traced(0.4, 0.3, 0.05, 0.01), FORMATS)
    assert more.id == "more-layers"


def test_rows_of_zeros_point_at_scales_not_at_language() -> None:
    found = causes(Session(), shown(SET), traced(0.9, cured=1, zeroed=0.5), FORMATS)
    assert [each.id for each in found] == ["zero-scales", "layers"]
    assert found[0].layers == ("a",)
    assert "50.0%" in found[0].sentence


def given_back(unit: str, layers: str, kl: float) -> p.SymptomRestored:
    by = "layer" if len(layers) == 1 else "block" if unit == "block" else "module"
    return p.SymptomRestored(
        recipe="r", prompts="k", unit=unit, layers=tuple(layers), by=by, kl=kl, kl_se=0.01,
        whole=1.0, texts=4,
    )  # fmt: skip


def test_layers_that_spoil_each_other_come_first_as_a_set() -> None:
    block, attention = given_back("block", "abcd", 0.96), given_back("attention", "ab", 0.95)
    mlp, best = given_back("mlp", "cd", 0.02), given_back("a", "a", 0.1)
    other = given_back("c", "c", 0.019)
    ranked = order_of_wins([block, mlp, other, best, attention])
    assert [fact.unit for fact in ranked] == ["attention", "a", "c", "block", "mlp"]
    found = Traced("k", restored={fact.unit: fact for fact in ranked})
    cure = p.SymptomCure(recipe="r", prompts="k", layers=("a", "b"), failing=4, left=0)
    found.cures = [msgspec.structs.replace(cure, layers=("a",), left=3), cure]
    (cause,) = causes(Session(), shown(SET), found, FORMATS)
    assert (cause.id, cause.layers) == ("layers", ("a", "b"))
    assert "95% of the KL there together, 10% by a alone" in cause.sentence
    (tried,) = cause.cures
    assert tried.layers == ("a", "b")


def channel(number: int, chance: float, share: float, healthy: float) -> p.ContrastedChannel:
    return p.ContrastedChannel(
        layer="b", channel=number, failing=4.0, healthy=healthy, difference=2.0, chance=chance,
        share=share, share_healthy=0.01,
    )  # fmt: skip


def head(number: int, chance: float, kl: float) -> p.ContrastedHead:
    return p.ContrastedHead(
        block=3, head=number, failing=kl, healthy=0.01, difference=2.0, chance=chance
    )


def inside(**given: object) -> dict[str, str]:
    """Sentences on a contrast, by cause."""
    contrast = p.SymptomContrast(recipe="r", prompts="k", failing=4, healthy=6, **given)  # type: ignore[arg-type]
    found = Traced("k", contrast=contrast)
    return {each.id: each.sentence for each in causes(Session(), shown(SET), found, FORMATS)}


def test_channels_and_heads_are_a_cause_where_chance_does_not_explain_them() -> None:
    channels = (channel(7, 0.001, 0.3, 0.02), channel(2, 0.002, 0.2, 0.04), channel(1, 0.2, 0.4, 0))
    found = inside(channels=channels, heads=(head(5, 0.001, 2.5), head(6, 0.004, 1.0)))
    assert found["channels"] == (
        "input channels 7, 2 of b fire only on prompts that fail (mean 4, 0.03 on others): "
        "50% of the layer's error there comes in by them"
    )
    assert found["attention-head"] == (
        "head 5 of block 3 and 1 more attend elsewhere on prompts that fail "
        "(KL 2.5 nats a query, 0.01 on others)"
    )
    larger = inside(channels=(channel(7, 0.001, 0.3, 2.0),))
    assert "input channel 7 of b is larger on prompts that fail" in larger["channels"]
    few = inside(channels=(channel(7, 0.001, 0.1, 0.0),), heads=(head(5, 0.001, 0.05),))
    by_chance = inside(channels=(channel(7, 0.02, 0.9, 0.0),), heads=(head(5, 0.02, 2.0),))
    assert few == by_chance == {}


def test_a_set_of_which_one_layer_wins_all_comes_after_it() -> None:
    module, layer = given_back("module", "ab", 0.9), given_back("a", "a", 0.85)
    assert order_of_wins([module, layer]) == [layer, module]


def test_a_head_is_named_as_one() -> None:
    session = Session()
    session.layers.names, session.layers.roles = ["a"], ["head"]
    session.index = {"a": 0}
    (found,) = causes(session, shown(SET), traced(0.9, cured=1), FORMATS)
    assert found.id == "head"


def test_a_topic_that_fails_more_often_is_told_where_chance_does_not_explain_it() -> None:
    def of(here: int, there: int) -> list[str]:
        some = [continued(f"a{at}", failing=at < here, topic="law") for at in range(10)]
        some += [continued(f"b{at}", failing=at < there, topic="code") for at in range(10)]
        return [each.id for each in causes(Session(), shown(some), None, FORMATS)]

    assert of(8, 0) == ["topic"]
    assert of(7, 0) == ["topic"]
    assert of(6, 0) == []  # 0.5% for one topic, and there are two
    assert of(3, 2) == []
    assert of(10, 10) == []


@pytest.mark.parametrize("table", [(8, 10, 1, 30), (0, 5, 3, 9), (4, 4, 0, 4), (2, 9, 2, 9)])
def test_fisher_s_test_is_that_of_scipy(table: tuple[int, int, int, int]) -> None:
    one, of, other, of_other = table
    expected = fisher_exact([[one, of - one], [other, of_other - other]], "greater").pvalue
    assert fisher(*table) == pytest.approx(expected)
