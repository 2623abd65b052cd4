"""Tabs of the pane: titles, activations, and what they request."""

from __future__ import annotations

import pytest

from engine import protocol as p
from engine.session import Session
from qtui.views.text import PLAIN, UNICODE
from qtui.widgets.pane import tabs
from qtui.widgets.pane.detail import Detail
from tests.qtui.panes import staged, told, whole

DOWN = "model.layers.0.mlp.down_proj"


def activation(**figures: object) -> p.Activation:
    return p.Activation(
        **{
            "max": 40.0, "mean": 0.5, "std": 1.25, "p99": 3.0, "channels": 768,
            "channel_median": 2.0, "outlier_channels": (211, 5), "outlier_maxima": (40.0, 13.0),
            "by_median": 2, "by_mean": 1, "largest_norm": 50.0, "median_norm": 2.0, "position": 0,
            "massive": 3, **figures,
        }
    )  # type: ignore[arg-type]  # fmt: skip


def measured(layer: str, **figures: object) -> Session:
    session = whole()
    fact = p.LayerActivations(layer=layer, tokens=4096, input=activation(), **figures)  # type: ignore[arg-type]
    return told(session, p.Learned(("a",), (fact,)))


async def seen(session: Session, tab: str, *, width: int = 70, expert: int | None = None) -> str:
    shown = Detail()
    async with staged(shown, width, 40) as (app, pilot):
        shown.show(session, DOWN, expert)
        shown.show_tab(tab)
        await pilot.pause()
        return app.screen_text()


async def test_activations_are_listed_with_their_channels() -> None:
    said = await seen(measured(DOWN, output=activation(max=7.0, massive=0)), "activations")
    assert DOWN in said, "the head stays"
    rows = [line.split() for line in said.splitlines()]
    assert ["4,096", "tokens", "input", "output"] in rows
    assert ["largest", "40.0", "7.00"] in rows
    assert ["largest", "/", "mean", "80.0", "14.0"] in rows
    assert ["channels", "beyond", "6×", "the", "median", "2", "2"] in rows
    assert "211: 40.0, 5: 13.0" in said
    assert "position 0, 25.0× the median" in said
    assert said.count("largest token") == 1, "the output has none"


async def test_experts_without_tokens_are_named() -> None:
    session = measured(DOWN, expert_tokens=[3, 0, 12, 0])
    said = await seen(session, "activations", expert=2)
    assert "no token for experts 1, 3" in said
    assert "from 0 to 12" in said
    assert "expert 2: 12 tokens" in said


async def test_what_is_not_measured_is_said() -> None:
    assert "not measured yet" in await seen(whole(), "activations")


def test_titles_fit_or_say_which_of_how_many() -> None:
    for glyphs in (UNICODE, PLAIN):
        for width in (12, 30, 200):
            said = "".join(text for text, _ in tabs.title_line("activations", width, glyphs))
            assert "activations" in said
            if width == 200:
                assert all(each.id in said for each in tabs.TABS)
            if glyphs.ascii:
                assert said.isascii()


def test_tabs_go_round() -> None:
    first, last = tabs.TABS[0].id, tabs.TABS[-1].id
    assert tabs.beside(first, -1) == last
    assert tabs.beside(last, 1) == first
    with pytest.raises(KeyError, match="nowhere"):
        tabs.tab("nowhere")
