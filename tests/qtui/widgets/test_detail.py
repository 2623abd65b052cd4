"""The pane: what is known of the layer under the cursor."""

from __future__ import annotations

import math
import re

import msgspec
import pytest
from textual.events import MouseScrollDown, MouseScrollUp

from engine import protocol as p
from engine.protocol import EffectKey
from engine.session import Session, recipe_hash
from qtui.views.text import PLAIN
from qtui.widgets.pane.detail import Detail
from qtui.widgets.pane.past import LayerHistory
from tests.qtui import replay as r
from tests.qtui.panes import Stage, holding, staged, told, undone, until, whole

DOWN = "model.layers.0.mlp.down_proj"
GATE = "model.layers.0.mlp.gate_proj"
UP = "model.layers.0.mlp.up_proj"
INT4, INT8, INT3 = "int4-g128", "int8", "int3-g128"


async def words(
    session: Session, layer: str, width: int = 64, height: int = 60, *, expert: int | None = None
) -> str:
    """All that the pane says of a layer."""
    shown = Detail()
    async with staged(shown, width, height) as (app, pilot):
        shown.show(session, layer, expert)
        await pilot.pause()
        return app.screen_text()


def line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(start))


async def test_what_a_layer_is_and_what_it_costs() -> None:
    session = whole()
    holding(session, [DOWN], INT4)
    said = await words(session, DOWN)
    assert "[256 × 768] bfloat16  197k weights  linear  block 0" in said
    # replay.changed lets int4 take 17/4 bits a weight: 256 · 768 · 17 / 4 / 8 bytes.
    assert "holds int4-g128  4.25 bit/w  104 kB" in said


async def test_layers_of_a_fused_group_that_hold_another_format_are_told_of() -> None:
    session = whole()
    assert "fused with up_proj" in await words(session, GATE)
    assert "fused" not in await words(session, DOWN)
    holding(session, [GATE], INT8)
    assert "fused with up_proj: up_proj holds bf16" in await words(session, GATE)


async def test_measured_effects_have_their_interval_and_estimates_their_sign() -> None:
    session = whole()
    row = session.index[DOWN]
    estimate = p.Estimate(
        layer=DOWN, format=INT3, kl=0.03, kl_se=0.004, dnll=0.02, dnll_se=0.001, tokens=4096
    )
    told(session, p.Learned(("e",), (estimate,)))
    said = await words(session, DOWN)
    guess, measured = line(said, INT3), line(said, INT4)
    assert said.index(INT3) < said.index(INT4), "the largest effect comes first"
    assert f"≈30.0 ± {1000 * 1.96 * 0.004:.2f}" in guess
    # The change of perplexity, and its interval to first order.
    change, half = 26.17 * math.expm1(0.02), 26.17 * math.exp(0.02) * 1.96 * 0.001
    assert f"≈+{change:.3f} ± {half:.3f}".replace("0.", ".") in guess
    fact = session.sensitivity(row, p.EffectKey("degrade", INT4))
    assert fact is not None
    assert "≈" not in measured
    assert f"{1000 * fact.kl:.2f}" in measured
    assert f"{100 * fact.top1:.1f}%" in measured
    assert "16k" in measured


async def test_an_estimate_gives_way_to_what_is_measured() -> None:
    session = whole()
    estimate = p.Estimate(
        layer=DOWN, format=INT4, kl=0.9, kl_se=0.1, dnll=0.02, dnll_se=0.001, tokens=4096
    )
    told(session, p.Learned(("e",), (estimate,)))
    assert "≈" not in await words(session, DOWN)


async def test_error_and_price_stand_side_by_side_and_the_cheapest_comes_first() -> None:
    said = await words(whole(), DOWN)
    table = said[said.index("error of") :]
    assert table.index(INT3) < table.index(INT4) < table.index(INT8)
    # 3 and 4 bits, and a 16-bit scale and a zero point for every 128; one scale a row of 768.
    for format, bits in ((INT3, 3 + 19 / 128), (INT4, 4 + 20 / 128), (INT8, 8 + 16 / 768)):
        assert line(table, format).split()[1] == f"{bits:.2f}"
    assert line(table, INT4).split()[2:] == ["12.2%", "18.2", "dB", ".02"]


