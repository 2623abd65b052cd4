"""The layer table: columns, orders, filters, marks, scopes and fused rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import msgspec
import pytest
from textual import events

from engine import protocol as p
from engine.diagnosis.advice import adviser, category
from engine.diagnosis.thresholds import thresholds
from engine.formats.grammar import parse_format
from engine.formats.storage import stored_bits
from engine.report.figures.effects import finding
from engine.session import MAX_EXPERTS, apply
from qtui.views.filter import parse_filter
from qtui.widgets.table.columns import GUTTER, table_columns
from qtui.widgets.table.layer_table import LayerTable
from qtui.widgets.table.listing import Listing
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving
from tests.qtui.views.test_filter import estimate
from tests.qtui.views.test_scope import grouped

DOWN = "model.layers.0.mlp.down_proj"
NAMES = r.names()
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
MORE = "model.layers.1.mlp.experts.gate_up_proj"
MIXED = [*NAMES[:8], EXPERTS, *NAMES[8:15], MORE, *NAMES[15:]]


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows change places at once, a hand on the keys or not."""
    monkeypatch.setattr(LayerTable, "HOLD", 0.0)


@asynccontextmanager
async def measured(**options: Any) -> AsyncIterator[Driver]:
    async with driving(*r.opening(), *r.triaged(), *r.swept(), **options) as d:
        yield d


@asynccontextmanager
async def mixed(*more: p.AnyEvent, **options: Any) -> AsyncIterator[Driver]:
    """A model with fused experts in two blocks."""
    listed = r.listed(MIXED)
    roles: list[p.Role] = [
        "experts" if "experts" in name else role
        for name, role in zip(MIXED, listed.roles, strict=True)
    ]
    shapes = [
        (8, 64, 64) if role == "experts" else s
        for role, s in zip(roles, listed.shapes, strict=True)
    ]
    listed = msgspec.structs.replace(listed, roles=roles, shapes=shapes)
    opening = [listed if isinstance(e, p.LayersListed) else e for e in r.opening(MIXED)]
    async with driving(*opening, *r.triaged(MIXED), *more, **options) as d:
        d.table.order_by("layer", descending=False)
        yield d


def experts(layer: str, errors: list[float], nonfinite: int = 0) -> p.ExpertsReady:
    number = len(errors)
    return p.ExpertsReady(
        layer=layer, std=[0.04] * number, max_abs=[0.5 + i for i in range(number)],
        outliers=[0.01 * (number - i) for i in range(number)],
        nonfinite=[nonfinite] + [0] * (number - 1), relative={r.FORMAT: errors},
    )  # fmt: skip


def listed_names(d: Driver) -> list[str]:
    return [d.app.session.layers.names[row] for row in d.table.rows]


def line(d: Driver, place: int) -> str:
    return d.table.render_line(place - round(d.table.scroll_y) + 1).text


def head(d: Driver) -> str:
    return d.table.render_line(0).text


async def shown(d: Driver) -> None:
    """Draw the session as it is now."""
    d.table.show(d.app.session, d.table.format)
    await d.settled()


# --- columns -------------------------------------------------------------------------------------


async def test_columns_are_chosen_by_width_and_the_least_needed_go_first() -> None:
    titles: dict[int, list[str]] = {}
    async with measured(size=(80, 24)) as d:
        for width in range(60, 290):
            layout = d.table.layout_at(width)
            titles[width] = [column.id for column, _ in layout.columns]
            used = GUTTER + sum(cells + 1 for _, cells in layout.columns) - 1
            assert used <= width
            frame = d.table._frame()._replace(layout=layout)
            for y in (0, 1, 8):
                assert d.table._paint(d.table._line(y, frame)).cell_length == width
    ranks = {column.id: column.column.rank for column in table_columns()}
    for width, ids in titles.items():
        left_out = set(ranks) - set(ids)
        assert all(ranks[i] < ranks[o] for i in ids for o in left_out), width
        assert ids == [column.id for column in table_columns() if column.id in ids]
    assert titles[60] == ["layer", "holds", "kl"]
    assert titles[79] == ["layer", "holds", "kl", "dppl", "error", "outliers"]
    assert titles[289] == [column.id for column in table_columns()]


