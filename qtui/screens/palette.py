"""The command palette: fuzzy search over every action."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import ClassVar, NamedTuple

from rich.cells import cell_len
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Input

from qtui.views.text import UNICODE, Glyphs, fit, printable
from qtui.widgets.choices import Choices
from qtui.widgets.line import Lines, Words, cells, spread
from qtui.widgets.prompt.entry import Entry


class PaletteEntry(NamedTuple):
    """An action, with the reason if it is unavailable."""

    id: str
    """Empty for a line that explains something and does nothing."""
    title: str
    key: str = ""
    """The key that does it too."""
    group: str = ""
    why_not: str = ""
    """Why it is unavailable; empty if it is available."""
    words: str = ""
    """Other words that it is found by."""
    asked: bool = False
    """Whether it is listed only once something is typed."""
    note: str = ""
    """What is said beside it, of one without a key."""


class Found(NamedTuple):
    """How well a text answers a query, and by which of its characters."""

    score: float
    places: frozenset[int] = frozenset()


def search(query: str, text: str) -> Found | None:
    """Find each word of a query in a text, in any order; None where one is not there.

    A word matches as a substring (best at the beginning of a word of the text), or letter by letter
    in order. Each letter is looked for once, so that no text can make the search slow.
    """
    lowered = text.lower()
    if len(lowered) != len(text):  # a capital that is two small letters would shift the places
        lowered = text
    starts = {match.start() for match in re.finditer(r"[^\W_]+", lowered)}
    score, places = 0.0, set[int]()
    for word in query.lower().split():
        whole = [match.start() for match in re.finditer(re.escape(word), lowered)]
        if whole:
            at = next((place for place in whole if place in starts), whole[0])
            here = list(range(at, at + len(word)))
            score += 2 * len(word) + (len(word) if at in starts else 0) + (at == 0)
        else:
            letters = _letters(word, lowered, starts)
            if letters is None:
                return None
            here = letters
            joined = sum(b == a + 1 for a, b in pairwise(here))
            score += (joined + sum(place in starts for place in here)) / 2
        places.update(here)
    return Found(score - len(text) / 1000, frozenset(places))


def _letters(word: str, text: str, starts: set[int]) -> list[int] | None:
    """Places of a word's letters in a text, in order; initials are preferred where all fit."""
    for only_starts in (True, False):
        found: list[int] = []
        at = -1
        for letter in word:
            at = text.find(letter, at + 1)
            while only_starts and at >= 0 and at not in starts and not (found and at - 1 in found):
                at = text.find(letter, at + 1)
            if at < 0:
                break
            found.append(at)
        else:
            return found
    return None


def answers(query: str, entries: Sequence[PaletteEntry]) -> list[tuple[PaletteEntry, Found]]:
    """Entries that answer a query, best first; all of them, group by group, for an empty one.

    If none does, those with words that look like the query's.
    """
    if not query.strip():
        entries = [entry for entry in entries if not entry.asked]
        order = list(dict.fromkeys(entry.group for entry in entries))
        grouped = sorted(entries, key=lambda entry: order.index(entry.group))
        return [(entry, Found(0)) for entry in grouped]
    found = _found(query, entries)
    if not found and (meant := _meant(query, entries)) != query.split():
        found = _found(" ".join(meant), entries)
    # Available actions come first, unless another entry matches much better.
    return sorted(
        found, key=lambda each: -each[1].score * (0.5 if each[0].why_not or not each[0].id else 1)
    )


def _found(query: str, entries: Sequence[PaletteEntry]) -> list[tuple[PaletteEntry, Found]]:
    """Entries that answer a query by their title, else by their other words."""
    found = []
    for entry in entries:
        title = search(query, printable(entry.title))
        other = search(query, f"{printable(entry.title)} {entry.words} {entry.group} {entry.id}")
        if title is not None:
            found.append((entry, title))
        elif other is not None:
            found.append((entry, Found(other.score / 2)))
    return found


