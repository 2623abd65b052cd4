"""Allocations that fail: the n-th on the compute thread, once, or it and all after it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.service.scheduler import Scheduler

ERRORS: dict[str, Callable[[], BaseException]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 123456 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "python": MemoryError,
}
"""What raises when memory runs out, by who allocates."""


class Allocator(TorchDispatchMode):
    """Counts the operations that make a tensor, and fails some."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.first, self.last = -1, -1
        self.error = ERRORS["cpu"]
        self.failed = 0

    def fail(self, first: int, *, forever: bool, error: str = "cpu") -> None:
        """Fail the allocation with this number, counted from now on; 0 fails none."""
        self.count, self.failed, self.error = 0, 0, ERRORS[error]
        self.first, self.last = first, 10**12 if forever else first

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func._schema.is_mutable and not func.is_view:
            self.count += 1
            if self.first <= self.count <= self.last and self.first > 0:
                self.failed += 1
                raise self.error()
        return func(*args, **(kwargs or {}))


@contextmanager
def failing_allocator(patch: pytest.MonkeyPatch) -> Iterator[Allocator]:
    """An allocator of the compute thread of any engine in this process."""
    allocator, step = Allocator(), Scheduler._step

    def failing(self: Scheduler, job: Any) -> None:
        if threading.current_thread().name != "compute":
            step(self, job)
            return
        with allocator:
            step(self, job)

    with patch.context() as inner:
        inner.setattr(Scheduler, "_step", failing)
        yield allocator