async def test_a_wide_screen_shows_all_that_is_known_of_a_layer() -> None:
    async with measured(size=(230, 50)) as d:
        await d.pilot.press("tab")
        await d.pilot.pause()
        for title in ("bits", "KL/MB", "size", "change", "top-1", "kurt", "ΔNLL·10³", "shape"):
            assert title in head(d)
        words = line(d, d.table.rows.index(7)).split()
        words = words[: words.index("256×768") + 1]
        assert words[-10:-6] == ["16.0", "17.9", "393", "kB"]  # 5.22e-3 nats over .291 MB
        assert words[-6:] == ["97.9%", "-291", "kB", "8.30", "+6.26", "256×768"]


async def test_the_column_sorted_by_is_always_shown() -> None:
    async with measured(size=(80, 24)) as d:
        assert "kurt" not in head(d)
        d.table.order_by("kurtosis")
        assert "▾kurt" in head(d)
        assert d.table.current == DOWN


async def test_estimates_stand_among_measurements_and_are_told_apart_by_sign() -> None:
    events = [estimate(name, 1e-3 * (1 + i)) for i, name in enumerate(NAMES[1:8])]
    facts = p.Learned(tuple(f"e{i}" for i in range(7)), tuple(events))
    real = p.Learned(("m",), (r.sensitivity("lm_head", 36),))
    for ascii, sign, cell, full in ((False, "≈", "░", "█"), (True, "~", "-", "#")):
        async with driving(*r.opening(), facts, real, ascii=ascii) as d:
            assert listed_names(d)[:8] == ["lm_head", *reversed(NAMES[1:8])]
            first, second = line(d, 0), line(d, 1)
            assert full in first
            assert sign not in first
            assert f"{sign}7.00 {cell}" in second
            assert full not in second
            dppl = 26.17 * math.expm1(7e-3)
            assert f"{sign}+.{round(1000 * dppl)}" in second
            widths = [line(d, place).count(cell) for place in range(1, 8)]
            assert widths == sorted(widths, reverse=True)
            assert widths[0] > widths[-1] > 0


async def test_an_estimate_without_a_baseline_has_no_perplexity() -> None:
    opening = [e for e in r.opening() if not isinstance(e, p.Learned)]
    async with driving(*opening, p.Learned(("e",), (estimate(DOWN, 2e-3),))) as d:
        assert d.table.current == DOWN
        assert "≈2.00" in line(d, 0)
        assert "±" not in line(d, 0)


@pytest.mark.parametrize("kl", [math.inf, math.nan])
async def test_a_layer_that_breaks_the_model_is_drawn_and_sorted(kl: float) -> None:
    async with measured() as d:
        fact = msgspec.structs.replace(r.sensitivity(DOWN, 7), kl=kl, dppl=kl)
        await d.give(p.Learned(("b",), (fact,)))
        d.table.order_by("kl")
        place = listed_names(d).index(DOWN)
        assert place == (0 if kl == math.inf else 36)
        d.table.move_to(place)
        assert ("inf" if kl == math.inf else "nan") in line(d, place)
        assert "8.38 ██" in line(d, listed_names(d).index("lm_head"))


async def test_a_long_name_keeps_its_block_and_its_end() -> None:
    name = "model.layers.3.a_very_long_way_down_to.the_projection"
    async with driving(*r.opening([name, "lm_head"]), size=(80, 24)) as d:
        assert "3 …" in line(d, 0)
        assert "the_projection" in line(d, 0)


# --- orders --------------------------------------------------------------------------------------


def no_advice() -> NoReturn:
    raise AssertionError("there is advice once all layers are measured")


def figure(d: Driver, column: str, row: int) -> float | str:
    """An independent reading of what a column shows."""
    session = d.app.session
    effect, weights = session.sensitivity(row, r.EFFECTS), session.layers.weights[row]
    shape = session.layers.shapes[row]
    assert effect is not None
    assert weights is not None
    change = stored_bits(parse_format(r.FORMAT), shape) / 8 - 2 * math.prod(shape)
    return {
        "layer": row, "holds": session.layers.holds[row], "kl": effect.kl, "dppl": effect.dppl,
        "error": weights.errors[r.FORMAT].relative, "outliers": weights.outliers.fraction,
        "bits": session.layers.bits[row] / math.prod(shape), "top1": effect.top1,
        "size": session.layers.bits[row] / 8,
        "size_change": change,
        "kl_per_mb": -effect.kl * 1e6 / change,
        "kurtosis": weights.kurtosis, "dnll": effect.dnll, "shape": math.prod(shape),
        "category": category(session, row),
        "advice": (adviser(session, r.FORMAT).advice(row) or no_advice()).bits,
    }[column]  # fmt: skip


