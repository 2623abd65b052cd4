"""The screen of calibration sets: sets by texts, warnings, KL over samples, asking for more."""

from __future__ import annotations

import math

import pytest

from engine import protocol as p
from engine.errors import EngineError
from qtui.screens.calibration.screen import Calibration
from qtui.views.calibration import METHOD, complete_sets, parse_ask
from qtui.widgets.prompt.prompt import Prompt
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving

DOWN = "model.layers.4.mlp.down_proj"
SIZES = [((80, 24), False), ((80, 24), True), ((160, 50), False)]


def check(set: str, text: str, samples: int, distance: float = 0.2) -> p.CalibrationCheck:
    return p.CalibrationCheck(
        set=set, text=text, seq_len=256, samples=samples, tokens=256 * samples, documents=9,
        channels=768, repetition=0.05, duplicates=0.0, overlap=0.0, distance=distance, spread=0.19,
        worst=DOWN, largest=2 * distance, fourfold=0.25,
    )  # fmt: skip


def score(
    set: str, text: str, samples: int, kl: float, part: p.CalibratedOn = ""
) -> p.CalibrationScore:
    kls = tuple(kl * (1 + 0.05 * math.sin(window)) for window in range(16))
    return p.CalibrationScore(
        set=set, text=text, method=METHOD, seq_len=256, samples=samples, part=part, nll=2.8,
        ppl=16.4, nll_reference=2.75, kl=kl, kl_se=kl / 30, top1=0.9, tokens=4000, kls=kls,
    )  # fmt: skip


def facts() -> p.Learned:
    """Code and prose, each the best on its own text; random tokens are checked only."""
    found: list[p.AnyFact] = []
    for set, other, near in (("code", "prose", 0.1), ("prose", "code", 0.08)):
        for samples in (8, 16, 32):
            found += [check(set, set, samples), check(set, other, samples, 0.45)]
            kl = near * (1 + 2 / samples)
            found += [score(set, set, samples, kl), score(set, other, samples, 1.4 * kl)]
        found += [
            score(set, set, 32, 1.3 * near, "first half"),
            score(set, set, 32, 1.25 * near, "second half"),
        ]
    found += [check("random", "code", 8, 0.5), check("random", "prose", 8, 0.53)]
    return p.Learned(tuple(map(str, range(len(found)))), tuple(found))


async def shown(d: Driver) -> Calibration:
    await d.pilot.press("I")
    await d.until(lambda: isinstance(d.app.screens.shown, Calibration))
    await d.settled()
    screen = d.app.screens.shown
    assert isinstance(screen, Calibration)
    return screen


async def with_sets(d: Driver) -> Calibration:
    screen = await shown(d)
    await d.give(facts())
    await d.settled()
    return screen


@pytest.mark.parametrize(("size", "ascii"), SIZES)
async def test_sets_stand_by_texts_with_the_best_and_the_doubtful_marked(
    size: tuple[int, int], ascii: bool
) -> None:
    async with driving(*r.opening(), *r.triaged(), size=size, ascii=ascii) as d:
        screen = await with_sets(d)
        assert screen.texts == ["code", "prose"]
        assert [row.set for row in screen.rows] == ["code"] * 3 + ["prose"] * 3 + ["random"]
        lines = screen.list.text.splitlines()
        best = next(line for line in lines if " 32 " in line and "prose" in line)
        code, prose = best[-2 * 21 : -21], best[-21:]
        assert screen.glyphs.finding in code
        assert screen.glyphs.frontier not in code
        assert screen.glyphs.frontier in prose
        clean = next(line for line in lines if " 16 " in line and "prose" in line)
        assert screen.glyphs.finding not in clean[-21:]
        assert "checked" in next(line for line in lines if "random" in line)
        drawn = d.screen()
        assert max(map(len, drawn.splitlines())) <= size[0]
        if ascii:
            assert drawn.isascii()
        assert "over samples" in screen.curve.text


