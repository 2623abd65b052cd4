"""The key of fixes: it tries formats, then takes one, or the best of several layers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine import protocol as p
from engine.formats.alternatives import alternatives
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving

FORMAT = r.FORMAT


def effect(layer: str, format: str, kl: float) -> p.Sensitivity:
    return p.Sensitivity(
        layer=layer, format=format, kl=kl, kl_se=kl / 20, dnll=kl, dnll_se=kl, dppl=0.0,
        dppl_low=0.0, dppl_high=0.0, tokens=100,
    )  # fmt: skip


def tried(d: Driver, layers: Sequence[str], better: str = "int4-g64") -> p.Learned:
    """Everything tried on layers; one format wins back most of their KL."""
    facts: list[p.AnyFact] = []
    for layer in layers:
        shape = d.app.session.layers.shapes[d.app.session.index[layer]]
        for text in alternatives(FORMAT, shape):
            facts.append(
                p.FormatTried(
                    layer=layer, format=text, weight_error=0.1, output_error=0.1, tokens=9
                )
            )
        facts += [effect(layer, FORMAT, 2e-3), effect(layer, better, 1e-4)]
    return p.Learned(("",) * len(facts), tuple(facts))


async def press(d: Driver, *keys: str) -> None:
    await d.pilot.press(*keys)
    await d.settled()


async def test_the_key_tries_the_layer_under_the_cursor_then_takes_a_fix() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept()) as d:
        layer = d.table.current
        assert layer is not None
        await press(d, "F")
        (asked,) = d.sent(p.TryFixes)
        assert isinstance(asked, p.TryFixes)
        assert (asked.layers, asked.format) == ((layer,), FORMAT)
        assert d.bench.detail.tab == "fixes"
        await d.give(tried(d, [layer]))
        await press(d, "F")
        assert len(d.sent(p.TryFixes)) == 1
        await d.until(lambda: "best: wins back 95%" in d.screen())
        await press(d, "enter")
        (chosen,) = d.sent(p.SetFormat)
        assert isinstance(chosen, p.SetFormat)
        assert (chosen.layers, chosen.format) == ((layer,), "int4-g64")


@pytest.mark.parametrize(("size", "ascii"), [((80, 24), True), ((120, 40), False)])
async def test_the_best_of_marked_layers_is_a_list_to_take_or_leave(
    size: tuple[int, int], ascii: bool
) -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(), size=size, ascii=ascii) as d:
        await press(d, "space", "space")
        marked = sorted(d.table.marked, key=d.app.session.index.__getitem__)
        assert len(marked) == 2
        await press(d, "F")
        (asked,) = d.sent(p.TryFixes)
        assert isinstance(asked, p.TryFixes)
        assert list(asked.layers) == marked
        await d.give(tried(d, marked))
        await press(d, "F")
        await d.until(lambda: "2 layers, sum of single effects" in d.screen())
        assert "int4-g64" in d.screen()
        await press(d, "escape")
        assert not d.sent(p.SetRecipe)
        await press(d, "F")
        await press(d, "enter")
        (taken,) = d.sent(p.SetRecipe)
        assert isinstance(taken, p.SetRecipe)
        assert taken.layers == dict.fromkeys(marked, "int4-g64")


async def test_before_there_are_layers_the_key_says_so() -> None:
    async with driving() as d:
        await press(d, "F")
        assert not d.sent(p.TryFixes)
        assert "no layers yet" in d.screen()


async def test_the_format_that_is_swept_stays_shown_where_others_are_known_before_it() -> None:
    """As after a restart: what was tried is there before the sweep has found its first effect."""
    async with driving(*r.opening(), *r.triaged()) as d:
        assert d.bench.format == FORMAT
        sweep = p.JobStarted(
            job="9", kind="sweep", title="sweep", command=p.Sweep((FORMAT,)), urgency=4
        )
        other = p.Learned(("",), (effect("lm_head", "int8", 1e-4),))
        await d.give(sweep, other)
        assert d.bench.format == FORMAT
        await d.give(p.JobEnded(job="9", kind="sweep", status="cancelled"))
        assert d.bench.format == "int8"  # nothing is known of the other, nor will be


@pytest.mark.parametrize("width", [80, 139])
async def test_the_key_bar_has_the_keys_of_the_pane_while_it_is_alone(width: int) -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(), size=(width, 24)) as d:

        def bar() -> str:
            return d.screen().splitlines()[-1]

        assert "/ filter" in bar()
        whole = bar()
        await press(d, "tab")  # below 140 columns: the pane alone
        assert not d.table.display
        for said in (". tab", "tab hide", "layer", "F fixes", "] scroll", "? help", "q quit"):
            assert said in bar(), said
        for said in ("filter", "sort", "mark", "restore", "scope"):
            assert said not in bar(), said
        assert len(bar().rstrip()) <= width
        await press(d, "tab")
        await press(d, "tab")
        assert bar() == whole


async def test_a_tab_asks_once_for_what_was_tried_before() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(), size=(160, 50)) as d:
        layer = d.table.current
        assert layer is not None
        d.bench.show_tab("fixes")
        await d.until(lambda: d.sent(p.AskFixes))
        assert d.sent(p.AskFixes) == [p.AskFixes((layer,), FORMAT)]
        await d.give(tried(d, [layer]))
        assert "best int4-g64" in d.screen()
        assert "wins back 95%" in d.screen()
        assert len(d.sent(p.AskFixes)) == 1