def figure_of_error(d: Driver, row: int) -> float:
    weights = d.app.session.layers.weights[row]
    assert weights is not None
    return weights.errors[r.FORMAT].relative


async def test_names_and_formats_are_whole_before_the_bar_takes_what_is_left() -> None:
    name = "model.layers.12.mlp.shared_experts.down_proj"
    named = [name, *NAMES[1:]]
    long = "int4-g128-sym+clip+gptq"
    opening = [r.listed(named) if isinstance(e, p.LayersListed) else e for e in r.opening(named)]
    async with driving(*opening, *r.triaged(named), size=(180, 50)) as d:
        await d.give(r.changed(d.app.session, [NAMES[3]], long))
        rows = [line(d, place) for place in range(len(d.table.rows))]
        assert any("12 mlp.shared_experts.down_proj " in row for row in rows)
        assert any(f"●{long} " in row for row in rows)


async def test_the_sign_of_the_order_is_behind_the_title_and_moves_nothing() -> None:
    async with measured(size=(200, 50)) as d:
        titles = head(d).replace("▾", "").split()
        for column in ("error", "size", "kl"):
            d.table.order_by(column)
            assert head(d).replace("▾", "").replace("▴", "").split() == titles
            place = head(d).index("▾")
            assert head(d)[place - 1] != " "


async def test_before_any_effect_rows_are_sorted_by_weight_error_and_the_title_says_so() -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        errors = [figure_of_error(d, row) for row in d.table.rows]
        assert errors == sorted(errors, reverse=True)
        assert "error▾" in head(d)
        number = sum(
            finding(known, thresholds(d.app.session)) for known in d.app.session.layers.weights
        )
        assert f"▲ {number} layer has findings" in d.screen()
        assert d.table.by_weight_error
        await d.give(*r.swept(1))
        assert "KL·10³▾" in head(d)
        assert not d.table.by_weight_error


UNKNOWN = {"output_error", "channels_over_10"}
"""Columns of which a sweep tells nothing."""


@pytest.mark.parametrize(
    "column", [column.id for column in table_columns() if column.id not in UNKNOWN]
)
async def test_every_column_sorts_both_ways(column: str) -> None:
    async with measured(size=(289, 50)) as d:
        await d.give(r.changed(d.app.session, [DOWN], "int8"))
        for descending in (True, False):
            d.table.order_by(column, descending)
            values = [figure(d, column, row) for row in d.table.rows]
            assert values == sorted(values, reverse=descending)
            assert sorted(d.table.rows) == list(range(37))
            titles = head(d)
            assert ("▾" in titles) is descending
            assert ("▴" in titles) is not descending


async def test_what_is_not_known_is_last_either_way() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(5)) as d:
        known = {row for row in range(37) if d.app.session.sensitivity(row, r.EFFECTS)}
        for descending in (True, False):
            d.table.order_by("kl", descending)
            assert set(d.table.rows[:5]) == known
            # The rest by weight error, the largest first.
            rest = [figure_of_error(d, row) for row in d.table.rows[5:]]
            assert rest == sorted(rest, reverse=True)


async def test_an_order_can_be_turned_round() -> None:
    async with measured(size=(80, 24)) as d:
        d.table.reverse()
        assert d.table.order == ("kl", False)
        assert "KL·10³▴" in head(d)


async def test_a_click_on_a_title_sorts_and_another_turns_it_round() -> None:
    async with measured(size=(120, 40)) as d:

        async def click(title: str) -> None:
            at = head(d).index(title)
            await d.pilot.click(LayerTable, offset=(at, 0))
            await d.pilot.pause()

        for title, column in (
            ("error", "error"), ("ΔPPL", "dppl"), (">4σ", "outliers"), ("holds", "holds"),
            ("layer", "layer"), ("KL", "kl"),
        ):  # fmt: skip
            await click(title)
            assert d.table.order[0] == column
            falling = d.table.order[1]
            await click(title)
            assert d.table.order == (column, not falling)


