"""What keys and mouse do."""

from __future__ import annotations

import msgspec
from textual import events

from engine import protocol as p
from engine.session import running
from qtui.app import Appearance, QtuiApp
from qtui.user.keymap import UNBOUND
from qtui.user.remembered import recall
from qtui.widgets.table.layer_table import LayerTable
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving
from tests.qtui.play import Pretender

DOWN = "model.layers.0.mlp.down_proj"
GATE = "model.layers.1.mlp.gate_proj"


async def test_a_column_to_sort_by_is_chosen_from_a_list_and_enter_goes_back() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept(), size=(80, 24)) as d:
        await d.pilot.press("G")
        left = d.table.current
        await d.pilot.press("o", *"weight err", "enter")
        await d.settled()
        assert d.table.order == ("error", True)
        assert d.table.cursor == 0
        assert d.table.scroll_y == 0
        assert "sorted by weight error" in d.bench.message.text
        await d.pilot.press("O")
        assert "sorted by weight error, smallest first" in d.bench.message.text
        await d.pilot.press("o", "enter")
        assert d.table.order == ("kl", True)
        assert d.table.current == "lm_head"
        await d.pilot.press("j", "G", "apostrophe")
        assert d.table.cursor == 1
        d.table.move_to(len(d.table.rows) - 1)
        assert d.table.current == left
        known = [row for row in d.table.rows if d.app.session.sensitivity(row, r.EFFECTS)]
        await d.pilot.press("O")
        assert [row for row in d.table.rows if row in known] == known[::-1]


async def test_keys_and_mouse_move_the_cursor() -> None:
    async with driving(*r.opening(), size=(80, 24)) as d:
        for key, place in (
            ("down", 1), ("j", 2), ("k", 1), ("up", 0), ("up", 0), ("G", 36), ("down", 36),
            ("g", 0), ("end", 36), ("home", 0), ("pagedown", d.table.page), ("pageup", 0),
        ):  # fmt: skip
            await d.pilot.press(key)
            assert d.table.cursor == place, key
        await d.pilot.click(LayerTable, offset=(5, 4))
        assert d.table.cursor == 3


async def test_a_toggle_is_sent_and_seen_at_once_and_marked_when_the_engine_agrees() -> None:
    async with driving(*r.opening(), *r.triaged(), *r.swept()) as d:
        await d.pilot.press("j")
        await d.pilot.press("4")
        await d.pilot.pause()
        assert d.table.current == DOWN
        assert "○int4-g128" in d.screen()
        await d.until(lambda: d.sent(p.SetFormat))
        assert d.sent(p.SetFormat) == [p.SetFormat((DOWN,), "int4-g128")]
        await d.give(r.changed(d.app.session, [DOWN], "int4-g128"))
        assert "●int4-g128" in d.screen()
        assert "○" not in d.screen()
        await d.pilot.press("f")
        await d.until(lambda: len(d.sent(p.SetFormat)) == 2)
        assert d.sent(p.SetFormat)[-1] == p.SetFormat((DOWN,), "kept")


async def test_marked_layers_are_toggled_together() -> None:
    async with driving(*r.opening()) as d:
        await d.pilot.press("j", "space", "space", "8")
        await d.until(lambda: d.sent(p.SetFormat))
        first = tuple(f"model.layers.0.self_attn.{kind}" for kind in ("q_proj", "k_proj"))
        assert d.sent(p.SetFormat) == [p.SetFormat(first, "int8")]
        assert d.table.marked == set(first)
        assert "2 marked layers" in d.bench.message.text
        await d.pilot.press("escape", "8")
        await d.until(lambda: len(d.sent(p.SetFormat)) == 2)
        assert len(d.sent(p.SetFormat)[1].layers) == 1


async def test_what_the_engine_refuses_is_taken_back_and_said() -> None:
    async with driving(*r.opening()) as d:
        await d.pilot.press("4")
        await d.until(lambda: d.sent(p.SetFormat))
        assert d.table.pending
        said = "model.embed_tokens cannot hold int4-g128"
        await d.give(p.Refused("Undo", "nothing to undo", ask="another's"))
        assert d.table.pending
        await d.give(p.Refused("SetFormat", said, ask=d.ask(p.SetFormat)))
        assert not d.table.pending
        assert "model.embed_tokens cannot hold int4-g128" in d.bench.message.text


