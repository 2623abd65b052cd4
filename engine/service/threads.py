"""How many threads compute, and how they wait: set before torch is imported."""

from __future__ import annotations

import os

SPINS = "10000"


def leave_room() -> None:
    """Set the environment of OpenMP so that other processes get their share; what is set stays.

    Threads that wait for each other spin for some microseconds, then sleep: with one other busy
    process on two cores, threads that spin on made a forward pass more than ten times as long. On
    more than two cores one is left free; on two, niceness alone makes room.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    threads = cores - 1 if cores > 2 else cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, str(threads))