async def test_another_order_shows_the_top_and_the_layer_left_is_found_again() -> None:
    async with measured(size=(80, 24)) as d:
        d.table.move_to(20)
        layer = d.table.current
        d.table.order_by("outliers")
        await d.pilot.pause()
        assert (d.table.cursor, d.table.scroll_y) == (0, 0)
        assert d.table.go_back()
        assert d.table.current == layer
        assert d.table.go_back()
        assert d.table.cursor == 0


# --- filter --------------------------------------------------------------------------------------


async def test_only_rows_that_fit_are_shown_and_the_cursor_stays_where_it_can() -> None:
    async with measured() as d:
        d.table.move_to(listed_names(d).index(DOWN))
        d.table.set_filter(parse_filter("kind:down_proj"))
        await d.pilot.pause()
        assert d.table.current == DOWN
        assert len(d.table.rows) == 5
        assert d.table.shown_of_all == (5, 37)
        assert "layer 5/37" in d.screen()
        assert "q_proj" not in "\n".join(line(d, place) for place in range(5))
        d.table.set_filter(parse_filter("block:3"))
        assert d.table.current is not None
        assert ".3." in d.table.current
        d.table.set_filter(None)
        assert d.table.current == DOWN
        assert d.table.shown_of_all == (37, 37)


async def test_a_filter_that_nothing_fits_says_so_and_how_to_get_out() -> None:
    async with measured(size=(80, 24)) as d:
        d.table.set_filter(parse_filter("kl>1"))
        await d.pilot.pause()
        assert "no layer matches the filter: kl>1" in d.screen()
        assert "esc clears it" in d.screen()
        assert "layer 0/37" in d.screen()
        assert d.table.current is None
        assert d.table.layers_in_scope() == ()
        for act in (d.table.toggle_mark, d.table.mark_range, d.table.mark_matching,
                    d.table.toggle_expand, d.table.next_scope, d.table.invert_marks):  # fmt: skip
            act()
        d.table.move_to(3)
        assert not d.table.marked
        d.table.set_filter(None)
        assert d.table.current == "lm_head"


async def test_rows_come_and_go_while_values_arrive(restless: None) -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        d.table.set_filter(parse_filter("kl>1e-3"))
        assert d.table.rows == []
        await d.give(*r.swept())
        await d.until(lambda: len(d.table.rows) > 3)
        await d.settled()
        wanted = {row for row in range(37) if d.app.session.sensitivity(row, r.EFFECTS).kl > 1e-3}
        await d.until(lambda: set(d.table.rows) == wanted)


async def test_rows_stay_while_a_hand_moves_though_they_fit_no_more() -> None:
    async with measured() as d:
        d.table.set_filter(parse_filter("is:kept"))
        d.table.move_to(1)
        assert d.table.current == DOWN
        await d.give(r.changed(d.app.session, [DOWN], "int8"))
        assert d.table.current == DOWN
        assert "●int8" in line(d, 1)
        d.table._moved_at = float("-inf")
        d.table._sort_late()
        assert DOWN not in listed_names(d)
        assert d.table.cursor == 1


async def test_a_change_of_the_recipe_matters_to_orders_and_filters_that_read_it(
    restless: None,
) -> None:
    async with measured() as d:
        d.table.order_by("bits", descending=False)
        await d.give(r.changed(d.app.session, [DOWN], r.FORMAT))
        await d.until(lambda: listed_names(d)[0] == DOWN)
        d.table.set_filter(parse_filter("is:changed"))
        assert listed_names(d) == [DOWN]
        await d.give(r.changed(d.app.session, ["lm_head"], r.FORMAT))
        await d.until(lambda: len(d.table.rows) == 2)
        await d.give(r.changed(d.app.session, [DOWN], "bf16"))
        await d.until(lambda: listed_names(d) == ["lm_head"])


# --- marks ---------------------------------------------------------------------------------------


