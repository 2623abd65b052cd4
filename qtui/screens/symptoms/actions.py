"""The actions of the prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from engine import protocol as p
from engine.diagnosis.of_symptoms import alarms
from engine.session import running
from qtui.screens.moving import paging, stepping
from qtui.screens.session_screen import SessionScreen
from qtui.screens.shared_actions import SharedActions
from qtui.views.eventlog import EventLog

if TYPE_CHECKING:
    from qtui.screens.symptoms.screen import Symptoms

SAMPLED = 0.8
"""Temperature, where tokens are sampled."""


class SymptomsActions(SharedActions):
    """Runs the actions of the prompts, and those of every screen."""

    def __init__(self, screen: Symptoms, events: EventLog) -> None:
        super().__init__(screen, events)
        self.list = screen
        self._chosen: p.Sampling | None = None

    HANDLERS: ClassVar[Mapping[str, Callable[[Any], None]]] = {
        **SharedActions.HANDLERS,
        **stepping("symptoms"),
        **paging("symptoms"),
        "symptoms.type": lambda do: do.list.ask_text(do.typed),
        "symptoms.file": lambda do: do.list.ask_file(do.file),
        "symptoms.sample": lambda do: do.sample(),
        "symptoms.why": lambda do: do.why(),
        "symptoms.show": lambda do: do.show(),
    }
    """What runs an action, by its id."""

    def why_not(self, id: str) -> str:
        """Why an action is not possible now; empty where it is."""
        if id.startswith("symptoms.") and not self.session.layers.names:
            return "no layers yet"
        if id in ("symptoms.type", "symptoms.file", "symptoms.why") and (why := self.no_recipe()):
            return why
        if id == "symptoms.why":
            if not alarms(self.list.prompts.shown):
                return "no prompt shows a symptom that the reference has not"
            if any(isinstance(job.command, p.FindSymptoms) for job in running(self.session)):
                return "prompts are being continued"
        if id == "symptoms.show" and not self._layers():
            return "no layer is known to cause it"
        return super().why_not(id)

    @property
    def sampling(self) -> p.Sampling:
        """How prompts are continued: as chosen here, else as the last ones were."""
        if self._chosen is not None:
            return self._chosen
        asked = self.list.prompts.asked
        return asked[-1].sampling if asked else p.Sampling()

    def typed(self, text: str) -> None:
        """Continue a prompt, and those typed before: they are there with the recipe of now."""
        prompts = tuple(dict.fromkeys((*self._typed(), text)))
        self.ask(p.FindSymptoms(prompts=prompts, sampling=self.sampling))

    def file(self, path: str) -> None:
        """Continue the prompts of a file."""
        place = str(Path(path.strip()).expanduser().absolute())
        self.ask(p.FindSymptoms(file=place, sampling=self.sampling))

    def _typed(self) -> tuple[str, ...]:
        asked = self.list.prompts.asked
        return tuple(dict.fromkeys(each for command in asked for each in command.prompts))

    def sample(self) -> None:
        """Sample from now on, or take the most likely tokens again; all prompts once more."""
        temperature = 0.0 if self.sampling.temperature else SAMPLED
        self._chosen = msgspec.structs.replace(self.sampling, temperature=temperature)
        self.screen.say("info", f"sampled at temperature {SAMPLED:g}" if temperature else "greedy")
        self._again(why=False)

    def why(self) -> None:
        """Give layers back where the prompts show symptoms."""
        self._again(why=True)

    def _again(self, *, why: bool) -> None:
        """All prompts that were typed, and the file that was named last."""
        asked = self.list.prompts.asked
        if not asked or not self.session.changed:
            return
        file = next((command.file for command in reversed(asked) if command.file), "")
        command = p.FindSymptoms(prompts=self._typed(), file=file, sampling=self.sampling, why=why)
        self.ask(command)

    def show(self) -> None:
        """Show the layer that causes it in the table."""
        self.screen.post_message(SessionScreen.ShowLayer(self._layers()[0]))

    def _layers(self) -> list[str]:
        found = self.list.prompts.causes(self.session)
        return [layer for cause in found for layer in cause.layers]