async def test_outliers_are_told_with_their_figures() -> None:
    said = await words(whole(), DOWN)
    assert "▲ input channel 211 reaches 18.2σ" in said
    assert ">4σ .41% (803)  max 1.93  std .0412  kurtosis 8.3" in said
    assert "range 21.0× that without outliers  wasted 40.0%" in said
    quiet = await words(whole(), GATE)
    assert "▲" not in quiet
    assert "largest input channel 211, 5.1σ" in quiet


async def test_what_was_refused_is_told_with_its_reason_once() -> None:
    session = whole()
    why = "rows of 768 do not divide into the blocks of 512 of a format that needs them"
    fact = msgspec.structs.replace(r.weights(DOWN, 7), refused={"q4_k": why})
    told(session, p.Learned(("w",), (fact,)))
    told(session, p.Fallback(layer=DOWN, format="q4_k", why=why))
    told(session, p.Fallback(layer=DOWN, format="mxfp4", why="no\x1b[31m"))
    said = await words(session, DOWN)
    assert said.count("no q4_k") == 1
    assert set(why.split()) <= set(said.split())
    assert "\\x1b[31m" in said


async def test_a_layer_s_past_has_an_arrow_a_step_and_the_score_after_each() -> None:
    session = whole()
    holding(session, [DOWN, GATE, UP], INT4, ppl=26.55)
    holding(session, [GATE], INT8, ppl=26.40)
    holding(session, [DOWN], INT8, ppl=26.31)
    holding(session, [DOWN], INT3)
    told(session, undone(session))
    said = await words(session, DOWN)
    past = [line.strip() for line in said[said.index("history") :].splitlines()[:4]]
    assert past[0].split() == ["history", "bf16", "recipe's", "PPL"]
    column = line(said, "history").index("recipe's")
    assert line(said, "→ int4").index("26.55") == column, "a title above its column"
    # GATE and UP are changed as well, whatever the step itself touched.
    assert " ".join(past[1].split()) == "→ int4-g128 26.55 ± .05 with 2 others changed"
    assert " ".join(past[2].split()) == "→ int8 26.31 ± .05 with 2 others changed"
    assert " ".join(past[3].split()) == "→ int3-g128 undone"
    assert "history" not in await words(session, "lm_head")


async def test_a_score_of_a_layer_s_past_says_how_many_others_were_changed_then() -> None:
    session = whole()
    holding(session, [DOWN], INT4, ppl=26.3)
    holding(session, [GATE], INT8)
    holding(session, [DOWN], "bf16", ppl=26.2)
    holding(session, [DOWN, UP], INT8)
    said = await words(session, DOWN, width=62)
    past = [" ".join(line.split()) for line in said[said.index("history") :].splitlines()[1:4]]
    assert past == [
        "→ int4-g128 26.30 ± .05",
        "→ bf16 26.20 ± .05 with 1 other changed",
        "→ int8 together with 1 other",
    ]


async def test_the_format_that_a_layer_holds_is_among_its_errors_measured_or_not() -> None:
    session = whole()
    assert "bf16" not in (await words(session, DOWN)).partition("error of")[2]
    holding(session, [DOWN], "q4_k")
    shown = Detail()
    async with staged(shown, 64, 60) as (_, pilot):
        shown.show(session, DOWN)
        await pilot.pause()
        (words_of,) = [line for line in shown._lines if line and line[0][0].startswith("q4_k")]
        table = shown.figures.text.partition("error of")[2]
    assert words_of[0][1] == "bold $held"
    # A block of 256 weights takes 144 bytes.
    assert "".join(text for text, _ in words_of).split() == [
        "q4_k", "4.50", "error", "not", "measured",
    ]  # fmt: skip
    assert table.index(INT4) < table.index("q4_k") < table.index(INT8), "by their price"
    holding(session, [DOWN], INT4)
    assert "not measured" not in (await words(session, DOWN)).partition("error of")[2]


