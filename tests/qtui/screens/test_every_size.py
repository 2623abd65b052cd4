"""Every screen of the diagnosis at every size and in every mode: nothing cut, a mark per colour."""

from __future__ import annotations

from random import Random

import pytest
from rich.cells import cell_len

from engine import protocol as p
from engine.formats.alternatives import alternatives
from engine.session import recipe_hash
from qtui.widgets.line import Lines, cells
from qtui.widgets.pane.tabs import TABS
from tests.diagnosis.test_findings import clean
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving
from tests.qtui.screens.test_fixes import effect
from tests.qtui.widgets.test_fix_tabs import RANGES
from tests.qtui.widgets.test_tabs import activation

LAYER = RANGES.layer
SIZES = [(80, 24), (120, 40), (200, 60)]
MODES = ["colour", "16 colours", "no colour", "ascii"]


def facts() -> list[p.AnyFact]:
    """A fragile head, and all that the tabs show of one layer."""
    estimated = clean(lm_head=20.0).effects.estimated.values()
    found: list[p.AnyFact] = [fact for column in estimated for fact in column if fact]
    found += [
        RANGES,
        p.LayerActivations(
            layer=LAYER, tokens=4096, input=activation(), output=activation(max=7.0)
        ),
        p.OutputError(
            layer=LAYER, format=r.FORMAT, tokens=4096, relative=0.117, channels=256, over_10=191,
            over_50=2, counts=[0, 0, 0, 0, 0, 3, 62, 171, 18, 2, 0], worst=[121, 212],
            worst_errors=[0.618, 0.518],
        ),
        effect(LAYER, r.FORMAT, 5e-3),
        effect(LAYER, "int4-g64", 1e-4),
    ]  # fmt: skip
    errors = Random(3)
    for text in alternatives(r.FORMAT, (256, 768)):
        error = 0.01 + errors.random() / 10
        found.append(
            p.FormatTried(
                layer=LAYER, format=text, weight_error=error, output_error=error, tokens=9
            )
        )
    blocks = [
        p.BlockDrift(
            block=k, drift=0.09 + 0.02 * k, injected=0.05, propagated=0.07 * k, control=0.08 * k,
            attention=[0.003 * k + 0.002 * head for head in range(8)],
        )
        for k in range(r.BLOCKS)
    ]  # fmt: skip
    recipe = recipe_hash({LAYER: r.FORMAT})
    return [
        *found,
        p.Drift(
            recipe=recipe, tokens=4096, embedding=0.0, blocks=blocks, attention_windows=2,
            attention_tokens=256,
        ),
    ]  # fmt: skip


def error_map() -> p.ErrorMapReady:
    noise = Random(5)
    return p.ErrorMapReady(
        layer=LAYER, format=r.FORMAT, used=r.FORMAT, rows=256, groups=24, group_size=32, height=64,
        width=24, cells=[(0.1 + 0.3 * noise.random()) ** 2 for _ in range(64 * 24)],
    )  # fmt: skip


def whole(d: Driver, what: str) -> None:
    """Nothing on the screen is cut: no line of it, no line of a widget, no entry of the key bar."""
    width, height = d.app.size
    lines = d.screen().splitlines()
    assert len(lines) == height, what
    assert max(map(cell_len, lines)) <= width, what
    for widget in d.app.screen.query(Lines):
        if not widget.display or widget.wrap or not widget.region.height:
            continue
        for line in widget.lines:
            text = "".join(text for text, _ in line).rstrip()
            assert cell_len(text) <= widget.content_size.width, f"{what}: {widget.id}: {text}"
    assert cells(d.app.screens.shown.keybar.lines[0]) <= width, what
    ids = [
        word for action in d.app.screens.shown.actions for word in (action.word, action.alone[0])
    ]
    assert lines[-1].split()[-1] in ids, f"{what}: {lines[-1]}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_every_screen_is_whole_and_its_colours_have_marks(
    size: tuple[int, int], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-16color" if mode == "16 colours" else "xterm-256color")
    monkeypatch.delenv("COLORTERM", raising=False)
    if mode == "no colour":
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    ascii = mode == "ascii"
    async with driving(*r.opening(), *r.triaged(), size=size, ascii=ascii) as d:
        given = facts()
        await d.give(
            p.Learned(("",) * len(given), tuple(given)),
            r.changed(d.app.session, [LAYER], r.FORMAT),
            error_map(),
            r.histogram(LAYER),
        )
        d.bench.go_to(LAYER)
        await d.settled()
        g = d.bench.glyphs
        assert d.app.no_color == (mode == "no colour")

        def seen(what: str, *marks: str) -> None:
            whole(d, what)
            for mark in marks:
                assert mark in d.screen(), f"{what}: {mark}"
            assert not ascii or d.screen().isascii(), what

        seen("workbench", f"{g.changed}{r.FORMAT}", "everywhere" if size[0] > 120 else "int4-g128:")
        assert d.bench.verdict.text
        for tab in TABS:
            d.bench.show_tab(tab.id)
            await d.settled()
            seen(tab.id)
            text = d.bench.detail.figures.text
            match tab.id:
                case "activations":
                    assert "largest / mean" in text
                case "errors":
                    assert "191" in text
                case "groups":
                    assert f"{r.FORMAT} {g.changed}" in text
                case "fixes":
                    assert f"{g.frontier} int4-g64" in text or g.ellipsis in text
                case "drift":
                    assert "propagated" in text
        await d.pilot.press("D")
        await d.settled()
        shown = d.app.screens.shown
        await d.until(lambda: "fragile head" in d.screen())
        seen("map and findings", f"{g.finding} lm_head: ", f"{g.arrow} ", "block")
        # Shades differ in their characters, so that they are read without their colours.
        shades = "░▒▓█" if not ascii else ".:+*#"
        assert sum(each in d.screen() for each in shades) >= 2
        await d.pilot.press("tab")
        await d.settled()
        seen("a finding", g.cursor)
        await d.pilot.press("tab", "g")
        await d.settled()
        seen("gallery")
        assert shown.verdict.text