async def test_a_range_of_marks_goes_from_the_last_mark_to_the_cursor() -> None:
    async with measured() as d:
        order = listed_names(d)
        d.table.move_to(2)
        d.table.toggle_mark()
        assert d.table.marked == {order[2]}
        d.table.move_to(6)
        assert d.table.mark_range() == (5, ())
        assert d.table.marked == set(order[2:7])
        d.table.move_to(4)
        assert d.table.mark_range() == (3, ())
        assert d.table.chosen() == tuple(name for name in NAMES if name in order[2:7])
        d.table.clear_marks()
        d.table.move_to(9)
        assert d.table.mark_range() == (1, ())
        assert d.table.marked == {order[9]}


async def test_all_and_a_range_leave_out_head_and_embedding_and_say_so() -> None:
    async with measured() as d:
        body = set(NAMES) - {"lm_head", "model.embed_tokens"}
        found = d.table.mark_matching()
        assert (found.number, set(found.left_out)) == (35, {"lm_head", "model.embed_tokens"})
        assert d.table.marked == body
        d.table.clear_marks()
        assert d.table.cleared
        d.table.order_by("layer", descending=False)
        d.table.toggle_mark()  # the embedding, by hand: it stays
        assert not d.table.cleared
        d.table.move_to(36)
        found = d.table.mark_range()
        assert (found.number, found.left_out) == (35, ("lm_head",))
        assert d.table.marked == body | {"model.embed_tokens"}


async def test_marks_that_were_cleared_can_be_restored() -> None:
    async with measured() as d:
        d.table.set_filter(parse_filter("kind:down"))
        d.table.mark_matching()
        before = set(d.table.marked)
        d.table.clear_marks()
        d.table.restore_marks()
        assert d.table.marked == before
        assert d.table.scope == "marks"


async def test_marks_survive_orders_filters_and_toggles() -> None:
    async with measured() as d:
        d.table.toggle_mark()
        d.table.order_by("layer")
        d.table.set_filter(parse_filter("block:2"))
        assert d.table.marked == {"lm_head"}
        assert d.table.layers_in_scope() == ("lm_head",)
        await d.give(r.changed(d.app.session, ["lm_head"], r.FORMAT))
        d.table.set_filter(None)
        d.table.move_to(36)
        assert d.table.marked == {"lm_head"}
        assert line(d, 36).startswith("▌+")


async def test_marks_of_layers_that_are_no_more_are_forgotten() -> None:
    async with driving(*r.opening()) as d:
        d.table.mark_matching()
        await d.give(r.listed(NAMES[:9]))
        assert d.table.marked == set(NAMES[1:9])
        assert d.table.layers_in_scope() == tuple(NAMES[1:9])


async def test_a_key_between_a_new_listing_and_its_repaint_finds_the_new_rows() -> None:
    async with driving(*r.opening()) as d:
        d.table.move_to(30)
        apply(d.app.session, r.listed(NAMES[:9]))
        assert d.table.current is not None
        d.table.move_to(d.table.cursor + 1)
        d.table.redraw()
        assert d.table.rows == list(range(9))
        assert len(d.table.layers_in_scope()) == 1


async def test_all_that_fit_can_be_marked_and_marks_turned_round() -> None:
    async with measured() as d:
        d.table.set_filter(parse_filter("kind:down"))
        assert d.table.mark_matching() == (5, ())
        downs = {name for name in NAMES if name.endswith("down_proj")}
        assert d.table.marked == downs
        d.table.set_filter(parse_filter("block:0"))
        assert d.table.invert_marks() == (10, ())
        zero = {name for name in NAMES if ".0." in name}
        assert d.table.marked == (downs | zero) - {DOWN}
        d.table.clear_marks()
        d.table.set_filter(None)
        # With no filter, head and embedding are not meant.
        assert d.table.mark_matching().number == 35
        assert "lm_head" not in d.table.marked
        d.table.marked.add("lm_head")
        assert d.table.invert_marks().number == 0
        d.table.set_filter(parse_filter("role:head"))
        assert d.table.mark_matching().number == 1


