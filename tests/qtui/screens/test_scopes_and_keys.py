"""Next scope, chosen with keys and mouse: what the foot says is what the engine gets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from engine import protocol as p
from qtui.views.scope import Scope
from qtui.widgets.frame.status import KeyBar
from qtui.widgets.table.layer_table import LayerTable
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving
from tests.qtui.views.test_scope import grouped

NAMES = r.names()
Q1 = "model.layers.1.self_attn.q_proj"


@asynccontextmanager
async def listed(**options: Any) -> AsyncIterator[Driver]:
    """A model with fused groups, its rows in the model's order."""
    async with driving(*r.opening(grouped()), **options) as d:
        d.table.order_by("layer", descending=False)
        yield d


async def sent(d: Driver, number: int = 1) -> p.SetFormat:
    """The toggle that the engine was sent, the so-many-th."""
    await d.until(lambda: len(d.sent(p.SetFormat)) >= number)
    found = d.sent(p.SetFormat)[number - 1]
    assert isinstance(found, p.SetFormat)
    return found


async def scope_to(d: Driver, scope: Scope) -> None:
    """Go round with ``t`` until the scope is this one."""
    for _ in range(6):
        if d.table.scope == scope:
            return
        await d.pilot.press("t")
    raise AssertionError(f"t never came to {scope}")


def scope_words(d: Driver) -> str:
    """The scope of a toggle, as the foot shows it."""
    return d.bench.message.text.rpartition("→ ")[2].strip()


# --- scopes --------------------------------------------------------------------------------------

BLOCK = [name for name in NAMES if ".layers.1." in name]
KIND = [name for name in NAMES if name.endswith("q_proj")]
FUSED = [f"model.layers.1.self_attn.{kind}_proj" for kind in "qkv"]
DOWNS = [name for name in NAMES if "down" in name]


@pytest.mark.parametrize(
    ("scope", "words", "layers"),
    [
        ("layer", "1 self_attn.q_proj", [Q1]),
        ("block", "block 1: 7 layers", BLOCK),
        ("kind", "kind q_proj: 5 layers", KIND),
        ("group", "1 q+k+v: 3 layers", FUSED),
    ],
)
async def test_the_foot_shows_the_scope_of_a_toggle_and_the_engine_gets_just_that(
    scope: Scope, words: str, layers: list[str]
) -> None:
    async with listed(size=(120, 30)) as d:
        d.table.move_to(NAMES.index(Q1))
        await scope_to(d, scope)
        await d.settled()
        assert scope_words(d) == words
        await d.pilot.press("4")
        assert await sent(d) == p.SetFormat(tuple(layers), "int4-g128")
        assert set(d.table.pending) == set(layers)


async def test_the_block_moves_with_the_cursor() -> None:
    async with listed() as d:
        d.table.move_to(NAMES.index(Q1))
        await scope_to(d, "block")
        d.table.move_to(NAMES.index(Q1.replace(".1.", ".3.")))
        await d.pilot.pause()
        assert scope_words(d) == "block 3: 7 layers"
        await d.pilot.press("8")
        assert (await sent(d)).layers == tuple(name for name in NAMES if ".layers.3." in name)


async def test_a_filter_is_a_scope_and_head_and_embedding_are_named_where_they_are_meant() -> None:
    async with listed() as d:
        await d.pilot.press("slash", *"down", "enter")
        await scope_to(d, "filter")
        await d.settled()
        assert "“down”: 5 layers" in scope_words(d)
        await d.pilot.press("4")
        assert (await sent(d)).layers == tuple(DOWNS)
        d.bench.set_filter(None)
        await d.pilot.press("slash", *"params>1", "enter")
        await scope_to(d, "filter")
        await d.settled()
        assert "37 layers, including embedding and head" in scope_words(d)


async def test_t_passes_over_scopes_that_make_no_sense_and_comes_round() -> None:
    async with listed() as d:
        d.table.move_to(NAMES.index(Q1))
        seen = [d.table.scope]
        for _ in range(4):
            await d.pilot.press("t")
            seen.append(d.table.scope)
        assert seen == ["layer", "block", "kind", "group", "layer"]
        d.table.move_to(NAMES.index("lm_head"))
        await d.pilot.press("t")
        # A head stands in no block, and is the only one of its kind.
        assert d.table.scope == "layer"
        await d.pilot.press("space", "t")
        assert d.table.scope == "layer"
        await d.pilot.press("t")
        assert d.table.scope == "marks"


