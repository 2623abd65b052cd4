"""Protocols between the workbench and its actions, so that neither imports the other."""

from __future__ import annotations

from typing import Protocol

from qtui.screens.session_screen import ActionHandler
from qtui.screens.verdict_taking import VerdictTaking
from qtui.widgets.prompt.prompt import Prompt


class PromptListener(Protocol):
    """Receives the messages of a prompt."""

    @property
    def open(self) -> bool:
        """Whether there is a line to type in."""

    def changed(self, event: Prompt.Changed) -> None:
        """The value changed."""

    def submitted(self, event: Prompt.Submitted) -> None:
        """A value was submitted."""

    def cancelled(self, event: Prompt.Cancelled) -> None:
        """The prompt was cancelled."""


class WorkbenchHandler(ActionHandler, Protocol):
    """Runs the workbench's actions, and handles its prompts."""

    @property
    def prompts(self) -> PromptListener:
        """What is typed at the foot."""

    @property
    def verdict(self) -> VerdictTaking:
        """The cursor on the verdict's line."""
