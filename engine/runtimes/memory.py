"""Peak memory of this process and of those it started; the standard library alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROC = Path("/proc")


def _family() -> list[Path]:
    """Folders in ``/proc`` of the processes in this one's session: it leads one of its own."""
    session = os.getsid(0)
    found = []
    for each in PROC.glob("[0-9]*"):
        try:
            if os.getsid(int(each.name)) == session:
                found.append(each)
        except OSError:
            continue  # it ended meanwhile, or belongs to someone else
    return found


def forget_peak() -> None:
    """Begin to measure anew: the kernel sets the peak to what is resident now, where it can."""
    for each in _family():
        try:
            (each / "clear_refs").write_text("5", encoding="ascii")
        except OSError:
            continue  # then peaks include what came before


def peak_bytes() -> int | None:
    """The most that was resident since `forget_peak`, mapped pages of files included, bytes.

    None where the system does not say.
    """
    peaks = [peak for each in _family() if (peak := _peak_of(each)) is not None]
    if peaks:
        return sum(peaks)
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def peak_of_children() -> int | None:
    """The most that was resident of any process that was started and has ended, bytes."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _peak_of(process: Path) -> int | None:
    try:
        lines = (process / "status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