@pytest.mark.parametrize(("rows", "said"), [(1, "1 row all zero"), (2, "2 rows all zero")])
async def test_one_is_told_in_the_singular(rows: int, said: str) -> None:
    fact = msgspec.structs.replace(r.weights(DOWN, 7), zero_rows=rows, dead_columns=rows)
    session = told(whole(), p.Learned(("w",), (fact,)))
    assert said in await words(session, DOWN)


async def test_one_line_below_is_one_line() -> None:
    shown = Detail()
    async with staged(shown, 80, 17) as (app, pilot):
        shown.show(whole(), DOWN)
        await pilot.pause()
        while "more line" in (seen := app.screen_text()):
            last = seen
            shown.scroll(1)
            await pilot.pause()
        assert "1 more line," in last


async def test_of_a_long_past_the_last_steps_are_shown() -> None:
    session = whole()
    for step in range(9):
        holding(session, [DOWN], f"int4-g{32 * (step + 1)}")
    said = await words(session, DOWN)
    assert "history, the last 6 of 9  int4-g96" in said
    assert said.count("→ int4-g") == 6


def test_scores_of_the_past_are_found_however_it_is_walked() -> None:
    """Against recipes that are kept as they were made, with undo, redo and a new branch."""
    session, past = whole(), LayerHistory()
    recipes: list[dict[str, str]] = []

    def check() -> None:
        for layer in (DOWN, GATE):
            touched = [at for at, step in enumerate(session.history) if layer in step.layers]
            total, steps = past.steps(session, layer)
            assert total == len(touched)
            for at, step in zip(touched, steps, strict=True):
                assert step.score is not None
                assert step.score.recipe == recipe_hash(recipes[at])
                assert step.in_force == (at < session.position)

    def hold(layers: list[str], format: str) -> None:
        del recipes[session.position :]
        holding(session, layers, format, ppl=26.0 + len(session.scores))
        recipes.append(session.recipe())
        check()

    hold([DOWN], INT4)
    hold([DOWN, GATE], INT8)
    hold([GATE], "bf16")
    told(session, undone(session))
    check()
    told(session, undone(session))
    check()
    step = session.history[1]
    told(session, p.RecipeChanged(how="redo", layers=step.layers, before=step.before,
                                  after=step.after, bits=[16, 16]))  # fmt: skip
    check()
    hold([GATE, DOWN], INT3)
    # The same without anything kept from before.
    past = LayerHistory()
    check()


def test_a_long_recipe_is_hashed_a_step_at_a_time_once_the_cursor_rests() -> None:
    layers = [f"model.layers.{i}.mlp.up_proj" for i in range(1500)]
    session = told(Session(), *r.opening(layers))
    holding(session, layers, INT4, ppl=30.0)
    holding(session, layers[:2], INT8, ppl=29.0)
    past = LayerHistory()

    def scores(layer: str, rested: bool) -> list[float | None]:
        steps = past.steps(session, layer, rested=rested)[1]
        return [None if step.score is None else step.score.ppl for step in steps]

    assert scores(layers[0], rested=False) == [None, None]
    assert past.pending
    assert scores(layers[0], rested=True) == [None, 29.0]
    assert scores(layers[0], rested=True) == [30.0, 29.0]
    assert not past.pending
    assert scores(layers[1], rested=False) == [30.0, 29.0]


async def test_the_score_of_a_long_recipe_comes_while_the_cursor_rests() -> None:
    layers = [f"model.layers.{i}.mlp.up_proj" for i in range(1500)]
    session = told(Session(), *r.opening(layers))
    holding(session, layers, INT4, ppl=30.0)
    holding(session, layers[:2], INT8, ppl=29.0)
    shown = Detail()
    async with staged(shown, 64, 60) as (_, pilot):
        shown.show(session, layers[0])
        assert "29.00 ±" not in shown.figures.text
        await until(pilot, lambda: "30.00 ± .05  with 1,499 others" in shown.figures.text)
        assert "29.00 ± .05  with 1,499 others" in shown.figures.text


