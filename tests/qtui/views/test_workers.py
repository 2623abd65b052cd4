"""A line for each process of a job."""

from __future__ import annotations

from engine.protocol import WorkerState
from qtui.views.workers import worker_words


def test_a_process_is_told_with_what_it_has_in_hand_and_its_rate() -> None:
    measuring = WorkerState(
        name="1 on cuda:1", device="cuda:1", status="measuring", subject="0.mlp.up_proj int8",
        done=1200, per_minute=34.4,
    )  # fmt: skip
    assert worker_words(measuring) == (
        "1 on cuda:1  measuring  0.mlp.up_proj int8  1,200 done, 34 a minute"
    )
    assert worker_words(WorkerState(name="2 on cuda:2")) == "2 on cuda:2  starting"
    assert worker_words(WorkerState(name="engine", status="waiting", done=1)) == (
        "engine  waiting  1 done"
    )