async def test_the_mouse_marks_with_ctrl_with_shift_and_in_the_gutter() -> None:
    async with measured() as d:
        order = listed_names(d)
        await d.pilot.click(LayerTable, offset=(20, 3), control=True)
        assert d.table.marked == {order[2]}
        assert d.table.cursor == 2
        await d.pilot.click(LayerTable, offset=(20, 6), shift=True)
        assert d.table.marked == set(order[2:6])
        assert d.table.cursor == 5
        await d.pilot.click(LayerTable, offset=(1, 4))
        assert d.table.marked == {order[2], order[4], order[5]}
        await d.pilot.click(LayerTable, offset=(20, 10))
        assert d.table.current == order[9]
        assert len(d.table.marked) == 3
        d.table.clear_marks()
        await d.pilot.click(LayerTable, offset=(20, 12), shift=True)
        assert d.table.marked == set(order[9:12])
        await d.pilot.click(LayerTable, offset=(20, 12), button=3)
        assert d.table.marked == set(order[9:12])
        assert d.table.current == order[11]


# --- scopes --------------------------------------------------------------------------------------


async def test_rows_in_scope_have_a_line_at_their_left() -> None:
    opening = [grouped() if isinstance(e, p.LayersListed) else e for e in r.opening()]
    for ascii, thin, cursor in ((False, "▏", "▌"), (True, "|", ">")):
        async with driving(*opening, ascii=ascii) as d:

            def edges(d: Driver = d) -> str:
                return "".join(d.table.render_line(y).text[0] for y in range(1, 10))

            d.table.move_to(1)
            await d.pilot.pause()
            assert edges() == f" {cursor}       "
            assert d.table.next_scope() == "block"
            await d.pilot.pause()
            assert edges() == f" {cursor}{thin * 6} "
            d.table.move_to(8)
            await d.pilot.pause()
            assert edges() == f"        {cursor}"
            d.table.next_scope()
            assert d.table.next_scope() == "group"
            assert d.table.layers_in_scope() == tuple(NAMES[8:11])
            assert d.table.next_scope() == "layer"


async def test_marking_makes_the_marks_the_scope() -> None:
    async with measured() as d:
        assert d.table.scope == "layer"
        d.table.toggle_mark()
        assert d.table.scope == "marks"
        assert d.table.layers_in_scope() == ("lm_head",)
        d.table.set_scope("block")
        d.table.toggle_mark()
        assert d.table.scope == "marks"
        d.table.clear_marks()
        assert d.table.scope == "block", "what was chosen before comes back"
        d.table.set_scope("layer")
        d.table.set_filter(parse_filter("kind:q"))
        d.table.set_scope("filter")
        assert d.table.layers_in_scope() == tuple(n for n in NAMES if n.endswith("q_proj"))
        d.table.set_filter(None)
        assert d.table.scope == "layer"


# --- fused rows ----------------------------------------------------------------------------------


async def test_a_fused_row_lists_its_experts_once_they_are_known() -> None:
    told: list[str] = []
    async with mixed() as d:
        post = d.table.post_message

        def listen(message: Any) -> bool:
            if isinstance(message, LayerTable.Expanded):
                told.append(message.layer)
            return post(message)

        d.table.post_message = listen  # type: ignore[method-assign]
        assert "▸" in line(d, 8)
        d.table.move_to(8)
        assert d.table.toggle_expand()
        assert told == [EXPERTS]
        assert "▾" in line(d, 8)
        assert "reading…" in line(d, 9)
        assert len(d.table.rows) == len(MIXED) + 1
        await d.give(experts(EXPERTS, [0.05, 0.09, 0.07], nonfinite=2))
        await shown(d)
        assert [d.table.listing.expert(9 + i) for i in range(3)] == [0, 1, 2]
        first = line(d, 9)
        for word in ("expert 0", "▲", "2 NaN or inf", "max |w| .50", "5.0%", "3.0%"):
            assert word in first, word
        assert "NaN" not in line(d, 10)
        d.table.move_to(10)
        assert (d.table.current, d.table.current_expert) == (EXPERTS, 1)
        assert d.table.layers_in_scope() == (EXPERTS,)
        d.table.toggle_mark()
        assert d.table.marked == {EXPERTS}
        assert d.table.current == MIXED[9]
        d.table.move_to(11)
        assert d.table.toggle_expand()
        assert (d.table.current, d.table.current_expert) == (EXPERTS, None)
        assert len(d.table.rows) == len(MIXED)
        d.table.move_to(0)
        assert not d.table.toggle_expand()
        assert told == [EXPERTS]