def _meant(query: str, entries: Sequence[PaletteEntry]) -> list[str]:
    """The words of a query, misspelt ones replaced by the nearest word of an entry."""
    known = {
        word
        for entry in entries
        for word in re.findall(r"\w+", f"{entry.title} {entry.words} {entry.group}".lower())
    }
    return [
        next(iter(difflib.get_close_matches(word.lower(), sorted(known), 1, 0.7)), word)
        for word in query.split()
    ]


class Palette(ModalScreen[str | None]):
    """A searchable list of actions, or of values for one; returns the id of the chosen one."""

    DEFAULT_CSS = """
    Palette { align: center top; background: $background; }
    Palette > #box {
        width: 84; max-width: 100%; height: auto; max-height: 90%; margin-top: 1;
        border: round $primary; background: $surface; padding: 0 1;
    }
    Palette.-ascii > #box { border: ascii $primary; }
    Palette #query { height: 1; }
    Palette #ask { width: 2; background: $surface; }
    Palette Choices { background: $surface; margin-top: 1; }
    Palette #foot { height: auto; max-height: 3; background: $surface; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Close", id="palette.close"),
        Binding("up,shift+tab", "move(-1)", "Up", id="palette.up"),
        Binding("down,tab", "move(1)", "Down", id="palette.down"),
        Binding("pageup", "page(-1)", "Page up", id="palette.page_up"),
        Binding("pagedown", "page(1)", "Page down", id="palette.page_down"),
    ]
    AUTO_FOCUS = "Entry"

    def __init__(
        self,
        entries: Sequence[PaletteEntry],
        glyphs: Glyphs = UNICODE,
        *,
        hint: str = "search actions",
        at: str = "",
        verb: str = "runs it",
        typed: Callable[[str], PaletteEntry | None] = lambda query: None,
    ) -> None:
        """
        Args:
            entries: what there is to choose.
            glyphs: what to draw with.
            hint: shown in the empty line.
            at: the id of the entry that the cursor begins on; empty for the first.
            verb: what enter does.
            typed: what a query says by itself; it stands first.
        """
        super().__init__(classes="-ascii" if glyphs.ascii else None)
        self.glyphs = glyphs
        self.entries = list(entries)
        self.found: list[tuple[PaletteEntry, Found]] = []
        self.choices = Choices(self._draw, glyphs)
        self.choices.can_focus = False
        self.foot = Lines(id="foot", wrap=True)
        self.entry = Entry(placeholder=hint, heard=self._search, submit=self._run, id="entry")
        self.at, self.verb, self.typed = at, verb, typed
        self._group_width = min(10, max((cell_len(entry.group) for entry in entries), default=0))

    def compose(self) -> ComposeResult:
        """The query, the matches, and a line about the selected one."""
        with Vertical(id="box"):
            with Horizontal(id="query"):
                ask = Lines(id="ask")
                ask.set_lines([[("> ", "bold $primary")]])
                yield ask
                yield self.entry
            yield self.choices
            yield self.foot

    def on_mount(self) -> None:
        """Show everything."""
        self._search(self.entry.value)

    def on_key(self, event: events.Key) -> None:
        """Letters typed before the input is mounted go to the input too."""
        if self.focused is None and event.is_printable and event.character:
            event.stop().prevent_default()
            self.entry.insert_text_at_cursor(event.character)

    def on_resize(self, event: events.Resize) -> None:
        """Take as many lines as there are entries, or room."""
        room = event.size.height * 9 // 10 - 7 - 1
        self.choices.styles.height = max(3, min(len(self.entries), room))
        self.call_after_refresh(self._describe)

    # --- searching ----------------------------------------------------------------------------

    def _search(self, query: str) -> None:
        itself = self.typed(query)
        self.found = [(itself, Found(0))] if itself is not None else []
        self.found += answers(query, self.entries)
        self.choices.empty = [("no match; ctrl+u clears the line", "$dim")]
        # Groups are kept together only while the query is empty.
        starts = [len(list(run)) for _, run in groupby(self.found, lambda each: each[0].group)]
        self._first_of_group = {sum(starts[:n]) for n in range(len(starts))}
        self.choices.top = 0
        begin = next(
            (at for at, (each, _) in enumerate(self.found) if not query and each.id == self.at), 0
        )
        self.choices.show(len(self.found), begin)
        self._describe()

    @property
    def current(self) -> PaletteEntry | None:
        """The entry under the cursor."""
        return self.found[self.choices.cursor][0] if self.found else None

    def _describe(self, *, loud: bool = False) -> None:
        """Say why the selected action is unavailable; ``loud`` if the user tried to run it."""
        entry = self.current
        if entry is not None and entry.why_not:
            style = "bold $error" if loud else "$warning"
            mark = "x " if loud else "! "
            why = printable(" ".join(entry.why_not.split()))
            self.foot.set_lines([[(f"{mark}not now: {why}", style)]])
        elif entry is not None and not entry.id:
            meaning = f"{printable(entry.key)}  {printable(entry.title)}"
            self.foot.set_lines([[(meaning, "$dim")]])
        else:
            count = f"{len(self.found)} of {len(self.entries)}"
            width = self.foot.content_size.width or 56
            keys: Words = [("enter", "bold $primary"), (f" {self.verb}   ", "$dim"),
                           ("escape", "bold $primary"), (" closes", "$dim")]  # fmt: skip
            self.foot.set_lines([spread(keys, [(count, "$dim")], width)])

    def _run(self) -> None:
        entry = self.current
        if entry is None or entry.why_not:
            self._describe(loud=True)
        elif entry.id:
            self.dismiss(entry.id)

    def action_move(self, rows: int) -> None:
        """Move the cursor; past an end it goes on at the other."""
        if self.found:
            self.choices.move_to((self.choices.cursor + rows) % len(self.found))

    def action_page(self, pages: int) -> None:
        """Move the cursor by what is on the screen."""
        self.choices.action_page(pages)

    def on_choices_moved(self) -> None:
        """Say what there is to say of another entry."""
        self._describe()

    def on_choices_clicked(self) -> None:
        """Do what was clicked."""
        self._run()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Stop the input's own messages here."""
        event.stop()

    # --- drawing ------------------------------------------------------------------------------

    def _draw(self, row: int, width: int) -> Words:
        entry, found = self.found[row]
        cannot = bool(entry.why_not)
        group = entry.group if self.entry.value.strip() or row in self._first_of_group else ""
        words: Words = []
        if self._group_width:
            words = [(fit(printable(group), self._group_width + 2, self.glyphs), "$dim")]
        key, title = printable(entry.key or entry.note), printable(entry.title)
        spare = width - cells(words) - cell_len(title) - 3
        key = fit(key, min(cell_len(key), max(width // 3, spare)), self.glyphs)
        room = width - cells(words) - cell_len(key) - 2
        shown = fit(title, min(cell_len(title), room), self.glyphs)
        words += _lit(shown, found.places, "$dim" if cannot else "")
        rest = room - cell_len(shown)
        if cannot and rest > 8:
            why = f"  ({printable(' '.join(entry.why_not.split()))})"
            words.append((fit(why, min(cell_len(why), rest), self.glyphs), "italic $dim"))
        quiet = cannot or not entry.key
        return spread(words, [(key, "$dim" if quiet else "bold $primary")], width)


def _lit(text: str, places: frozenset[int], style: str) -> Words:
    """A text with the characters at some places highlighted."""
    runs = groupby(range(len(text)), lambda place: place in places)
    words: Words = []
    for lit, run in runs:
        part = "".join(text[place] for place in run)
        words.append((part, f"bold underline {style}" if lit else style))
    return words
