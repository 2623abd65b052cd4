"""From the command to the first frame, the first triage row, the first sensitivity.

``qtui demo`` in a real pseudo-terminal of 120 × 40, everything measured anew, five times. What
counts is what stands on the screen: the bytes are fed to a terminal in memory.
"""

from __future__ import annotations

import re
import statistics
import time
from pathlib import Path

from tests import terminal as t

RUNS = 5
LOOKS = {
    "first frame": lambda screen: any(line.strip() for line in screen),
    "table of layers": lambda screen: any("_proj" in line for line in screen),
    "first triage row": t.triage_row,
    "first sensitivity": t.sensitivity,
}
HEAVY = ("torch", "transformers", "datasets", "numpy")


def once() -> tuple[dict[str, float], bytes, set[str]]:
    """Seconds to each look, the bytes up to the table, and the heavy libraries that were mapped."""
    found: dict[str, float] = {}
    drawn = b""
    with t.home() as home, t.qtui(home, "demo", answers=True) as terminal:
        for name, look in LOOKS.items():
            terminal.until(look, what=name)
            found[name] = time.perf_counter() - terminal.began
            drawn = drawn if name != "table of layers" else terminal.output
        maps = Path(f"/proc/{terminal.process.pid}/maps")
        mapped = maps.read_text() if maps.exists() else ""
        terminal.press("Q")
        terminal.ended()
    return found, drawn, {name for name in HEAVY if f"/site-packages/{name}" in mapped}


def whole_frames(output: bytes, lines: int = 40) -> int:
    """Frames that drew more than three quarters of the screen's lines anew."""
    frames = output.split(b"\x1b[?2026h")[1:]
    return sum(len(set(re.findall(rb"\x1b\[(\d+);\d+H", each))) > 0.75 * lines for each in frames)


def test_start() -> None:
    outcomes = [once() for _ in range(RUNS + 1)][1:]
    print()
    for name in LOOKS:
        seconds = [found[name] for found, _, _ in outcomes]
        aim = "   aim: under 0.5 s" if name == "first frame" else ""
        print(
            f"{name:20} median {statistics.median(seconds):5.2f} s"
            f"   {min(seconds):5.2f} to {max(seconds):5.2f}{aim}"
        )
    drawn = [whole_frames(output) for _, output, _ in outcomes]
    print(
        f"nearly whole frames until the table stands: {sorted(drawn)}   aim: 2, without and with it"
    )
    print(f"bytes until the table stands: {sorted(len(output) for _, output, _ in outcomes)}")
    print(f"tensor libraries in the process: {set().union(*(s for _, _, s in outcomes)) or 'none'}")
