"""The start screen: what is offered, what is said before opening, and what is opened."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from string import ascii_letters, digits

import pytest
from textual.events import Paste

from engine.errors import EngineError
from engine.opening.inspection import Inspection
from engine.store.past_sessions import PastSession
from qtui.views.completion import Completion
from qtui.views.sources import complete_path, complete_source
from qtui.views.text import PLAIN, UNICODE, ago
from qtui.widgets.start import recent
from tests.qtui.driving import press_at_once
from tests.qtui.starting import NOW, looked, session, starting

NAMED = {"/": "slash", "-": "minus"}
"""Keys that have a name of their own."""
TWO = [session("tiny", when=NOW - 7200), session("qwen", "Qwen/Qwen2.5-7B", when=NOW - 300)]


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "long", "short"),
    [(-5, "now", "now"), (59, "now", "now"), (60, "1 min ago", "1 min"), (7300, "2 h ago", "2 h"),
     (86400, "1 day ago", "1 d"), (13 * 86400, "13 days ago", "13 d"),
     (15 * 86400, "2 weeks ago", "2 w"), (100 * 86400, "3 months ago", "3 mo"),
     (800 * 86400, "2 years ago", "2 y"), (float("nan"), "now", "now"),
     (1.7e9, "53 years ago", "53 y")],
)  # fmt: skip
def test_how_long_ago(seconds: float, long: str, short: str) -> None:
    assert ago(seconds) == long
    assert ago(seconds, short=True) == short


def test_what_is_known_of_a_session_in_words() -> None:
    whole = "36/37 layers measured, 3 changed, PPL 26.17 → 26.42, 4.31 bits"
    assert recent.known(session("a"), UNICODE, 80) == whole
    assert recent.known(session("a"), PLAIN, 30) == "36/37, PPL 26.17 -> 26.42"
    assert recent.known(session("a"), UNICODE, 6) == "36/37"
    assert recent.known(session("a", changed=0), UNICODE, 80) == "36/37 layers measured, PPL 26.17"
    assert recent.known(PastSession(name="a"), UNICODE, 80) == "nothing measured yet"


def test_a_checkpoint_in_words_as_far_as_it_is_known() -> None:
    assert recent.sentence(looked("a")) == "Llama 1.1B, 155 layers, bf16, 2.2 GB"
    assert recent.sentence(Inspection(source="a", dtype="float8_e4m3fn")) == "float8_e4m3fn"


# --- completing ----------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tmp_path /= "tree"
    tmp_path.mkdir()
    for name in ("run-10", "run-9", "Other", ".hidden", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "a.safetensors").write_bytes(b"x" * 2500)
    (tmp_path / "model" / "a.bin").write_bytes(b"x" * 9999)
    (tmp_path / "notes.csv").write_text("1,2")
    return tmp_path


def test_folders_complete_and_checkpoints_come_first(tree: Path) -> None:
    offers = complete_path(f"{tree}/")
    assert [offer.text.removeprefix(f"{tree}/") for offer in offers] == [
        "model", "Other/", "run-9/", "run-10/",
    ]  # fmt: skip
    assert offers[0].says == "checkpoint  2.5 kB"
    assert [offer.text for offer in complete_path(f"{tree}/.h")] == [f"{tree}/.hidden/"]
    assert [offer.text for offer in complete_path(f"{tree}/oth")] == [f"{tree}/Other/"]
    assert f"{tree}/notes.csv" in [offer.text for offer in complete_path(f"{tree}/", files=True)]


def test_the_way_stays_as_it_was_typed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree))
    assert complete_path("~") == [Completion("~/")]
    assert [offer.text for offer in complete_path("~/run-1")] == ["~/run-10/"]


@pytest.mark.parametrize("typed", ["/nowhere/at/all/x", "~nobody-here/x", "/etc/passwd/x", "a\0/"])
def test_what_is_no_folder_offers_nothing(typed: str) -> None:
    assert complete_path(typed) == []


def test_known_sources_and_hub_ids_complete_where_no_path_is_typed(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    known = [Completion("org/model-7b", "open 2 h ago")]
    ids = ["org/model-7b", "model-hub"]
    offers = complete_source("model", known, ids)
    assert [offer.text for offer in offers] == ["model-hub", "org/model-7b", "model"]
    assert offers[1].says == "open 2 h ago"
    assert complete_source("./model", known, ids) == complete_path("./model")
    assert complete_source(" ", known, ids) == []


# --- the list ------------------------------------------------------------------------------------


async def test_the_demo_stands_in_the_first_frame_before_any_session_is_read() -> None:
    gate = threading.Event()

    def slow() -> list[PastSession]:
        gate.wait(10)
        return TWO

    async with starting(slow, loaded=False) as d:
        assert "demo" in d.screen()
        assert "reading past sessions" in d.screen()
        gate.set()
        await d.until(lambda: "2 sessions" in d.screen())
        assert d.start.source == "Qwen/Qwen2.5-7B"


async def test_the_cursor_stays_where_a_hand_put_it_while_sessions_arrive() -> None:
    gate = threading.Event()

    def slow() -> list[PastSession]:
        gate.wait(10)
        return TWO

    async with starting(slow, loaded=False) as d:
        await d.press("down")
        gate.set()
        await d.until(lambda: "2 sessions" in d.screen())
        assert d.start.source == "demo"


async def test_sessions_are_listed_with_what_is_known_and_running_ones_first() -> None:
    running = session("live", running=True, when=NOW - 9e6, parameters=7_600_000_000)
    async with starting([*TWO, running], size=(160, 50)) as d:
        rows = [line for line in d.screen().splitlines() if "PPL" in line]
        assert "● live" in rows[0]
        assert "running" in rows[0]
        assert "Llama 7.6B" in rows[0]
        assert "5 min ago" in rows[1]
        assert "36/37 layers measured, 3 changed, PPL 26.17 → 26.42, 4.31 bits" in rows[2]
        assert "● 1 running" in d.screen()
        assert "bundled: no download" in d.screen()


async def test_a_demo_that_was_open_is_not_listed_twice() -> None:
    async with starting([session("demo", "demo")]) as d:
        assert d.start.choices.count == 1


async def test_with_nothing_open_before_it_says_what_to_do() -> None:
    async with starting() as d:
        assert "No sessions yet: enter opens the demo" in d.screen()
        await d.press("enter")
        await d.until(lambda: d.shell.chosen)
        assert d.shell.chosen == [("demo", "standard")]


async def test_sessions_that_cannot_be_read_leave_the_demo() -> None:
    def broken() -> list[PastSession]:
        raise EngineError("/state/sessions: permission denied")

    async with starting(broken) as d:
        assert "past sessions cannot be read: /state/sessions: permission denied" in d.screen()
        await d.press("enter")
        await d.until(lambda: d.shell.chosen)


async def test_many_sessions_scroll_and_names_of_strangers_are_harmless() -> None:
    many = [session(f"n{n}", when=NOW - n) for n in range(40)]
    many.append(session("a\x1b[31m" + "é" * 200, when=NOW + 5))
    async with starting(many, size=(60, 18)) as d:
        assert "\x1b" not in d.screen()
        assert "a\\x1b[31m" in d.screen()
        assert max(map(len, d.screen().splitlines())) <= 60
        await d.press("end")
        assert d.start.source == "demo"
        assert "demo" in d.screen()
        await d.press("pageup", "home")
        assert d.start.choices.top == 0


async def test_a_click_chooses_and_two_open() -> None:
    async with starting(TWO) as d:
        await d.pilot.click("#recent", offset=(8, 1))
        assert d.start.source == "/m/tiny"
        assert d.shell.chosen == []
        await d.pilot.double_click("#recent", offset=(8, 1))
        await d.until(lambda: d.shell.chosen)
        assert d.shell.chosen == [("/m/tiny", "standard")]


# --- inspecting and opening ----------------------------------------------------------------------


async def missing(source: str) -> Inspection:
    if "gone" in source:
        return looked(source, problem=f"{source}: no such folder", advice="mount the drive")
    return looked(source, note="from the hub's cache")


async def test_a_row_says_what_it_is() -> None:
    async with starting(TWO, inspect=missing) as d:
        await d.until(lambda: "155 layers" in d.screen())
        assert "Llama 1.1B, 155 layers, bf16, 2.2 GB" in d.screen()
        assert "from the hub's cache" in d.screen()


async def test_a_problem_is_said_before_and_enter_says_it_again() -> None:
    async with starting([session("old", "/m/gone")], inspect=missing) as d:
        await d.until(lambda: "! /m/gone: no such folder" in d.screen())
        assert "mount the drive" in d.screen()
        await d.press("enter")
        await d.until(lambda: "x not opened: /m/gone: no such folder" in d.screen())
        assert d.shell.chosen == []


async def test_a_problem_that_was_mended_is_seen_at_the_next_enter() -> None:
    broken = [True]

    async def inspect(source: str) -> Inspection:
        return looked(source, problem="no weights" if broken[0] else "")

    async with starting(TWO, inspect=inspect) as d:
        await d.until(lambda: "! no weights" in d.screen())
        broken[0] = False
        await d.press("enter")
        await d.until(lambda: d.shell.chosen)


async def test_a_session_that_cannot_be_read_is_not_opened() -> None:
    async with starting([PastSession(name="lost", when=NOW, problem="its journal is torn")]) as d:
        await d.press("enter")
        await d.until(lambda: "x not opened: its journal is torn" in d.screen())
        assert d.shell.chosen == []


async def test_enter_waits_for_an_inspection_and_a_second_one_does_not() -> None:
    gate = asyncio.Event()

    async def inspect(source: str) -> Inspection:
        await gate.wait()
        return looked(source)

    async with starting(TWO, inspect=inspect) as d:
        await d.press("enter")
        assert d.shell.chosen == []
        assert "press enter again to open now" in d.screen()
        await d.press("enter")
        assert d.shell.chosen == [("Qwen/Qwen2.5-7B", "standard")]


async def test_an_inspection_is_cancelled_when_the_value_changes() -> None:
    ended: list[str] = []
    begun: list[str] = []

    async def inspect(source: str) -> Inspection:
        begun.append(source)
        try:
            if source == "/m/tiny":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(source)
            raise
        return looked(source)

    async with starting(TWO, inspect=inspect) as d:
        await d.press("down")
        await d.until(lambda: "/m/tiny" in begun)
        await d.press("up")
        await d.until(lambda: ended == ["/m/tiny"])
        await d.until(lambda: "155 layers" in d.screen())


async def test_an_inspection_that_fails_is_a_problem_in_words() -> None:
    async def inspect(source: str) -> Inspection:
        raise EngineError("it could not\nbe started")

    async with starting(inspect=inspect) as d:
        await d.until(lambda: "! it could not be started" in d.screen())


# --- the line ------------------------------------------------------------------------------------


async def test_typing_goes_to_the_line_and_opens_what_it_says() -> None:
    async with starting(TWO, inspect=missing, hub_ids=["meta-llama/Llama-3.1-8B"]) as d:
        await d.type("meta")
        await d.until(lambda: d.start.prompt.offers)
        assert d.start.focused is d.start.prompt.entry
        await d.press("tab")
        assert d.start.source == "meta-llama/Llama-3.1-8B"
        await d.until(lambda: "155 layers" in d.screen())
        await d.press("enter")
        await d.until(lambda: d.shell.chosen)
        assert d.shell.chosen == [("meta-llama/Llama-3.1-8B", "standard")]


async def test_a_question_mark_is_a_letter_in_the_line_and_outside_lists_the_keys() -> None:
    async with starting(TWO) as d:
        await d.press("a", "q", "question_mark")
        assert d.start.prompt.value == "aq?"
        await d.press("escape", "question_mark")
        assert d.start.prompt.value == ""
        assert "typing goes there" in d.screen()
        assert "Quit (press twice)" in d.screen()
        await d.press("escape")
        assert d.app.screen is d.start
        assert d.shell.left == 0


@pytest.mark.parametrize("first", ascii_letters + digits + "/.~_-")
async def test_no_letter_does_anything_but_begin_what_is_typed(first: str) -> None:
    async with starting(TWO) as d:
        press_at_once(d.app, *(NAMED.get(each, each) for each in f"{first}wen"))
        await d.until(lambda: d.start.prompt.value == f"{first}wen")
        assert d.shell.left == 0
        assert d.app.screen is d.start


async def test_escape_quits_when_pressed_twice_and_any_other_key_stays() -> None:
    async with starting(TWO) as d:
        assert "type a path or hub id" in d.screen().splitlines()[-1]
        await d.press("escape")
        assert "again to quit" in d.screen().splitlines()[-1]
        await d.press("down")
        assert "again to quit" not in d.screen()
        await d.press("escape", "tab", "shift+tab", "escape")
        assert d.shell.left == 0
        await d.press("escape")
        assert d.shell.left == 1


async def test_escape_empties_what_is_typed_before_it_quits() -> None:
    async with starting(TWO) as d:
        await d.press("a", "b", "tab")
        assert d.start.focused is d.start.profile
        await d.press("escape")
        assert d.start.prompt.value == ""
        assert d.start.focused is d.start.choices
        assert "again to quit" not in d.screen()
        await d.press("a")
        assert "ctrl+c quit" in d.screen().splitlines()[-1]
        await d.press("escape", "escape")
        assert d.shell.left == 0
        await d.press("escape")
        assert d.shell.left == 1


# --- the user's own files ------------------------------------------------------------------------


async def test_nothing_is_said_of_files_that_are_fine() -> None:
    async with starting(TWO) as d:
        assert not d.start.wrong.display


@pytest.mark.parametrize("size", [(60, 18), (80, 24), (160, 50)])
async def test_a_problem_of_ones_own_files_is_told_and_all_of_them_can_be_read(
    size: tuple[int, int],
) -> None:
    problems = [
        "keymap.toml: line 3: there is no action 'swep',\nexpected sweep\x1b[31m; " + "x " * 60,
        "themes/mine.toml: colour 'primary' is 'blu', expected #rrggbb",
        "state.toml: it cannot be read",
    ]
    async with starting(TWO, problems=problems, size=size) as d:
        told = next(line for line in d.screen().splitlines() if "keymap.toml" in line)
        assert told.lstrip().startswith("! keymap.toml: line 3")
        assert told.rstrip().endswith("2 more, ? shows all")
        assert "\x1b" not in d.screen()
        await d.press("question_mark")
        shown = " ".join(re.sub("[│▁-█]", " ", d.screen()).split())  # border and scroll bar
        assert "expected sweep\\x1b[31m;" in shown
        assert "themes/mine.toml: colour 'primary' is 'blu', expected #rrggbb" in shown
        assert "state.toml: it cannot be read" in shown


async def test_a_problem_that_fits_is_told_whole() -> None:
    async with starting(problems=["keymap.toml: 'q' twice"]) as d:
        lines = [line.strip() for line in d.screen().splitlines()]
        assert "! keymap.toml: 'q' twice" in lines
        assert not any("shows all" in line for line in lines)


async def test_a_slash_begins_a_path(tree: Path) -> None:
    async with starting(TWO) as d:
        await d.type(f"{tree}/mod")
        await d.until(lambda: d.start.prompt.offers)
        assert "checkpoint  2.5 kB" in d.screen()
        await d.press("tab", "enter")
        await d.until(lambda: d.shell.chosen)
        assert d.shell.chosen == [(f"{tree}/model", "standard")]


async def test_a_session_can_be_named() -> None:
    async with starting(TWO) as d:
        await d.type("tiny")
        await d.press("enter")
        await d.until(lambda: d.shell.chosen)
        assert d.shell.chosen == [("/m/tiny", "standard")]


async def test_enter_in_an_empty_line_says_what_to_type() -> None:
    async with starting(TWO) as d:
        await d.press("tab", "enter")
        assert d.shell.chosen == []
        assert "type a source" in d.screen()


async def test_a_paste_anywhere_goes_to_the_line() -> None:
    async with starting(TWO) as d:
        d.start.choices.post_message(Paste("org/model\nrm -rf\n"))
        await d.until(lambda: d.start.prompt.value)
        assert d.start.prompt.value == "org/model"


# --- profile, size -------------------------------------------------------------------------------


async def test_arrows_choose_the_profile_and_it_goes_along() -> None:
    async with starting(TWO) as d:
        assert "standard ›   16k tokens, window up to 2048" in d.screen()
        await d.press("right")
        assert "thorough ›   131k tokens" in d.screen()
        await d.press("right", "left", "left", "enter")
        await d.until(lambda: d.shell.chosen)
        assert d.shell.chosen[0][1] == "standard"


async def test_tab_goes_round_list_line_and_profile() -> None:
    async with starting(TWO) as d:
        places = []
        for _ in range(3):
            await d.press("tab")
            places.append(d.start.focused)
        assert places == [d.start.prompt.entry, d.start.profile, d.start.choices]
        await d.press("tab", "tab", "left")
        assert d.start.profile.chosen == "quick"
        await d.press("shift+tab", "up")
        assert d.start.focused is d.start.choices


@pytest.mark.parametrize("size", [(60, 18), (80, 24), (200, 50)])
async def test_everything_has_its_place_in_every_size(size: tuple[int, int]) -> None:
    async with starting([session(f"n{n}", when=NOW - n) for n in range(40)], size=size) as d:
        await d.until(lambda: "155 layers" in d.screen())
        for words in ("n0", "open: a path or a hub id", "standard", "help", "quit"):
            assert words in d.screen(), words


async def test_ascii_is_ascii() -> None:
    async with starting(TWO, ascii=True, size=(80, 24)) as d:
        await d.until(lambda: "155 layers" in d.screen())
        body = "\n".join(d.screen().splitlines()[:-1])  # the app writes the names of keys
        assert body.isascii()


async def test_too_small_a_terminal_is_told() -> None:
    async with starting(TWO, size=(50, 12)) as d:
        assert "qtui needs 60 columns and 18 lines" in d.screen()
        await d.pilot.resize_terminal(80, 24)
        await d.until(lambda: "2 sessions" in d.screen())


async def test_delete_twice_removes_a_session_and_another_key_does_not() -> None:
    past = {each.name: each for each in [*TWO, session("busy", when=NOW - 9e5, running=True)]}
    removed: list[str] = []

    def remove(name: str) -> None:
        removed.append(name)
        del past[name]

    async with starting(lambda: list(past.values()), remove=remove, size=(120, 34)) as hand:
        await hand.press("delete")
        assert "an engine has it open" in hand.screen()
        await hand.press("down", "delete")
        assert "again removes qwen" in hand.screen()
        await hand.press("down", "up", "delete")
        assert not removed
        await hand.press("delete")
        await hand.until(lambda: "2 sessions" in hand.screen())
        assert removed == ["qwen"]
        assert "qwen" not in hand.screen()