async def test_keys_send_their_commands() -> None:
    async with driving(*r.opening(), *r.swept(3)) as d:
        await d.give(r.changed(d.app.session, [DOWN], r.FORMAT))
        await d.give(r.changed(d.app.session, [GATE], r.FORMAT))
        wanted = (p.Undo, p.Redo, p.Sweep, p.Cancel)
        await d.pilot.press("u")
        await d.give(
            p.RecipeChanged(
                how="undo", layers=[GATE], before=[r.FORMAT], after=["bf16"], bits=[3145728]
            )
        )
        await d.pilot.press("U", "ctrl+r", "x")
        await d.until(lambda: len(d.sent(p.Cancel)) == 1)
        await d.give(p.JobEnded(job="3", kind="sweep", status="cancelled"))
        await d.pilot.press("r")
        await d.until(lambda: len(d.sent(p.Sweep)) == 2)
        commands = [command for command in d.link.sent[3:] if isinstance(command, wanted)]
        swept = p.Sweep((r.FORMAT,))
        assert commands == [p.Undo(), p.Redo(), p.Redo(), p.Cancel("3"), swept]


async def test_what_cannot_be_done_says_why_and_asks_nothing_of_the_engine() -> None:
    async with driving(*r.opening(), *r.swept(3)) as d:
        for key, why in (
            ("u", "nothing to undo"),
            ("U", "nothing to redo"),
            ("r", "nothing has failed"),
            ("enter", "has no experts"),
            ("c", "fewer than two formats"),
        ):
            await d.pilot.press(key)
            assert why in d.bench.message.text, key
        assert not [c for c in d.link.sent[3:] if not isinstance(c, p.AskHistogram)]


async def test_a_change_that_is_not_confirmed_yet_can_be_undone() -> None:
    async with driving(*r.opening()) as d:
        await d.pilot.press("4", "u")
        await d.until(lambda: d.sent(p.Undo))


async def test_the_pane_folds_and_unfolds() -> None:
    async with driving(*r.opening(), *r.triaged(), size=(80, 24)) as d:
        assert d.table.display
        await d.pilot.press("tab")
        await d.pilot.pause()
        assert not d.table.display
        assert "error of" in d.screen()
        await d.pilot.press("j", "tab")
        await d.pilot.pause()
        assert d.table.display
        assert d.table.cursor == 1


async def test_help_and_key_bar_list_the_keys_as_they_are_bound() -> None:
    keymap = {"sweep": "X", "undo": UNBOUND, "hold.int8": "f8"}
    async with driving(*r.opening(), size=(120, 80), keymap=keymap) as d:
        assert "X restore" in d.bench.keybar.text
        assert "undo" not in d.bench.keybar.text
        assert "f8" in d.bench.keybar.text.split()
        await d.pilot.press("question_mark")
        await d.pilot.pause()
        lines = [line for line in d.screen().splitlines() if "degrade or restore" in line]
        assert " X " in lines[0]
        assert "Set int4-g128" in d.screen()
        await d.pilot.press("escape")
        await d.pilot.press("X")
        await d.until(lambda: d.bench.direction == "restore")
        await d.pilot.press("f8")
        await d.until(lambda: d.sent(p.SetFormat))


async def test_every_binding_can_be_remapped() -> None:
    async with driving() as d:
        bindings = [binding for _, binding in d.bench._bindings]
        assert bindings
        ours = [b for b in bindings if b.action.startswith("do(")]
        assert len(ours) >= 40
        assert all(binding.id for binding in ours)


async def test_a_format_on_a_key_that_is_taken_is_left_out_and_said() -> None:
    profile = msgspec.structs.replace(r.PROFILE, keys={"s": "int8", "4": "int4-g128"})
    async with driving(profile=profile) as d:
        assert "'s' is already taken" in d.bench.message.text


async def test_the_effects_of_another_swept_format_can_be_shown() -> None:
    async with driving(*r.opening(), *r.swept()) as d:
        await d.give(p.Learned(("s",), (r.sensitivity(GATE, 12, "int8"),)))
        assert "of int4-g128" in d.screen()
        await d.pilot.press("c")
        await d.settled()
        assert "of int8" in d.screen()
        assert d.table.current == GATE


async def test_turning_the_wheel_leaves_the_cursor_and_the_order() -> None:
    async with driving(*r.opening(), *r.triaged(), size=(80, 24)) as d:
        before = list(d.table.rows)
        await d.pilot.press("j")
        d.table._moved_at = float("-inf")
        await d.pilot._post_mouse_events([events.MouseScrollDown], LayerTable, (5, 5))
        await d.until(lambda: d.table.scroll_y > 0)
        assert d.table.cursor == 1
        await d.give(*r.swept())
        assert d.table.rows == before


