"""The prompt: completing, judging, history, and keys that must not reach the screen."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Key, Paste
from textual.screen import Screen

from qtui.views.text import PLAIN, UNICODE, Glyphs, printable
from qtui.widgets.line import Lines
from qtui.widgets.prompt.offers import in_common, shortened
from qtui.widgets.prompt.prompt import Completion, Prompt, Verdict, open_prompt
from tests.qtui.starting import Hand, Shell

FORMATS = ("int4-channel", "int4-g128", "int4-g64", "int8", "nf4")


def formats(value: str) -> list[Completion]:
    return [Completion(name, f"says {name}") for name in FORMATS if name.startswith(value)]


def judge(value: str) -> Verdict:
    known = value in FORMATS
    return Verdict(known, f"{value} is known" if known else f"{value!r} is no format")


class Foot(Screen[None]):
    """A screen whose keys a prompt could steal, or have stolen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "note('q')", "Quit", id="quit", priority=True),
        Binding("slash", "note('slash')", "Filter", id="filter", priority=True),
        Binding("i,n,4,tab,up,down,enter,escape", "note('key')", "Key", id="key"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] = []
        self.heard: list[tuple[str, object]] = []

    def compose(self) -> ComposeResult:
        body = Lines(id="body")
        body.styles.height = "1fr"
        body.set_lines([[(f"row {n}", "")] for n in range(60)])
        yield body

    def action_note(self, what: str) -> None:
        self.noted.append(what)

    def on_prompt_changed(self, message: Prompt.Changed) -> None:
        self.heard.append(("changed", (message.value, message.verdict.ok)))

    def on_prompt_submitted(self, message: Prompt.Submitted) -> None:
        self.heard.append(("submitted", message.value))

    def on_prompt_cancelled(self, message: Prompt.Cancelled) -> None:
        self.heard.append(("cancelled", message.prompt.value))


class Prompting(Hand):
    """An open prompt on a screen."""

    def __init__(self, app: Shell, foot: Foot, pilot: object, prompt: Prompt) -> None:
        super().__init__(app, pilot)  # type: ignore[arg-type]
        self.foot, self.prompt = foot, prompt

    def reopen(self, prompt: Prompt) -> None:
        self.prompt = prompt
        open_prompt(self.foot, prompt)


@asynccontextmanager
async def prompting(
    prompt: Prompt | None = None, size: tuple[int, int] = (80, 24)
) -> AsyncIterator[Prompting]:
    foot = Foot()
    app = Shell(foot)
    prompt = prompt or Prompt("format", formats, judge)
    async with app.run_test(size=size) as pilot:
        open_prompt(foot, prompt)
        await pilot.pause()
        yield Prompting(app, foot, pilot, prompt)


@pytest.mark.parametrize(
    ("texts", "common"),
    [([], ""), (["int4"], "int4"), (["int4-g128", "int4-g64"], "int4-g"), (["a", "b"], ""),
     (["int4", "int4-g64"], "int4"), (["b", "ba", "bab"], "b")],
)  # fmt: skip
def test_what_texts_have_in_common(texts: list[str], common: str) -> None:
    assert in_common(texts) == common


async def test_completions_and_verdict_follow_every_letter() -> None:
    async with prompting() as d:
        assert [offer.text for offer in d.prompt.offers] == list(FORMATS)
        await d.press("i", "n", "t", "8")
        assert [offer.text for offer in d.prompt.offers] == ["int8"]
        screen = d.screen().splitlines()
        assert "int8  says int8" in screen[-3]
        assert "format: int8" in screen[-2]
        assert "int8 is known" in screen[-1]
        await d.press("9")
        assert "! 'int89' is no format" in d.screen()


async def test_letters_never_reach_the_screen_not_even_one_with_priority() -> None:
    async with prompting() as d:
        await d.press("q", "slash", "i", "n", "4", "tab", "up", "down")
        assert d.foot.noted == []
        assert d.prompt.value == "q/in4"
        await d.press("escape")
        await d.press("q", "i")
        assert d.foot.noted == ["q", "key"]


async def test_letters_typed_in_the_same_moment_as_it_opens_are_its_own() -> None:
    async with prompting() as d:
        await d.press("escape")
        d.reopen(Prompt("format", formats, judge))
        for key, character in (("q", "q"), ("slash", "/"), ("i", "i")):
            d.app.post_message(Key(key, character))
        await d.until(lambda: d.prompt.value == "q/i")
        assert d.foot.noted == []


async def test_tab_completes_what_is_common_and_then_takes_turns() -> None:
    async with prompting() as d:
        await d.press("i", "tab")
        assert d.prompt.value == "int"
        await d.press("4", "tab")
        assert d.prompt.value == "int4-"
        seen = []
        for _ in range(4):
            await d.press("tab")
            seen.append(d.prompt.value)
        assert seen == ["int4-channel", "int4-g128", "int4-g64", "int4-channel"]
        await d.press("shift+tab")
        assert d.prompt.value == "int4-g64"
        assert len(d.prompt.offers) == 3
        await d.press("ctrl+u", "n", "tab")
        assert d.prompt.value == "nf4"


