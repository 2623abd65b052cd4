"""The verdict above the table, and the key that takes its mix."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from engine import protocol as p
from engine.diagnosis.verdict import verdict
from engine.session import Layers
from qtui.widgets.frame import verdict as widget
from tests.diagnosis.test_findings import F, clean
from tests.plan.test_proposal import LAYERS, known
from tests.qtui import replay as r
from tests.qtui.driving import driving
from tests.qtui.screens.test_plan import events

SIZES = [((80, 24), False), ((80, 24), True), ((160, 50), False)]


@pytest.mark.parametrize(("size", "ascii"), SIZES)
async def test_it_is_one_line_and_its_mix_is_taken_by_a_key(
    size: tuple[int, int], ascii: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widget, "LEAST", 0.0)
    async with driving(*events(), size=size, ascii=ascii) as d:
        shown = d.app.screens.workbench.verdict
        await d.until(lambda: shown.found is not None)
        await d.settled()
        found = verdict(d.app.session, d.app.screens.workbench.format)
        assert shown.found == found
        assert found is not None
        assert len(shown.lines) == 1
        assert f"{found.format}" in d.screen()
        assert f"{found.mix_bits:.2f} bits" in d.screen()
        assert not ascii or shown.text.isascii()
        await d.pilot.press("V")
        await d.settled()
        assert d.link.sent[-1] == p.SetRecipe(found.mix)


async def test_before_it_is_there_the_key_says_when_it_comes() -> None:
    async with driving(*r.opening(r.listed(LAYERS)), *r.triaged()) as d:
        await d.pilot.press("V")
        await d.settled()
        assert "once all layers are estimated" in d.screen()
        assert d.app.screens.workbench.verdict.found is None
        assert "no verdict before all layers are estimated" in d.screen()


def test_a_long_verdict_leaves_words_out_and_cuts_none() -> None:
    found = verdict(known(), "int4-g128")
    assert found is not None
    worst = tuple(str(number) for number in range(5))
    found = replace(found, unable=35, layers=35, worst=worst, share=0.46, to="gguf")
    shown = widget.VerdictLine()
    whole = shown._words(found, 200)
    assert "of it from" in whole[0][0]
    for width in (100, 78, 70):
        words = shown._words(found, width)
        said = "".join(text for text, _ in words)
        assert len(said) <= width
        assert f"{found.mix_bits:.2f} bits" in said
        assert "not in gguf" in said


def test_the_session_of_these_tests_has_a_verdict() -> None:
    assert verdict(known(), "int4-g128") is not None


@pytest.mark.parametrize("screen", ["workbench", "diagnosis"])
async def test_above_the_first_row_is_the_verdict_which_enter_takes(
    screen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widget, "LEAST", 0.0)
    async with driving(*events(), size=(80, 24)) as d:
        if screen == "diagnosis":
            d.table.go_to(d.app.session.layers.names[0])
            await d.pilot.press("D")
            await d.settled()
        shown = d.app.screen.query_one(widget.VerdictLine)
        await d.until(lambda: shown.found is not None)
        await d.settled()
        assert "V takes it" in shown.text
        await d.pilot.press("up")
        assert shown.here
        assert shown.text.startswith("▌")
        assert "⏎ takes it" in shown.text
        await d.pilot.press("up", "down")
        assert not shown.here
        assert "V takes it" in shown.text
        await d.pilot.press("up", "enter")
        await d.settled()
        assert shown.found is not None
        assert d.link.sent[-1] == p.SetRecipe(shown.found.mix)
        assert not shown.here


async def test_a_click_reaches_the_verdict_and_another_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(widget, "LEAST", 0.0)
    async with driving(*events(), size=(80, 24)) as d:
        shown, table = d.app.screens.workbench.verdict, d.app.screens.workbench.table
        await d.until(lambda: shown.found is not None)
        await d.settled()
        sent = list(d.link.sent)
        await d.pilot.click(shown)
        assert shown.here
        await d.pilot.click(table, offset=(10, 2))
        assert not shown.here
        await d.pilot.click(shown)
        assert not any(isinstance(each, p.SetRecipe) for each in d.link.sent[len(sent) :])
        await d.pilot.click(shown)
        await d.settled()
        assert shown.found is not None
        assert d.link.sent[-1] == p.SetRecipe(shown.found.mix)


async def test_a_key_for_layers_leaves_the_verdict_and_other_keys_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(widget, "LEAST", 0.0)
    async with driving(*events(), size=(80, 24)) as d:
        bench = d.app.screens.workbench
        await d.until(lambda: bench.verdict.found is not None)
        await d.pilot.press("up", "ctrl+t")
        assert bench.verdict.here
        await d.pilot.press("8")
        await d.settled()
        assert not bench.verdict.here
        assert isinstance(d.link.sent[-1], p.SetFormat)
        assert d.link.sent[-1].layers == (bench.table.current,)


async def test_without_a_mix_the_verdict_is_not_reached() -> None:
    async with driving(*r.opening(r.listed(LAYERS)), *r.triaged()) as d:
        await d.pilot.press("up", "enter")
        await d.settled()
        assert not d.app.screens.workbench.verdict.here
        await d.pilot.click(d.app.screens.workbench.verdict)
        await d.settled()
        assert "once all layers are estimated" in d.screen()


@pytest.mark.parametrize("changed", ["baseline", "layers"])
def test_it_ends_when_what_it_judges_changes_between_two_steps(changed: str) -> None:
    steps = list(widget._guarded(clean(), F, None))
    assert len(steps) > 5
    for at in range(len(steps)):
        session = clean()
        judging = widget._guarded(session, F, None)
        for _ in range(at + 1):
            next(judging)
        setattr(session, changed, None if changed == "baseline" else Layers())
        with pytest.raises(StopIteration) as end:
            next(judging)
        assert end.value.value is None
