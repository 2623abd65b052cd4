"""What is asked of the engine without a key: histograms of the held format, experts of a row."""

from __future__ import annotations

from engine import protocol as p
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving

DOWN = "model.layers.0.mlp.down_proj"
FUSED = "model.layers.0.mlp.experts.gate_up_proj"


def asked(d: Driver) -> list[tuple[str, str]]:
    """Layers whose histograms were asked for, each with the format whose grid is to be drawn."""
    return [(ask.layer, ask.format) for ask in d.link.sent if isinstance(ask, p.AskHistogram)]


def place(d: Driver, layer: str) -> int:
    return d.table.rows.index(d.app.session.index[layer])


async def test_a_histogram_is_asked_for_again_with_the_format_that_the_layer_holds_now() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(), size=(160, 50)) as d:
        await d.pilot.press("j")
        await d.until(lambda: asked(d)[-1:] == [(DOWN, "")])
        await d.give(r.histogram(DOWN))
        await d.until(d.still)
        assert "16 levels" not in d.screen()
        await d.give(r.changed(d.app.session, [DOWN], r.FORMAT))
        await d.until(lambda: asked(d)[-1:] == [(DOWN, r.FORMAT)])
        await d.give(r.drawn(DOWN))
        await d.until(lambda: "16 levels" in d.screen())
        # What was answered is not asked for again; another format is.
        await d.pilot.press("k", "j")
        await d.give(r.changed(d.app.session, [DOWN], "int8"))
        await d.until(lambda: asked(d)[-1:] == [(DOWN, "int8")])
        assert asked(d).count((DOWN, r.FORMAT)) == 1
        await d.until(lambda: "16 levels" not in d.screen())


async def test_a_change_of_another_layer_asks_for_nothing() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept()) as d:
        await d.until(lambda: asked(d))
        before = asked(d)
        await d.give(r.changed(d.app.session, [DOWN], r.FORMAT))
        assert d.table.current != DOWN
        # The next question is of the layer that the cursor goes to.
        await d.pilot.press("j")
        await d.until(lambda: len(asked(d)) > len(before))
        assert asked(d) == [*before, (d.table.current, r.FORMAT)]


async def test_an_opened_row_asks_for_its_experts_and_lists_them() -> None:
    async with driving(*r.opening(r.mixture()), size=(120, 40)) as d:
        d.table.move_to(place(d, FUSED))
        await d.pilot.press("enter")
        await d.until(lambda: d.sent(p.AskExperts))
        assert d.sent(p.AskExperts) == [p.AskExperts(FUSED)]
        await d.pilot.pause()
        assert "reading…" in d.screen()
        await d.give(r.experts(FUSED))
        screen = d.screen()
        assert all(f"expert {number}" in screen for number in range(8))
        assert "3 NaN or inf" in screen
        await d.pilot.press("j", "j", "j")
        await d.settled()
        assert f"{FUSED}[2]" in d.screen()
        assert "expert 2 (of 0-7)" in d.screen()
        # A toggle is of the whole layer: serving engines hold its experts in one format.
        await d.pilot.press("4")
        await d.until(lambda: d.sent(p.SetFormat))
        assert d.sent(p.SetFormat) == [p.SetFormat((FUSED,), "int4-g128")]
        await d.pilot.press("enter")
        await d.settled()
        assert "expert 7" not in d.screen()
        assert d.table.current == FUSED
        await d.pilot.press("enter")
        await d.settled()
        assert "expert 7" in d.screen()
        assert len(d.sent(p.AskExperts)) == 1


async def test_experts_that_are_refused_say_why_in_their_place_and_can_be_asked_for_again() -> None:
    async with driving(*r.opening(r.mixture()), size=(120, 40)) as d:
        d.table.move_to(place(d, FUSED))
        await d.pilot.press("enter")
        await d.until(lambda: d.sent(p.AskExperts))
        why = "the shard ends after 96 of 4,096 bytes"
        d.link.give(p.Refused("AskExperts", why, 3, (FUSED,)))
        await d.until(lambda: why in d.screen())
        assert "reading…" not in d.screen()
        assert why not in d.bench.message.text
        await d.pilot.press("enter", "enter")
        await d.until(lambda: len(d.sent(p.AskExperts)) == 2)
        await d.give(r.experts(FUSED))
        assert "expert 7" in d.screen()


async def test_a_refused_toggle_of_a_layer_leaves_what_it_holds_and_says_why() -> None:
    async with driving(*r.opening(r.mixture()), size=(120, 40)) as d:
        d.table.move_to(place(d, FUSED))
        await d.pilot.press("4")
        await d.until(lambda: d.sent(p.SetFormat))
        await d.give(
            p.Refused(
                "SetFormat", f"{FUSED}: experts stay as stored", 2, (FUSED,), d.ask(p.SetFormat)
            )
        )
        assert "experts stay as stored" in d.bench.message.text
        assert "○int4-g128" not in d.screen()


async def test_a_histogram_that_made_room_for_others_is_asked_for_again() -> None:
    async with driving(*r.opening()) as d:
        first = d.table.current
        assert first is not None
        await d.until(lambda: len(d.sent(p.AskHistogram)) == 1)
        await d.give(r.histogram(first))
        d.app.session.histograms.clear()
        await d.pilot.press("j", "k")
        await d.until(lambda: d.sent(p.AskHistogram).count(p.AskHistogram(first)) == 2)


async def test_an_undone_format_has_its_grid_again() -> None:
    async with driving(*r.opening()) as d:
        layer = d.table.current
        assert layer is not None
        for format in ("int4-g128", "int8"):
            await d.give(r.changed(d.app.session, [layer], format))
            ask = p.AskHistogram(layer, format=format)
            await d.until(lambda ask=ask: ask in d.sent(p.AskHistogram))
            await d.give(r.drawn(layer, format))
        await d.give(
            p.RecipeChanged(
                how="undo", layers=[layer], before=["int8"], after=["int4-g128"], bits=[9]
            )
        )
        again = p.AskHistogram(layer, format="int4-g128")
        await d.until(lambda: d.sent(p.AskHistogram).count(again) == 2)
