"""What is on the screen, for what the engine said."""

from __future__ import annotations

import asyncio
import math

import msgspec
import pytest
from textual.filter import NoColor

from engine import protocol as p
from engine.session import Session, apply, recipe_hash
from qtui.app import Appearance, QtuiApp
from qtui.widgets.frame.status import Message
from qtui.widgets.line import Lines
from qtui.widgets.table.layer_table import LayerTable
from tests.qtui import replay as r
from tests.qtui.driving import driving

DOWN = "model.layers.0.mlp.down_proj"
GATE = "model.layers.1.mlp.gate_proj"


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows change places at once, a hand on the keys or not."""
    monkeypatch.setattr(LayerTable, "HOLD", 0.0)


async def test_the_first_frame_is_painted_before_an_engine_is_looked_for() -> None:
    seen: list[str] = []

    async def connect() -> r.Replay:
        strips = app.screen._compositor.render_strips()
        seen.append("\n".join(strip.text for strip in strips))
        return r.Replay()

    app = QtuiApp("demo", r.SETTINGS, r.PROFILE, connect, appearance=Appearance(theme="qtui-dark"))
    async with app.run_test(size=(80, 24)) as pilot:
        async with asyncio.timeout(10):
            while not seen:
                await pilot.pause()
    assert "demo" in seen[0]
    assert "reading…" in seen[0]
    assert "? help" in seen[0]


async def test_opening_asks_for_the_model_its_triage_and_a_sweep() -> None:
    async with driving() as d:
        assert d.link.sent == [p.Open("demo", r.SETTINGS), p.Triage(), p.Sweep()]


async def test_rows_appear_before_anything_is_measured_and_then_fill() -> None:
    async with driving(*r.opening()) as d:
        assert "31 layers" not in d.screen()
        assert "37 layers" in d.screen()
        assert "0 self_attn.q_proj" in d.screen()
        await d.give(*r.triaged())
        assert "12.2%" in d.screen()
        assert ".41%" in d.screen()
        await d.give(*r.swept())
        assert "+ .263 ± .065" in d.screen()
        assert " 8.38 " in d.screen()


async def test_the_worst_layer_is_in_the_first_row_until_a_hand_moves_the_cursor() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept()) as d:
        assert d.table.current == "lm_head"
        assert d.table.cursor == 0
        kls = [d.app.session.sensitivity(row, r.EFFECTS).kl for row in d.table.rows]
        assert kls == sorted(kls, reverse=True)


async def test_the_cursor_stays_on_its_layer_and_line_when_rows_change_places(
    restless: None,
) -> None:
    async with driving(*r.opening(), *r.triaged(), size=(80, 24)) as d:
        for _ in range(20):
            await d.pilot.press("down")
        layer = d.table.current
        await d.give(*r.swept())
        await d.until(lambda: d.table.rows != sorted(d.table.rows))
        assert d.table.current == layer
        first = round(d.table.scroll_y)
        assert first <= d.table.cursor < first + d.table.page


async def test_rows_stay_where_they_are_while_a_hand_moves_the_cursor() -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        before = list(d.table.rows)
        await d.pilot.press("j")
        await d.give(*r.swept())
        assert d.table.rows == before


async def test_a_prediction_is_marked_and_a_measurement_narrows() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept()) as d:
        assert "PPL 26.17 ± .31 " in d.screen()
        await d.give(r.changed(d.app.session, [DOWN], r.FORMAT))
        predicted = 26.17 * math.exp(r.sensitivity(DOWN, 7).dnll)
        assert f"PPL 26.17 → ≈{predicted:.2f} " in d.screen()
        key = recipe_hash(d.app.session.recipe())
        partial = r.score(key, ppl=26.9, half=0.6, tokens=4096)
        await d.give(p.RecipePartial(partial))
        assert f"PPL 26.17 → ≈{predicted:.2f} → 26.90 ± .60 25%" in d.screen()
        await d.give(p.Learned(("recipe",), (r.score(key, ppl=26.42, half=0.05),)))
        assert "PPL 26.17 → 26.42 ± .05 " in d.screen()
        assert "top-1 97.0%" in d.bench.scoreboard.text.splitlines()[1]


async def test_layers_whose_effect_is_filled_in_are_counted_beside_the_prediction() -> None:
    async with driving(*r.opening(), *r.swept()) as d:
        await d.give(r.changed(d.app.session, [DOWN], r.FORMAT))
        await d.give(r.changed(d.app.session, [GATE], "int8"))
        assert "1 by weight error" in d.screen()


@pytest.mark.parametrize("size", [(60, 18), (80, 24), (160, 50)])
async def test_a_perplexity_stands_beside_its_text_and_window(size: tuple[int, int]) -> None:
    async with driving(*r.opening(), *r.triaged(), size=size) as d:
        line = d.bench.scoreboard.text.splitlines()[1]
        assert "26.17" in line
        assert "python" in line
        assert "16k tok, window 256" in line


async def test_the_running_job_has_a_bar_and_the_time_left() -> None:
    async with driving(*r.opening(), *r.swept(24)) as d:
        assert "sweep int4-g128" in d.screen()
        assert "24/37  0:12 left" in d.screen()


async def test_the_jobs_say_how_far_opening_is() -> None:
    events = [e for e in r.opening() if isinstance(e, p.JobStarted)][:1]
    async with driving(*events, p.Stage("loading weights", 12, 48)) as d:
        await d.pilot.press("J")
        await d.until(lambda: "loading weights  25%" in d.screen())


async def test_loading_names_its_stage() -> None:
    events = [*r.opening()][:3]
    async with driving(*events, p.Stage("loading weights", 12, 48)) as d:
        assert "loading weights" in d.screen()
        assert "12/48" in d.screen()


async def test_the_pane_shows_the_histogram_of_the_layer_the_cursor_rests_on() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(), size=(160, 50)) as d:
        await d.until(lambda: d.sent(p.AskHistogram))
        assert d.sent(p.AskHistogram) == [p.AskHistogram("lm_head")]
        await d.pilot.press("j")
        await d.until(lambda: len(d.sent(p.AskHistogram)) == 2)
        assert d.sent(p.AskHistogram)[1] == p.AskHistogram(DOWN)
        await d.give(r.histogram(DOWN))
        screen = d.screen()
        assert "-4σ" in screen
        assert "███" in str(d.bench.detail.histogram.render())
        assert "input channel 211 reaches 18.2σ" in screen
        assert "25.7%" in screen
        await d.pilot.press("k", "j")
        await d.settled()
        assert len(d.sent(p.AskHistogram)) == 2


async def test_a_screen_too_small_says_what_it_needs() -> None:
    async with driving(*r.opening(), size=(50, 12)) as d:
        assert "qtui needs 60 columns and 18 lines." in d.screen()
        assert "PPL" not in d.screen()
        await d.pilot.resize_terminal(80, 24)
        await d.until(lambda: "PPL" in d.screen())
        assert "qtui needs" not in d.screen()


@pytest.mark.parametrize(("width", "height"), [(60, 18), (80, 24), (120, 40), (160, 50)])
async def test_nothing_is_cut_off_at_the_usual_sizes(width: int, height: int) -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(24), size=(width, height)) as d:
        lines = d.screen().splitlines()
        assert len(lines) == height
        assert "demo" in lines[0]
        assert "q quit" in lines[-1]
        assert all(
            d.app.screen.region.contains_region(w.region) for w in d.app.screen.walk_children()
        )


async def test_ascii_draws_nothing_else() -> None:
    events = (*r.opening(), *r.triaged(), *r.swept())
    async with driving(*events, size=(160, 50), ascii=True) as d:
        await d.give(r.changed(d.app.session, ["lm_head"], r.FORMAT), r.histogram("lm_head"))
        assert "*int4-g128" in d.screen()
        assert "####" in d.screen()
        assert d.screen().isascii(), {c for c in d.screen() if not c.isascii()}
        await d.pilot.press("question_mark")
        await d.pilot.pause()
        assert d.screen().isascii()


async def test_names_from_a_checkpoint_cannot_steer_the_terminal() -> None:
    hostile = "model.layers.0.[bold red]\x1b[2J\x07\u202eevil[/]"
    async with driving(*r.opening([hostile, "lm_head"]), size=(160, 50)) as d:
        fact = msgspec.structs.replace(r.weights(hostile, 0), refused={"int3\x1b[H": "no\x9b"})
        await d.give(p.Learned(("w",), (fact,)), p.Notice("error", f"bad tensor {hostile}"))
        screen = d.screen()
        assert "\\x1b[2J" in screen
        assert "[bold red]" in screen
        for steering in "\x1b\x07\x9b\u202e":
            assert steering not in screen


async def test_fallbacks_are_never_silent() -> None:
    async with driving(*r.opening(), size=(80, 24)) as d:
        await d.give(p.Fallback(layer=GATE, format="q4_k", why="768 is not a multiple of 256"))
        assert "cannot use q4_k: 768" in d.bench.message.text
        await d.pilot.press("n")
        await d.pilot.pause()
        # The line goes on in the next: its last word is on the screen.
        assert "256" in [word for line in d.screen().splitlines() for word in line[4:-4].split()]
        assert "768 is not a multiple of 256" in d.app.screen.query_one(Lines).text


@pytest.mark.parametrize("rows", [50, 50_000])
async def test_only_what_is_visible_is_drawn(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [f"model.layers.{i // 100}.mlp.experts.{i % 100}.up_proj" for i in range(rows)]
    drawn: list[int] = []
    render_line = LayerTable.render_line
    monkeypatch.setattr(
        LayerTable, "render_line", lambda self, y: drawn.append(y) or render_line(self, y)
    )
    async with driving(*r.opening(layers), size=(80, 24)) as d:
        height = d.table.size.height
        drawn.clear()
        await d.give(p.Learned(("a",), (r.sensitivity(layers[1], 1),)))
        assert len(drawn) <= 2 * height
        await d.pilot.press("G")
        await d.pilot.pause()
        assert d.table.cursor == rows - 1
        drawn.clear()
        await d.pilot.press("up")
        await d.pilot.pause()
        assert 0 < len(drawn) <= height


async def test_only_the_lines_that_changed_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    render_line = LayerTable.render_line
    monkeypatch.setattr(
        LayerTable, "render_line", lambda self, y: drawn.append(y) or render_line(self, y)
    )
    async with driving(*r.opening()) as d:
        d.table.order_by("layer", descending=False)
        await d.settled()
        drawn.clear()
        await d.give(p.Learned(("w",), (r.weights(r.names()[3], 3),)))
        assert set(drawn) == {4}


async def test_no_color_takes_the_colours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with driving(*r.opening(), *r.swept()) as d:
        assert d.app.no_color
        assert "████" in d.screen()
        # Nothing has a colour once the last of the filters is through with it.
        assert isinstance(d.app.get_line_filters()[-1], NoColor)


async def test_what_became_of_a_job_is_said() -> None:
    async with driving(*r.opening(), *r.swept(3)) as d:
        await d.give(p.JobEnded(job="3", kind="sweep", status="cancelled", resumed=2))
        assert d.bench.message.said[1].startswith("sweep int4-g128: cancelled, 2 saved earlier")
        await d.pilot.press("x")
        assert d.bench.message.said[1] == "nothing is running"


async def test_a_sweep_that_is_over_says_how_effects_add_up() -> None:
    whole = p.Additivity(
        format=r.FORMAT, layers=35, kl=0.93, dnll=0.9, together_kl=0.04, sum_kl=0.043
    )
    async with driving(*r.opening(), *r.swept(), p.Learned(("a",), (whole,))) as d:
        assert "int4-g128 in all body layers: additivity 0.93 (effects add up)" in d.screen()


async def test_the_layer_that_came_under_the_cursor_is_asked_about() -> None:
    async with driving(*r.opening(), *r.triaged()) as d:
        await d.until(lambda: d.sent(p.AskHistogram))
        assert d.sent(p.AskHistogram) == [p.AskHistogram(DOWN)]
        await d.give(*r.swept())
        await d.until(lambda: len(d.sent(p.AskHistogram)) == 2)
        assert d.sent(p.AskHistogram)[1] == p.AskHistogram("lm_head")


async def test_a_histogram_asked_for_too_early_is_asked_for_again_and_is_no_error() -> None:
    *before, ready, ended, notice, baseline = r.opening()
    async with driving(*before) as d:
        await d.until(lambda: d.sent(p.AskHistogram))
        d.link.give(p.Refused("AskHistogram", "the checkpoint has no layer 'model.embed_tokens'"))
        await d.give(ready, ended, notice, baseline)
        await d.until(lambda: len(d.sent(p.AskHistogram)) == 2)
        assert "no layer" not in d.screen()


async def test_a_message_gives_way_to_what_the_marks_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Message, "LINGER", 0.01)
    async with driving(*r.opening()) as d:
        d.bench.message.say("info", "old news")
        await d.until(lambda: "changed by hand" in d.bench.message.text)
        d.bench.message.say("error", "no room")
        await d.pilot.pause(0.05)
        assert "no room" in d.bench.message.text


async def test_what_an_earlier_run_was_told_is_no_news() -> None:
    earlier = Session()
    for event in [*r.opening(), p.Notice("error", "no such text")]:
        apply(earlier, event)
    async with driving(*r.opening()) as d:
        d.link.give(earlier)
        await d.until(lambda: d.app.session is earlier)
        await d.settled()
        assert "no such text" not in d.bench.message.text


async def test_a_session_taken_up_says_so_until_its_model_is_there() -> None:
    async with driving(*r.opening(), *r.swept()) as d:
        await d.give(r.changed(d.app.session, [DOWN, GATE], r.FORMAT))
        again = [p.Opened("demo", r.SETTINGS, {})]
        again.append(
            p.JobStarted(
                job="1", kind="open", command=p.Open("demo", p.Settings()), title="open demo"
            )
        )
        await d.give(*again)
        assert "PPL appears once the model is loaded" in d.screen()
        assert "earlier recipe: 2 layers changed" in d.screen()


async def test_a_sweep_that_was_cancelled_says_how_far_it_came() -> None:
    async with driving(*r.opening(), *r.swept(5)) as d:
        await d.give(p.JobEnded(job="3", kind="sweep", status="cancelled"))
        assert "int4-g128: 5 of 37 layers measured, r resumes" in d.screen()


async def test_the_kl_of_the_recipe_stands_beside_its_perplexity() -> None:
    async with driving(*r.opening(), *r.swept(), size=(80, 24)) as d:
        await d.give(r.changed(d.app.session, [DOWN], r.FORMAT))
        key = recipe_hash(d.app.session.recipe())
        await d.give(p.Learned(("recipe",), (r.score(key, ppl=26.42, half=0.05),)))
        assert "PPL 26.17 → 26.42 ± .05  KL·10³ 10.0" in d.screen()
        assert "16k tok, window 256" in d.screen()


async def test_a_tall_screen_has_the_histogram_below_the_table() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(), size=(120, 40)) as d:
        await d.give(r.histogram("lm_head"))
        assert "-4σ" in d.screen()
        assert "top-1" in d.screen()
        assert d.table.size.height >= 12
