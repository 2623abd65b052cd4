"""Load and memory of the machine the engine runs on."""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from typing import Any

import psutil

from engine.protocol import Gauges


@functools.cache
def _gpu(index: int) -> Any:
    """NVML's handle of what CUDA calls this device; None if there is none."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return visible_gpu(pynvml, index, os.environ.get("CUDA_VISIBLE_DEVICES"))
    except Exception:  # noqa: BLE001 - no driver, no library, no GPU: all mean the same
        return None


def visible_gpu(nvml: Any, index: int, visible: str | None) -> Any:
    """NVML's handle of a CUDA device; NVML itself counts all GPUs of the machine.

    Args:
        nvml: the module `pynvml`, initialised.
        index: CUDA's number of the device.
        visible: what ``CUDA_VISIBLE_DEVICES`` says: numbers, the beginnings of names (``GPU-…``),
            or names of partitions (``MIG-…``); None if it is not set.

    Raises:
        LookupError: it is not visible.
    """
    if visible is None:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    name = [each.strip() for each in visible.split(",")][index]
    if name.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    if name.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(name)
    for number in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        if name and nvml.nvmlDeviceGetUUID(handle).startswith(name):
            return handle
    raise LookupError(f"CUDA_VISIBLE_DEVICES names {name!r}, which is no GPU of this machine")


@functools.cache
def _process() -> psutil.Process:
    return psutil.Process()


def read_gauges(device: str = "") -> Gauges:
    """One reading; processor load is measured since the previous reading.

    Args:
        device: the model's, such as ``cuda:1``; the first GPU if there is no model yet.
    """
    number = device.partition(":")[2]
    gpu = _gpu(int(number) if number.isdigit() else 0)
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
            own = [
                each.usedGpuMemory or 0
                for each in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
                if each.pid == os.getpid()
            ]
            extra["gpu_own"] = sum(own)
        with suppress(pynvml.NVMLError):
            extra["gpu_load"] = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
    return Gauges(
        cpu=psutil.cpu_percent() / 100,
        rss=_process().memory_info().rss,
        memory_free=psutil.virtual_memory().available,
        **extra,
    )
