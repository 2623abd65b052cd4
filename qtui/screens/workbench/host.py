"""What the workbench wants of whoever carries out its actions: neither imports the other."""

from __future__ import annotations

from typing import Protocol

from qtui.widgets.prompt.prompt import Prompt


class Typed(Protocol):
    """Who hears what is typed at the foot of the screen."""

    @property
    def open(self) -> bool:
        """Whether there is a line to type in."""

    def changed(self, event: Prompt.Changed) -> None:
        """Another value, as it is typed."""

    def submitted(self, event: Prompt.Submitted) -> None:
        """A value was handed in."""

    def cancelled(self, event: Prompt.Cancelled) -> None:
        """Nothing was handed in."""


class Hands(Protocol):
    """Who carries out the actions of the registry."""

    @property
    def prompts(self) -> Typed:
        """What is typed at the foot."""

    def perform(self, id: str) -> None:
        """Do what an action says, or say why it cannot be done."""

    def why_not(self, id: str) -> str:
        """Why an action makes no sense now; empty where it does."""
