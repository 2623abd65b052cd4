"""``--workers``: who measures beside the engine. No torch: the command line reads it too."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.errors import UsageError

EXPECTED = "a number of processes such as 2, devices such as cuda:0,cuda:1, or auto"
_DEVICE = re.compile(r"cpu|cuda:\d+")
MOST = 256
"""Processes on one machine."""


@dataclass(frozen=True)
class Asked:
    """Processes that measure, the engine's own among them."""

    processes: int = 1
    """How many; 0 for one on every GPU of this machine."""
    devices: tuple[str, ...] = ()
    """Where each runs, if devices were named."""

    @property
    def auto(self) -> bool:
        """Whether the machine says how many."""
        return self.processes == 0


def parse_workers(text: str) -> Asked:
    """Read ``2``, ``cuda:0,cuda:1`` or ``auto``; empty is the engine alone.

    Raises:
        UsageError: it is none of these.
    """
    given = text.strip().lower()
    if not given:
        return Asked()
    if given == "auto":
        return Asked(0)
    if given.isascii() and given.isdecimal() and 1 <= int(given) <= MOST:
        return Asked(int(given))
    devices = tuple(each.strip() for each in given.split(","))
    if all(map(_DEVICE.fullmatch, devices)) and len(devices) <= MOST:
        return Asked(len(devices), devices)
    raise UsageError(f"workers are {text!r}, expected {EXPECTED}")


def beside(asked: Asked, device: str, gpus: int) -> tuple[str, ...]:
    """Devices of the processes beside the engine's own.

    Args:
        asked: what was asked for.
        device: the engine's.
        gpus: GPUs of this machine.

    Raises:
        UsageError: a device is of another kind than the engine's, whose figures are others, or
            there are fewer devices.
    """
    kind = device.split(":")[0]
    if asked.devices:
        others = [each for each in asked.devices if each.split(":")[0] != kind]
        if others:
            raise UsageError(
                f"a worker is to run on {others[0]} and the engine runs on {device}: figures of "
                f"one table come from one kind of device; choose workers on {kind}, or another "
                "--device"
            )
        missing = [each for each in asked.devices if _number(each) >= gpus > 0]
        if kind == "cuda" and missing:
            raise UsageError(
                f"a worker is to run on {missing[0]}, and this machine has {gpus} GPUs"
            )
        found = list(asked.devices)
        if device in found:
            found.remove(device)
        return tuple(found)
    if kind == "cpu":
        return ("cpu",) * (0 if asked.auto else asked.processes - 1)
    free = [each for each in (f"cuda:{n}" for n in range(gpus)) if each != device]
    wanted = len(free) if asked.auto else asked.processes - 1
    if wanted > len(free):
        raise UsageError(
            f"{asked.processes} workers are asked for, and this machine has {gpus} GPU"
            f"{'' if gpus == 1 else 's'}: name devices to run several on one"
        )
    return tuple(free[:wanted])


def _number(device: str) -> int:
    return int(device.partition(":")[2] or 0)
