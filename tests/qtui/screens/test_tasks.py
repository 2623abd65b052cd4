"""The screen of tasks and texts: the list, every figure with its interval, asking for more."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import protocol as p
from engine.errors import EngineError
from qtui.screens.tasks.screen import Tasks
from qtui.views.asked import complete_texts, parse_texts
from qtui.widgets.prompt.prompt import Prompt
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving
from tests.report.asked import asked, ended, task

LAYER = "model.layers.0.self_attn.q_proj"


async def shown(d: Driver) -> Tasks:
    changed = p.RecipeChanged(
        how="set", layers=[LAYER], before=["bf16"], after=["int2-channel"], bits=[9000]
    )
    await d.give(changed)
    await d.pilot.press("B")
    await d.until(lambda: isinstance(d.app.screens.shown, Tasks))
    await d.settled()
    screen = d.app.screens.shown
    assert isinstance(screen, Tasks)
    return screen


@pytest.mark.parametrize(
    ("size", "ascii"), [((80, 24), False), ((80, 24), True), ((160, 50), False)]
)
async def test_every_task_text_and_table_is_listed_with_its_figures_below(
    size: tuple[int, int], ascii: bool
) -> None:
    async with driving(*r.opening(), *r.triaged(), size=size, ascii=ascii) as d:
        screen = await shown(d)
        assert "names tasks" in screen.list.text
        await d.give(*asked("questions", "code", "no\x1b[31m"))
        assert [each.kind for each in screen.entries] == ["task", "text", "KLD", "text"]
        assert screen.entry is not None
        assert screen.entry.recipe == "the session's recipe"  # the newest
        await d.pilot.press("k", "k", "k")
        await d.until(lambda: screen.entry == screen.entries[0])
        await d.settled()
        row = next(line for line in screen.list.text.splitlines() if "task questions" in line)
        assert "70.0%" in row
        assert "3 flips" in row
        figures = " ".join(screen.figures.text.split())
        assert "reference 70.0% (39.7%" in figures
        assert "acc_norm" in figures
        assert "difference" in figures
        assert "2 lost, 1 gained" in figures
        assert "lost no\\x1b[31m" in figures
        await d.pilot.press("j")
        await d.until(lambda: screen.entry == screen.entries[1])
        await d.settled()
        assert "intervals are of 95%" in screen.message.text
        places = [line for line in screen.figures.text.splitlines() if "22.5" in line]
        assert len(places) == 1
        await d.pilot.press("j")
        await d.until(lambda: screen.entry == screen.entries[2])
        await d.settled()
        assert "Mean KLD" in screen.figures.text
        assert screen.message.text.startswith(f"{'+-' if ascii else '±'} standard errors")
        assert "95%" not in screen.message.text
        drawn = d.screen()
        assert max(map(len, drawn.splitlines())) <= size[0]
        assert not ascii or drawn.isascii()
        assert "\x1b" not in drawn


async def test_a_task_that_was_answered_again_replaces_its_older_figures() -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        screen = await shown(d)
        await d.give(*asked("questions", "code"))
        found = p.Symptoms("0a", (), tasks=(task("questions"),))
        await d.give(*ended(9, p.FindSymptoms(format="int3-g128"), found))
        assert [each.kind for each in screen.entries] == ["task", "text", "KLD", "text"]


async def test_keys_ask_for_tasks_texts_and_tables(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text("{}", encoding="utf-8")
    async with driving(*r.opening(), *r.triaged()) as d:
        screen = await shown(d)
        await d.pilot.press("a")
        await d.paste(f"{file},arc_easy")
        await d.pilot.press("enter")
        await d.until(lambda: d.sent(p.FindSymptoms) and not screen.query(Prompt))
        assert d.sent(p.FindSymptoms) == [p.FindSymptoms(tasks=(str(file), "arc_easy"))]
        await d.pilot.press("o")
        await d.paste("code,prose")
        await d.pilot.press("enter")
        await d.until(lambda: d.sent(p.MeasureTexts) and not screen.query(Prompt))
        assert d.sent(p.MeasureTexts) == [p.MeasureTexts(texts=("code", "prose"))]
        await d.pilot.press("g")
        await d.until(lambda: len(d.sent(p.FindSymptoms)) == 2)
        assert d.sent(p.FindSymptoms)[-1] == p.FindSymptoms(divergence=True)


def test_what_is_typed_is_read_or_refused_in_a_sentence() -> None:
    assert parse_texts("code,prose ./a.txt").texts == ("code", "prose", "./a.txt")
    with pytest.raises(EngineError, match="separated by commas"):
        parse_texts(" ")
    assert [each.text for each in complete_texts("code,pr")] == ["code,prose"]
