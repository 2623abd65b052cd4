"""Silence for a C++ library that writes to standard output, which JSON may be written to."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

_LOCK = threading.Lock()
STDOUT = 1


@contextlib.contextmanager
def without_stdout() -> Iterator[None]:
    """Throw away what C code writes to standard output meanwhile.

    HiGHS, as scipy 1.17 has it, prints a line for solutions that it repairs, whatever its options
    say. The file descriptor is replaced for the whole process: other threads are not to write to
    standard output meanwhile, as none of the engine's does. Where there is no standard output, or
    no C library to flush, nothing is done.
    """
    with _LOCK:
        try:
            flush = ctypes.CDLL(None).fflush
            kept = os.dup(STDOUT)
        except (OSError, AttributeError, TypeError):
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stdout.flush()
            flush(None)
            os.dup2(nowhere, STDOUT)
            yield
        finally:
            flush(None)
            os.dup2(kept, STDOUT)
            os.close(kept)
            os.close(nowhere)