async def test_a_pretended_engine_answers_keys() -> None:
    link = Pretender(0.0)

    async def connect() -> Pretender:
        return link

    app = QtuiApp("demo", r.SETTINGS, r.PROFILE, connect, appearance=Appearance(theme="qtui-dark"))
    async with app.run_test(size=(100, 30)) as pilot:
        d = Driver(app, pilot, link)
        await d.until(lambda: running(app.session) == [] and len(app.session.jobs) == 3)
        await d.pilot.press("j", "4")
        await d.until(lambda: app.session.scores)
        await d.settled()
        assert "26.17 → " in d.screen()
        await d.pilot.press("u")
        await d.until(lambda: app.session.position == 0)
        await d.settled()
        assert "→" not in d.bench.scoreboard.text
        await d.pilot.press("U")
        await d.until(lambda: app.session.position == 1)
        await d.pilot.press("q")
        await d.until(lambda: app.return_code is not None)


async def test_a_refusal_takes_back_only_the_layers_it_is_about() -> None:
    async with driving(*r.opening()) as d:
        await d.pilot.press("4", "j", "4")
        await d.until(lambda: len(d.sent(p.SetFormat)) == 2)
        refused, waiting = d.table.pending
        ask = d.ask(p.SetFormat, 0)
        await d.give(p.Refused("SetFormat", "cannot hold int4-g128", 2, (refused,), ask))
        assert list(d.table.pending) == [waiting]
        await d.give(p.Notice("info", "by the way"))
        assert list(d.table.pending) == [waiting]
        await d.give(r.changed(d.app.session, [waiting], "int4-g128"))
        assert not d.table.pending


async def test_what_was_undone_is_named() -> None:
    async with driving(*r.opening()) as d:
        await d.give(r.changed(d.app.session, [DOWN], "int4-g128"))
        undone = p.RecipeChanged(
            how="undo", layers=[DOWN], before=["int4-g128"], after=["bf16"], bits=[3145728]
        )
        await d.give(undone)
        assert d.bench.message.said == ("info", "undone: 0 mlp.down_proj → bf16")


async def test_one_interrupt_asks_and_two_quit() -> None:
    async with driving(*r.opening()) as d:
        await d.pilot.press("ctrl+c")
        await d.pilot.pause()
        assert "ctrl+c again to quit" in d.bench.message.text
        assert d.app.return_code is None
        await d.pilot.press("ctrl+c")
        await d.until(lambda: d.app.return_code is not None)
        assert d.link.sent[-1] == p.Stop()


async def test_an_interrupt_cancels_a_prompt_and_closes_an_overlay_and_never_quits_from_them() -> (
    None
):
    async with driving(*r.opening()) as d:
        await d.pilot.press("slash", *"down")
        assert len(d.table.rows) == 5
        await d.pilot.press("ctrl+c")
        await d.settled()
        assert len(d.table.rows) == 37
        for key in ("f1", "colon", "o"):
            await d.pilot.press(key)
            await d.until(lambda: d.app.screen is not d.bench)
            await d.pilot.press("ctrl+c")
            await d.until(lambda: d.app.screen is d.bench)
        assert d.app.return_code is None
        assert "ctrl+c again" not in d.bench.message.text


async def test_the_help_is_searched_and_runs_what_it_lists() -> None:
    async with driving(*r.opening()) as d:
        await d.pilot.press("f1", "slash")
        await d.until(lambda: type(d.app.screen).__name__ == "Palette")
        await d.pilot.press(*"outlier")
        await d.settled()
        assert "an outlier input channel" in d.screen()
        await d.pilot.press("escape", "question_mark", "a")
        await d.until(lambda: d.app.screen is d.bench)
        await d.until(lambda: d.table.marked)


async def test_the_palette_knows_other_words_and_typos() -> None:
    async with driving(*r.opening()) as d:
        for words, id in (
            ("precision", "hold"), ("export", "save"), ("target", "scope"), ("queue", "jobs"),
            ("unod", "undo"), ("fitler", "filter"), ("theme contrast", "theme:contrast"),
        ):  # fmt: skip
            await d.pilot.press("colon", *words)
            await d.pilot.pause()
            ids = [entry.id for entry, _ in d.app.screen.found]
            assert id in ids, words
            await d.pilot.press("escape")