# --- marks ---------------------------------------------------------------------------------------


async def test_marks_by_space_range_all_shown_swapped_and_none() -> None:
    async with listed() as d:
        body = set(NAMES) - {"lm_head", "model.embed_tokens"}
        await d.pilot.press("j", "space", "j", "j", "v")
        assert d.table.marked == set(NAMES[1:5])
        await d.pilot.pause()
        assert scope_words(d) == "4 marked layers"
        await d.pilot.press("i")
        assert d.table.marked == body - set(NAMES[1:5])
        await d.pilot.press("escape")
        assert not d.table.marked
        await d.pilot.press("a")
        assert d.table.marked == body
        await d.pilot.press("escape", "slash", *"down", "enter", "a")
        assert d.table.marked == set(DOWNS)
        await d.pilot.press("4")
        assert (await sent(d)).layers == tuple(DOWNS)


async def test_escape_takes_the_marks_away_first_and_the_filter_then() -> None:
    async with listed() as d:
        await d.pilot.press("slash", *"down", "enter", "a", "escape")
        assert not d.table.marked
        assert len(d.table.rows) == 5
        await d.pilot.press("escape")
        assert len(d.table.rows) == 37
        d.bench.message.clear()
        await d.pilot.press("escape")
        assert not d.bench.message.said[1]


async def test_marks_that_escape_clears_come_back_with_undo_until_something_else_happens() -> None:
    async with listed() as d:
        await d.pilot.press("slash", *"down", "enter", "a", "escape")
        assert "5 marks cleared: u restores" in d.bench.message.said[1]
        await d.pilot.press("u")
        assert d.table.marked == set(DOWNS)
        assert not d.sent(p.Undo)
        await d.pilot.press("escape", "j", "4")
        await d.give(r.changed(d.app.session, [d.table.current or ""], r.FORMAT))
        await d.pilot.press("u")
        await d.until(lambda: d.sent(p.Undo))
        assert not d.table.marked


async def test_a_filter_that_is_cancelled_leaves_the_cursor_free() -> None:
    """It was pinned to the layer under it, which sank to the middle when estimates came."""
    async with driving(*r.opening(), *r.triaged(), size=(80, 24)) as d:
        await d.pilot.press("slash", "escape")
        await d.give(*r.swept())
        assert (d.table.cursor, d.table.scroll_y) == (0, 0)


async def test_the_scope_before_has_a_key_and_scopes_can_be_chosen_by_name() -> None:
    async with listed() as d:
        d.table.move_to(5)
        await d.pilot.press("t", "t")
        second = d.table.scope
        await d.pilot.press("t", "T")
        assert d.table.scope == second
        await d.pilot.press("colon", *"scope block", "enter")
        assert d.table.scope == "block"


async def test_a_format_that_is_held_already_is_not_asked_for_again() -> None:
    async with listed() as d:
        await d.give(r.changed(d.app.session, [d.table.current or ""], "int8"))
        await d.pilot.press("8")
        assert "already int8" in d.bench.message.said[1]
        await d.pilot.press("j", "f")
        assert "already as stored" in d.bench.message.said[1]
        assert not d.sent(p.SetFormat)


async def test_a_scope_that_was_chosen_comes_back_when_the_marks_are_gone() -> None:
    async with listed() as d:
        await d.pilot.press("j")
        await scope_to(d, "kind")
        await d.pilot.press("space")
        assert d.table.scope == "marks"
        await d.pilot.press("escape")
        assert d.table.scope == "kind"
        await d.pilot.press("space", "k", "space")
        assert not d.table.marked
        assert d.table.scope == "kind"
        await d.pilot.press("space")
        await scope_to(d, "block")
        await d.pilot.press("escape")
        assert d.table.scope == "block", "chosen while there were marks"


async def test_marked_layers_that_a_filter_hides_are_in_scope_too() -> None:
    async with listed() as d:
        await d.pilot.press("j", "space", "slash", *"down", "enter", "4")
        await d.settled()
        assert scope_words(d) == "1 marked layer, 1 hidden"
        assert (await sent(d)).layers == (NAMES[1],)


