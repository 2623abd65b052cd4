"""``qtui plan``: its document, its recipe file, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest

from engine import protocol as p
from engine.planning.known import plan_known
from engine.recipes.file import read_recipe
from engine.session import Session
from qtui.cli.plan import _ban, _budget, _pair
from tests.plan.test_proposal import LAYERS, known
from tests.qtui import replay as r
from tests.qtui.scripted import install

Run = Callable[..., tuple[int, str, str]]
FORMATS = ("--formats", "int3-g128,int4-g128,int8")


def planned(command: p.AnyCommand, session: Session) -> Iterable[p.AnyEvent]:
    if isinstance(command, p.Open):
        yield from r.opening(r.listed(LAYERS))
    elif isinstance(command, p.Plan):
        found = plan_known(known(), command, "bfloat16").result
        yield p.JobStarted(job="7", kind="plan", title="plan", command=command)
        yield p.JobEnded(job="7", kind="plan", status="done", result=msgspec.to_builtins(found))


def test_the_document_the_table_and_the_recipe_file_agree(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, planned)
    recipe, found = tmp_path / "mine.toml", tmp_path / "found.json"
    given = ("plan", "demo", "--bits", "5", *FORMATS, "-o", str(recipe), "--json", str(found))
    code, out, err = run(*given)
    assert code == 0, err
    document = json.loads(found.read_text())
    assert document["schema"] == "qtui.plan/1"
    assert document["budget"] == {"bits": 5.0}
    assert document["bits_per_weight"] <= 5.0
    assert set(document["layers"]) == set(LAYERS)
    assert {"uniform", "first-last", "greedy"} == set(document["baselines"])
    assert [unit for unit in document["units"] if len(unit["layers"]) == 2]
    assert "this plan" in out
    session = known()
    read = read_recipe(recipe)
    held = {name: read.resolve(session).get(name, read.default) for name in LAYERS}
    body = {name: held[name] for name in LAYERS if ".layers." in name}
    assert body == {name: document["layers"][name] for name in body}


def test_a_card_has_the_cache_of_the_profile_unless_another_is_given() -> None:
    settings = p.Settings(context=8192, batch=2, cache_bits=8)
    given = {"context": None, "batch": 4, "cache_bits": None}
    found = _budget(None, 22.0, None, given, settings)
    assert found == p.Budget(gib=22.0, context=8192, batch=4, cache_bits=8)
    nothing = dict.fromkeys(given)
    assert _budget(4.5, None, None, nothing, settings) == p.Budget(bits=4.5)
    assert _budget(None, 22.0, None, {"context": 0}, p.Settings()) == p.Budget(gib=22.0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((), "exactly one of --bits B, --gib G and --kl K"),
        (("--bits", "4", "--kl", "0.1"), "exactly one of"),
        (("--gib", "4", "--context", "10", "--cache-bits", "5"), "expected 16, 8 or 4"),
        (("--gib", "4", "--batch", "0"), "--batch is 0, expected at least 1"),
        (("--bits", "4", "--pin", "lm_head"), "expected NAME=FORMAT"),
        (("--bits", "4", "--to", "gguff"), "targets are checkpoint"),
        (("--bits", "4", "-o", "no/such/folder/x.toml"), "does not exist"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_runs(
    run: Run, given: tuple[str, ...], says: str
) -> None:
    code, out, err = run("plan", "demo", *given)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "name", "held"),
    [
        ("lm_head=int4-g128+gptq:damp=.02", "lm_head", "int4-g128+gptq:damp=.02"),
        ("re:.*=x=int8", "re:.*=x", "int8"),
        ("re:.*o_proj=kept", "re:.*o_proj", "kept"),
    ],
)
def test_a_pin_is_split_where_its_format_begins(given: str, name: str, held: str) -> None:
    assert _pair("--pin", given) == (name, held)


def test_a_ban_may_be_a_format_with_options() -> None:
    assert _ban("int4-g128+gptq:damp=.02") == ("", "int4-g128+gptq:damp=.02")
    assert _ban("down_proj=int3-g128") == ("down_proj", "int3-g128")
