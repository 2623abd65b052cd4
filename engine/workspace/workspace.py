"""The workspace that all jobs of an engine share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, TypeVar

from engine import protocol as p
from engine.errors import EngineError, OutOfMemoryError
from engine.store.facts import FactStore
from engine.workspace.pressure import requested


class Openable(Protocol):
    """Something a workspace can hold."""

    absent: ClassVar[str]
    """Error message if a job needs one and there is none."""

    def assert_at_rest(self) -> None:
        """Fail if a job's step left it changed."""

    def give_way(self) -> str | None:
        """Give memory back; what was given up, for a sentence, or None if nothing is left."""

    @property
    def exhausted(self) -> bool:
        """Whether `give_way` has given all there was."""

    def take_back(self) -> None:
        """Undo all `give_way`."""

    def memory(self) -> str:
        """Its device and what is free there, for a sentence; empty if it uses none to speak of."""


OpenableT = TypeVar("OpenableT", bound=Openable)


class Workspace:
    """The fact store, the settings, and everything that is open.

    It may hold several objects of one type, such as two checkpoints to compare. A job asks for what
    it needs by type: `Opened` if the files are enough, `Loaded` to run the model.

    Args:
        facts: the store.
        settings: of the session.
        should_stop: whether a more urgent job waits for the running step.
    """

    def __init__(
        self,
        facts: FactStore,
        settings: p.Settings,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.facts, self.settings, self.should_stop = facts, settings, should_stop
        self.begun = time.time()
        """With ``fresh``, facts older than this are measured again."""
        self._held: list[Openable] = []

    def add(self, opened: Openable) -> None:
        """Add an object, which becomes the newest of its type."""
        self._held.append(opened)

    def every(self, kind: type[OpenableT]) -> list[OpenableT]:
        """All objects of a type, oldest first."""
        return [each for each in self._held if isinstance(each, kind)]

    def need(self, kind: type[OpenableT]) -> OpenableT:
        """The newest object of a type.

        Raises:
            EngineError: there is none.
        """
        found = self.every(kind)
        if not found:
            raise EngineError(kind.absent)
        return found[-1]

    def assert_at_rest(self) -> None:
        """Between two steps of jobs nothing is open: no grad mode, no patch, reference weights."""
        torch = sys.modules.get("torch")  # not imported before a job needs it
        if torch is not None and hasattr(torch, "is_inference_mode_enabled"):
            assert torch.is_grad_enabled(), "a job left gradients disabled across a yield"
            assert not torch.is_inference_mode_enabled(), "a job left inference mode on"
        for each in self._held:
            each.assert_at_rest()

    def relieve(self, said: str, *, known_before: bool, again: bool = False) -> str | None:
        """Give memory back after an allocation failed.

        Args:
            said: by whoever tried to allocate.
            known_before: the need was computed beforehand: only what is cached is of use then.
            again: whether the job has been given memory before.

        Returns:
            What was given up, as a sentence; None if there was nothing to give.

        Raises:
            OutOfMemoryError: everything was given up before.
        """
        where = " and ".join(filter(None, (each.memory() for each in self._held)))
        wanted = requested(said)
        failed = f"out of memory on {where}{f': {wanted} requested' if wanted else ''}"
        ways = [] if known_before and again else [each.give_way() for each in self._held]
        if gave := "; ".join(filter(None, ways)):
            return f"{failed}: {gave}; what was not saved yet is measured again"
        exhausted = any(each.exhausted for each in self._held)
        for each in self._held:
            each.take_back()
        if known_before or not exhausted:
            return None
        raise OutOfMemoryError(
            f"{failed}, with micro-batches of one window and nothing cached: choose --dtype bf16, "
            "a smaller --seq-len, another --device or a smaller model, or end the process that "
            "uses the memory; results are saved"
        )

    def known(self, keys: Sequence[str]) -> dict[str, p.AnyFact]:
        """The stored facts of these keys; with ``fresh`` only those of this run."""
        return self.facts.get_many(keys, since=self.begun if self.settings.fresh else 0.0)
