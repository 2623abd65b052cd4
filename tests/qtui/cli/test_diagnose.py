"""``qtui diagnose``: its document and its texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import msgspec
import pytest

from engine import protocol as p
from engine.recipes.given import as_evaluated, given_recipe, names_recipe
from engine.session import Session, recipe_hash
from tests.diagnosis.test_findings import F, clean
from tests.qtui import replay as r
from tests.qtui.scripted import install

Run = Callable[..., tuple[int, str, str]]


def diagnosed(command: p.AnyCommand, session: Session) -> Iterable[p.AnyEvent]:
    if isinstance(command, p.Open):
        yield from r.opening()
    elif isinstance(command, p.Diagnose):
        accepted = msgspec.structs.replace(command, format=F)
        found = clean(lm_head=20.0)
        facts = [fact for column in found.effects.estimated.values() for fact in column if fact]
        yield p.JobStarted(job="7", kind="diagnose", title="diagnose", command=accepted)
        yield from list(r.triaged())[1:-1]
        yield p.Learned(("",) * len(facts), tuple(facts))
        yield p.JobEnded(job="7", kind="diagnose", status="done")


def test_the_document_has_verdict_findings_and_the_worst_layers(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, diagnosed)
    code, out, err = run("diagnose", "demo", "--json", "-")
    assert code == 0, err
    found = json.loads(out)
    assert found["schema"] == "qtui.diagnose/1"
    assert found["verdict"]["format"] == F
    assert found["verdict"]["sentence"].startswith(f"{F} everywhere: PPL")
    fragile = [each for each in found["findings"] if each["id"] == "fragile-head"]
    assert [each["layer"] for each in fragile] == ["lm_head"]
    assert fragile[0]["fix"]["recovered"] >= 0.5
    assert found["layers"][0]["name"] == "lm_head"
    sizes = [each["bytes"] for each in found["layers"][0]["fixes"]]
    assert sizes == sorted(sizes)
    assert len(sizes) == 5
    fixes = {each["format"]: each for each in found["layers"][0]["fixes"]}
    assert fixes[F]["verdict"] == "as it is"
    assert fixes[F]["kernels"] == ["marlin", "machete", "exllamav2"]
    assert fixes["bf16"]["recovered"] == 1.0
    assert fixes["int6-g128"]["verdict"] == "wins back about 94%"
    assert fixes["int6-g128"]["kernels"] == []
    assert fixes["int8"]["verdict"].startswith("best: wins back")
    assert found["verdict"]["kernels"] == ["marlin"]
    assert not fixes["int6-g128"]["filled"]


def test_text_begins_with_the_verdict_and_markdown_has_its_headings(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, diagnosed)
    code, out, _ = run("diagnose", "demo")
    assert code == 0
    assert out.startswith(f"{F} everywhere: PPL")
    assert "warning: lm_head: fragile head" in out
    install(monkeypatch, diagnosed)
    code, out, _ = run("diagnose", "demo", "--markdown")
    assert code == 0
    assert "## Findings" in out
    assert "| lm\\_head | int3-g128 |" in out


def with_errors(command: p.AnyCommand, session: Session) -> Iterable[p.AnyEvent]:
    if not isinstance(command, p.Diagnose):
        yield from diagnosed(command, session)
        return
    assert command.errors is not None
    errors = command.errors
    if not names_recipe(errors):
        errors = msgspec.structs.replace(errors, format=F)
    opened = r.folded(*r.opening())  # what is told is folded only later
    recipe, _ = given_recipe(opened, as_evaluated(errors), tied=opened.tied)
    facts: list[p.AnyFact] = [
        p.OutputError(
            layer=name, format=held, tokens=64, relative=0.05, channels=8, over_10=3, over_50=1,
            counts=[0] * 11, worst=[5], worst_errors=[0.75],
        )
        for name, held in recipe.items()
    ]  # fmt: skip
    nan = float("nan")
    blocks = [
        p.BlockDrift(block=0, drift=0.1, injected=0.1, propagated=0.0, control=0.0,
                     attention=[0.25, 0.5]),
        p.BlockDrift(block=1, drift=0.2, injected=nan, propagated=nan, control=nan),
    ]  # fmt: skip
    facts.append(p.Drift(recipe=recipe_hash(recipe), tokens=64, embedding=0.0, blocks=blocks))
    *before, last = diagnosed(msgspec.structs.replace(command, errors=errors), session)
    for event in before:
        if isinstance(event, p.JobStarted):
            accepted = msgspec.structs.replace(command, format=F, errors=errors)
            event = msgspec.structs.replace(event, command=accepted)
        yield event
    yield p.Learned(("",) * len(facts), tuple(facts))
    yield last


def test_errors_are_in_the_document_the_text_and_markdown(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, with_errors)
    code, out, err = run("diagnose", "demo", "--errors", "--json", "-")
    assert code == 0, err
    found = json.loads(out)
    recipe = found["errors"]["recipe"]
    assert set(recipe.values()) == {F}
    layers = {each["name"]: each for each in found["layers"]}
    assert set(recipe) <= set(layers)
    assert "clipping" not in layers["lm_head"]
    clipping = layers[next(iter(recipe))]["clipping"]
    assert (clipping["over_10"], clipping["over_50"], clipping["channels"]) == (3, 1, 8)
    assert (clipping["worst_channels"], clipping["worst_error"]) == ([5], 0.75)
    assert found["drift"][0]["attention"] == [0.25, 0.5]
    assert found["drift"][1] == {"block": 1, "drift": 0.2}

    install(monkeypatch, with_errors)
    code, out, _ = run("diagnose", "demo", "--errors")
    assert code == 0
    assert "output error" in out
    assert any(line.split()[-3:] == ["-", "-", "-"] for line in out.splitlines()), "block 1"
    assert "5 75.0%" in out
    install(monkeypatch, with_errors)
    code, out, _ = run("diagnose", "demo", "--errors", "--markdown")
    assert "## Errors inside the model" in out
    assert "| 0 | 10.0% | 10.0% | .00% | .00% | 1 | .500 |" in out


def test_a_recipe_needs_errors(run: Run) -> None:
    code, _, err = run("diagnose", "demo", "--recipe", "Q4_K_M")
    assert code == 2
    assert "add --errors" in err


def with_fixes(command: p.AnyCommand, session: Session) -> Iterable[p.AnyEvent]:
    events = list(diagnosed(command, session))
    if isinstance(command, p.Diagnose):
        tried = [
            p.FormatTried(layer=name, format="int8", weight_error=0.1, output_error=0.1, tokens=9)
            for name in ("lm_head", "model.layers.0.mlp.down_proj")
        ]
        events.insert(-1, p.Learned(("",) * len(tried), tuple(tried)))
    yield from events


def test_only_the_layers_on_which_formats_were_tried_are_listed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, with_fixes)
    code, out, err = run("diagnose", "demo", "--fixes", "2", "--json", "-")
    assert code == 0, err
    names = [layer["name"] for layer in json.loads(out)["layers"]]
    assert names == ["lm_head", "model.layers.0.mlp.down_proj"]
    install(monkeypatch, diagnosed)
    _, out, _ = run("diagnose", "demo", "--json", "-")
    assert len(json.loads(out)["layers"]) == 10
