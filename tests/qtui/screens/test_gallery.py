"""The gallery: small histograms of a kind, asked for as they come into view."""

from __future__ import annotations

import pytest

from engine import protocol as p
from qtui.views.gallery import gallery_of, shown, tiling
from qtui.views.text import sparkline
from tests.diagnosis.test_findings import clean
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving
from tests.qtui.screens.test_diagnosis import events, screen

SIZES = [((80, 24), False), ((80, 24), True), ((200, 60), False)]


def asked(d: Driver) -> list[str]:
    return [each.layer for each in d.link.sent if isinstance(each, p.AskHistogram)]


def histogram(layer: str, seed: int = 0) -> p.HistogramReady:
    counts = [1 + (7 * at + seed) % 23 + (100 if at == 60 else 0) for at in range(120)]
    return p.HistogramReady(
        layer=layer, low=-1.0, high=1.0, counts=counts, mean=0.0, std=0.2, format="", grid=[],
        step=float("nan"),
    )  # fmt: skip


@pytest.mark.parametrize(("size", "ascii"), SIZES)
async def test_visible_histograms_are_asked_for_and_shown(
    size: tuple[int, int], ascii: bool
) -> None:
    async with driving(*events(), size=size, ascii=ascii) as d:
        d.table.go_to("model.embed_tokens")
        await d.pilot.press("D")
        await d.settled()
        await d.pilot.press("down", "right", "g")
        await d.settled()
        names = [f"model.layers.{block}.self_attn.k_proj" for block in range(r.BLOCKS)]
        assert screen(d).gallery.kind == "k_proj"
        assert asked(d)[-5:] == names
        await d.give(*(histogram(name, seed) for seed, name in enumerate(names)))
        await d.settled()
        tiles = tiling(gallery_of(d.app.session, "k_proj"), size[0] - 2)
        drawn = sparkline(histogram(names[2], 2).counts, tiles.cells, screen(d).glyphs)
        assert drawn.strip() in d.screen()
        assert "all k_proj, min to max, log counts" in d.screen()
        assert max(len(line) for line in d.screen().splitlines()) <= size[0]
        assert not ascii or d.screen().isascii()
        count = len(asked(d))
        await d.pilot.press("right", "left")
        assert len(asked(d)) == count  # nothing is asked for twice


async def test_the_cursor_moves_and_shows_its_layer() -> None:
    async with driving(*events(), size=(120, 40)) as d:
        d.table.go_to("model.embed_tokens")
        await d.pilot.press("D")
        await d.settled()
        await d.pilot.press("down", "g", "right", "right")
        assert screen(d).current == "model.layers.2.self_attn.q_proj"
        await d.pilot.press("c")  # the next kind, in the same block
        assert screen(d).current == "model.layers.2.self_attn.k_proj"
        await d.pilot.press("enter")
        await d.settled()
        assert d.table.current == "model.layers.2.self_attn.k_proj"


async def test_the_same_key_leads_back_to_the_map() -> None:
    async with driving(*events(), size=(120, 40)) as d:
        d.table.go_to("model.embed_tokens")
        await d.pilot.press("D")
        await d.settled()
        before = d.screen()
        await d.pilot.press("g", "g")
        await d.settled()
        assert d.screen() == before


@pytest.mark.parametrize("width", [40, 78, 118, 198])
def test_histograms_fill_the_width_and_none_is_left_out(width: int) -> None:
    gallery = gallery_of(clean(), "q_proj")
    tiles = tiling(gallery, width)
    assert tiles.across * (tiles.label + tiles.cells + 1) <= width
    places = [at for top in range(9) for at in shown(gallery, tiles, top, 1)]
    assert places == list(range(r.BLOCKS))
