"""What a process sets for itself that runs nothing but an engine; nobody else calls this."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

SPINS = "10000"


def leave_room() -> None:
    """Set the environment of OpenMP so that other processes get their share; what is set stays.

    To be called before torch is imported.

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
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # Where the two differ, torch computes with as many threads as MKL has.
    os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])


_owned = False


def own_process() -> None:
    """Set this process up for an engine alone: its threads, and its garbage collector."""
    global _owned
    _owned = True
    leave_room()


def is_own_process() -> bool:
    """Whether this process runs nothing but an engine, so that it may change what is global."""
    return _owned


@contextmanager
def without_collecting() -> Iterator[None]:
    """Keep the garbage collector off, in a process of the engine's own; elsewhere change nothing.

    Importing makes a million objects and no garbage: to look for it takes a fifth longer.
    """
    if not _owned:
        yield
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
