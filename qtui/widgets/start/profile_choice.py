"""The profile selector of the start screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType

from engine.profiles import Profile
from engine.report.wording import count
from qtui.views.text import UNICODE, Glyphs, printable
from qtui.widgets.line import Lines, Words, cells


class ProfileChoice(Lines, can_focus=True):
    """A profile's name between arrows, and what it means."""

    DEFAULT_CSS = """
    ProfileChoice { height: 1; padding: 0 1; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "app.focus_previous", "Up", id="profile.up"),
        Binding("down", "app.focus_next", "Down", id="profile.down"),
    ]

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        chosen: str,
        glyphs: Glyphs = UNICODE,
        *,
        id: str | None = None,
    ) -> None:
        """
        Args:
            profiles: all there are by name, in the order they are gone through.
            chosen: the first one shown.
        """
        super().__init__(id=id)
        self.profiles, self.chosen, self.glyphs = dict(profiles), chosen, glyphs

    def step(self, places: int) -> None:
        """Choose the next profile, or the one before."""
        names = list(self.profiles)
        self.chosen = names[(names.index(self.chosen) + places) % len(names)]
        self.write()

    def write(self) -> None:
        """Show the profile, as much of it as there is room for."""
        profile = self.profiles[self.chosen]
        left, right = ("<", ">") if self.glyphs.ascii else ("‹", "›")
        mark = f"{self.glyphs.cursor} " if self.has_focus else "  "
        line: Words = [
            (mark, "bold $primary"), ("profile ", "$dim"), (f"{left} ", "$primary"),
            (printable(self.chosen), "bold"), (f" {right}", "$primary"),
        ]  # fmt: skip
        swept = " ".join(profile.sweep_formats)
        stride = f", stride {profile.stride}" if profile.stride else ""
        for part in (
            f"   {count(profile.tokens)} tokens, window up to {profile.seq_len}{stride}",
            f"   sweep {swept}",
            f"   weights {' '.join(profile.formats)}",
        ):
            if cells([*line, (part, "")]) <= self.content_size.width:
                line.append((printable(part), "$dim"))
        self.set_lines([line])

    def on_resize(self) -> None:
        """Make use of the new room."""
        self.write()

    def on_focus(self) -> None:
        """Show that keys come here."""
        self.write()

    def on_blur(self) -> None:
        """Show that keys go elsewhere."""
        self.write()

    def on_click(self) -> None:
        """Choose the next one."""
        self.step(1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Choose the next one."""
        event.stop()
        self.step(1)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Choose the one before."""
        event.stop()
        self.step(-1)
