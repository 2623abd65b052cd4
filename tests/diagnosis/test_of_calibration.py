"""What is told of calibration sets, of planted figures."""

from __future__ import annotations

import math

import msgspec
import pytest

from engine import protocol as p
from engine.diagnosis.of_calibration import (
    above_best,
    above_more,
    above_rival,
    best_sets,
    calibration_findings,
)
from engine.diagnosis.paired import paired
from engine.session import Session, apply

CHECK = p.CalibrationCheck(
    set="prose", text="code", seq_len=64, samples=32, tokens=2048, documents=9, channels=768,
    repetition=0.05, duplicates=0.0, overlap=0.0, distance=0.2, spread=0.18, worst="down",
    largest=0.4, fourfold=0.1,
)  # fmt: skip
METHOD = "int4-g128+gptq"


def score(kls: list[float], name: str = "prose", part: p.CalibratedOn = "") -> p.CalibrationScore:
    return p.CalibrationScore(
        set=name, text="code", method=METHOD, seq_len=64, samples=32, part=part, nll=1.0, ppl=2.7,
        nll_reference=0.9, kl=math.fsum(kls) / len(kls), kl_se=0.01, top1=0.9, tokens=100,
        kls=tuple(kls),
    )  # fmt: skip


def ids(*learned: p.AnyFact) -> set[str]:
    session = Session()
    apply(session, p.Learned(tuple(map(str, range(len(learned)))), learned))
    key = msgspec.structs.replace(CHECK.key, method=METHOD)
    return {each.id for each in calibration_findings(session, key)}


@pytest.mark.parametrize(
    ("change", "id"),
    [
        ({"distance": 0.5}, "wrong-domain"),
        ({"tokens": 700}, "few-tokens"),
        ({"samples": 4}, "few-samples"),
        ({"overlap": 0.2}, "overlap"),
        ({"duplicates": 0.2}, "duplicates"),
        ({"repetition": 0.5}, "repetition"),
        ({"experts": 8, "unseen": 2}, "unseen-experts"),
    ],
)
def test_each_fault_is_named_and_a_good_set_has_none(change: dict[str, float], id: str) -> None:
    planted = msgspec.structs.replace(CHECK, **change)
    session = Session()
    apply(session, p.Learned(("0", "1"), (CHECK, planted)))
    assert {e.id for e in calibration_findings(session, planted.key)} == {id}
    assert ids(CHECK) == set()


def test_a_distance_within_what_the_text_itself_varies_is_no_finding() -> None:
    assert ids(msgspec.structs.replace(CHECK, distance=0.5, spread=0.4)) == set()


def test_halves_that_do_worse_say_that_more_samples_help() -> None:
    whole, worse = [1.0, 1.1, 0.9, 1.0], [1.3, 1.4, 1.2, 1.31]
    halves = score(worse, part="first half"), score(worse, part="second half")
    assert ids(score(whole), *halves) == {"too-few-samples"}
    same = score(whole, part="first half"), score(whole, part="second half")
    assert ids(score(whole), *same) == set()
    apart = score(worse, part="first half"), score([0.7, 0.8, 0.6, 0.71], part="second half")
    assert ids(score(whole), *apart) == {"halves-differ"}


def test_a_set_is_worse_only_beyond_chance() -> None:
    mine = score([1.0, 1.1, 0.9, 1.0])
    better = score([0.8, 0.9, 0.7, 0.81], "code")
    chance = score([0.8, 1.3, 0.7, 1.1], "other")
    assert ids(mine, better) == {"worse-set"}
    assert ids(mine, chance) == set()
    session = Session()
    apply(session, p.Learned(("0", "1", "2"), (mine, better, chance)))
    assert [each.set for each in best_sets(session, METHOD, "code")] == ["code", "other"]


def test_sets_are_held_against_the_best_the_best_of_as_many_samples_and_fewer() -> None:
    best = msgspec.structs.replace(score([0.5, 0.6, 0.4, 0.52], "code"), samples=64)
    rival, mine = score([0.8, 0.9, 0.7, 0.81], "code"), score([1.0, 1.1, 0.9, 1.0])
    half = score([9.0, 9.1, 9.2, 9.3], "code", "first half")
    session = Session()
    known = (mine, rival, best, half)
    apply(session, p.Learned(tuple(map(str, range(len(known)))), known))
    for found, other, one in (
        (above_best(session, mine), best, mine),
        (above_rival(session, mine), rival, mine),
        (above_best(session, rival), best, rival),
        (above_more(session, best), rival, rival),
    ):
        assert found is not None
        assert found.other == other
        against = best if other is rival and one is rival else other
        assert found.kl == paired(one.kls, against.kls)
    for nothing in (
        above_best(session, best),
        above_rival(session, best),
        above_rival(session, rival),
        above_more(session, mine),
        above_more(session, half),
        above_best(session, half),
    ):
        assert nothing is None
