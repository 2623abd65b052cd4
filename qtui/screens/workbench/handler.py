"""What the workbench needs of what runs its actions: neither imports the other."""

from __future__ import annotations

from typing import Protocol

from qtui.screens.session_screen import ActionHandler
from qtui.widgets.prompt.prompt import Prompt


class PromptListener(Protocol):
    """Hears what is typed at the foot of the screen."""

    @property
    def open(self) -> bool:
        """Whether there is a line to type in."""

    def changed(self, event: Prompt.Changed) -> None:
        """Another value, as it is typed."""

    def submitted(self, event: Prompt.Submitted) -> None:
        """A value was handed in."""

    def cancelled(self, event: Prompt.Cancelled) -> None:
        """Nothing was handed in."""


class WorkbenchHandler(ActionHandler, Protocol):
    """Runs the workbench's actions, and hears its prompts."""

    @property
    def prompts(self) -> PromptListener:
        """What is typed at the foot."""
