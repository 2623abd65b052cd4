"""Degrade and restore on the screen, estimates beside measurements, and how far they agree."""

from __future__ import annotations

import math

import msgspec
import pytest

from engine import protocol as p
from engine.session import Session, apply, corrected, correction
from qtui.views import sweeps
from qtui.views.text import UNICODE
from qtui.widgets.line import cells
from qtui.widgets.table.caption import caption
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving

DOWN = "model.layers.0.mlp.down_proj"
INT3 = "int3-g128"
INT3_EFFECTS = p.EffectKey("degrade", INT3)


def sweeps_sent(d: Driver) -> list[p.Command]:
    """Sweeps that a hand asked for, after the one that opening asks for."""
    return d.sent(p.Sweep)[1:]


def title(d: Driver) -> str:
    """The line above the table."""
    return d.screen().splitlines()[4]


def table(d: Driver) -> str:
    """The lines of the table."""
    return "\n".join(d.screen().splitlines()[5 : 5 + d.table.size.height])


# --- s -------------------------------------------------------------------------------------------


async def test_s_shows_the_other_direction_and_measures_nothing() -> None:
    restore = p.Sweep((r.FORMAT,), "restore")
    async with driving(*r.opening(), *r.triaged(), *r.swept()) as d:
        kl = d.app.session.sensitivity(36, r.EFFECTS).kl
        assert "KL·10³▾ of int4-g128" in d.screen()
        assert "each layer alone in int4-g128" in title(d)
        await d.pilot.press("s")
        await d.settled()
        assert sweeps_sent(d) == []
        assert "not measured, S sweeps it" in d.bench.message.text
        assert "regained" in d.screen().splitlines()[5]
        assert "restore: all layers in int4-g128, each kept in turn" in title(d)
        assert "s degrade" in d.bench.keybar.text
        assert f"{1000 * kl:.2f}" not in table(d), "what it costs is not what it wins back"
        await d.pilot.press("S", "enter")
        await d.until(lambda: sweeps_sent(d) == [restore])
        await d.give(*r.swept(direction="restore"))
        assert f"{1300 * kl:.1f}" in table(d)
        await d.pilot.press("s")
        await d.settled()
        assert f"{1000 * kl:.2f}" in table(d)
        assert "s restore" in d.bench.keybar.text


async def test_a_sweep_that_waits_behind_another_says_so_and_where_all_jobs_are() -> None:
    async with driving(*r.opening(), *r.swept(3)) as d:
        await d.pilot.press("s", "S", "enter")
        await d.until(lambda: len(sweeps_sent(d)) == 1)
        assert "after sweep int4-g128: J shows all jobs" in d.bench.message.text


async def test_retry_goes_on_with_the_sweep_that_is_shown() -> None:
    async with driving(*r.opening(), *r.swept()) as d:
        await d.pilot.press("r")
        assert "nothing has failed and no sweep is unfinished" in d.bench.message.text
        await d.pilot.press("s")
        await d.give(*r.swept(5, direction="restore"))
        await d.give(p.JobEnded(job="6", kind="sweep", status="cancelled"))
        # Head and embedding are kept in either case.
        assert "restore int4-g128: 5 of 35 layers measured, r resumes" in d.screen()
        await d.pilot.press("r")
        await d.until(lambda: len(sweeps_sent(d)) == 1)
        assert sweeps_sent(d) == [p.Sweep((r.FORMAT,), "restore")]


async def test_the_worst_to_lose_and_the_best_to_keep_have_orders_and_filters_of_their_own() -> (
    None
):
    async with driving(*r.opening(), *r.swept()) as d:
        session = d.app.session
        best = msgspec.structs.replace(r.sensitivity(DOWN, 7), direction="restore", kl=9.0)
        await d.pilot.press("s")
        await d.give(*r.swept(direction="restore"), p.Learned(("x",), (best,)))
        assert d.table.current == DOWN
        from qtui.views.filter import parse_filter

        d.bench.set_filter(parse_filter("kl>1"))
        assert [session.layers.names[row] for row in d.table.rows] == [DOWN]
        await d.pilot.press("s")
        await d.settled()
        assert d.table.rows == []


