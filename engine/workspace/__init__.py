"""What is loaded now, handed to every job: checkpoint, network, windows, and the way to facts."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from engine import protocol as p
from engine.errors import EngineError, UsageError
from engine.store.facts import FactStore

if TYPE_CHECKING:
    from pathlib import Path

    from engine.checkpoint import Checkpoint, DiskLayer
    from engine.measure.calibration.calibration import Calibration
    from engine.measure.evaluation.divergence import Tally
    from engine.measure.evaluation.recipe_run import RecentRuns
    from engine.measure.evaluation.reference import Reference
    from engine.model.network import Network

MEASURE_VERSION = 1
"""Raised when the arithmetic of a measurement changes, so that older facts are not reused."""

T = TypeVar("T")


@dataclass
class Workspace:
    """One opened checkpoint. Jobs read it; the job that opens it fills it in."""

    facts: FactStore
    settings: p.Settings
    path: Path | None = None
    demo: bool = False
    checkpoint: Checkpoint | None = None
    rows: dict[str, DiskLayer] = field(default_factory=dict)
    """Layers as the files have them, by name."""
    other_bytes: int = 0
    """Bytes of the checkpoint that belong to no layer."""
    network: Network | None = None
    reference: Reference | None = None
    recent_runs: RecentRuns | None = None
    """Runs of the recipes scored last."""
    protocol: p.Protocol | None = None
    calibration: Calibration | None = None
    """Made when a method first asks for it."""
    windows_sha256: str = ""
    """Hash of the windows' tokens."""
    code_sha256: str = ""
    """Hash of the code that came with the checkpoint, where it was trusted."""
    scale_dtype: str = "float16"
    """16-bit dtype that stored scales are rounded to."""
    tallies: dict[str, list[Tally]] = field(default_factory=dict)
    """Of measurements that have not seen all windows, by the key of the figure on all: those that
    were seen are not measured again."""
    load_s: float = 0.0
    opened: float = field(default_factory=time.time)
    """Under ``fresh``, facts older than this are measured anew."""
    should_stop: Callable[[], bool] = lambda: False

    @property
    def tied(self) -> bool:
        """Whether the files hold one tensor for head and embedding."""
        parts = {row.role: row.parts for row in self.rows.values()}
        return "head" in parts and parts["head"] == parts.get("embedding")

    def need_checkpoint(self) -> Checkpoint:
        """The checkpoint.

        Raises:
            EngineError: if none is open.
        """
        if self.checkpoint is None:
            raise EngineError("no checkpoint is open")
        return self.checkpoint

    def row(self, layer: str) -> DiskLayer:
        """A layer as the files have it.

        Raises:
            UsageError: there is none of this name.
        """
        row = self.rows.get(layer)
        if row is None:
            raise UsageError(f"the checkpoint has no layer {layer!r}")
        return row

    def assert_at_rest(self) -> None:
        """Between two steps of jobs nothing is open: no grad mode, no patch, reference weights."""
        torch = sys.modules.get("torch")  # not imported before a job needs it
        if torch is not None and hasattr(torch, "is_inference_mode_enabled"):
            assert torch.is_grad_enabled(), "a job left gradients disabled across a yield"
            assert not torch.is_inference_mode_enabled(), "a job left inference mode on"
        if self.network is not None:
            self.network.assert_at_rest()

    def need_network(self) -> tuple[Network, Reference]:
        """The loaded network and its reference values.

        Raises:
            EngineError: if no model is loaded.
        """
        if self.network is None or self.reference is None:
            raise EngineError("no model is loaded")
        return self.network, self.reference

    def budget(self) -> int:
        """Bytes beside the loaded model: those that were asked for, else half of what is free."""
        from engine.model.memory import memory_free

        network, _ = self.need_network()
        return self.settings.memory_budget or memory_free(network.device) // 2

    def key(self, kind: str, **parts: Any) -> str:
        """Content address of a fact about this checkpoint: all that the fact depends on.

        Budgets, micro-batches and threads are not among it: they change the last bits at most.
        """
        checkpoint = self.need_checkpoint()
        whole = {
            "kind": kind,
            "version": MEASURE_VERSION,
            "checkpoint": checkpoint.fingerprint,
            "code": self.code_sha256,
            **parts,
        }
        return hashlib.sha256(msgspec.json.encode(whole, order="sorted")).hexdigest()

    def measured_key(self, kind: str, **parts: Any) -> str:
        """Content address of a fact that depends on the evaluation protocol too."""
        assert self.protocol is not None
        protocol = msgspec.to_builtins(self.protocol)
        protocol["device"] = self.protocol.device.split(":")[0]
        # The text is its tokens as they were cut: another tokenizer makes another text of it. What
        # depends on the draws of labels says so itself.
        del protocol["text"], protocol["text_sha256"], protocol["draws"]
        return self.key(kind, protocol=protocol, windows=self.windows_sha256, **parts)

    def known(self, keys: Sequence[str]) -> dict[str, p.AnyFact]:
        """The facts the store has; under ``fresh`` those of this run alone."""
        return self.facts.get_many(keys, since=self.opened if self.settings.fresh else 0.0)


def again(step: Callable[[], T]) -> Generator[None, None, T]:
    """Run a step, and again after a yield whenever something more urgent made it stop.

    Use as ``value = yield from again(lambda: ...)`` inside a job.
    """
    from engine.model.network import Preempted

    while True:
        try:
            return step()
        except Preempted:
            yield None
