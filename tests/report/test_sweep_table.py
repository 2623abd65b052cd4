"""A sweep as JSON and as a table: estimates, units, doubts, and how far they agree."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from engine import protocol as p
from engine.report import json as json_output
from engine.report.documents import sweep_document
from engine.report.tables import sweep_text
from engine.session import Session, apply, correction
from tests.qtui import replay as r

CONTROL = p.Control("lm_head", 0.0, 0.0, floor_dnll=1e-5, floor_kl=5e-4)


def swept(*events: p.AnyEvent) -> Session:
    return r.folded(*r.opening(), *events)


def as_json(session: Session, *args: Any) -> dict[str, Any]:
    document = sweep_document(session, *args)
    text = json_output.encode(document)
    assert msgspec.json.decode(text, type=type(document)) == document
    found: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    return found


def rows(text: str, format: str) -> list[list[str]]:
    """The words of lines of the first table that are about a format."""
    return [line.split() for line in text.splitlines() if format in line.split()[1:3]]


def test_a_layer_has_its_estimate_and_what_was_measured_and_neither_where_it_was_not() -> None:
    session = swept(r.estimated([r.FORMAT, "int2-g128"]), *r.swept(24), r.agreement())
    found = as_json(session, [r.FORMAT])
    assert [layer["name"] for layer in found["layers"]] == r.names()
    measured = [layer for layer in found["layers"] if "measured" in layer]
    assert len(measured) == 24
    layer = found["layers"][7]
    raw = r.estimate(layer["name"], 7)
    assert layer["estimate"]["kl"] == raw.kl
    assert layer["estimate"]["dnll_se"] == raw.dnll_se
    assert layer["estimate"]["draws"] == 2
    assert "doubt" not in layer["estimate"]
    fit = correction(session, r.EFFECTS)
    assert fit is not None
    assert "corrected_kl" not in layer["estimate"]  # it is measured
    row, unmeasured = next(
        (row, each) for row, each in enumerate(found["layers"]) if "measured" not in each
    )
    guess = r.estimate(unmeasured["name"], row)
    assert unmeasured["estimate"]["corrected_kl"] == fit.kl(guess.kl)
    agreed = {"layers": 24, "rank_kl": 0.978, "rank_dnll": 0.991, "ratio": 1.04}
    assert found["agreement"] == {r.FORMAT: agreed}
    other = found["estimated"]
    assert {each["format"] for each in other} == {"int2-g128"}
    assert other[0]["estimate"]["doubt"] == r.DOUBT
    assert "corrected_kl" not in other[0]["estimate"]
    assert "estimated" not in as_json(session, [r.FORMAT], "degrade", None, "layer", False)


def test_a_direction_has_its_own_figures() -> None:
    session = swept(*r.swept(), r.estimated([r.FORMAT], "restore"), r.agreement(9))
    found = as_json(session, [r.FORMAT], "restore")
    assert found["direction"] == "restore"
    assert len(found["layers"]) == 37
    assert not any("measured" in layer for layer in found["layers"])
    assert "agreement" not in found


def test_a_figure_below_the_floor_says_so() -> None:
    session = swept(*r.swept(), p.Learned(("c",), (CONTROL,)))
    found = as_json(session, [r.FORMAT])
    assert found["floor"] == {"kl": 5e-4, "dnll": 1e-5}
    for layer in found["layers"]:
        below = abs(layer["measured"]["kl"]) < 5e-4
        assert layer["measured"].get("below_floor", False) == below
    text = sweep_text(sweep_document(session, [r.FORMAT]))
    assert text.count("<floor") == 1 + sum("below_floor" in x["measured"] for x in found["layers"])
    assert text.count("<floor") > 1


@pytest.mark.parametrize(
    ("by", "name", "members"),
    [
        ("block", "3", [x for x in r.names() if ".3." in x]),
        ("kind", "down_proj", [x for x in r.names() if x.endswith("down_proj")]),
        ("group", "model.layers.0.self_attn.q_proj", r.names()[1:4]),
    ],
)
def test_units_are_named_with_their_layers(by: p.By, name: str, members: list[str]) -> None:
    session = swept()
    session.layers.groups = [0 if row in (1, 2, 3) else -1 for row in range(37)]
    fact = msgspec.structs.replace(r.sensitivity("x", 1), layer=name, by=by)
    guess = msgspec.structs.replace(r.estimate("x", 1), layer=name, by=by)
    for each in (fact, guess):
        apply(session, p.Learned(("u",), (each,)))
    found = as_json(session, [r.FORMAT], "degrade", None, by)
    assert found["layers"] == []
    (unit,) = found["units"]
    assert (unit["name"], unit["by"], unit["layers"]) == (name, by, members)
    assert unit["measured"]["kl"] == fact.kl
    assert unit["estimate"]["kl"] == guess.kl
    text = sweep_text(sweep_document(session, [r.FORMAT], "degrade", None, by))
    assert any(line.split()[:2] == [name, str(len(members))] for line in text.splitlines())


def test_the_table_has_measured_and_estimated_layers_in_one_order() -> None:
    session = swept(r.estimated([r.FORMAT]), *r.swept(20), r.agreement())
    text = sweep_text(sweep_document(session, [r.FORMAT]))
    found = rows(text, r.FORMAT)
    assert len(found) == 37
    values = [float(words[2].removeprefix("≈")) for words in found]
    assert values == sorted(values, reverse=True)
    assert sum(words[2].startswith("≈") for words in found) == 17
    assert "rank correlation of KL .978, of ΔNLL .991, over 24 layers" in text
    assert any("16,384" in words for words in found)
    assert any("4,096" in words for words in found)


def test_doubts_are_counted_and_told_once() -> None:
    session = swept(r.estimated(["int2-g128", "int8"]))
    text = sweep_text(sweep_document(session, ["int2-g128"]))
    assert text.count(r.DOUBT) == 1
    assert "37 estimates of int2-g128 may not hold" in text
    assert "KL·10³ in other formats" in text
    assert "top-1" not in text, "nothing was measured: no column for it"


def test_words_from_a_checkpoint_are_written_out() -> None:
    session = swept()
    session.layers.names[0] = "evil\x1b[2J"
    session.index["evil\x1b[2J"] = 0
    guess = msgspec.structs.replace(
        r.estimate("evil\x1b[2J", 0), doubt="so \x1b[31m doubtful", format="int8"
    )
    apply(session, p.Learned(("e",), (guess,)))
    text = sweep_text(sweep_document(session, ["int8"]))
    assert "\x1b" not in text
    assert "evil\\x1b[2J" in text
