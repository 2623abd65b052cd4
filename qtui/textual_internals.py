"""Private names of Textual: all that qtui uses of them, and why.

Textual is pinned to one minor release because of these. `USED` names each with what breaks without
it; `tests/qtui/test_textual_internals.py` looks for each in the installed release, and for private
names anywhere else in qtui.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from textual import events
from textual._color_constants import ANSI_COLORS as ANSI_COLORS
from textual._dispatch_key import dispatch_key
from textual._xterm_parser import BRACKETED_PASTE_END as BRACKETED_PASTE_END
from textual._xterm_parser import BRACKETED_PASTE_START as BRACKETED_PASTE_START
from textual._xterm_parser import XTermParser
from textual.app import App
from textual.binding import Binding
from textual.dom import DOMNode
from textual.driver import Driver
from textual.filter import Monochrome, NoColor
from textual.keys import _character_to_key
from textual.message_pump import MessagePump
from textual.screen import Screen
from textual.strip import Strip
from textual.widgets import Input

USED = {
    "textual._color_constants.ANSI_COLORS": "themes that name the terminal's own 16 colours",
    "textual._dispatch_key.dispatch_key": "key handlers of the app itself",
    "textual._xterm_parser.BRACKETED_PASTE_START": "what is pasted could be taken for keys",
    "textual._xterm_parser.BRACKETED_PASTE_END": "what is pasted could be taken for keys",
    "textual._xterm_parser.XTermParser": "input is not cleaned of the terminal's own answers",
    "textual.keys._character_to_key": "a keymap cannot name keys by their characters",
    "textual.app.App._display": "the first frame is painted in parts, as they come",
    "textual.app.App._filters": "NO_COLOR still sends greys",
    "textual.app.App._check_bindings": "keys that come together find no prompt that one opens",
    "textual.app.App._driver": "no frame is left out on a slow line, and a copy could hang",
    "textual.drivers._writer_thread.WriterThread._queue": "as App._driver",
    "textual.drivers.linux_driver.LinuxDriver._writer_thread": "as App._driver",
    "textual.driver.Driver._debug": "input is not cleaned of the terminal's own answers",
    "textual.dom.DOMNode._bindings": "keys of actions, of profiles and of keymap.toml",
    "textual.events.Key._set_forwarded": "keys that come together, as App._check_bindings",
    "textual.message.Message._stop_propagation": "keys that come together",
    "textual.message.Message._no_default_action": "keys that come together",
    "textual.message_pump.MessagePump._context": "keys that come together",
    "textual.message_pump.MessagePump._dispatch_message": "keys that come together",
    "textual.message_pump.MessagePump._parent": "keys that come together",
    "textual.screen.Screen._compositor": "pictures and text of the screen cannot be saved",
    "textual.widgets._input.Input._suggestion": "completions are not shown grey behind the cursor",
}
"""Each private name, and what breaks without it."""


def character_to_key(character: str) -> str:
    """The name of the key that types a character: ``question_mark`` for ``?``."""
    return _character_to_key(character)


def bind_key(node: DOMNode, binding: Binding) -> None:
    """Bind a key on one widget or screen, replacing its binding there."""
    node._bindings.key_to_bindings[binding.key] = [binding]


def unbind_key(node: DOMNode, key: str) -> None:
    """Leave a key unbound on one widget, screen or app."""
    node._bindings.key_to_bindings.pop(key, None)


def rendered_strips(screen: Screen[Any]) -> Sequence[Strip]:
    """The lines of a screen as they are drawn."""
    return screen._compositor.render_strips()


def suggest(line: Input, text: str) -> None:
    """Show a text grey behind what is typed."""
    line._suggestion = text


def input_parser(driver: Driver) -> XTermParser:
    """What makes events of the bytes that a terminal sends."""
    return XTermParser(driver._debug)


def driver_of(app: object) -> Driver | None:
    """What writes to the terminal; None where there is none."""
    return getattr(app, "_driver", None)


def frames_waiting(app: object) -> int:
    """How many pieces of output the terminal has not taken yet."""
    queue = _output_queue(app)
    return 0 if queue is None else int(queue.qsize())


def output_is_full(app: object) -> bool:
    """Whether the terminal takes nothing any more: a write would wait, and everything with it."""
    queue = _output_queue(app)
    return queue is not None and bool(queue.qsize() > queue.maxsize - 4)


def _output_queue(app: object) -> Any:
    return getattr(getattr(driver_of(app), "_writer_thread", None), "_queue", None)


class OneFrameApp(App[None]):
    """An app that paints nothing before its first whole frame, and takes keys one by one."""

    painting = False
    """Whether frames are sent to the terminal."""

    def send_no_greys(self) -> None:
        """Under NO_COLOR send no colour at all: Textual sends greys, which are colours too."""
        self._filters = [
            NoColor() if isinstance(each, Monochrome) else each for each in self._filters
        ]

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        """Send nothing before the first whole frame: Textual would paint its parts as they come."""
        if self.painting:
            super()._display(screen, renderable)

    def push_screen(self, screen: Any, *args: Any, **options: Any) -> Any:
        """Show a screen in one frame: nothing is sent until it is laid out."""
        pushed = super().push_screen(screen, *args, **options)
        if self.painting:
            self.painting = False
            self.call_after_refresh(lambda: self.screen.call_after_refresh(self._paint_now))
        return pushed

    def _paint_now(self) -> None:
        self.painting = True
        self.screen.refresh()

    async def on_event(self, event: events.Event) -> None:
        """Handle a key completely before the next one is looked at.

        Textual passes every key to what has the focus as it comes; of keys that come together, as
        over a slow line, the later ones would not find a prompt that the first one opens.
        """
        if isinstance(event, events.Key) and not event.is_forwarded:
            await self._handle_key(event)
        else:
            await super().on_event(event)

    async def _handle_key(self, event: events.Key) -> None:
        self.app_focus = True
        if await self._check_bindings(event.key, priority=True):
            return
        event._set_forwarded()
        event.bubble = False  # type: ignore[misc]  # the loop below does it
        node: MessagePump | None = self.focused or self.screen
        while node is not None and node is not self:
            with node._context():
                await node._dispatch_message(event)
            if event._stop_propagation:
                return
            event._no_default_action = False
            node = node._parent
        if not await self._check_bindings(event.key):
            await dispatch_key(self, event)
