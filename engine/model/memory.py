"""How much memory a model needs, and how much is free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import OutOfMemoryError

if TYPE_CHECKING:  # jobs that only read files ask too, and need no torch
    import torch

GIB = 1024**3
CGROUP = Path("/sys/fs/cgroup")


def memory_needed(shapes: Iterable[Sequence[int]], dtype: torch.dtype) -> int:
    """Bytes of tensors of these shapes held in ``dtype``; what a forward adds is not in it."""
    return sum(math.prod(shape) for shape in shapes) * dtype.itemsize


def memory_free(device: str | torch.device) -> int:
    """Bytes free on ``device``; on CPU also at most what the container still allows.

    On CUDA also what this process has reserved and does not use: torch allocates from it first.
    """
    if str(device).startswith("cuda"):
        import torch

        free, _total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    import psutil

    free = psutil.virtual_memory().available
    allowed = _container_allows()
    return free if allowed is None else min(free, allowed)


def size_of(count: int) -> str:
    """Bytes as people say them: ``20.0 GiB``, ``300 MiB``."""
    if count >= GIB:
        return f"{count / GIB:.1f} GiB"
    return f"{max(1, round(count / 1024**2))} MiB" if count else "0 bytes"


def check_memory(needed: int, free: int, device: str | torch.device, *, what: str) -> None:
    """Raises OutOfMemoryError, naming both amounts, when ``needed`` bytes exceed ``free``."""
    if needed > free:
        raise OutOfMemoryError(
            f"{what} needs {needed / GIB:.1f} GiB and {device} has {free / GIB:.1f} GiB free: "
            "choose a 16-bit dtype (--dtype bf16), another device or a smaller model, "
            "or end the process that uses the memory"
        )


def _container_allows() -> int | None:
    """Bytes left under the control group's limit (version 2), or None where there is none."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((CGROUP / "memory.current").read_text())
        lines = (CGROUP / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(0, int(limit) - used + cached)