async def test_a_whole_session_leaves_marks_filter_scope_and_cursor() -> None:
    async with listed() as d:
        await d.pilot.press("slash", *"down", "enter", "space", "space", "t")
        marked, scope, current = set(d.table.marked), d.table.scope, d.table.current
        again = r.folded(*r.opening(grouped()), *r.triaged(), *r.swept())
        d.link.give(again)
        await d.until(lambda: d.app.session is again)
        await d.settled()
        assert d.table.marked == marked == set(DOWNS[:2])
        assert (d.table.scope, d.table.current, d.table.filter.text) == (scope, current, "down")
        assert len(d.table.rows) == 5


# --- the mouse -----------------------------------------------------------------------------------


async def test_an_entry_of_the_key_bar_does_what_its_key_does() -> None:
    async with listed(size=(200, 50)) as d:
        bar = d.app.screen.query_one(KeyBar)

        async def click(words: str) -> None:
            await d.pilot.click(KeyBar, offset=(1 + bar.text.index(words), 0))
            await d.pilot.pause()

        d.table.move_to(1)
        await click("scope")
        assert d.table.scope == "block"
        await click("scope")
        assert d.table.scope == "kind"
        await click("8")
        assert (await sent(d)).format == "int8"
        assert len((await sent(d)).layers) == 5
        await click("space")
        assert d.table.marked == {NAMES[1]}
        await click("undo")
        await d.until(lambda: d.sent(p.Undo))
        await click("filter")
        assert d.bench.handler.prompts.open
        await d.pilot.press("escape")
        await click("toggle")
        assert d.bench.handler.prompts.open
        assert "hold" in d.screen()


async def test_clicks_sort_and_mark() -> None:
    async with listed(size=(120, 30)) as d:
        head = d.table.render_line(0).text
        await d.pilot.click(LayerTable, offset=(head.index("holds") + 1, 0))
        assert d.table.order[0] == "holds"
        assert "sorted by " in d.bench.message.text
        await d.pilot.click(LayerTable, offset=(head.index("layer") + 1, 0))
        first = [NAMES[row] for row in d.table.rows]
        await d.pilot.click(LayerTable, offset=(8, 2))
        await d.pilot.click(LayerTable, offset=(8, 4), control=True)
        await d.pilot.click(LayerTable, offset=(8, 6), shift=True)
        assert d.table.marked == set(first[3:6])
        await d.pilot.press("4")
        assert set((await sent(d)).layers) == set(first[3:6])


# --- many keys at once ---------------------------------------------------------------------------


async def test_keys_that_come_together_are_done_in_their_order() -> None:
    async with listed() as d:
        d.at_once("j", "j", "space", "space", "k", "4", "escape", "j", "8", "t")
        second = await sent(d, 2)
        first = d.sent(p.SetFormat)[0]
        assert first == p.SetFormat((NAMES[2], NAMES[3]), "int4-g128")
        assert second == p.SetFormat((NAMES[4],), "int8")
        await d.until(lambda: d.table.scope != "layer")


async def test_letters_that_come_with_the_key_of_a_prompt_are_typed_there() -> None:
    async with listed() as d:
        d.at_once("slash", "q", "minus", "x", "enter")
        await d.until(lambda: d.table.filter.text)
        assert d.table.filter.text == "q-x"
        assert d.app.return_code is None
        assert not d.bench.handler.prompts.open


async def test_letters_that_come_with_the_key_of_the_palette_are_typed_there() -> None:
    async with listed() as d:
        d.at_once("colon", "q", "u", "i")
        await d.until(lambda: d.app.screen is not d.bench and d.app.screen.entry.value == "qui")
        await d.until(lambda: d.app.screen.current and d.app.screen.current.id == "quit")
        assert not d.app._leaving
        assert not d.sent(p.Undo)


async def test_a_toggle_with_enter_behind_it_goes_out_once() -> None:
    async with listed() as d:
        d.at_once("equals_sign", *"int8", "enter", "j", "4")
        await sent(d, 2)
        await d.settled()
        assert [command.format for command in d.sent(p.SetFormat)] == ["int8", "int4-g128"]
        assert d.sent(p.SetFormat)[1].layers == (NAMES[1],)
