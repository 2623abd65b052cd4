"""Load and memory of the machine the engine runs on."""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import Any

import psutil

from engine.protocol import Gauges


@functools.cache
def _gpu() -> Any:
    """NVML's handle of the first GPU; None if there is none."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByIndex(0)
    except Exception:  # noqa: BLE001 - no driver, no library, no GPU: all mean the same
        return None


@functools.cache
def _process() -> psutil.Process:
    return psutil.Process()


def read_gauges() -> Gauges:
    """One reading; processor load is measured since the previous reading."""
    gpu = _gpu()
    extra: dict[str, Any] = {}
    if gpu is not None:
        import pynvml

        # Each on its own: a GPU partition reports its memory but not its load.
        with suppress(pynvml.NVMLError):
            name = pynvml.nvmlDeviceGetName(gpu)
            extra["gpu_name"] = name if isinstance(name, str) else name.decode()
        with suppress(pynvml.NVMLError):
            memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
            extra["gpu_used"], extra["gpu_total"] = int(memory.used), int(memory.total)
        with suppress(pynvml.NVMLError):
            extra["gpu_load"] = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
    return Gauges(
        cpu=psutil.cpu_percent() / 100,
        rss=_process().memory_info().rss,
        memory_free=psutil.virtual_memory().available,
        **extra,
    )