def test_what_is_whole_counts_layers_that_cannot_hold_the_format() -> None:
    session = r.folded(*r.opening(), *r.swept(36))
    assert not sweeps.is_complete(session, r.FORMAT, "degrade")
    names = session.layers.names
    left = next(x for row, x in enumerate(names) if session.sensitivity(row, r.EFFECTS) is None)
    apply(session, p.Fallback(layer=left, format=r.FORMAT, why="its rows are odd"))
    assert sweeps.is_complete(session, r.FORMAT, "degrade")
    assert not sweeps.is_complete(session, r.FORMAT, "restore")


# --- estimates -----------------------------------------------------------------------------------


async def test_a_toggle_to_an_estimated_format_is_predicted_at_the_next_repaint() -> None:
    async with driving(*r.opening(), r.estimated()) as d:
        await d.give(r.agreement(8, INT3))
        painted = d.app.pump.painted
        await d.give(r.changed(d.app.session, [DOWN], INT3))
        assert d.app.pump.painted == painted + 1
        fit = correction(d.app.session, INT3_EFFECTS)
        assert fit is not None
        guess = corrected(r.estimate(DOWN, 7, INT3), fit)
        expected = 26.17 * math.exp(guess.dnll)
        assert f"PPL 26.17 → ≈{expected:.2f} " in d.screen()
        assert expected > 26.17 * math.exp(r.estimate(DOWN, 7, INT3).dnll)


async def test_estimates_are_sorted_among_measurements_as_they_are_corrected() -> None:
    async with driving(*r.opening(), r.estimated([r.FORMAT]), *r.swept(12)) as d:
        await d.give(r.agreement())
        session = d.app.session
        fit = correction(session, r.EFFECTS)
        assert fit is not None
        expected = []
        for row, name in enumerate(session.layers.names):
            known = session.sensitivity(row, r.EFFECTS)
            kl = known.kl if known else fit.kl(r.estimate(name, row).kl)
            expected.append((kl, row))
        assert d.table.rows == [row for _, row in sorted(expected, reverse=True)]
        assert sum("≈" in line for line in d.screen().splitlines()[6:19]) > 3


async def test_a_doubtful_estimate_has_a_sign_and_a_reason_beside_it() -> None:
    async with driving(*r.opening(), r.estimated(["int2-g128"]), size=(160, 50)) as d:
        await d.until(lambda: d.bench.format == "int2-g128")
        kl = 1000 * d.app.session.estimate(d.table.rows[0], p.EffectKey("degrade", "int2-g128")).kl
        assert f"≈{kl:.1f}?" in d.screen().splitlines()[6]
        pane = " ".join(d.bench.detail.figures.text.split())
        assert "? int2-g128: at 2 bits the quadratic model ends" in pane


async def test_what_is_below_the_floor_is_marked_and_explained() -> None:
    control = p.Control("lm_head", 0.0, 0.0, floor_dnll=1e-4, floor_kl=5e-4)
    async with driving(
        *r.opening(), *r.swept(), p.Learned(("c",), (control,)), size=(160, 50)
    ) as d:
        small = [
            row
            for row in range(37)
            if abs(d.app.session.sensitivity(row, r.EFFECTS).kl) < control.floor_kl
        ]
        assert small, "the replayed sweep has layers below 5e-4"
        await d.pilot.press("G")
        await d.settled()
        shown = [line for line in d.screen().splitlines() if "<floor" in line]
        assert len(shown) >= len(small)
        pane = " ".join(d.bench.detail.figures.text.split())
        assert "<floor below .50, which rounding alone can cause" in pane


