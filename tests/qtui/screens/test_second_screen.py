"""A screen that is added from outside: its key, its repaints, its actions, and the way back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from textual.app import ComposeResult

from engine import protocol as p
from engine.errors import EngineError
from engine.session import Dirty, Session
from qtui.actions import Action
from qtui.pump import EVERYTHING
from qtui.screens import registry
from qtui.screens.help import Help
from qtui.screens.registry import known_keys, register_screen, screens
from qtui.screens.session_screen import SessionScreen
from qtui.screens.shared_actions import SharedActions
from qtui.screens.spec import ScreenContext, ScreenSpec
from qtui.user.keymap import KeymapError, read_keymap
from qtui.widgets.line import Lines
from tests.qtui import replay as r
from tests.qtui.driving import Driver, driving


class Map(SessionScreen):
    """A screen of a plugin: the number of layers and of effects, and a counter of its own."""

    def __init__(self, context: ScreenContext) -> None:
        super().__init__(context.glyphs)
        self.lines = Lines()
        self.shown: list[frozenset[Dirty]] = []
        self.heard: list[p.AnyEvent] = []
        self.zoomed = 0

    def compose(self) -> ComposeResult:
        yield self.lines
        yield from self.foot()

    def show(self, session: Session, dirty: frozenset[Dirty], *, whole: bool = False) -> None:
        self.session = session
        self.shown.append(dirty)
        columns = session.effects.measured.values()
        effects = sum(each is not None for column in columns for each in column)
        self.lines.set_lines([[(f"map of {len(session.layers.names)} layers", "")],
                              [(f"{effects} effects", "")]])  # fmt: skip

    def before_fold(self, event: p.AnyEvent) -> bool:
        self.heard.append(event)
        return True


class MapActions(SharedActions):
    def zoom(self) -> None:
        assert isinstance(self.screen, Map)
        self.screen.zoomed += 1

    HANDLERS: ClassVar[Mapping[str, Callable[[Any], None]]] = {
        **SharedActions.HANDLERS,
        "map.zoom": lambda do: do.zoom(),
    }


MADE: list[Map] = []


def make(context: ScreenContext) -> SessionScreen:
    screen = Map(context)
    MapActions(screen, context.events)
    MADE.append(screen)
    return screen


MAP = ScreenSpec(
    Action("map", "m", "Map of blocks and kinds", "View", "map"),
    make,
    # `o` sorts the workbench's table: screens may share a key.
    (Action("map.zoom", "o,plus", "Zoom in", "View", "zoom"),),
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    MADE.clear()
    monkeypatch.setattr(registry, "_registered", [])
    register_screen(f"{__name__}:MAP")


async def shown_map(d: Driver) -> Map:
    """The map, after its key was pressed."""
    await d.pilot.press("m")
    await d.until(lambda: isinstance(d.app.screen, Map))
    await d.settled()
    return MADE[0]


def record_shows(d: Driver, monkeypatch: pytest.MonkeyPatch) -> list[frozenset[Dirty]]:
    """Parts that the workbench is asked to draw from now on."""
    drawn: list[frozenset[Dirty]] = []
    show = d.bench.show

    def record(session: Session, dirty: frozenset[Dirty], *, whole: bool = False) -> None:
        drawn.append(dirty)
        show(session, dirty, whole=whole)

    monkeypatch.setattr(d.bench, "show", record)
    return drawn


async def test_a_screen_is_made_when_its_key_is_first_pressed_and_draws_everything() -> None:
    async with driving(*r.opening(), size=(120, 30)) as d:
        assert not MADE
        screen = await shown_map(d)
        assert screen.shown == [EVERYTHING]
        assert "map of 37 layers" in d.screen()
        # The key bar is made from the actions of the screen that is shown.
        assert "o zoom" in d.screen()
        assert "sort" not in d.screen()


async def test_only_the_screen_that_is_shown_is_painted_and_the_other_catches_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with driving(*r.opening(), size=(120, 30)) as d:
        drawn = record_shows(d, monkeypatch)
        screen = await shown_map(d)
        await d.give(*r.triaged())
        await d.give(*r.swept(5))
        assert drawn == []
        assert len(screen.shown) >= 3
        seen = frozenset[Dirty]().union(*screen.shown[1:])
        assert {"weights", "measured"} <= seen
        # Both heard everything, shown or not.
        assert any(isinstance(event, p.JobStarted) for event in screen.heard)

        await d.pilot.press("m")
        await d.until(lambda: d.app.screen is d.bench)
        assert drawn[0] == seen
        await d.settled()
        assert len(drawn) == 1
        assert d.table.session is d.app.session
        before = len(screen.shown)
        await d.give(*r.swept(9))
        assert len(screen.shown) == before
        assert len(drawn) > 1
        # The map is the same screen as before, and catches up too.
        assert await shown_map(d) is screen
        assert len(screen.shown) == before + 1
        assert "measured" in screen.shown[-1]


async def test_nothing_is_painted_on_return_where_nothing_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with driving(*r.opening(), size=(120, 30)) as d:
        drawn = record_shows(d, monkeypatch)
        await shown_map(d)
        await d.pilot.press("escape")
        await d.until(lambda: d.app.screen is d.bench)
        await d.settled()
        assert drawn == []
        # Escape is the workbench's own key again.
        await d.pilot.press("space", "escape")
        assert d.app.screen is d.bench


async def test_an_overlay_does_not_keep_the_screen_below_from_being_painted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with driving(*r.opening(), size=(120, 30)) as d:
        screen = await shown_map(d)
        await d.pilot.press("question_mark")
        await d.until(lambda: isinstance(d.app.screen, Help))
        assert "Zoom in" in d.screen()
        assert "Filter the rows" not in d.screen()
        before = len(screen.shown)
        await d.give(*r.triaged())
        assert len(screen.shown) > before


async def test_actions_of_a_screen_and_those_of_all_screens_are_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with driving(*r.opening(), size=(120, 30)) as d:
        order = d.table.order
        screen = await shown_map(d)
        await d.pilot.press("o", "plus")
        assert screen.zoomed == 2
        assert d.table.order == order
        await d.pilot.press("u")
        await d.until(lambda: screen.message.said == ("warning", "nothing to undo"))
        await d.pilot.press("colon", *"freeze", "enter")
        await d.until(lambda: d.app.engine.frozen)
        painted = len(screen.shown)
        await d.give(*r.triaged())
        assert not any(
            "weights" in dirty and dirty != EVERYTHING for dirty in screen.shown[painted:]
        )
        # A key of the table alone does nothing here.
        await d.pilot.press("4")
        await d.settled()
        assert not d.sent(p.SetFormat)


async def test_a_screen_can_be_shown_from_the_palette_and_the_workbench_likewise() -> None:
    async with driving(*r.opening(), size=(120, 30)) as d:
        await d.pilot.press("colon", *"map of", "enter")
        await d.until(lambda: isinstance(d.app.screen, Map))
        await d.pilot.press("colon", *"layers and", "enter")
        await d.until(lambda: d.app.screen is d.bench)


async def test_a_lost_engine_is_said_on_the_screen_that_is_shown() -> None:
    async with driving(*r.opening(), size=(120, 30)) as d:
        screen = await shown_map(d)
        d.link.die("the engine was killed by signal 9")
        await d.until(lambda: screen.failed)
        assert d.bench.banner.has_class("-shown")
        assert screen.handler is not None
        assert screen.handler.why_not("retry") == ""
        await d.until(lambda: "killed by signal 9" in screen.message.text)


async def test_a_screen_that_was_resized_while_hidden_fits_when_it_is_shown() -> None:
    async with driving(*r.opening(), size=(120, 40)) as d:
        await shown_map(d)
        await d.pilot.resize_terminal(80, 24)
        await d.pilot.press("m")
        await d.until(lambda: d.app.screen is d.bench)
        await d.settled()
        assert d.bench.has_class("-narrow")
        assert d.bench.size.width == 80


def test_a_keymap_may_change_its_keys_and_screens_may_share_one(tmp_path: Path) -> None:
    screens = known_keys(r.PROFILE.keys)
    assert screens["map"]["map.zoom"] == "o,plus"
    assert screens["workbench"]["map"] == "m"
    path = tmp_path / "keymap.toml"
    path.write_text('[keys]\nmap = "M"\n"map.zoom" = "a"\n', encoding="utf-8")
    assert read_keymap(path, *screens.values()).keys == {"map": "M", "map.zoom": "a"}
    path.write_text('[keys]\n"map.zoom" = "u"\n', encoding="utf-8")
    with pytest.raises(KeymapError, match="undo"):
        read_keymap(path, *screens.values())


TAKEN = MAP._replace(action=Action("undo", "", "Undo", "View"))


def test_a_screen_cannot_take_the_id_of_an_action() -> None:
    register_screen(f"{__name__}:TAKEN")
    with pytest.raises(EngineError, match="'undo'"):
        screens()


def test_registering_imports_no_textual_and_no_typer() -> None:
    program = (
        "import sys\n"
        "from qtui.cli.commands import register_command\n"
        "from qtui.screens.registry import register_screen\n"
        "register_command('count', 'counting:count'), register_screen('counting:MAP')\n"
        "sys.exit(bool({'textual', 'typer', 'rich'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
