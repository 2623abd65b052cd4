"""A loaded model with its evaluation windows, and what jobs cache with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from engine import protocol as p
from engine.checkpoint import DiskLayer
from engine.store import keys
from engine.workspace.opened import Opened
from engine.workspace.pressure import Pressure

if TYPE_CHECKING:  # torch is imported when a model is loaded, not with the engine
    from engine.model.network import Network
    from engine.texts.windows import Windows

T = TypeVar("T")


@dataclass(eq=False)
class Loaded:
    """One loaded model, on one set of windows.

    Measurements cache what they reuse (the reference, calibration, recipe runs) as parts of the
    model, by type: see `part`. This module knows none of these types.
    """

    absent: ClassVar[str] = "no model is loaded"

    opened: Opened
    network: Network
    windows: Windows
    protocol: p.Protocol
    evaluation: keys.Evaluation
    """The part of a fact's key for files, windows and arithmetic."""
    load_s: float = 0.0
    """Seconds that loading took."""
    pressure: Pressure = field(default_factory=Pressure)
    """What was given up since memory ran out."""
    _parts: dict[type, Any] = field(default_factory=dict)

    def part(self, kind: type[T], make: Callable[[], T]) -> T:
        """The part of a type; created on first use."""
        if kind not in self._parts:
            self._parts[kind] = make()
        found: T = self._parts[kind]
        return found

    def find(self, kind: type[T]) -> T | None:
        """The part of a type; None if it does not exist yet."""
        return self._parts.get(kind)

    @property
    def settings(self) -> p.Settings:
        """The session's settings."""
        return self.opened.settings

    @property
    def rows(self) -> dict[str, DiskLayer]:
        """Layers in the files, by name."""
        return self.opened.rows

    @property
    def scale_dtype(self) -> str:
        """16-bit dtype that stored scales are rounded to."""
        return self.opened.scale_dtype

    def should_stop(self) -> bool:
        """Whether a more urgent job waits for the running step."""
        return self.opened.workspace.should_stop()

    def assert_at_rest(self) -> None:
        """See `Network.assert_at_rest`."""
        self.network.assert_at_rest()

    def known(self, keys: Sequence[str]) -> dict[str, p.AnyFact]:
        """See `Workspace.known`."""
        return self.opened.workspace.known(keys)

    def beside(self) -> int:
        """Bytes for everything but weights: what these leave of the budget, or of free memory."""
        from engine.model.memory import memory_free

        network, total = self.network, self.settings.memory_budget
        if total is not None:
            return max(0, total - network.weights_in_memory)
        # Blocks that are read are not in memory now.
        blocks = network.weights_in_memory - network.weights_outside if network.streamed else 0
        return max(0, memory_free(network.device) - blocks)

    def budget(self) -> int:
        """Bytes for calibration and estimates: what is `beside` the weights if a budget is set,
        else half of it; less after memory ran out."""
        free = self.beside()
        return self.pressure.cached(free if self.settings.memory_budget is not None else free // 2)

    @property
    def batch_tokens(self) -> int:
        """Tokens in a micro-batch: as set, fewer after memory ran out."""
        return self.pressure.batch_tokens(self.settings.batch_tokens)

    def give_way(self) -> str | None:
        """Free every part, and let the next ones take less memory.

        Returns:
            What was given up, for a sentence; None if nothing is left.
        """
        # Not how many there are of the text: there may be more of the calibration text.
        windows = self.batch_tokens // self.windows.seq_len
        self._free()
        return self.pressure.give_way(windows)

    @property
    def exhausted(self) -> bool:
        """Whether micro-batches have one window and nothing is cached."""
        return self.pressure.empty

    def take_back(self) -> None:
        """Go back to what is set; parts are made anew."""
        self.pressure = Pressure()
        self._free()

    def memory(self) -> str:
        """The device and what is free there."""
        from engine.model.memory import GIB, memory_free

        device = self.network.device
        return f"{device}, where {memory_free(device) / GIB:.1f} GiB are free"

    def _free(self) -> None:
        import gc

        import torch

        self._parts.clear()
        gc.collect()
        if self.network.device.type == "cuda":
            torch.cuda.empty_cache()
