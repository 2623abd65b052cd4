"""What a job is doing now, as text."""

from __future__ import annotations

from engine.protocol import Phase, Progress
from engine.protocol.events import RANKING
from engine.report.wording import clock
from engine.session import Job

PHASES: dict[Phase, str] = {
    "reading": "reading weights",
    "reference": "running the reference",
    "control": "control",
    "estimating": "estimating",
    "calibrating": "calibrating",
    "quantising": "quantising",
    "measuring": "measuring",
    "together": "all layers together",
    "timing": "timing a forward pass",
    "writing": "writing",
    "activations": "activations",
    "comparing": "comparing",
    "sampling": "writing samples",
    "continuing": "continuing prompts",
    "restoring": "restoring layers",
    "scoring": "scoring answers",
}
"""What each phase is, in words."""
COUNTED = frozenset(
    {
        "reference",
        "control",
        "calibrating",
        "quantising",
        "together",
        "timing",
        "activations",
        "comparing",
        "sampling",
        "continuing",
        "restoring",
        "scoring",
    }
)
"""Phases that are shown with their count; another is known by its job, or has its own words."""


def phase_words(now: Progress | Job) -> str:
    """``estimating 9 formats`` or ``control``; empty where there is nothing to distinguish."""
    return f"{PHASES.get(now.phase, '')} {now.detail}".strip()


def time_left(now: Progress | Job) -> str:
    """``1:02 left``, or ``estimates done in 1:02`` before a sweep has ranked its layers."""
    left = clock(now.seconds_left)
    if not left:
        return ""
    return f"estimates done in {left}" if now.phase in RANKING else f"{left} left"


def about(now: Progress | Job) -> str:
    """``0.mlp.down_proj int4-g128`` or ``estimating 9 formats``; empty where nothing is known."""
    if now.phase in COUNTED:
        return PHASES[now.phase]
    if now.subject:
        return f"{now.subject} {now.format}".strip()
    return f"{now.phase} {now.detail}".strip() if now.detail else ""