async def test_the_cursor_chooses_the_set_and_the_text_that_the_pane_is_about() -> None:
    async with driving(*r.opening(), *r.triaged(), size=(160, 50)) as d:
        screen = await with_sets(d)
        assert "other inputs" not in screen.against.text
        await d.pilot.press("right")
        await d.until(lambda: screen.text == "prose")
        await d.settled()
        assert "layers are given other inputs than on prose" in screen.against.text
        assert DOWN in screen.against.text
        await d.pilot.press("left", "down", "down")
        await d.until(lambda: screen.row is not None and screen.row.samples == 32)
        await d.settled()
        curve = screen.curve.text.splitlines()
        assert [line.split()[0] for line in curve[1:4]] == ["8", "16", "32"]
        assert "1st half of 32" in screen.curve.text
        assert "more samples would lower it further" in screen.against.text
        against = screen.against.text
        # .1 · (2/16 − 2/32) · (1 + .05 · mean of sines, .121)
        assert "16 samples are KL·10³ 6.29" in against
        assert "above the best" not in against  # it is the best itself
        await d.pilot.press("up")
        await d.until(lambda: screen.row is not None and screen.row.samples == 16)
        await d.settled()
        assert "above the best, code 32 × 256" in screen.against.text


async def test_sets_are_asked_for_with_a_method_and_texts_and_more_samples_with_a_key() -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        screen = await shown(d)
        assert "names sets" in screen.list.text
        await d.pilot.press("a")
        await d.paste("code,prose int3-g128+awq on code,prose")
        await d.pilot.press("enter")
        await d.until(lambda: d.sent(p.Calibrate))
        asked = p.Calibrate(sets=("code", "prose"), method="int3-g128+awq", texts=("code", "prose"))
        assert d.sent(p.Calibrate) == [asked]
        await d.give(facts())
        await d.pilot.press("plus")
        await d.until(lambda: len(d.sent(p.Calibrate)) == 2)
        more = d.sent(p.Calibrate)[-1]
        assert isinstance(more, p.Calibrate)
        assert (more.sets, more.samples, more.seq_lens) == (("code",), (64,), (256,))


async def test_what_was_refused_is_typed_still_with_the_reason_below() -> None:
    typed = "code,prise int3-g128+gptq"
    async with driving(*r.opening(), *r.triaged()) as d:
        screen = await shown(d)
        await d.pilot.press("a")
        await d.paste(typed)
        await d.pilot.press("enter")
        await d.until(lambda: d.sent(p.Calibrate) and not screen.query(Prompt))
        await d.give(p.Refused("Calibrate", "there is no calibration set 'prise'"))
        await d.until(lambda: screen.query(Prompt))
        prompt = screen.query_one(Prompt)
        await d.until(lambda: "there is no calibration set 'prise'" in d.screen())
        assert prompt.value == typed
        await d.pilot.press("escape")
        await d.until(lambda: not screen.query(Prompt))
        await d.give(p.Refused("Calibrate", "sets are being compared"))  # of another key
        await d.settled()
        assert not screen.query(Prompt)


def test_what_is_typed_is_read_or_refused_in_a_sentence() -> None:
    assert parse_ask("c4").method == METHOD
    assert parse_ask("c4,own on a,b").texts == ("a", "b")
    for typed, said in (
        ("", "separated by commas"),
        ("c4 int4-g128", "uses no calibration text"),
        ("c4 int4-g128+gptq more", "then a method"),
        ("c4 int99", "int99"),
    ):
        with pytest.raises(EngineError, match=said):
            parse_ask(typed)


def test_names_are_completed_and_none_twice() -> None:
    assert [each.text for each in complete_sets("wi")] == ["wikitext2"]
    names = [each.text for each in complete_sets("c4,co")]
    assert names == ["c4,code"]
    assert "c4,c4" not in [each.text for each in complete_sets("c4,")]
