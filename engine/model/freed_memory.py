"""Gives freed memory back to the system: glibc keeps pieces of up to 32 MB, for every thread.

Blocks that come and go, read by threads, would leave several times their size in a process that is
to stay within a budget.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library
        return None
    return found


def give_back() -> None:
    """Return what nobody uses; does nothing where that is not possible."""
    if (trim := _trim()) is not None:
        trim(0)
