"""What is given up when memory runs out, in which order."""

from __future__ import annotations

import pytest

from engine.workspace.pressure import Pressure, requested


def test_caches_go_first_then_micro_batches_then_all_caches() -> None:
    pressure = Pressure()
    assert pressure.batch_tokens(2048) == 2048
    assert pressure.cached(1 << 30) == 1 << 30
    steps = []
    while (windows := max(1, pressure.batch_tokens(2048) // 512)) and len(steps) < 20:
        before = pressure.batch_tokens(2048)
        said = pressure.give_way(windows)
        if said is None:
            break
        steps.append((before, pressure.batch_tokens(2048), pressure.cached(1 << 30)))
    assert steps == [
        (2048, 2048, 1 << 29),
        (2048, 1024, 1 << 28),
        (1024, 512, 1 << 27),
        (512, 512, 0),
    ]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has", "20.00 MiB"),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 40 bytes.", "40 bytes"),
        ("", ""),
    ],
)
def test_how_much_was_requested_is_read_from_what_was_said(said: str, wanted: str) -> None:
    assert requested(said) == wanted
