"""The start screen: past sessions, an input for any other source, and the profile."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen

from engine.errors import EngineError
from engine.opening.inspection import Inspection
from engine.profiles import Profile
from engine.store.past_sessions import PastSession
from qtui.background import in_thread
from qtui.screens.help import Overlay
from qtui.screens.start.inspection import Inspections
from qtui.screens.start.texts import help_lines, key_line, problem_line
from qtui.views.sources import complete_source
from qtui.views.text import UNICODE, Glyphs, printable
from qtui.widgets.choices import Choices
from qtui.widgets.frame.status import bound_keys
from qtui.widgets.line import Lines, Words
from qtui.widgets.prompt.history import remember
from qtui.widgets.prompt.prompt import Completion, Prompt, Verdict
from qtui.widgets.start import recent
from qtui.widgets.start.about import About
from qtui.widgets.start.profile_choice import ProfileChoice
from qtui.widgets.start.recent import DEMO

LEAST = (60, 18)
"""Columns and lines below which nothing is drawn but a request for more."""


class Start(Screen[None]):
    """Choose what to open and with which profile; a source is inspected before it is opened."""

    TYPED: ClassVar[float] = 0.3
    """Seconds after the last key before a path is inspected."""
    RESTED: ClassVar[float] = 0.08
    """Seconds the cursor rests on a row before its checkpoint is inspected."""

    DEFAULT_CSS = """
    Start { background: $background; }
    Start > #title { padding: 0 1; }
    Start > #problems { display: none; padding: 0 1; }
    Start > #problems.-shown { display: block; }
    Start > #head { padding: 0 1; margin-top: 1; }
    Start > #recent { border-bottom: solid $panel; }
    Start.-ascii > #recent { border-bottom: ascii $panel; }
    Start > #about { height: auto; min-height: 4; max-height: 6; padding: 0 1 0 3; }
    Start > #keys { padding: 0 1; background: $panel; }
    Start > #too-small { display: none; height: 1fr; padding: 1 2; }
    Start.-low > #head { margin-top: 0; }
    Start.-low > #about { min-height: 3; }
    Start.-tiny > * { display: none; }
    Start.-tiny > #too-small { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open", id="open"),
        Binding("tab", "app.focus_next", "Next field", id="next"),
        Binding("right", "profile(1)", "Next profile", id="profile.next"),
        Binding("left", "profile(-1)", "Previous profile", id="profile.back"),
        Binding("f5", "reload", "Reload past sessions", id="reload"),
        Binding("delete", "remove", "Remove a session (press twice); results stay", id="remove"),
        Binding("question_mark", "help", "Help", id="help"),
        Binding("escape", "leave", "Quit (press twice)", id="leave"),
    ]
    AUTO_FOCUS = "#recent"

    @dataclass
    class Chosen(Message):
        """Something is to be opened."""

        source: str
        profile_name: str
        profile_asked: bool = True
        """Whether it was chosen here, and is not only the one that was offered."""

    class Leave(Message):
        """The user quits."""

    def __init__(
        self,
        sessions: Callable[[], Sequence[PastSession]],
        inspect: Callable[[str], Awaitable[Inspection]],
        profiles: Mapping[str, Profile],
        profile: str,
        *,
        hub_ids: Callable[[], Sequence[str]] = list,
        remove: Callable[[str], None] | None = None,
        glyphs: Glyphs = UNICODE,
        clock: Callable[[], float] = time.time,
        problems: Sequence[str] = (),
        id: str | None = None,
    ) -> None:
        """
        Args:
            sessions: past sessions; called in a thread, may raise `EngineError` or `OSError`.
            inspect: finds out what a source is; cancelled when another one is chosen.
            profiles: all profiles by name.
            profile: the one that is chosen at first.
            hub_ids: models in the hub's local cache; called in a thread.
            remove: removes the session with a name; called in a thread, may raise `EngineError`.
            clock: seconds since 1970.
            problems: what is wrong with the user's own files: keys, themes, what was remembered.
        """
        super().__init__(id=id, classes="-ascii" if glyphs.ascii else None)
        self._read_sessions, self._read_ids, self._remove = sessions, hub_ids, remove
        self._removing = ""
        """Name of the session that the next press of the key removes."""
        self.glyphs, self.clock = glyphs, clock
        self.past: list[PastSession] = []
        self._ids: Sequence[str] = ()
        self.problems = tuple(problems)
        self.wrong = Lines(id="problems")
        self.wrong.set_class(bool(self.problems), "-shown")
        self.head = Lines(id="head")
        self.choices = Choices(self._draw, glyphs, id="recent")
        self.about = About(glyphs, id="about")
        self.prompt = Prompt(
            "open",
            self._complete,
            live=True,
            slow=True,
            stays=True,
            placeholder="a path or a hub id",
            glyphs=glyphs,
            id="source",
        )
        self.profile_offered = profile
        self.profile = ProfileChoice(profiles, profile, glyphs, id="profile")
        self.keys = Lines(id="keys")
        self._typing = False
        """Whether the line was the last of list and line to be in use."""
        self._used = False
        self._leaving = False
        """Whether escape was the last key, and the next one quits."""
        self._inspections = Inspections(self, inspect, self._inspected)
        self._loud = False
        self._opening = ""
        """What is to be opened as soon as it was inspected."""

    def compose(self) -> ComposeResult:
        """The widgets from top to bottom."""
        yield Lines(id="too-small")
        title = Lines(id="title")
        asks = "which layers break when a checkpoint is quantised"
        title.set_lines([[("qtui  ", "bold $primary"), (asks, "$dim")]])
        yield title
        yield self.wrong
        yield self.head
        yield self.choices
        yield self.about
        yield self.prompt
        yield self.profile
        yield self.keys

    def on_mount(self) -> None:
        """Show the demo at once; the rest is read in the background."""
        self.choices.show(1)
        self.action_reload()
        self.run_worker(self._load_ids(), group="ids")
        self._consider(self.RESTED)
        self.call_after_refresh(self._write_keys)

    def on_resize(self, event: events.Resize) -> None:
        """Make use of the new room."""
        width, height = event.size
        tiny = width < LEAST[0] or height < LEAST[1]
        self.set_class(tiny, "-tiny")
        self.set_class(height < 24, "-low")
        if tiny:
            wanted = f"qtui needs {LEAST[0]} columns and {LEAST[1]} lines."
            here = f"This terminal has {width} and {height}."
            line = self.query_one("#too-small", Lines)
            line.set_lines([[(wanted, "bold")], [(here, "$dim")]])
        self.call_after_refresh(self._show_source)
        self.call_after_refresh(self._write_keys)

    # --- what there is to choose from ---------------------------------------------------------

    def action_reload(self) -> None:
        """Read past sessions, again."""
        self.head.set_lines([[(f"reading past sessions{self.glyphs.ellipsis}", "$dim")]])
        self.run_worker(self._load(), group="sessions", exclusive=True)

    async def _load(self) -> None:
        try:
            found = await in_thread(self._read_sessions)
        except (EngineError, OSError) as error:
            said = printable(" ".join(str(error).split()))
            self.head.set_lines([[(f"! past sessions cannot be read: {said}", "$warning")]])
            return
        under = self._under() if self._used else ""
        self.past = sorted(found, key=lambda past: (not past.running, -past.when))
        sources = [past.source for past in self.past]
        rows = sources if DEMO in sources else [*sources, DEMO]
        # Keep the cursor where the user moved it meanwhile.
        self.choices.show(len(rows), rows.index(under) if under in rows else 0)
        self.head.set_lines([recent.headline(self.past, self.glyphs)])
        self._consider(self.RESTED)

    def action_remove(self) -> None:
        """Ask to press again; then remove the session under the cursor."""
        past = None if self._typing else self._session()
        if past is None or self._remove is None:
            return
        if past.running:
            self._say_of_sessions("an engine has it open: quit that one first", "$warning")
        elif self._removing != past.name:
            self._removing = past.name
            name = printable(past.checkpoint or past.name)
            key = bound_keys(self)["remove"][0]
            self._say_of_sessions(
                f"{key} again removes {name}: its history and recipes; results stay", "$warning"
            )
        else:
            self._removing = ""
            self.run_worker(self._removed(past.name), group="sessions", exclusive=True)

    def _say_of_sessions(self, words: str, style: str) -> None:
        self.head.set_lines([[(words, style)]])

    async def _removed(self, name: str) -> None:
        assert self._remove is not None
        remove = self._remove
        try:
            await in_thread(lambda: remove(name))
        except (EngineError, OSError) as error:
            self._say_of_sessions(f"! {printable(' '.join(str(error).split()))}", "$warning")
            return
        await self._load()

    async def _load_ids(self) -> None:
        try:
            self._ids = await in_thread(self._read_ids)
        except (EngineError, OSError) as error:
            self.prompt.say(Verdict(False, f"the hub's cache cannot be read: {error}"))
            return
        self.prompt.refresh_completions()

    def _complete(self, typed: str) -> list[Completion]:
        return complete_source(typed, recent.sources(self.past, self.clock()), self._ids)

    def _draw(self, place: int, width: int) -> Words:
        if place < len(self.past):
            return recent.row(self.past[place], self.clock(), self.glyphs, width)
        return recent.demo_row(self.glyphs, width)

    def _under(self) -> str:
        """Source of the row under the cursor."""
        place = self.choices.cursor
        return self.past[place].source if place < len(self.past) else DEMO

    @property
    def source(self) -> str:
        """What enter would open: what is typed, or the row under the cursor."""
        if not self._typing:
            return self._under()
        typed = self.prompt.value.strip()
        named = (past.source for past in self.past if past.name == typed)
        return next(named, typed)

    def _session(self) -> PastSession | None:
        if not self._typing:
            place = self.choices.cursor
            return self.past[place] if place < len(self.past) else None
        return next((past for past in self.past if past.source == self.source), None)

    # --- inspecting before opening ------------------------------------------------------------

    def _consider(self, wait: float) -> None:
        """Show what is known of the source, and inspect it once nothing has moved for a while."""
        self._loud, self._opening = False, ""
        self._inspections.soon(wait, lambda: self.source)
        self._show_source()

    def _inspected(self, source: str, found: Inspection) -> None:
        if self._opening == source:
            self._opening = ""
            self._decide(source, found)
        self._show_source()

    def action_open(self) -> None:
        """Open the source, once it is known that it can be."""
        source = self.source
        if not source:
            self._loud = True
            self._show_source()
        elif self._opening == source:  # enter pressed again: open without waiting
            self._choose(source)
        elif (
            (found := self._inspections.known.get(source))
            and not found.problem
            and not self._inspections.running
        ):
            self._decide(source, found)
        else:
            # Not inspected yet, or there was a problem that may be fixed by now.
            self._opening = source
            self._inspections.now(source)
            self._show_source()

    def _decide(self, source: str, found: Inspection) -> None:
        past = None if self._typing else self._session()
        if found.problem or (past is not None and past.problem):
            self._loud = True
            self._show_source()
        else:
            self._choose(source)

    def _choose(self, source: str) -> None:
        self._opening = ""
        if self._typing:
            remember(self.app, self.prompt.kind, self.prompt.value)
        chosen = self.profile.chosen
        self.post_message(self.Chosen(source, chosen, chosen != self.profile_offered))

    def _show_source(self) -> None:
        """Say what is known of the source."""
        self.about.show(
            self.source,
            self._inspections.known.get(self.source),
            self._session(),
            loud=self._loud,
            waits=bool(self._opening),
        )

    # --- keys and mouse -----------------------------------------------------------------------

    def on_key(self, event: events.Key) -> None:
        """Letters that are no keys here go to the line; so do all once the line has the focus."""
        self._used = True
        if event.key != "escape":
            self._stay()
        if self._removing and event.key != "delete":
            self._removing = ""
            self.head.set_lines([recent.headline(self.past, self.glyphs)])
        bound = event.key in self.active_bindings and self.focused is not self.prompt.entry
        if event.is_printable and event.character not in (None, " ") and not bound:
            event.stop().prevent_default()
            self.action_type(event.character or "")

    def on_paste(self, event: events.Paste) -> None:
        """What is pasted goes to the line, wherever the focus is."""
        event.stop()
        self.set_focus(self.prompt.entry)
        self.prompt.entry.paste(event.text)

    def action_type(self, character: str) -> None:
        """Go to the line, and type there."""
        self.set_focus(self.prompt.entry)
        self.prompt.entry.insert_text_at_cursor(character)

    def action_profile(self, places: int) -> None:
        """Choose another profile."""
        self.profile.step(places)

    def action_leave(self) -> None:
        """Clear the line; then ask to press again, against accidental quits; then quit."""
        if self.prompt.value:
            self.on_prompt_cancelled()
        elif self._leaving:
            self.post_message(self.Leave())
        else:
            self._leaving = True
            self._write_keys()

    def _stay(self) -> None:
        if self._leaving:
            self._leaving = False
            self._write_keys()

    def action_help(self) -> None:
        """List the keys, and what can be typed."""
        self.app.push_screen(Overlay(help_lines(bound_keys(self), self.problems), self.glyphs))

    def on_descendant_focus(self) -> None:
        """Show what is chosen in the focused widget."""
        self._leaving = False
        before = self._typing
        if self.focused is self.prompt.entry:
            self._typing = True
        elif self.focused is self.choices:
            self._typing = False
        if before != self._typing:
            self._consider(self.RESTED)
        self._write_keys()

    def on_choices_moved(self) -> None:
        """Show the session under the cursor."""
        self._stay()
        self._used = True
        self._typing = False
        self._consider(self.RESTED)

    def on_choices_clicked(self, click: Choices.Clicked) -> None:
        """A click chooses, a second one opens."""
        if click.times > 1:
            self.action_open()

    def on_prompt_changed(self) -> None:
        """Show what was typed."""
        if self._typing:
            self._consider(self.TYPED)

    def on_prompt_submitted(self) -> None:
        """Open what was typed."""
        self._typing = True
        self.action_open()

    def on_prompt_cancelled(self) -> None:
        """Back to the list."""
        self.prompt.entry.set_value("")
        self.set_focus(self.choices)

    def _write_keys(self) -> None:
        """The keys that matter here, and what is wrong with the user's own files."""
        bound, width = bound_keys(self), self.keys.content_size.width
        typing = self.focused is self.prompt.entry
        self.keys.set_lines([key_line(bound, width, typing=typing, leaving=self._leaving)])
        key = "escape, then ?" if typing else bound.get("help", ("?", ""))[0].split(" ")[0]
        self.wrong.set_lines([problem_line(self.problems, key, width, self.glyphs)])