async def test_the_pane_says_what_each_format_would_cost_here() -> None:
    async with driving(*r.opening(), r.estimated(), *r.swept(), size=(160, 50)) as d:
        await d.give(r.agreement(24, INT3))
        await d.pilot.press("g")
        await d.settled()
        row = d.table.rows[0]
        lines = d.bench.detail.figures.text.splitlines()
        head = next(at for at, line in enumerate(lines) if line.startswith("effect of"))
        costs = [line.split() for line in lines[head + 1 : head + 1 + len(r.PRICES) + 1]]
        assert {words[0] for words in costs} == {*r.PRICES, r.FORMAT}
        bits = [float(words[1]) for words in costs]
        assert bits == sorted(bits)
        by_format = {words[0]: words for words in costs}
        assert not by_format[r.FORMAT][2].startswith("≈"), "measured"
        assert by_format[INT3][2].startswith("≈"), "estimated"
        raw = d.app.session.estimate(row, INT3_EFFECTS)
        assert f"{1000 * raw.kl:.2f}".lstrip("0") in by_format[INT3][5]
        assert "corrected by measuring 24 layers" in " ".join(lines)


# --- the line above the table --------------------------------------------------------------------


async def test_how_well_estimates_agree_is_said_as_it_grows() -> None:
    async with driving(*r.opening(), r.estimated(), *r.swept(24), size=(80, 24)) as d:
        assert "rank" not in title(d)
        await d.give(r.agreement(5))
        assert "estimates: rank .98 over 5" in title(d)
        await d.give(r.agreement(24))
        assert "estimates: rank .98 over 24" in title(d)


async def test_nothing_is_called_corrected_where_all_is_measured() -> None:
    async with driving(*r.opening(), r.estimated(), *r.swept(24), size=(160, 50)) as d:
        await d.give(r.agreement())
        assert "the rest corrected" in title(d)
        await d.give(*list(r.swept())[1:])
        assert "rank correlation" in title(d)
        assert "corrected" not in title(d)


async def test_a_format_that_is_swept_by_hand_is_shown_from_its_first_effect_on() -> None:
    async with driving(*r.opening(), r.estimated(), *r.swept()) as d:
        await d.pilot.press("S", *"nf4", "enter")
        assert d.bench.format == r.FORMAT
        await d.give(r.estimated(("nf4-g64",)))
        assert d.bench.format == "nf4-g64"
        await d.pilot.press("c")
        other = d.bench.format
        assert other != "nf4-g64"
        await d.give(r.estimated(("nf4-g64",)))
        assert d.bench.format == other


@pytest.mark.parametrize("filter", ["", "kl>1e-3: 3 of 37 layers"])
@pytest.mark.parametrize("width", range(40, 200, 7))
@pytest.mark.parametrize("direction", ["degrade", "restore"])
def test_the_line_above_the_table_never_takes_more_room_than_there_is(
    direction: p.Direction, width: int, filter: str
) -> None:
    session = Session()
    for event in (*r.opening(), r.agreement(), r.agreement(direction="restore")):
        apply(session, event)
    words = caption(session, r.FORMAT, direction, filter, width, UNICODE)
    assert cells(words) <= width
    said = "".join(text for text, _ in words)
    assert filter in said
    if width >= 80 and not filter:
        assert r.FORMAT in said
        assert ".98 over 24" in said


# --- the line of work ----------------------------------------------------------------------------


async def test_a_sweep_says_whether_it_estimates_or_measures() -> None:
    began, *measuring = r.swept(12)
    async with driving(*r.opening(), began) as d:
        await d.give(p.Progress(job="3", done=3, total=64, phase="estimating", detail="9 formats"))
        line = d.bench.scoreboard.text.splitlines()[2]
        assert line.split("━")[0].strip() == "sweep int4-g128"
        assert "estimating 9 formats" in line
        await d.give(r.estimated([r.FORMAT]), *measuring)
        line = d.bench.scoreboard.text.splitlines()[2]
        assert "measuring 12/37, worst first" in line
        await d.pilot.resize_terminal(80, 24)
        await d.settled()
        line = d.bench.scoreboard.text.splitlines()[2]
        assert "12/37" in line
        assert "left" in line
