"""The histogram: bars, lines at ±σ, and the grid of a format."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import protocol as p
from engine.report.wording import significant
from qtui.views.text import PLAIN, UNICODE, Glyphs
from qtui.widgets.line import Words
from qtui.widgets.pane.histogram import Histogram
from qtui.widgets.pane.plot import column, plot
from tests.qtui import replay as r
from tests.qtui.panes import staged, until

LAYER = "model.layers.0.mlp.down_proj"
FORMAT = "int4-g128"


def gridded(levels: int, format: str = FORMAT) -> p.HistogramReady:
    found = r.histogram(LAYER)
    reach = 2.9 * found.std
    step = 2 * reach / (levels - 1) if levels else 0.00012
    grid = [-reach + step * level for level in range(levels)]
    return msgspec.structs.replace(found, format=format, grid=grid, step=step)


def drawn(
    found: p.HistogramReady,
    width: int = 55,
    height: int = 12,
    *,
    sigma: float = 4.0,
    by_log: bool = True,
    grid: bool = True,
    glyphs: Glyphs = UNICODE,
) -> list[str]:
    lines = plot(
        found, width, height, sigma=sigma, by_log=by_log, grid=grid, note="", glyphs=glyphs
    )
    return [text(line) for line in lines]


def text(line: Words) -> str:
    return "".join(piece for piece, _ in line)


@pytest.mark.parametrize("glyphs", [UNICODE, PLAIN])
@pytest.mark.parametrize("width", [12, 55, 100])
@pytest.mark.parametrize("levels", [0, 8, 16, 64])
def test_a_plot_fills_its_room_and_no_more(width: int, levels: int, glyphs: Glyphs) -> None:
    lines = drawn(gridded(levels), width, 10, glyphs=glyphs)
    assert len(lines) == 10
    assert all(len(line) == width for line in lines[:-1])
    assert len(lines[-1]) <= width
    assert "".join(lines).isascii() == glyphs.ascii


@pytest.mark.parametrize(("glyphs", "one", "more"), [(UNICODE, "┴", "╨"), (PLAIN, "'", '"')])
@pytest.mark.parametrize("width", [55, 100])
@pytest.mark.parametrize("levels", [8, 16, 64])
def test_every_level_of_the_grid_has_its_tick(
    levels: int, width: int, glyphs: Glyphs, one: str, more: str
) -> None:
    found = gridded(levels)
    axis = drawn(found, width, glyphs=glyphs)[-3]
    cells = [int((value - found.low) / (found.high - found.low) * width) for value in found.grid]
    for at, char in enumerate(axis):
        count = cells.count(at)
        assert char == (more if count > 1 else one if count else axis[0])
    assert f"{FORMAT} {levels} levels, step {significant(found.step)}" in drawn(found, width)[-1]


def test_a_grid_that_is_too_fine_is_said_in_words() -> None:
    lines = drawn(gridded(0, "int8"))
    assert set(lines[-3]) == {"─"}
    assert lines[-1].startswith("int8 step .00012, too many levels to draw")


def test_a_format_without_a_grid_is_said_in_words() -> None:
    found = msgspec.structs.replace(gridded(0, "q4_k"), step=math.nan)
    lines = drawn(found)
    assert set(lines[-3]) == {"─"}
    assert lines[-1].startswith("q4_k has no fixed levels  std")


def test_another_format_s_grid_is_not_drawn() -> None:
    lines = drawn(gridded(16), grid=False)
    assert set(lines[-3]) == {"─"}
    assert FORMAT not in lines[-1]


@pytest.mark.parametrize("width", [55, 100])
def test_lines_stand_at_three_sigma_and_at_the_settings_own(width: int) -> None:
    found = r.histogram(LAYER)
    lines = drawn(found, width)
    for sign in (-1, 1):
        near = column(sign * 3 * found.std, found, width)
        far = column(sign * 4 * found.std, found, width)
        assert all(line[near] == "┊" and line[far] == "│" for line in lines[:-3])
    assert lines[-2].split() == ["-.31", "-4σ", "-3σ", "+3σ", "+4σ", ".31"]


def test_one_line_where_the_settings_say_three_sigma() -> None:
    lines = drawn(r.histogram(LAYER), sigma=3.0)
    assert lines[-2].split() == ["-.31", "-3σ", "+3σ", ".31"]
    assert "┊" not in "".join(lines)


@given(
    width=st.integers(12, 130),
    sigma=st.sampled_from([1.0, 2.5, 3.0, 3.2, 4.0, 6.0, 20.0]),
    std=st.floats(1e-4, 0.3),
    mean=st.floats(-0.2, 0.2),
)
def test_labels_never_run_into_each_other(
    width: int, sigma: float, std: float, mean: float
) -> None:
    found = msgspec.structs.replace(r.histogram(LAYER), std=std, mean=mean)
    labels = drawn(found, width, 6, sigma=sigma)[-2]
    known = {"-.31", ".31", f"-{sigma:g}σ", f"+{sigma:g}σ", "-3σ", "+3σ"}
    assert len(labels) == width
    assert set(labels.split()) <= known


def test_a_lone_weight_far_out_is_seen_beside_thousands() -> None:
    counts = [0] * 500
    counts[250], counts[7] = 100_000, 1
    found = p.HistogramReady(layer=LAYER, low=-1.0, high=1.0, counts=counts, mean=0.0, std=1.0)
    foot = drawn(found, 40, 12)[8]
    assert foot[0] != " "
    assert foot[5:15].strip() == ""


def test_counts_and_their_logarithm_are_other_plots() -> None:
    found = r.histogram(LAYER)
    logarithm, linear = drawn(found), drawn(found, by_log=False)
    filled = [sum(map(len, "".join(lines[:-3]).split())) for lines in (logarithm, linear)]
    assert filled[0] > filled[1]


def test_equal_weights_are_one_bar() -> None:
    found = p.HistogramReady(layer=LAYER, low=0.5, high=0.5, counts=[64], mean=0.5, std=0.0)
    assert "█" in "".join(drawn(found))


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0412, ".0412"), (-0.31, "-.31"), (1.93, "1.93"), (0.0000312, "3.12e-5"), (0.0, "0"),
     (123456.0, "1.23e5"), (math.nan, "nan")],
)  # fmt: skip
def test_figures_have_three_places(value: float, said: str) -> None:
    assert significant(value) == said


async def test_nothing_is_drawn_again_while_nothing_changed() -> None:
    shown = Histogram()
    async with staged(shown, 60, 14) as (_, pilot):
        found = gridded(16)
        shown.show(found, 4.0, held=FORMAT)
        await until(pilot, lambda: shown.drawn)
        for _ in range(10):
            shown.show(found, 4.0, held=FORMAT)
            await pilot.pause()
        assert shown.plots == 1
        assert "16 levels" in shown.text


async def test_a_stale_grid_goes_as_soon_as_the_layer_holds_another_format() -> None:
    shown = Histogram()
    async with staged(shown, 60, 14) as (_, pilot):
        found = gridded(16)
        shown.show(found, 4.0, held=FORMAT)
        await until(pilot, lambda: "┴" in shown.text)
        shown.show(found, 4.0, held="int8")
        assert "┴" not in shown.text
        await until(pilot, lambda: shown.drawn)
        assert "┴" not in shown.text
        assert "levels" not in shown.text


async def test_a_moving_cursor_is_not_followed_by_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Histogram, "PERIOD", 3600.0)
    shown = Histogram()
    async with staged(shown, 60, 14) as (_, pilot):
        layers = [msgspec.structs.replace(r.histogram(LAYER), layer=f"l{i}") for i in range(20)]
        for found in layers:
            shown.show(found, 4.0)
            await pilot.pause()
        assert shown.plots == 1
        assert shown.drawn == []
        monkeypatch.setattr(Histogram, "PERIOD", 0.0)
        shown.show(layers[5], 4.0)
        await until(pilot, lambda: shown.drawn)
        assert shown.plots == 2
        # The first was drawn before: it is there at once.
        shown.show(layers[0], 4.0)
        assert shown.drawn
        assert shown.plots == 2


async def test_a_plot_that_has_no_room_becomes_one_line() -> None:
    shown = Histogram()
    async with staged(shown, 40, 3) as (app, pilot):
        shown.show(r.histogram(LAYER), 4.0)
        await pilot.pause()
        assert "▇" in app.screen_text()


async def test_what_is_awaited_is_said() -> None:
    shown = Histogram()
    async with staged(shown, 40, 10) as (app, pilot):
        shown.show(None, 4.0, "reading weights")
        await pilot.pause()
        assert "reading weights" in app.screen_text()
