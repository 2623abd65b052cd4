"""Which effects the workbench shows: of which format, in which direction."""

from __future__ import annotations

from engine import protocol as p
from engine.session import Session
from qtui.views import sweeps


class ShownEffects:
    """The format and the direction whose effects are shown."""

    def __init__(self) -> None:
        self.format = ""
        self.direction: p.Direction = "degrade"
        self.wanted = ""
        """A format whose effects are shown from the first one on; empty once they are."""

    def swept(self, session: Session) -> list[str]:
        """Formats whose effects are known in this direction, measured or estimated."""
        return sweeps.swept(session, self.direction)

    def update(self, session: Session) -> None:
        """Choose the format: one that was asked for, else the one shown, else the profile's.

        One that is being swept stays, though others are known before it.
        """
        swept, usual = self.swept(session), session.settings.sweep_formats
        if self.wanted in swept:
            self.format, self.wanted = self.wanted, ""
        elif self.format not in (
            *swept,
            *sweeps.swept(session, sweeps.OTHER[self.direction]),
        ) and not sweeps.sweeping(session, self.format, self.direction):
            self.format = next((f for f in usual if f in swept), (swept or list(usual) or [""])[0])

    def next_format(self, session: Session) -> None:
        """Go on to the next format that was swept."""
        swept = self.swept(session)
        at = swept.index(self.format) if self.format in swept else -1
        self.format = swept[(at + 1) % len(swept)]

    def switch_direction(self) -> p.Direction:
        """Go over to the other direction; returns the one before."""
        before = self.direction
        self.direction = sweeps.OTHER[before]
        return before