@pytest.mark.parametrize(("width", "height"), [(80, 17), (55, 30), (72, 40), (120, 12), (60, 11)])
async def test_the_pane_fits_its_room_and_its_end_can_be_reached(width: int, height: int) -> None:
    session = whole()
    holding(session, [DOWN], INT4, ppl=26.4)
    told(session, p.Learned(("c",), (p.Control(DOWN, 0.0, 0.0),)), r.histogram(DOWN))
    shown = Detail()
    async with staged(shown, width, height) as (app, pilot):
        shown.show(session, DOWN)
        await pilot.pause()
        assert all(shown.region.contains_region(part.region) for part in shown.children)
        seen = app.screen_text()
        assert DOWN in seen
        assert "effect of" in seen
        assert ("-4σ" in seen) == (height > 11), "figures come before the plot"
        for _ in range(60):
            shown.scroll(1)
            await pilot.pause()
        seen = app.screen_text()
        assert "no-op control" in seen
        assert DOWN in seen, "the head stays"
        if "the end" in seen:
            assert "effect of" not in seen


async def test_the_wheel_scrolls_and_another_layer_begins_at_its_top() -> None:
    shown = Detail()
    session = whole()
    async with staged(shown, 80, 17) as (app, pilot):
        shown.show(session, DOWN)
        await pilot.pause()
        assert "more lines" in app.screen_text()

        async def turn(event: type[MouseScrollDown | MouseScrollUp]) -> None:
            await pilot._post_mouse_events([event], shown, offset=(5, 5))
            await pilot.pause()

        await turn(MouseScrollDown)
        assert shown.top == Detail.WHEEL
        assert "effect of" not in app.screen_text()
        await turn(MouseScrollUp)
        await turn(MouseScrollUp)
        assert shown.top == 0
        shown.scroll(2)
        shown.show(session, DOWN)
        assert shown.top == 2, "what comes in meanwhile does not turn back"
        shown.show(session, GATE)
        await pilot.pause()
        assert shown.top == 0
        assert "effect of" in app.screen_text()


async def test_the_figures_are_there_before_the_plot() -> None:
    shown = Detail()
    session = whole()
    told(session, r.histogram(DOWN), r.histogram(GATE))
    async with staged(shown, 64, 50) as (app, pilot):
        shown.show(session, GATE)
        await pilot.pause()
        shown.show(session, DOWN)
        assert shown.histogram.drawn == []
        assert "18.2σ" in shown.figures.text
        assert isinstance(app, Stage)


async def test_the_grid_is_drawn_only_of_the_format_that_the_layer_holds() -> None:
    session = whole()
    grid = [level * 0.01 for level in range(-8, 8)]
    found = msgspec.structs.replace(r.histogram(DOWN), format=INT4, grid=grid, step=0.01)
    told(session, found)
    assert "16 levels" not in await words(session, DOWN)
    holding(session, [DOWN], INT4)
    assert "16 levels" in await words(session, DOWN)


EXPERTS = "model.layers.0.mlp.experts.up_proj"


def mixture() -> Session:
    listed = msgspec.structs.replace(r.listed([EXPERTS]), shapes=[(4, 96, 256)], roles=["experts"])
    opening = [listed if isinstance(e, p.LayersListed) else e for e in r.opening([EXPERTS])]
    return told(Session(), *opening, p.Learned(("w",), (r.weights(EXPERTS, 0),)))


