"""Private names of Textual: all that qtui uses of them, and why.

Textual is pinned to one minor release because of these. `USED` names each with what breaks without
it; `tests/qtui/test_textual_internals.py` looks for each in the installed release, and for private
names anywhere else in qtui.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from rich.color import ColorSystem
from rich.console import COLOR_SYSTEMS, Console, RenderableType
from textual import events
from textual._color_constants import ANSI_COLORS as ANSI_COLORS
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
from textual._dispatch_key import dispatch_key
from textual._xterm_parser import BRACKETED_PASTE_END as BRACKETED_PASTE_END
from textual._xterm_parser import BRACKETED_PASTE_START as BRACKETED_PASTE_START
from textual._xterm_parser import XTermParser
from textual.app import App
from textual.binding import Binding
from textual.dom import DOMNode
from textual.driver import Driver
from textual.filter import Monochrome, NoColor
from textual.geometry import Size
from textual.keys import _character_to_key
from textual.message_pump import MessagePump
from textual.screen import Screen
from textual.strip import Strip
from textual.timer import Timer
from textual.widgets import Input

from qtui.changed_cells import Picture, Piece

USED = {
    "textual._color_constants.ANSI_COLORS": "themes that name the terminal's own 16 colours",
    "textual._compositor.ChopsUpdate": "unchanged cells are sent again and again",
    "textual._compositor.CompositorUpdate": "unchanged cells are sent again and again",
    "textual._compositor.LayoutUpdate": "unchanged cells are sent again and again",
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
    "textual.timer.Timer._skip": "a call after some milliseconds never comes on a busy machine",
    "textual.screen.Screen._compositor": "no pictures of the screen, and no whole frame",
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


def call_after(node: MessagePump, seconds: float, call: Callable[[], Any]) -> Timer:
    """Call a function once after so many seconds, also on a busy machine.

    `MessagePump.set_timer` alone drops the call without a word if the process gets no processor for
    longer than the delay just as its timer begins: its timers skip what is past, be it the only
    time (`textual.timer.Timer._run`).

    Args:
        node: whose message queue calls it: an app, a screen or a widget.
        seconds: the delay.
        call: the function.

    Returns:
        The timer, which can be stopped.
    """
    timer = node.set_timer(seconds, call)
    timer._skip = False
    return timer


def calling_after(node: MessagePump) -> Callable[[float, Callable[[], Any]], Timer]:
    """`call_after` for one node."""
    return partial(call_after, node)


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


class ChangedCells(CompositorUpdate):
    """An update of the screen without what the terminal shows already."""

    def __init__(
        self, update: ChopsUpdate | LayoutUpdate, picture: Picture, size: tuple[int, int]
    ) -> None:
        self.update, self.picture, self.size = update, picture, size

    def render_segments(self, console: Console) -> str:
        """The cells that change, and how the cursor gets to them."""
        colors = COLOR_SYSTEMS.get(console.color_system or "", ColorSystem.TRUECOLOR)
        return self.picture.changes(self.size, _pieces(self.update, colors))


def _pieces(update: ChopsUpdate | LayoutUpdate, colors: ColorSystem) -> Iterator[Piece]:
    """What an update draws, with the codes of its styles."""
    for y, x, strip in _strips(update):
        yield (
            y,
            x,
            [(text, Strip.render_ansi(style, colors) if style else "") for text, style, _ in strip],
        )


def _strips(update: ChopsUpdate | LayoutUpdate) -> Iterator[tuple[int, int, Strip]]:
    """Line, column and strip of everything in an update."""
    if isinstance(update, LayoutUpdate):
        for y, line in enumerate(update.strips, update.region.y):
            x = update.region.x
            for strip in line:
                yield y, x, strip
                x += strip.cell_length
        return
    for y, begin, stop in update.spans:
        for end, (x, chop) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            left, right = max(x, begin), min(end, stop)
            if chop is not None and left < right:
                yield y, left, chop.crop(left - x, right - x)


class OneFrameApp(App[None]):
    """An app that sends whole frames, of them what changed, and takes keys one by one."""

    painting = False
    """Whether frames are sent to the terminal."""

    def __init__(self, driver_class: type[Driver]) -> None:
        super().__init__(driver_class=driver_class)
        self.picture = Picture()
        """What the terminal shows."""

    def redraw(self) -> None:
        """Send the whole screen again: something else may have written over it."""
        self.picture.forget()
        # Not laid out again: of an earlier size, that could be drawn after the newest one.
        self.screen.refresh()

    def send_no_greys(self) -> None:
        """Under NO_COLOR send no colour at all: Textual sends greys, which are colours too."""
        self._filters = [
            NoColor() if isinstance(each, Monochrome) else each for each in self._filters
        ]

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        """Send nothing before the first whole frame: Textual would paint its parts as they come."""
        if not self.painting:
            return
        if isinstance(renderable, (ChopsUpdate, LayoutUpdate)):
            compositor = screen._compositor
            size = compositor.size
            if size != self.size:
                # Of several new sizes at once, an earlier one may reach the screen last.
                screen.post_message(events.Resize(self.size, self.size))
                return
            if self.picture.size != size:
                # Textual draws what it thinks has changed; but nothing of it is known to be there.
                renderable = compositor.render_full_update()
            changed: Any = ChangedCells(renderable, self.picture, size)
            super()._display(screen, changed)
        else:
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
        if isinstance(event, events.Resize):
            if not self.is_headless:
                # Of several sizes at once, Textual may report an earlier one last.
                size = Size(*shutil.get_terminal_size())
                event = events.Resize(size, size)
            # Also of the same size: it may have been another one in between.
            self.redraw()
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
