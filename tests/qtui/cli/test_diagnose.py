"""``qtui diagnose``: its document and its texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import msgspec
import pytest

from engine import protocol as p
from engine.session import Session
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
    assert fixes["int6-g128"]["verdict"] == "best: wins back about 94%"
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
