"""The prompt: one input line at the bottom of a screen, with completions above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.cells import cell_len
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input

from qtui.background import in_thread
from qtui.views.completion import Completion as Completion
from qtui.views.completion import no_completions
from qtui.views.text import UNICODE, Glyphs, printable
from qtui.widgets.line import Lines
from qtui.widgets.prompt.entry import Entry
from qtui.widgets.prompt.history import history, remember
from qtui.widgets.prompt.offers import Offers, in_common
from qtui.widgets.prompt.verdict import Judgement, any_value
from qtui.widgets.prompt.verdict import Verdict as Verdict


class Prompt(Widget):
    """Label, line, completions above it, and what the value means or why it will not do below.

    Opened with `open_prompt`, it covers the bottom of the screen, keeps the focus, and removes
    itself once a valid value is submitted or the prompt is cancelled. With ``stays`` it is part of
    a screen's layout like any other widget.

    In an empty line, up recalls earlier lines, the last first, and down returns to the empty line
    or selects completions; tab selects completions too. Once something is typed, both arrows step
    through its completions, or through earlier lines if there are none.
    """

    DEFAULT_CSS = """
    Prompt { height: auto; background: $surface; }
    Prompt.-over { dock: bottom; layer: prompt; }
    Prompt > #line { height: 1; padding: 0 1; }
    Prompt > #line > #label { width: auto; max-width: 50%; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "complete", "Complete, then the next completion", id="prompt.complete"),
        Binding("shift+tab", "back", "Previous completion", id="prompt.back"),
        Binding("up", "choose(-1)", "Earlier line, or completion above", id="prompt.up"),
        Binding("down", "choose(1)", "Completion below, or later line", id="prompt.down"),
        Binding("escape", "cancel", "Close", id="prompt.cancel"),
    ]

    @dataclass
    class Changed(Message):
        """Another value, as it is typed; only from a prompt that is ``live``."""

        prompt: Prompt
        value: str
        verdict: Verdict

        @property
        def control(self) -> Prompt:
            """The prompt."""
            return self.prompt

    @dataclass
    class Submitted(Message):
        """A valid value was submitted."""

        prompt: Prompt
        value: str

        @property
        def control(self) -> Prompt:
            """The prompt."""
            return self.prompt

    @dataclass
    class Cancelled(Message):
        """The prompt was cancelled."""

        prompt: Prompt

        @property
        def control(self) -> Prompt:
            """The prompt."""
            return self.prompt

    def __init__(
        self,
        label: str,
        complete: Callable[[str], Sequence[Completion]] = no_completions,
        judge: Callable[[str], Verdict] = any_value,
        *,
        value: str = "",
        live: bool = False,
        slow: bool = False,
        stays: bool = False,
        kind: str = "",
        placeholder: str = "",
        glyphs: Glyphs = UNICODE,
        id: str | None = None,
    ) -> None:
        """
        Args:
            label: the prompt's label, a word or two.
            complete: ways to go on from a value.
            judge: what a value means, or what is wrong with it; quick, for it is asked at each key.
            value: the initial value.
            live: post `Changed` as the line is typed.
            slow: ``complete`` may wait for a disk, and is called in a thread.
            stays: part of a screen, not a prompt that opens and closes.
            kind: lines of the same kind are recalled with the up arrow; the label if empty.
            placeholder: shown in the empty line.
        """
        super().__init__(id=id, classes="" if stays else "-over")
        self.can_focus = not stays
        self.label, self.complete, self.judge = label, complete, judge
        self.live, self.slow, self.stays, self.glyphs = live, slow, stays, glyphs
        self.kind = kind or label
        self.offers: list[Completion] = []
        self.chosen: int | None = None
        self.verdict = Verdict(True)
        self.before: Widget | None = None
        """What had the focus before."""
        self.closed = False
        self._stem = value
        self._taking = False
        self._recalled: int | None = None
        self._wanted: str | None = None
        self._tab_waits = False
        self._list = Offers(glyphs)
        self._says = Judgement(id="verdict")
        self.entry = Entry(
            value,
            placeholder,
            heard=self._typed,
            submit=self.submit,
            accept=self.accept,
        )

    def compose(self) -> ComposeResult:
        """Completions, the line, the verdict."""
        yield self._list
        with Horizontal(id="line"):
            label = Lines(id="label")
            label.styles.width = cell_len(self.label) + 2 if self.label else 0
            label.set_lines([[(f"{printable(self.label)}: ", "bold $primary")]])
            yield label
            yield self.entry
        yield self._says

    def on_mount(self) -> None:
        """Complete and check the initial value."""
        if self.closed:  # submitted before it was mounted
            return
        self.entry.cursor_position = len(self.entry.value)
        if self.can_focus:
            self.can_focus = False
            self.screen.set_focus(self.entry)
        self._typed(self.entry.value)

    @property
    def value(self) -> str:
        """The current value."""
        return self.entry.value

    # --- what is typed ------------------------------------------------------------------------

    def _typed(self, value: str) -> None:
        if not self.is_attached or not self.entry.is_attached:
            return
        if not self._taking:
            self._stem, self._recalled = value, None
            self._offer(value)
        self.say(self.judge(value))
        if self.live:
            self._post(self.Changed(self, value, self.verdict))

    def _post(self, message: Message) -> None:
        # Not by way of the prompt itself, which may be taken away before it passes anything on.
        parent = self.parent
        assert isinstance(parent, Widget)
        parent.post_message(message)

    def _offer(self, value: str) -> None:
        if self.slow:
            waiting, self._wanted = self._wanted is not None, value
            if not waiting:
                self.run_worker(self._complete_in_thread(), group="complete")
        else:
            self._show(list(self.complete(value)), None)

    async def _complete_in_thread(self) -> None:
        """Complete in a thread, one value at a time, until the last one typed was done."""
        while (value := self._wanted) is not None:
            offers = list(await in_thread(lambda value=value: self.complete(value)))  # type: ignore[misc]
            if self._wanted == value:
                self._wanted = None
                if value == self.value:
                    self._show(offers, None)
                    if self._tab_waits:
                        self.action_complete()
        self._tab_waits = False

    def refresh_completions(self) -> None:
        """Complete the line again: what is known has changed."""
        if self.chosen is None:
            self._offer(self.value)

    def _show(self, offers: list[Completion], chosen: int | None) -> None:
        self.offers, self.chosen = offers, chosen
        self._list.show(offers, chosen)
        first = next((offer.text for offer in offers if not offer.dim), "")
        self.entry.suggest(first if chosen is None else "")

    def say(self, verdict: Verdict, *, loud: bool = False) -> None:
        """Show what the value means, or what is wrong with it; ``loud`` where that stops it."""
        self.verdict = verdict
        self._says.show(verdict, loud=loud)
        self._says.display = bool(self._says.text) or not self.stays

    # --- keys ---------------------------------------------------------------------------------

    def _take(self, text: str) -> None:
        """Put a text into the line that was not typed; the completions stay."""
        self._taking = True
        try:
            self.entry.set_value(text)
        finally:
            self._taking = False

    def choose(self, place: int | None) -> None:
        """Put a completion into the line, or what was typed."""
        if self._recalled is not None:
            self._stem, self._recalled = self.value, None
        self._take(self._stem if place is None else self.offers[place].text)
        self._show(self.offers, place)

    def accept(self) -> bool:
        """Take the chosen completion, or the first, and go on from there; false without any."""
        if self.chosen is not None:
            self._typed(self.value)
            return True
        first = next((offer.text for offer in self.offers if not offer.dim), self.value)
        if first == self.value:
            return False
        self.entry.set_value(first)
        return True

    def action_complete(self) -> None:
        """Complete what all completions have in common; then take them in turn."""
        if self._wanted is not None and self.value:
            self._tab_waits = True
            return
        self._tab_waits = False
        texts = [offer.text for offer in self.offers if not offer.dim]
        texts = texts or [offer.text for offer in self.offers]
        common = in_common(texts)
        if self.chosen is not None:
            self.choose((self.chosen + 1) % len(self.offers))
        elif (not self.value and self.stays) or not texts or texts == [self.value]:
            if self.stays:
                self.screen.focus_next()
        elif len(texts) == 1 or len(common) > len(self.value):
            self.entry.set_value(common)
        else:
            self.choose(1 if self.offers[0].text == self.value and len(self.offers) > 1 else 0)

    def action_back(self) -> None:
        """Take the completion before, or leave the line where it is part of a screen."""
        if self.chosen is not None:
            self.choose((self.chosen - 1) % len(self.offers))
        elif self.stays:
            self.screen.focus_previous()
        elif self.offers:
            self.choose(len(self.offers) - 1)

    def action_choose(self, step: int) -> None:
        """Step through the completions and what was typed, or through earlier lines."""
        recalling = self._recalled is not None and self.chosen is None
        if (recalling or (step < 0 and not self.value)) and (self._recall(step) or recalling):
            return
        if self.offers:
            places: list[int | None] = [None, *range(len(self.offers))]
            self.choose(places[(places.index(self.chosen) + step) % len(places)])
        elif not self._recall(step) and self.stays:
            (self.screen.focus_previous if step < 0 else self.screen.focus_next)()

    def _recall(self, step: int) -> bool:
        """Replace the line by an earlier or later one; false if there is none."""
        lines = history(self.app, self.kind)
        place = (len(lines) if self._recalled is None else self._recalled) + step
        if not 0 <= place <= len(lines) or (self._recalled is None and step > 0):
            return False
        self._recalled = place if place < len(lines) else None
        self._take(lines[place] if place < len(lines) else self._stem)
        self._offer(self.value)
        return True

    def submit(self) -> None:
        """Submit the value, if it is valid."""
        verdict = self.judge(self.value)
        if not verdict.ok:
            self.say(verdict, loud=True)
            return
        if not self.stays:
            remember(self.app, self.kind, self.value)
        self._post(self.Submitted(self, self.value))
        if not self.stays:
            self.close()

    def action_cancel(self) -> None:
        """Cancel the prompt."""
        self._post(self.Cancelled(self))
        if not self.stays:
            self.close()

    def close(self) -> None:
        """Remove the prompt, and return the focus."""
        if self.closed:
            return
        self.closed = True
        screen, before = self.screen, self.before
        self.remove()
        screen.set_focus(before if before is not None and before.is_attached else None)

    # --- focus and mouse ----------------------------------------------------------------------

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """Letters typed before the input is mounted go to the input too."""
        return self.can_focus and self.entry.check_consume_key(key, character)

    def on_key(self, event: events.Key) -> None:
        """Pass on what was typed before the input was mounted."""
        if event.key == "enter" and not self.entry.is_attached:
            event.stop().prevent_default()
            self.submit()
        elif event.is_printable and event.character and not self.stays:
            event.stop().prevent_default()
            self.entry.insert_text_at_cursor(event.character)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Stop the input's own messages here."""
        event.stop()

    def on_input_blurred(self, event: Input.Blurred) -> None:
        """Keep the focus while open: letters would be taken for keys of the screen."""
        event.stop()
        if not self.stays:
            self.call_after_refresh(self._keep_focus)

    def _keep_focus(self) -> None:
        if self.is_attached and not self.closed and self.screen.focused is None:
            self.entry.focus()

    def on_click(self, event: events.Click) -> None:
        """Take the completion that was clicked; a click elsewhere in the prompt is for the line."""
        if event.widget is self._list and 0 <= event.y < len(self._list.lines):
            self.entry.set_value(self.offers[self._list.first + event.y].text)
        self.entry.focus()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Go through the completions."""
        self._wheel(event, 1)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Go through the completions."""
        self._wheel(event, -1)

    def _wheel(self, event: events.MouseEvent, step: int) -> None:
        event.stop()
        if self.offers:
            last = len(self.offers) - 1
            at = self.chosen + step if self.chosen is not None else 0 if step > 0 else last
            self.choose(max(0, min(at, last)))


def open_prompt(screen: Screen[Any], prompt: Prompt) -> None:
    """Open a prompt at the bottom of a screen and focus it; an open one is cancelled first.

    It removes itself after `Prompt.Submitted` and `Prompt.Cancelled`, which reach the screen.
    """
    for other in screen.query(Prompt):
        if other.has_class("-over") and not other.closed:
            prompt.before = other.before
            other.action_cancel()
    if prompt.before is None:
        prompt.before = screen.focused
    if "prompt" not in screen.layers:
        screen.styles.layers = (*screen.layers, "prompt")  # type: ignore[assignment]
    screen.mount(prompt)
    screen.set_focus(prompt)