async def test_sections_can_be_hidden_and_stay_so() -> None:
    async with driving(*r.opening(), size=(120, 40)) as d:
        assert d.bench.log_pane.size.height
        await d.pilot.press("N")
        await d.pilot.pause()
        assert not d.bench.log_pane.size.height
        assert recall()[0].log is False
        await d.pilot.press("N", "tab", "tab")
        await d.pilot.pause()
        assert not d.bench.detail.size.height
        assert recall()[0].pane is False


async def test_jobs_are_listed_and_can_be_cancelled_and_rearranged() -> None:
    waiting = p.JobStarted(
        job="9", kind="sweep", command=p.Sweep(("int8",)), title="sweep int8", urgency=4
    )
    async with driving(*r.opening(), *r.swept(3)) as d:
        await d.give(waiting)
        assert "next: sweep int8" in d.screen()
        await d.pilot.press("x")
        await d.until(lambda: type(d.app.screen).__name__ == "Jobs")
        assert d.screen().index("runs   sweep int4-g128") < d.screen().index("waits  sweep int8")
        await d.pilot.press("j", "f")
        await d.until(lambda: d.sent(p.RunFirst) == [p.RunFirst("9")])
        await d.give(p.JobFirst("9"))
        d.app.screen._look()
        await d.pilot.pause()
        assert d.screen().index("runs   sweep int8") < d.screen().index("waits  sweep int4-g128")
        await d.pilot.press("x")
        await d.until(lambda: d.sent(p.Cancel) == [p.Cancel("9")])
        assert "cancelling sweep int8: what is measured is kept" in d.bench.message.text


async def test_processes_are_listed_under_their_job() -> None:
    waiting = p.JobStarted(
        job="9", kind="sweep", command=p.Sweep(("int8",)), title="sweep int8", urgency=4
    )
    workers = p.Workers(
        "3",
        (
            p.WorkerState(name="engine", status="measuring", subject="lm_head int4-g128", done=3),
            p.WorkerState(name="1 on cuda:1", status="lost", done=2, per_minute=7.0),
        ),
    )
    async with driving(*r.opening(), *r.swept(3), waiting, workers, size=(100, 30)) as d:
        await d.pilot.press("x")
        await d.until(lambda: type(d.app.screen).__name__ == "Jobs")
        screen = d.screen()
        lines = [
            "runs   sweep int4-g128",
            "engine  measuring  lm_head int4-g128  3 done",
            "1 on cuda:1  lost  2 done, 7 a minute",
            "waits  sweep int8",
        ]
        assert [screen.index(line) for line in lines] == sorted(map(screen.index, lines))
        await d.pilot.press("j", "j", "f")  # they are of a job that runs already
        await d.pilot.press("j", "f")
        await d.until(lambda: d.sent(p.RunFirst) == [p.RunFirst("9")])


async def test_help_explains_the_marks_and_fits_its_columns() -> None:
    async with driving(*r.opening(), size=(80, 90)) as d:
        await d.pilot.press("question_mark")
        await d.pilot.pause()
        screen = d.screen()
        assert "changed by hand" in screen
        assert "95% interval" in screen
        for words in (
            "Show degrade or restore",
            "Suspend (fg resumes)",
            "Mark, and move down",
        ):
            assert words in screen
        assert any("Move" in line and "Recipe" in line for line in screen.splitlines())


async def test_help_shows_long_titles_whole_in_further_lines() -> None:
    async with driving(*r.opening(), size=(80, 100)) as d:
        await d.pilot.press("question_mark")
        await d.pilot.pause()
        screen = d.screen()
        titles = [action.title for action in d.bench.actions if action.keys]
        assert any(len(title) > 30 for title in titles)
        words = {word for title in titles for word in title.split()}
        assert not {word for word in words if word not in screen}
        keys = screen[: screen.index("Reading the screen")]
        assert d.bench.glyphs.ellipsis not in keys


async def test_digits_in_a_row_are_one_entry_of_the_key_bar() -> None:
    keys = {key: f"int{key}-g128" for key in "23456"} | {"8": "int8", "f": "kept"}
    profile = msgspec.structs.replace(r.PROFILE, keys=keys)
    async with driving(*r.opening(), size=(80, 24), profile=profile) as d:
        assert "2-6 8 f toggle" in d.screen()


async def test_the_key_of_suspending_can_be_given_to_another_action() -> None:
    keymap = {"suspend": "f9", "undo": "ctrl+z"}
    async with driving(*r.opening(), keymap=keymap) as d:
        await d.give(r.changed(d.app.session, [DOWN], r.FORMAT))
        await d.pilot.press("ctrl+z")
        await d.until(lambda: d.sent(p.Undo))
