"""The diagnosis: findings lead to their layers, the map's cursor to its own."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from engine import protocol as p
from engine.diagnosis.findings import findings
from engine.report.figures import Context
from engine.report.figures.registry import figure
from qtui.screens.diagnosis.screen import Diagnosis
from qtui.views.maps import STEPS, Map, map_lines, map_of
from qtui.views.text import UNICODE
from tests.diagnosis.test_findings import F, clean
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving

SIZES = [((80, 24), False), ((80, 24), True), ((160, 50), False)]


def events() -> list[p.AnyEvent]:
    """A model with a fragile head, all of whose layers are estimated."""
    session = clean(lm_head=20.0)
    facts = [fact for column in session.effects.estimated.values() for fact in column if fact]
    return [*r.opening(), *r.triaged(), p.Learned(("",) * len(facts), tuple(facts))]


def screen(d: Driver) -> Diagnosis:
    shown = d.app.screens.shown
    assert isinstance(shown, Diagnosis)
    return shown


@pytest.mark.parametrize(("size", "ascii"), SIZES)
async def test_findings_are_listed_and_lead_to_their_layers(
    size: tuple[int, int], ascii: bool
) -> None:
    async with driving(*events(), size=size, ascii=ascii) as d:
        await d.pilot.press("end", "D")
        await d.settled()
        shown = screen(d)
        assert [x.id for x in shown.found] == [x.id for x in findings(d.app.session, F)]
        assert "fragile head" in d.screen()
        assert max(len(line) for line in d.screen().splitlines()) <= size[0]
        assert not ascii or d.screen().isascii()
        at = next(i for i, x in enumerate(shown.found) if x.id == "fragile-head")
        await d.pilot.press("tab", *["down"] * at, "enter")
        await d.settled()
        assert d.app.screens.shown is d.app.screens.workbench
        assert d.table.current == "lm_head"
        await d.pilot.press("apostrophe")
        assert d.table.current != "lm_head"


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_findings_have_all_the_room_that_the_map_leaves(size: tuple[int, int]) -> None:
    async with driving(*events(), size=size) as d:
        await d.pilot.press("D")
        await d.settled()
        shown = screen(d)
        everything = shown.findings.count(shown.found, d.app.session, size[0] - 4, 1000)
        for _ in range(2):
            assert len(shown.list.lines) == min(everything, shown.list.size.height)
            shown.list.set_lines([])
            shown.map.set_lines([[]])  # drawn anew from another height
            shown._write()
            await d.settled()


async def test_the_cursor_of_the_map_is_on_a_layer_and_shows_it() -> None:
    async with driving(*events(), size=(120, 40)) as d:
        d.table.go_to("model.layers.0.self_attn.q_proj")
        await d.pilot.press("D")
        await d.settled()
        assert screen(d).current == "model.layers.0.self_attn.q_proj"  # the table's
        await d.pilot.press("down", "right")
        assert screen(d).current == "model.layers.1.self_attn.k_proj"
        await d.pilot.press("escape", "D")
        await d.settled()
        assert screen(d).current == "model.layers.1.self_attn.k_proj"  # the table's is where it was
        await d.pilot.press("enter")
        await d.settled()
        assert d.table.current == "model.layers.1.self_attn.k_proj"
        d.table.go_to("lm_head")
        await d.pilot.press("D")
        await d.settled()
        assert screen(d).current == "lm_head"


async def test_the_cursor_of_the_map_never_rests_where_there_is_no_layer() -> None:
    async with driving(*events(), size=(120, 40)) as d:
        d.table.go_to("model.embed_tokens")
        await d.pilot.press("D")
        await d.settled()
        for key in ("down", "right", "up", "right", "right", "left", "down", *["down"] * 9, "left"):
            await d.pilot.press(key)
            assert screen(d).current, key
        assert screen(d).current == f"model.layers.{r.BLOCKS - 1}.self_attn.q_proj"


async def test_the_map_names_estimates_by_their_sign_and_all_its_shades() -> None:
    for known in False, True:
        more = r.swept() if known else ()
        async with driving(*events(), *more, size=(80, 24)) as d:
            d.table.go_to("lm_head")
            await d.pilot.press("D")
            await d.settled()
            (line,) = screen(d).scale.text.splitlines()
            assert ("≈" in line.partition("KL·10³")[0]) == (not known), line
            assert "KL·10³: ·░▒▓█ " in line


def test_the_map_marks_where_there_are_more_blocks() -> None:
    session = clean(lm_head=20.0)
    found = map_of(Context(session, p.EffectKey("degrade", F)), figure("kl"))

    def marks(top: int, height: int) -> str:
        lines = map_lines(found, None, top, 80, height, UNICODE)[1:]
        return "".join(line[0][0][-1] for line in lines)

    rows = r.BLOCKS + 1
    assert marks(0, rows + 1) == " " * rows
    assert marks(0, rows) == " " * (rows - 2) + "+"
    assert marks(1, rows) == "+" + " " * (rows - 2)


@pytest.mark.parametrize(("height", "rows"), [(14, 7), (12, 5), (11, 4)])
async def test_the_map_has_the_lines_that_findings_leave(height: int, rows: int) -> None:
    async with driving(*r.opening(), *r.triaged(), size=(100, height)) as d:
        await d.pilot.press("D")
        await d.settled()
        shown = screen(d)
        shown._found([])
        await d.settled()
        assert "no findings so far" in d.screen()
        assert shown.map.content_size.height == rows
        assert shown.list.region.bottom <= height - 2


def test_the_cell_under_the_cursor_keeps_its_shade_between_brackets() -> None:
    session = clean(lm_head=20.0)
    found = map_of(Context(session, p.EffectKey("degrade", F)), figure("kl"))
    at = 0, found.kinds.index("lm_head")
    for width, seen in ((120, "[█████████]"), (25, "█")):
        head = map_lines(found, at, 0, width, 9, UNICODE)[1]
        assert "".join(text for text, _ in head).rstrip().endswith(seen)
        assert any("reverse" in style for _, style in head) == (seen == "█")


async def test_figures_of_the_map_are_those_of_which_something_is_known() -> None:
    async with driving(*events(), size=(120, 40)) as d:
        await d.pilot.press("D")
        await d.settled()
        ids = [each.id for each in screen(d).figures()]
        assert ids[0] == "kl"
        assert "error" in ids
        assert "input_ratio" not in ids
        await d.pilot.press("c")
        assert "KL·10³ per MB" in d.screen() or "weight error" in d.screen()


async def test_before_anything_is_known_it_says_so() -> None:
    async with driving() as d:
        await d.pilot.press("D")
        await d.settled()
        assert "nothing is known" in d.screen()


def test_a_cell_has_the_largest_of_its_layers_and_shades_follow_the_logarithm() -> None:
    session = clean(lm_head=20.0)
    found = map_of(Context(session, p.EffectKey("degrade", F)), figure("kl"))
    assert found.blocks == [-1, *range(r.BLOCKS)]
    assert set(found.kinds) == set(session.layers.kinds)
    value, row = found.cells[-1, "lm_head"]
    assert session.layers.names[row] == "lm_head"
    assert value == found.largest
    steps = [found.step(found.largest / 10**at) for at in (0, 0.5, 1, 1.5, 2, 3)]
    assert steps == sorted(steps, reverse=True)
    assert (steps[0], steps[-1]) == (STEPS - 1, 0)
    for name in session.layers.names:
        place = found.place(session, session.index[name])
        assert place is not None
        assert found.layer(place) == session.index[name]


def test_a_cell_whose_first_layer_is_not_known_has_the_largest_of_the_others() -> None:
    session = clean()
    layers = session.layers
    for own in (layers.blocks, layers.kinds, layers.roles):
        own[1:5] = own[1:2] * 4
    for known, expected in (
        ([None, 5.0, math.nan, 7], (7.0, 4)),
        ([math.inf, -2.0, True, "?"], (-2.0, 2)),
        ([None] * 4, (math.nan, 1)),
    ):
        values = [None, *known, *[None] * len(layers.names)]
        read = SimpleNamespace(bind=lambda _context, values=values: values.__getitem__)
        shown: Any = SimpleNamespace(read=read)
        cells = map_of(Context(session, p.EffectKey("degrade", F)), shown).cells
        assert repr(cells[layers.blocks[1], layers.kinds[1]]) == repr(expected)


def test_shades_tell_values_of_one_size_apart() -> None:
    found = Map(figure("error"))
    found.largest, found.least = 0.14, 0.10
    steps = [found.step(value) for value in (0.10, 0.105, 0.115, 0.125, 0.14)]
    assert steps == [0, 1, 2, 3, 4]
    found.least = found.largest
    assert found.step(0.14) == 0, "all the same: none stands out"
