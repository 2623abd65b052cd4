"""Errors of the recipe in the workbench: the key, the requests, the columns, the map."""

from __future__ import annotations

import msgspec

from engine import protocol as p
from engine.report.figures import Context, figure
from engine.session import recipe_hash
from qtui.views.filter import parse_filter
from qtui.views.maps import mapped_figures
from tests.qtui import replay as r
from tests.qtui.driving import driving
from tests.qtui.widgets.test_error_tabs import (
    DOWN,
    HELD,
    MAP,
    OUTPUT,
    drift,
    quantised,
    with_errors,
)


async def test_the_key_measures_the_recipe_once_and_shows_the_tab() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(), size=(160, 50)) as d:
        await d.pilot.press("E")
        await d.settled()
        assert d.sent(p.MeasureErrors) == []
        assert "no layer is changed" in d.screen()

        d.table.move_to(d.table.rows.index(d.app.session.index[DOWN]))
        await d.give(r.changed(d.app.session, [DOWN], HELD))
        await d.pilot.press("E")
        await d.until(lambda: d.sent(p.MeasureErrors))
        await d.until(lambda: d.sent(p.AskErrorMap))
        assert d.sent(p.AskErrorMap) == [p.AskErrorMap(DOWN, HELD)]
        assert "outputs not measured yet" in d.screen()

        await d.give(p.Learned(("a", "b"), (OUTPUT, drift(d.app.session))), MAP)
        screen = d.screen()
        assert "output error 11.7%" in screen
        assert "weight error of 256 rows" in screen
        d.bench.show_tab("drift")
        await d.pilot.press("E")
        await d.settled()
        assert "propagated" in d.screen(), "the tab of drift stays"
        assert len(d.sent(p.MeasureErrors)) == 1, "all of it is known"

        await d.give(r.changed(d.app.session, [DOWN], "int8"))
        assert "not measured yet for this recipe" in d.screen()
        await d.pilot.press("E")
        await d.until(lambda: len(d.sent(p.MeasureErrors)) == 2)


async def test_a_map_that_was_evicted_is_asked_for_again() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(), size=(160, 50)) as d:
        d.table.move_to(d.table.rows.index(d.app.session.index[DOWN]))
        await d.give(r.changed(d.app.session, [DOWN], HELD))
        await d.pilot.press("E")
        await d.until(lambda: len(d.sent(p.AskErrorMap)) == 1)
        await d.give(MAP)
        for name in r.names()[:16]:  # as many as a session keeps
            if name != DOWN:
                await d.give(msgspec.structs.replace(MAP, layer=name))
        await d.give(msgspec.structs.replace(MAP, layer=r.names()[-1]))
        assert DOWN not in d.app.session.errors.maps
        await d.pilot.press("j", "k")
        await d.until(lambda: d.sent(p.AskErrorMap).count(p.AskErrorMap(DOWN, HELD)) == 2)


def test_figures_are_those_of_the_format_held_in_this_recipe() -> None:
    session = with_errors()
    row = session.index[DOWN]

    def value(id: str) -> object:
        return figure(id).read.bind(Context(session))(row)

    assert value("output_error") == 0.117
    assert (value("channels_over_10"), value("channels_over_50")) == (191, 2)
    assert value("worst_output_channels") == (121, 7)
    assert figure("output_error").read.bind(Context(session))(row + 1) is None
    shown = [each.id for each in mapped_figures(Context(session))]
    assert {"output_error", "channels_over_10", "channels_over_50"} <= set(shown)
    assert parse_filter("output_error>5%").rows(Context(session)) == [row]
    assert parse_filter("channels_over_50>2").rows(Context(session)) == []

    solved = msgspec.structs.replace(OUTPUT, recipe=recipe_hash({DOWN: HELD}))
    session = with_errors(solved)
    assert value("output_error") == 0.117
    session = with_errors(msgspec.structs.replace(OUTPUT, recipe="another"))
    assert value("output_error") is None
    session = quantised()
    assert value("output_error") is None
