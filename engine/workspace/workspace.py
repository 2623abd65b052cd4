"""The workspace that all jobs of an engine share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, TypeVar

from engine import protocol as p
from engine.errors import EngineError
from engine.store.facts import FactStore


class Openable(Protocol):
    """Something a workspace can hold."""

    absent: ClassVar[str]
    """Error message if a job needs one and there is none."""

    def assert_at_rest(self) -> None:
        """Fail if a job's step left it changed."""


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

    def known(self, keys: Sequence[str]) -> dict[str, p.AnyFact]:
        """The stored facts of these keys; with ``fresh`` only those of this run."""
        return self.facts.get_many(keys, since=self.begun if self.settings.fresh else 0.0)
