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
