"""``--workers``: who measures beside the engine. No torch: the command line reads it too."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass

from engine.errors import UsageError

EXPECTED = (
    "a number of processes such as 2, devices such as cuda:0,cuda:1, auto, or a cluster of Ray: "
    "ray://HOST:PORT, or ray for the one that this host has joined"
)
_DEVICE = re.compile(r"cpu|cuda:\d+")
_CLUSTER = re.compile(r"ray://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>\d{1,5}))?/?")
PORT = 6379
"""Of the head of a cluster, where none is given: that of ``ray start --head``."""
CLIENT_PORT = 10001
"""Of Ray Client, whose addresses begin with ``ray://`` too."""
JOINED = "auto"
"""The address of the cluster that this host has joined, in Ray's own words."""
MOST = 256
"""Processes on one machine."""


@dataclass(frozen=True)
class Asked:
    """Processes that measure, the engine's own among them."""

    processes: int = 1
    """How many; 0 for one on every GPU of this machine."""
    devices: tuple[str, ...] = ()
    """Where each runs, if devices were named."""
    cluster: str = ""
    """``HOST:PORT`` of a cluster's head, or ``auto``; empty for none. On this machine it is as if
    ``auto`` had been asked for."""

    @property
    def auto(self) -> bool:
        """Whether the machine says how many."""
        return self.processes == 0


def parse_workers(text: str) -> Asked:
    """Read ``2``, ``cuda:0,cuda:1``, ``auto``, ``ray`` or ``ray://HOST:PORT``.

    Empty is the engine alone.

    Raises:
        UsageError: it is none of these.
    """
    given = text.strip().lower()
    if not given:
        return Asked()
    if given == "auto":
        return Asked(0)
    if given in ("ray", "ray://", "ray://auto"):
        return Asked(0, cluster=JOINED)
    if found := _CLUSTER.fullmatch(given):
        port = int(found["port"] or PORT)
        if port == CLIENT_PORT:
            raise UsageError(
                f"{text.strip()} is the address of Ray Client, which cannot be used: give the "
                f"address that `ray start --head` prints, such as ray://{found['host']}:{PORT}"
            )
        if 1 <= port <= 65535:
            return Asked(0, cluster=f"{found['host']}:{port}")
    if given.isascii() and given.isdecimal() and 1 <= int(given) <= MOST:
        return Asked(int(given))
    devices = tuple(each.strip() for each in given.split(","))
    if all(map(_DEVICE.fullmatch, devices)) and len(devices) <= MOST:
        return Asked(len(devices), devices)
    raise UsageError(f"workers are {text!r}, expected {EXPECTED}")


def check_ray() -> None:
    """Raise `UsageError` if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError(
            "workers on other hosts need Ray, which is not installed: pip install 'qtui[ray]'"
        )


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
