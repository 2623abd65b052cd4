"""Process-wide settings of an engine process; never called in a notebook or another program."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

SPINS = "10000"
LEAST_TIMEOUT = "4"
"""Cycles, as a power of two, that a thread of NumPy's OpenBLAS spins after a product: it spins for
milliseconds otherwise, which was a tenth of the processor's time of a triage."""


def leave_room() -> None:
    """Set OpenMP's environment so that other processes get processor time; it stays set.

    Call it before torch and NumPy are imported.

    Waiting threads spin for some microseconds, then sleep: with another busy process on two cores,
    threads that kept spinning made a forward pass more than ten times slower. On more than two
    cores one is left free; on two, niceness alone is enough.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    threads = cores - 1 if cores > 2 else cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", LEAST_TIMEOUT)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # If the two differ, torch uses as many threads as MKL.
    os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])


_owned = False


def own_process() -> None:
    """Set this process up for an engine alone: its threads and its garbage collector."""
    global _owned
    _owned = True
    leave_room()


def is_own_process() -> bool:
    """Whether this process runs only an engine, so that it may change global settings."""
    return _owned


@contextmanager
def without_collecting() -> Iterator[None]:
    """Disable the garbage collector in an engine process; elsewhere do nothing.

    Importing creates a million objects and no garbage: collecting makes it a fifth slower.
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
