"""What the processes of a job do, as text."""

from __future__ import annotations

import math

from engine.protocol import WorkerState


def worker_words(worker: WorkerState) -> str:
    """``1 on cuda:1  measuring  0.mlp.down_proj int4-g128  12 done, 34 a minute``."""
    done = f"{worker.done:,} done" if worker.done else ""
    if done and math.isfinite(worker.per_minute):
        done += f", {worker.per_minute:,.0f} a minute"
    return "  ".join(word for word in (worker.name, worker.status, worker.subject, done) if word)