async def test_arrows_choose_and_come_back_to_what_was_typed() -> None:
    async with prompting() as d:
        await d.press("i", "down", "down")
        assert d.prompt.value == "int4-g128"
        assert "int4-g128 is known" in d.screen()
        await d.press("up", "up")
        assert d.prompt.value == "i"
        await d.press("up")
        assert d.prompt.value == "int8"


async def test_right_takes_the_first_completion_only_at_the_end() -> None:
    async with prompting() as d:
        await d.press("n", "left", "right")
        assert d.prompt.value == "n"
        assert "format: nf4" in d.screen()
        await d.press("right")
        assert d.prompt.value == "nf4"


async def test_a_dim_completion_is_taken_only_when_chosen() -> None:
    offers = [Completion("int1", "too few", dim=True), Completion("int2")]
    async with prompting(Prompt("format", lambda value: offers, judge)) as d:
        await d.press("i", "tab")
        assert d.prompt.value == "int2"
        await d.press("ctrl+u", "down")
        assert d.prompt.value == "int1"


async def test_enter_hands_in_and_closes_only_what_will_do() -> None:
    async with prompting() as d:
        await d.press("n", "enter")
        assert "x 'n' is no format" in d.screen()
        assert d.foot.heard == []
        assert d.foot.focused is d.prompt.entry
        await d.press("f", "4", "enter")
        assert d.foot.heard == [("submitted", "nf4")]
        assert not d.foot.query(Prompt)
        assert d.foot.focused is None
        assert d.foot.noted == []


async def test_escape_cancels_once() -> None:
    async with prompting(Prompt("format", formats, judge, live=True)) as d:
        await d.press("n", "escape")
        assert d.foot.heard == [("changed", ("", False)), ("changed", ("n", False)),
                                ("cancelled", "n")]  # fmt: skip
        assert not d.foot.query(Prompt)


async def test_opening_another_cancels_the_first() -> None:
    async with prompting() as d:
        d.reopen(Prompt("save", judge=lambda value: Verdict(True)))
        await d.press("q", "enter")
        assert d.foot.heard == [("cancelled", ""), ("submitted", "q")]


async def test_earlier_lines_of_its_kind_come_back() -> None:
    def fresh(kind: str) -> Prompt:
        return Prompt("save", kind=kind)

    async with prompting(fresh("path")) as d:
        for text in ("a", "b", "a"):
            await d.press(text, "enter")
            d.reopen(fresh("path"))
            await d.pilot.pause()
        await d.press("c", "up")
        assert d.prompt.value == "a"
        await d.press("up")
        assert d.prompt.value == "b"
        await d.press("up")
        assert d.prompt.value == "b"
        await d.press("down", "down")
        assert d.prompt.value == "c"
        d.reopen(fresh("filter"))
        await d.press("up")
        assert d.prompt.value == ""


async def test_a_pasted_text_is_one_line_without_control_characters() -> None:
    async with prompting() as d:
        d.prompt.entry.post_message(Paste("\n  nf\x1b4\u202e \nint8\n"))
        await d.until(lambda: d.prompt.value)
        assert d.prompt.value == "nf4"


async def test_what_could_steer_a_terminal_is_drawn_harmless_and_kept() -> None:
    evil = "a\x1b[31mb"
    async with prompting(Prompt("path", lambda value: [Completion(evil, "\x1b[2J")])) as d:
        await d.press("tab")
        assert d.prompt.value == evil
        assert "a?[31mb" in d.screen()
        assert "\x1b" not in d.screen()


async def test_more_completions_than_lines_scroll_and_are_counted() -> None:
    many = [Completion(f"c{n}") for n in range(20)]
    async with prompting(Prompt("x", lambda value: many)) as d:
        assert "1 of 20" not in d.screen()
        assert "of 20" in d.screen()
        await d.press(*["down"] * 9)
        shown = d.screen()
        assert "c8" in shown
        assert "c2 " not in shown
        assert "9 of 20" in shown


async def test_it_lies_over_the_screen_and_moves_nothing() -> None:
    async with prompting(size=(60, 18)) as d:
        body = d.foot.query_one("#body")
        assert body.size.height == 18
        assert "row 9" in d.screen()
        await d.press("i")
        assert body.size.height == 18


async def test_the_mouse_takes_a_completion_and_cannot_take_the_focus() -> None:
    async with prompting() as d:
        await d.pilot.click("#body", offset=(3, 3))
        await d.until(lambda: d.foot.focused is d.prompt.entry)
        await d.pilot.click("Offers", offset=(4, 3))
        assert d.prompt.value == "int8"
        await d.press("q")
        assert d.foot.noted == []


