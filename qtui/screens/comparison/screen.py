"""The comparison: finished checkpoints, the best first; the one under the cursor is open."""

from __future__ import annotations

from collections.abc import Callable

from textual import events
from textual.app import ComposeResult

from engine import protocol as p
from engine.session import Dirty, Session, running
from qtui.screens.session_screen import SessionScreen
from qtui.views.comparison import Item, heading, items, lines_of
from qtui.views.doing import doing
from qtui.views.sources import complete_path
from qtui.views.text import UNICODE, Glyphs, Words
from qtui.widgets.line import Lines
from qtui.widgets.prompt.prompt import Prompt, open_prompt
from qtui.widgets.prompt.verdict import Verdict

SHOWN: frozenset[Dirty] = frozenset({"layers", "model", "checkpoint", "compared", "jobs"})


class Comparison(SessionScreen):
    """Finished checkpoints beside the open one, with findings and layers of one of them."""

    CSS = """
    #compared { height: 1fr; padding: 0 1; }
    """

    def __init__(self, glyphs: Glyphs = UNICODE) -> None:
        super().__init__(glyphs)
        self.list = Lines(id="compared")
        self.items: list[Item] = []
        self._on = 0
        self._opened = ""
        """Fingerprint of the checkpoint whose findings and layers are listed."""
        self._top = 0
        self._named: Callable[[str], None] = lambda path: None

    def compose(self) -> ComposeResult:
        """The list, the foot."""
        yield self.list
        yield from self.foot()

    def on_resize(self, event: events.Resize) -> None:
        """Lay the lines out for the new size."""
        self.call_after_refresh(self._write)

    def show(self, session: Session, dirty: frozenset[Dirty], *, whole: bool = False) -> None:
        """Draw what changed."""
        self.session = session
        if whole or dirty & SHOWN:
            self._fill()

    # --- the cursor ---------------------------------------------------------------------------

    @property
    def item(self) -> Item | None:
        """The line under the cursor; None where nothing was compared."""
        return self.items[self._on] if self.items else None

    def _fill(self) -> None:
        """Take the lines anew, the cursor on the same one."""
        before = self.item
        if self._opened not in self.session.compared:
            self._opened = next(reversed(self.session.compared), "")
        self.items = items(self.session, self._opened)
        at = self.items.index(before) if before in self.items else -1
        if at < 0 and before is not None:  # its figures may have moved it: stay with its checkpoint
            at = next((i for i, each in enumerate(self.items) if _same(each, before)), 0)
        self._on = max(0, at)
        self._write()

    def open(self, artefact: str) -> None:
        """List findings and layers of one checkpoint; close it if they are listed."""
        self._opened = artefact
        self.items = items(self.session, artefact)
        heads = [(each.kind, each.artefact) for each in self.items]
        self._on = heads.index(("checkpoint", artefact))
        self._top = min(self._top, self._on)
        self._write()

    def move(self, rows: int) -> None:
        """Move the cursor."""
        if not self.items:
            return
        self._on = max(0, min(self._on + rows, len(self.items) - 1))
        self._write()

    def page(self, pages: int) -> None:
        """Move the cursor by a page."""
        self.move(pages * max(1, self.list.size.height - 2))

    def here(self) -> tuple[str, bool]:
        """What the keys act on now."""
        item = self.item
        if item is None:
            return "no finished checkpoint", False
        return item.layer or self.session.compared[item.artefact].opened.name, True

    # --- drawing ------------------------------------------------------------------------------

    def _write(self) -> None:
        width, height = self.app.size.width - 2, max(2, self.list.size.height)
        if not self.items:
            self.list.set_lines(self._nothing(width))
            return
        drawn = [
            lines_of(self.session, item, width, self.glyphs, here=at == self._on)
            for at, item in enumerate(self.items)
        ]
        now = self._now(width)
        room = height - 1 - len(now)
        self._top = max(0, min(self._top, self._on))
        while sum(map(len, drawn[self._top : self._on + 1])) > room and self._top < self._on:
            self._top += 1
        body = [line for lines in drawn[self._top :] for line in lines]
        body = body[:room] + [[]] * (room - len(body))
        self.list.set_lines([heading(width, self.glyphs), *body, *now])

    def _now(self, width: int) -> list[Words]:
        """What a comparison is doing, if one is running."""
        return doing(self.session, (p.Compare,), width, self.glyphs)

    def _nothing(self, width: int) -> list[Words]:
        if any(isinstance(job.command, p.Compare) for job in running(self.session)):
            return [[("reading the finished checkpoint", "$dim")]]
        if not self.session.layers.names:
            return [[("no layers yet", "$dim")]]
        key = self.key("comparison.add")
        return [
            [("Finished checkpoints of this model, whoever quantised them:", "")],
            [("what each is worth, what is wrong with it, which layers to keep.", "")],
            [],
            [(f"{key} names one: a folder, a GGUF file or a hub id", "$dim")],
        ]

    # --- naming one ---------------------------------------------------------------------------

    def ask_path(self, named: Callable[[str], None]) -> None:
        """Ask for a finished checkpoint."""
        self._named = named

        def judge(value: str) -> Verdict:
            return Verdict(bool(value.strip()), "" if value.strip() else "a folder, file or hub id")

        open_prompt(
            self,
            Prompt(
                "compare with",
                complete_path,
                judge=judge,
                slow=True,
                kind="checkpoint",
                glyphs=self.glyphs,
            ),
        )

    def on_prompt_submitted(self, event: Prompt.Submitted) -> None:
        """A checkpoint was named."""
        self._named(event.value.strip())

    def before_fold(self, event: p.AnyEvent) -> bool:
        """Say why a comparison was refused or failed; open what was just read."""
        if isinstance(event, p.Refused) and event.command == "Compare":
            self.say("warning", event.message)
        elif isinstance(event, p.JobEnded) and event.kind == "compare":
            self.ended(event)
        elif isinstance(event, p.ArtefactOpened):
            self._opened = event.fingerprint
        return True


def _same(one: Item, other: Item) -> bool:
    return one.kind == other.kind == "checkpoint" and one.artefact == other.artefact
