"""What is typed at the foot of the workbench: filters, formats, where to save; and copying."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path

import pytest

from engine import protocol as p
from engine.recipes.file import read_recipe
from qtui.user.remembered import recall
from qtui.widgets.prompt.prompt import Prompt
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving
from tests.qtui.views.test_scope import grouped

NAMES = r.names()
DOWN = "model.layers.0.mlp.down_proj"
Q1 = "model.layers.1.self_attn.q_proj"


def shown(d: Driver) -> list[str]:
    """Layers in the table, from top to bottom."""
    return [d.app.session.layers.names[row] for row in d.table.rows]


def said(d: Driver) -> str:
    """What was said last at the foot."""
    return d.bench.message.said[1]


# --- the filter ----------------------------------------------------------------------------------


async def test_a_filter_is_followed_as_it_is_typed_and_enter_keeps_it() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept()) as d:
        await d.pilot.press("slash", *"kl>1e-3")
        known = d.app.session.sensitivity
        wanted = {NAMES[row] for row in range(37) if known(row, r.EFFECTS).kl > 1e-3}
        assert 0 < len(wanted) < 37
        assert set(shown(d)) == wanted
        assert f"{len(wanted)} of 37 layers" in d.screen()
        await d.pilot.press("enter")
        await d.pilot.pause()
        assert set(shown(d)) == wanted
        assert f"layer {len(wanted)}/37" in d.screen()
        assert not d.bench.handler.prompts.open
        # Letters are keys again.
        await d.pilot.press("4")
        await d.until(lambda: d.sent(p.SetFormat))


async def test_escape_restores_what_was_shown_before() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept()) as d:
        await d.pilot.press("j", "j")
        before, current = shown(d), d.table.current
        await d.pilot.press("slash", *"lm_head")
        assert shown(d) == ["lm_head"]
        await d.pilot.press("escape")
        assert shown(d) == before
        assert d.table.current == current
        assert not d.bench.handler.prompts.open


async def test_a_wrong_term_leaves_the_rows_and_says_what_is_known() -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        await d.pilot.press("slash", *"down")
        assert len(shown(d)) == 5
        await d.pilot.press(*" kl>x")
        assert len(shown(d)) in (5, 0)
        await d.pilot.press("enter")
        await d.pilot.pause()
        assert d.bench.handler.prompts.open
        assert "x " in d.screen().splitlines()[-1][:4] or "kl" in d.screen().splitlines()[-1]
        await d.pilot.press("escape")
        assert len(shown(d)) == 37


async def test_rows_that_arrive_while_a_filter_is_typed_are_filtered() -> None:
    async with driving(*list(r.opening())[:3]) as d:
        await d.give(*list(r.opening())[3:])
        await d.pilot.press("slash", *"down")
        await d.give(*r.triaged(), *r.swept())
        assert len(shown(d)) == 5
        assert d.app.screen.focused is not None
        await d.pilot.press("enter")
        assert d.table.filter.text == "down"


# --- any format ----------------------------------------------------------------------------------


async def test_any_format_is_held_by_what_is_in_scope_and_in_its_canonical_form() -> None:
    async with driving(*r.opening(grouped())) as d:
        d.table.move_to(NAMES.index(Q1))
        await d.pilot.press("t", "equals_sign")
        await d.pilot.pause()
        assert "format for block 1, 7 layers: " in d.screen()
        await d.pilot.press(*"int4-g64-asym", "enter")
        await d.until(lambda: d.sent(p.SetFormat))
        block = tuple(name for name in NAMES if ".layers.1." in name)
        assert d.sent(p.SetFormat) == [p.SetFormat(block, "int4-g64")]


@pytest.mark.parametrize(
    ("typed", "why"),
    [("int99", "int99"), ("int4-g64-nonsense", "nonsense"), ("", ""), ("q4_k+nothing", "nothing")],
)
async def test_a_format_that_cannot_be_stays_and_explains(typed: str, why: str) -> None:
    async with driving(*r.opening(), size=(80, 24)) as d:
        await d.pilot.press("equals_sign", *typed, "enter")
        await d.pilot.pause()
        assert d.bench.handler.prompts.open
        foot = " ".join(d.screen().splitlines()[-3:])
        assert "x " in foot
        assert why in foot
        assert not d.sent(p.SetFormat)
        await d.pilot.press("ctrl+u", *"int8", "enter")
        await d.until(lambda: d.sent(p.SetFormat))


async def test_completions_of_a_format_tell_the_bits_of_the_layers_in_scope() -> None:
    async with driving(*r.opening()) as d:
        d.table.move_to(NAMES.index("model.layers.0.mlp.gate_proj"))
        await d.pilot.press("equals_sign", *"int3-channel")
        await d.pilot.pause()
        *_, line, verdict = d.screen().splitlines()
        assert "format for 0 mlp.gate_proj: int3-channel" in line
        # A scale of 16 bits and a zero point of 3 for each row of 256.
        assert verdict.strip() == "int3-channel: 3.07 bits per weight"
        assert d.app.screen.query_one(Prompt).offers[0][:2] == ("int3-channel", "3.07 bits")


async def test_the_beginning_of_a_format_is_no_error_until_it_is_handed_in() -> None:
    async with driving(*r.opening()) as d:
        await d.pilot.press("equals_sign", "i")
        await d.pilot.pause()
        assert d.screen().splitlines()[-1].strip() == "i is the start of a format: tab completes it"
        await d.pilot.press("enter")
        await d.pilot.pause()
        assert "x unknown format 'i'" in d.screen()
        await d.pilot.press("ctrl+u", *"zz")
        await d.pilot.pause()
        assert "! unknown format 'zz'" in d.screen()


async def test_a_filter_beyond_every_layer_says_so_and_one_that_is_begun_is_hinted_at() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept()) as d:
        await d.pilot.press("slash", *"kind:")
        await d.pilot.pause()
        assert d.screen().splitlines()[-1].strip().startswith("kind: and last part of the name")
        await d.pilot.press("enter")
        await d.pilot.pause()
        assert "x filter term 'kind:': nothing after ':'" in d.screen().splitlines()[-1]
        await d.pilot.press("ctrl+u", *"kl>1")
        await d.pilot.pause()
        foot = d.screen().splitlines()[-1]
        assert "0 of 37 layers; kl>1: the largest is .00838 (the column shows thousandths)" in foot


# --- prompts while other things happen -----------------------------------------------------------


async def test_an_engine_that_is_lost_leaves_the_prompt_and_what_is_typed() -> None:
    async with driving(*r.opening(), *r.swept(5), size=(100, 30)) as d:
        await d.pilot.press("slash", *"dow")
        d.link.die("the engine was killed by signal 9")
        await d.until(lambda: d.bench.banner.has_class("-shown"))
        await d.pilot.press("n")
        await d.pilot.pause()
        assert d.table.filter.text == "down"
        await d.pilot.press("enter", "equals_sign", *"int8", "enter")
        await d.until(lambda: "no engine is running" in said(d))
        assert not d.table.pending


async def test_an_engine_that_is_lost_under_the_palette_can_be_started_again_from_it() -> None:
    async with driving(*r.opening(), *r.swept(5), size=(100, 30)) as d:
        await d.pilot.press("colon")
        d.link.die("the engine was killed by signal 9")
        await d.until(lambda: d.bench.banner.has_class("-shown"))
        await d.pilot.press("escape", "colon", *"retry", "enter")
        await d.until(lambda: not d.bench.banner.has_class("-shown"))
        await d.until(lambda: len(d.sent(p.Open)) == 2)


async def test_a_whole_session_leaves_a_prompt_that_is_open() -> None:
    async with driving(*r.opening(), *r.swept(5)) as d:
        await d.pilot.press("slash", *"dow")
        again = r.folded(*r.opening(), *r.triaged(), *r.swept())
        d.link.give(again)
        await d.until(lambda: d.app.session is again)
        await d.settled()
        await d.pilot.press("n", "enter")
        assert d.table.filter.text == "down"
        assert len(shown(d)) == 5


@pytest.mark.parametrize("key", ["slash", "equals_sign", "w"])
async def test_a_small_terminal_has_room_for_every_prompt(key: str) -> None:
    async with driving(*r.opening(), *r.triaged(), size=(60, 18)) as d:
        await d.pilot.press(key, "i")
        await d.pilot.pause()
        lines = d.screen().splitlines()
        assert len(lines) == 18
        assert d.app.screen.focused.region.bottom <= 18
        # The rows that are chosen among are still to be seen.
        assert "layer" in d.screen()
        await d.pilot.resize_terminal(50, 12)
        await d.pilot.resize_terminal(80, 24)
        await d.pilot.pause()
        assert d.app.screen.focused is not None
        assert d.app.screen.focused.value == "i"
        await d.pilot.press("escape")
        assert not d.bench.handler.prompts.open


# --- files and the clipboard ---------------------------------------------------------------------


async def test_a_saved_table_has_the_sessions_own_figures(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    async with driving(*r.opening(), *r.triaged(), *r.swept(), size=(200, 50)) as d:
        await d.pilot.press("slash", *"down", "enter", "w")
        d.app.screen.focused.set_value(str(path))
        await d.pilot.press("enter")
        await d.until(path.exists)
        await d.until(lambda: str(path) in said(d))
        text = path.read_text()
        found = list(csv.DictReader(line for line in io.StringIO(text) if line[0] != "#"))
        names = [row["layer"] for row in found]
        assert names == shown(d)
        for row, name in zip(found, names, strict=True):
            fact = d.app.session.sensitivity(NAMES.index(name), r.EFFECTS)
            assert float(row["kl_nats_per_token"]) == fact.kl
            assert float(row["dppl_high"]) == fact.dppl_high
        assert "qtui sweep" in text


async def test_a_saved_recipe_reads_back_to_what_the_layers_hold(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    async with driving(*r.opening()) as d:
        await d.give(r.changed(d.app.session, [DOWN], "int4-g128"))
        await d.give(r.changed(d.app.session, ["lm_head"], "int8"))
        await d.pilot.press("w")
        d.app.screen.focused.set_value(f"recipe {path}")
        await d.pilot.press("enter")
        await d.until(lambda: "saved" in said(d))
        recipe = read_recipe(path).resolve(d.app.session)
        held = {name: format for name, format in recipe.items() if format != "kept"}
        assert held == {DOWN: "int4-g128", "lm_head": "int8"} == d.app.session.recipe()


async def test_a_path_that_cannot_be_stays_and_says_why(tmp_path: Path) -> None:
    async with driving(*r.opening()) as d:
        await d.pilot.press("w")
        d.app.screen.focused.set_value(str(tmp_path / "no" / "where.csv"))
        await d.pilot.press("enter")
        await d.pilot.pause()
        assert d.bench.handler.prompts.open
        assert "there is no folder" in d.screen()


@pytest.mark.parametrize(("key", "layers"), [("y", 2), ("Y", 37)])
async def test_copying_sends_the_rows_to_the_terminal_and_a_file(
    key: str, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TMUX", "STY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    async with driving(*r.opening(), *r.triaged(), *r.swept(), size=(200, 50)) as d:
        wrote: list[str] = []
        monkeypatch.setattr(d.app._driver, "write", wrote.append)
        await d.pilot.press("space", "space", key)
        await d.until(lambda: said(d).startswith("copied"))
        (sequence,) = [text for text in wrote if text.startswith("\x1b]52;c;")]
        text = base64.b64decode(sequence.removeprefix("\x1b]52;c;").removesuffix("\x07")).decode()
        head, *rows = text.splitlines()
        assert len(rows) == layers
        assert rows[0].split("\t")[0] == "lm_head"
        kl = float(rows[0].split("\t")[head.split("\t").index("kl_nats_per_token")])
        assert kl == d.app.session.sensitivity(36, r.EFFECTS).kl
        path = Path(said(d).rpartition(" ")[2])
        assert path.read_text() == text


async def test_a_filter_that_is_set_can_be_changed_and_escape_restores_it() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept()) as d:
        await d.pilot.press("slash", *"down", "enter", "j")
        current = d.table.current
        await d.pilot.press("slash", "ctrl+u", *"lm_head")
        assert shown(d) == ["lm_head"]
        await d.pilot.press("escape")
        assert d.table.filter.text == "down"
        assert d.table.current == current
        await d.pilot.press("slash", *" kl>0")
        assert d.table.filter.text == "down kl>0"


async def test_a_prompt_in_place_of_a_filter_restores_what_was_shown() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept()) as d:
        await d.pilot.press("slash", *"down", "ctrl+p", *"set a format", "enter")
        await d.until(lambda: d.app.screen is d.bench)
        await d.pilot.press("escape")
        await d.pilot.pause()
        assert not d.table.filter
        assert len(shown(d)) == 37


async def test_a_format_goes_to_the_layer_that_the_prompt_named() -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        first = d.table.current
        await d.pilot.press("equals_sign", *"int8")
        await d.give(*r.swept())
        await d.pilot.press("enter")
        await d.until(lambda: d.sent(p.SetFormat))
        assert d.sent(p.SetFormat) == [p.SetFormat((first,), "int8")]


async def test_another_format_can_be_swept() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept()) as d:
        await d.pilot.press("S", *"bf16", "enter")
        assert "has no effect" in d.bench.query_one(Prompt).verdict.says
        await d.pilot.press("ctrl+u", *"int3", "enter")
        await d.until(lambda: len(d.sent(p.Sweep)) == 2)
        assert d.sent(p.Sweep)[1] == p.Sweep(("int3-g128",))


async def test_files_are_offered_in_the_folder_where_the_last_one_was_saved(
    tmp_path: Path,
) -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        await d.pilot.press("w")
        await d.paste(f"table {tmp_path}/a.csv")
        await d.pilot.press("enter")
        await d.until(lambda: (tmp_path / "a.csv").exists())
        await d.until(lambda: recall()[0].folder == str(tmp_path))
        await d.pilot.press("w")
        await d.pilot.pause()
        offered = [offer.text for offer in d.bench.query_one(Prompt).offers]
        assert any(text.startswith(f"table {tmp_path}/") for text in offered)


async def test_layers_listed_anew_while_a_path_is_typed_are_those_that_are_saved(
    tmp_path: Path,
) -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        await d.pilot.press("w")
        await d.paste(f"table {tmp_path}/a.csv")
        await d.give(r.listed(r.names()[:5]))
        await d.pilot.press("enter")
        await d.until(lambda: (tmp_path / "a.csv").exists())
        rows = [row for row in (tmp_path / "a.csv").read_text().splitlines() if row[:1] != "#"]
        assert len(rows) == 1 + 5


async def test_an_expression_is_followed_too_and_one_that_never_ends_is_refused() -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        await d.pilot.press("slash", *"re:down_proj$")
        await d.until(lambda: len(shown(d)) == 5)
        await d.pilot.press("escape", "slash", *"re:(\\w|\\w\\w|\\w\\w\\w|\\.)+[^\\w.]", "enter")
        await d.until(lambda: "takes too long to match" in d.screen())
        assert d.bench.handler.prompts.open
        assert len(shown(d)) == 37