async def test_slow_completions_come_later_for_the_last_value_only() -> None:
    gate = threading.Event()
    asked: list[str] = []

    def slow(value: str) -> Sequence[Completion]:
        asked.append(value)
        gate.wait(10)
        return formats(value)

    async with prompting(Prompt("format", slow, judge, slow=True)) as d:
        await d.press("i", "n", "t", "8", "tab")
        assert d.prompt.value == "int8"
        assert d.prompt.offers == []
        gate.set()
        await d.until(lambda: d.prompt.offers)
        assert [offer.text for offer in d.prompt.offers] == ["int8"]
        assert asked == ["", "int8"]


@pytest.mark.parametrize("ascii", [False, True])
async def test_ascii_draws_nothing_else(ascii: bool) -> None:
    glyphs = PLAIN if ascii else UNICODE
    offers = [Completion("x" * 80, "long " * 30), Completion("y")]
    async with prompting(Prompt("path", lambda value: offers, glyphs=glyphs), (60, 18)) as d:
        await d.press("down")
        assert d.screen().isascii() is ascii
        assert max(map(len, d.screen().splitlines())) <= 60


# --- what was handed in before, where there are completions ---------------------------------------


async def test_up_in_an_empty_line_recalls_before_it_completes() -> None:
    async with prompting() as d:
        for text in ("int8", "nf4"):
            await d.press(*text, "enter")
            d.reopen(Prompt("format", formats, judge))
            await d.pilot.pause()
        assert len(d.prompt.offers) == len(FORMATS)
        await d.press("up")
        assert d.prompt.value == "nf4"
        assert [offer.text for offer in d.prompt.offers] == ["nf4"]
        assert "nf4 is known" in d.screen()
        await d.press("up", "up")
        assert d.prompt.value == "int8"
        await d.press("down", "down")
        assert d.prompt.value == ""
        assert len(d.prompt.offers) == len(FORMATS)
        await d.press("down")
        assert d.prompt.value == "int4-channel"
        await d.press("up", "up")
        assert d.prompt.value == "nf4"


async def test_a_recalled_line_is_gone_on_from_as_if_it_was_typed() -> None:
    async with prompting(Prompt("format", formats, lambda value: Verdict(True))) as d:
        await d.press(*"int4", "enter")
        d.reopen(Prompt("format", formats, judge))
        await d.pilot.pause()
        await d.press("up", "tab", "tab")
        assert d.prompt.value == "int4-channel"
        await d.press("up")
        assert d.prompt.value == "int4-"
        await d.press("ctrl+u", "up", "backspace")
        assert [offer.text for offer in d.prompt.offers][-1] == "int8"


async def test_with_nothing_handed_in_before_up_takes_the_last_completion() -> None:
    async with prompting() as d:
        await d.press("up")
        assert d.prompt.value == "nf4"


# --- verdicts of several lines --------------------------------------------------------------------


async def test_a_verdict_has_as_many_lines_as_its_words_need() -> None:
    said = {"": "", "a": "word " * 25, "ab": "word " * 40, "abc": "short"}
    async with prompting(Prompt("x", judge=lambda value: Verdict(True, said[value]))) as d:
        height = lambda: d.prompt.query_one("#verdict").size.height  # noqa: E731
        heights = [height()]
        for letter in "abc":
            await d.press(letter)
            heights.append(height())
        assert heights == [1, 2, 3, 1]


async def test_what_is_only_not_finished_is_hinted_at_until_it_is_handed_in() -> None:
    unfinished = Verdict(False, "nothing after ':'", "kind: and a name")
    async with prompting(Prompt("x", judge=lambda value: unfinished)) as d:
        await d.press("k")
        assert d.screen().splitlines()[-1].strip() == "kind: and a name"
        await d.press("enter")
        assert "x nothing after ':'" in d.screen().splitlines()[-1]
        await d.press("i")
        assert d.screen().splitlines()[-1].strip() == "kind: and a name"


# --- long names -----------------------------------------------------------------------------------


@given(st.text(max_size=80), st.integers(1, 60), st.sampled_from([UNICODE, PLAIN]))
def test_a_shortened_name_is_as_wide_as_asked(name: str, width: int, glyphs: Glyphs) -> None:
    assert cell_len(shortened(printable(name), width, glyphs)) == width


@pytest.mark.parametrize("glyphs", [UNICODE, PLAIN])
def test_a_long_name_loses_its_middle(glyphs: Glyphs) -> None:
    name = "histogram demo-model.layers.0.mlp.down_proj-int4-g128.json"
    shown = shortened(name, 44, glyphs)
    assert shown.startswith("histogram ")
    assert shown.endswith("-int4-g128.json")
    assert glyphs.ellipsis in shown
    assert shortened(name, 80, glyphs).rstrip() == name
