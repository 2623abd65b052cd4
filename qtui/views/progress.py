"""What a job is doing now, as text."""

from __future__ import annotations

from engine.protocol import Progress
from engine.session import Job


def about(now: Progress | Job) -> str:
    """``0.mlp.down_proj int4-g128`` or ``estimating 9 formats``; empty where nothing is known."""
    if now.subject:
        return f"{now.subject} {now.format}".strip()
    return f"{now.phase} {now.detail}".strip() if now.detail else ""
