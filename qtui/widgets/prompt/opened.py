"""The prompt that is open over a screen, without loading what prompts are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from textual.screen import Screen

if TYPE_CHECKING:
    from qtui.widgets.prompt.prompt import Prompt


def prompt_over(screen: Screen[Any]) -> Prompt | None:
    """The open prompt that covers the bottom of a screen, if there is one."""
    for each in screen.query("Prompt.-over"):
        prompt = cast("Prompt", each)
        if not prompt.closed:
            return prompt
    return None