async def test_ascii_signs_of_a_fused_row_are_not_the_cursors() -> None:
    async with mixed(ascii=True) as d:
        d.table.move_to(8)
        assert line(d, 8).startswith(">  }")
        d.table.toggle_expand()
        assert line(d, 8).startswith(">  v")
        await d.give(experts(EXPERTS, [0.05, 0.09]))
        await shown(d)
        assert d.screen().isascii()
        assert "expert 1" in d.screen()


async def test_experts_are_sorted_within_their_layer_where_the_column_has_a_meaning() -> None:
    async with mixed() as d:
        d.table.toggle_expand(EXPERTS)
        d.app.session.experts[EXPERTS] = experts(EXPERTS, [0.05, 0.09, math.nan, 0.07])
        await shown(d)

        def numbers() -> list[int]:
            row = d.app.session.index[EXPERTS]
            places = [i for i, each in enumerate(d.table.rows) if each == row]
            assert places == list(range(places[0], places[0] + 5))
            return [d.table.listing.expert(place) for place in places[1:]]

        for column, descending, wanted in (
            ("kl", True, [0, 1, 2, 3]), ("error", True, [1, 3, 0, 2]),
            ("error", False, [0, 3, 1, 2]), ("outliers", True, [0, 1, 2, 3]),
            ("outliers", False, [3, 2, 1, 0]), ("layer", False, [0, 1, 2, 3]),
        ):  # fmt: skip
            d.table.order_by(column, descending)
            assert numbers() == wanted, (column, descending)
        d.table.move_to(d.table.listing.place(d.app.session.index[EXPERTS], 3))
        d.table.order_by("error")
        d.table.go_back()
        assert d.table.current_expert == 3
        d.table.set_filter(parse_filter("head"))
        assert d.table.current_expert is None
        d.table.set_filter(None)
        assert d.table.current_expert == 3


async def test_experts_that_cannot_be_read_say_why() -> None:
    async with mixed() as d:
        d.table.toggle_expand(EXPERTS)
        d.table.no_experts[EXPERTS] = "the file \x1b[2J is gone"
        d.table.redraw()
        await d.pilot.pause()
        assert "the file \\x1b[2J is gone" in line(d, 9)
        assert "reading" not in line(d, 9)


async def test_experts_come_in_the_order_of_another_format() -> None:
    async with mixed() as d:
        d.table.toggle_expand(EXPERTS)
        await d.give(experts(EXPERTS, [0.05, 0.09]))
        await shown(d)
        d.table.show(d.app.session, "int8")
        assert "·" in line(d, 9)


async def test_a_click_folds_and_a_double_click_too() -> None:
    async with mixed() as d:
        await d.pilot.click(LayerTable, offset=(3, 9))
        assert list(d.table.listing.opened) == [EXPERTS]
        await d.pilot.click(LayerTable, offset=(20, 9), times=2)
        assert not d.table.listing.opened
        assert not d.table.marked
        await d.pilot.click(LayerTable, offset=(20, 3), times=2)
        assert not d.table.listing.opened


async def test_no_more_rows_are_open_than_experts_are_kept_of() -> None:
    layers = [f"model.layers.{i}.mlp.experts.down_proj" for i in range(MAX_EXPERTS + 2)]
    listed = msgspec.structs.replace(r.listed(layers), roles=["experts"] * len(layers))
    opening = [listed if isinstance(e, p.LayersListed) else e for e in r.opening(layers)]
    async with driving(*opening) as d:
        for layer in layers:
            d.table.toggle_expand(layer)
        assert list(d.table.listing.opened) == layers[2:]


# --- fifty thousand ------------------------------------------------------------------------------