async def test_an_expert_has_figures_of_its_own() -> None:
    session = mixture()
    whole = await words(session, EXPERTS)
    assert "[4 × 96 × 256] bfloat16  98k weights  4 experts  block 0" in whole
    waiting = await words(session, EXPERTS, expert=2)
    assert f"{EXPERTS}[2]" in waiting
    assert "[96 × 256]" in waiting
    assert "expert 2 (of 0-3)  block 0" in waiting
    # An expert's own weights and bytes, in 16 bits: 96 · 256 · 2.
    assert "25k weights" in waiting
    assert "16.00 bit/w  49.2 kB" in waiting
    assert "16.00 bit/w  197 kB" in whole
    assert "reading the experts" in waiting
    told(session, p.ExpertsReady(
        layer=EXPERTS, std=[0.01, 0.02, 0.04, 0.03], max_abs=[1.0, 2.0, 3.0, 4.0],
        outliers=[0.1, 0.2, 0.004, 0.3], nonfinite=[0, 0, 7, 0],
        relative={INT4: [0.05, 0.06, 0.11, 0.07]},
    ))  # fmt: skip
    said = await words(session, EXPERTS, expert=2)
    assert line(said, "std").split() == ["std", ".04", ".025", "1", "of", "4"]
    assert line(said, "max").split() == ["max", "3", "2.5", "2", "of", "4"]
    assert line(said, "beyond 4σ").split()[2:] == [".40%", "15.0%", "4", "of", "4"]
    assert line(said, INT4).split() == [INT4, "11.0%", "6.5%", "1", "of", "4"]
    assert "▲ 7 NaN or Inf" in said
    assert "no figures of expert 9, only of 4 experts" in await words(session, EXPERTS, expert=9)


async def test_three_lines_say_the_most_important() -> None:
    session = whole()
    told(session, r.histogram(DOWN))
    shown = Detail()
    shown.add_class("-small")
    async with staged(shown, 80, 24) as (app, pilot):
        shown.show(session, DOWN)
        await pilot.pause()
        first, second, third = app.screen_text().splitlines()[:3]
        assert "▆" in first
        assert "▲ channel 211: 18.2σ" in second
        assert "int4-g128 12.2%" in second
        assert "KL·10³ 5.22 ± .57" in third


@pytest.mark.parametrize("known", [True, False])
async def test_three_lines_name_no_change_of_perplexity_before_there_is_a_baseline(
    known: bool,
) -> None:
    events = [
        event for event in r.opening() if known or event != p.Learned(("baseline",), (r.BASELINE,))
    ]
    session = told(Session(), *events, r.estimated((r.FORMAT,)))
    shown = Detail()
    shown.add_class("-small")
    async with staged(shown, 80, 24) as (app, pilot):
        shown.show(session, DOWN)
        await pilot.pause()
        third = app.screen_text().splitlines()[2]
        assert "KL·10³ ≈" in third
        assert ("ΔPPL" in third) == known


async def test_figures_of_an_effect_do_not_touch_in_ascii() -> None:
    session = whole()
    row = session.index[DOWN]
    known = session.effects.measured[EffectKey("degrade", r.FORMAT)][row]
    assert known is not None
    wide = msgspec.structs.replace(known, kl=0.151, kl_se=0.0139, dnll=0.17, dnll_se=0.02)
    told(session, p.Learned(("wide",), (wide,)))
    shown = Detail(PLAIN)
    async with staged(shown, 64, 60) as (app, pilot):
        shown.show(session, DOWN)
        await pilot.pause()
        said = line(app.screen_text(), r.FORMAT)
        assert re.search(r"151 +\+-27\.\d +\+ ", said), said


async def test_ascii_draws_nothing_else() -> None:
    session = whole()
    holding(session, [DOWN, GATE], INT4, ppl=26.4)
    told(session, r.histogram(DOWN), undone(session))
    shown = Detail(PLAIN)
    async with staged(shown, 64, 60) as (app, pilot):
        shown.show(session, DOWN)
        await pilot.pause()
        assert app.screen_text().isascii()
        assert "-> int4-g128" in app.screen_text()


async def test_nothing_known_is_no_error() -> None:
    session = told(Session(), *[*r.opening()][:4])
    said = await words(session, DOWN)
    assert "not measured yet" in said
    assert "weights not read yet" in said
    shown = Detail()
    async with staged(shown, 64, 20) as (app, pilot):
        shown.show(Session(), None)
        shown.show(Session(), "no such layer")
        shown.scroll(5)
        await pilot.pause()
        assert app.screen_text().strip() == ""