async def test_fifty_thousand_rows_are_drawn_and_sorted_no_more_often_than_fifty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = [f"model.layers.{i // 100}.mlp.experts.{i % 100}.up_proj" for i in range(50_000)]
    drawn: list[int] = []
    sorts: list[int] = []
    draw, arrange = LayerTable._line, Listing.arrange

    def count_draw(self: LayerTable, y: int, frame: Any) -> Any:
        drawn.append(y)
        return draw(self, y, frame)

    def count_sort(self: Listing, marked: Any) -> None:
        sorts.append(1)
        arrange(self, marked)

    async with driving(*r.opening(layers), size=(80, 24)) as d:
        monkeypatch.setattr(LayerTable, "HOLD", 1e6)  # however slow the machine is
        monkeypatch.setattr(LayerTable, "_line", count_draw)
        monkeypatch.setattr(Listing, "arrange", count_sort)
        height = d.table.size.height
        d.table.set_filter(parse_filter("block<250 up"))
        assert len(sorts) == 1
        assert d.table.shown_of_all == (25_000, 50_000)
        d.table.set_scope("block")
        await d.pilot.pause()
        for act in (
            lambda: d.table.move_to(7), lambda: d.table.move_to(20_000), d.table.toggle_mark,
            d.table.mark_range, lambda: d.table.next_scope(), d.table.redraw, d.table.clear_marks,
        ):  # fmt: skip
            drawn.clear()
            act()
            await d.pilot.pause()
            # What is visible, before and after; how many frames there are, a busy machine says.
            assert len(set(drawn)) <= 2 * height
        drawn.clear()
        for row in range(0, 400, 40):
            await d.give(p.Learned((f"s{row}",), (r.sensitivity(layers[row], row),)))
        # A hand was on the table: rows stay, and each frame looks at what is visible alone.
        assert len(sorts) == 1
        assert len(set(drawn)) <= height
        drawn.clear()
        await d.give(r.changed(d.app.session, [layers[3]], r.FORMAT))
        assert len(sorts) == 1
        assert len(set(drawn)) <= height


async def test_fifty_thousand_experts_of_one_layer_are_cheap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[int] = []
    draw = LayerTable._line
    async with mixed(size=(80, 24)) as d:
        d.table.toggle_expand(EXPERTS)
        d.app.session.experts[EXPERTS] = experts(EXPERTS, [i / 1e6 for i in range(50_000)])
        await shown(d)
        assert len(d.table.rows) == len(MIXED) + 50_000

        def count_draw(self: LayerTable, y: int, frame: Any) -> Any:
            drawn.append(y)
            return draw(self, y, frame)

        monkeypatch.setattr(LayerTable, "_line", count_draw)
        d.table.order_by("error")
        await d.pilot.pause()
        assert d.table.listing.expert(d.table.listing.place(8) + 1) == 49_999
        arranged = d.table.listing.arranged
        drawn.clear()
        d.table.move_to(40_000)
        await d.pilot.pause()
        assert d.table.current == EXPERTS
        assert len(drawn) <= 3 * d.table.size.height
        assert d.table.listing.arranged == arranged


async def test_the_wheel_scrolls_and_holds_the_rows() -> None:
    async with measured(size=(80, 24)) as d:
        d.table._moved_at = float("-inf")
        await d.pilot._post_mouse_events([events.MouseScrollDown], LayerTable, (5, 5))
        await d.until(lambda: d.table.scroll_y > 0)
        assert d.table._moved_at > 0
        assert d.table.cursor == 0


async def test_every_pair_of_filter_order_and_scope_draws() -> None:
    async with mixed(*r.swept(9), size=(80, 24), ascii=True) as d:
        for filter, column, scope in itertools.product(
            ("", "-is:measured", "kl>1e-9", "zzz"), [c.id for c in table_columns()],
            ("layer", "block", "kind", "filter"),
        ):  # fmt: skip
            d.table.set_scope(scope)
            d.table.set_filter(parse_filter(filter))
            d.table.order_by(column)
            for y in range(d.table.size.height):
                assert d.table.render_line(y).cell_length == d.table.scrollable_content_region.width
                assert d.table.render_line(y).text.isascii()


async def test_what_a_hand_does_is_told() -> None:
    async with measured() as d:
        told: list[Any] = []
        post = d.table.post_message
        d.table.post_message = lambda message: told.append(message) or post(message)  # type: ignore
        d.table.order_by("error")
        d.table.toggle_mark()
        d.table.clear_marks()
        kinds = (LayerTable.Sorted, LayerTable.Marked, LayerTable.Moved)
        assert [m for m in told if isinstance(m, kinds)] == [
            LayerTable.Moved(DOWN), LayerTable.Sorted("error", True), LayerTable.Marked(1),
            LayerTable.Moved(listed_names(d)[1]), LayerTable.Marked(0),
        ]  # fmt: skip
        assert LayerTable.Sorted.handler_name == "on_layer_table_sorted"
        assert LayerTable.Moved.handler_name == "on_layer_table_moved"
