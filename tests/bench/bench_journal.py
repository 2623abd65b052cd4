"""What it costs to keep 50,000 rows: a commit for every fact that is new, the rest in groups."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from engine import protocol as p
from engine.store.facts import FactStore
from engine.store.journal import Journal
from engine.store.recorder import Recorder

ROWS = 50_000
NAMES = [f"model.layers.{row // 64}.mlp.experts.{row % 64}.up_proj" for row in range(ROWS)]


def weights(layer: str) -> p.LayerWeights:
    return p.LayerWeights(
        layer=layer, outliers=p.Outliers(4.0, 1, 0.1, 1.0), range_ratio=1.0, waste=0.1,
        kurtosis=1.0, nan=0, inf=0, zero_rows=0,
    )  # fmt: skip


def learned(rows: int, *, fresh: bool) -> Iterator[p.Learned]:
    """What is known of every row, so many rows an event."""
    for at in range(0, ROWS, rows):
        some = NAMES[at : at + rows]
        yield p.Learned(tuple(some), tuple(map(weights, some)), fresh)


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Recorder]:
    facts = FactStore(tmp_path / "facts.sqlite")
    journal = Journal(tmp_path, facts)
    found = Recorder(journal, facts, lambda _seq, _event: None, threading.RLock())
    found.emit(p.Opened("x", p.Settings(), {}))
    found.emit(
        p.LayersListed(
            names=NAMES, kinds=["up_proj"] * ROWS, blocks=[row // 64 for row in range(ROWS)],
            roles=["linear"] * ROWS, shapes=[(8, 8)] * ROWS, dtypes=["float16"] * ROWS,
            other_bytes=0,
        )
    )  # fmt: skip
    yield found
    found.close()
    facts.close()


def told(record: Recorder, name: str, events: Iterable[p.AnyEvent]) -> None:
    begun, longest = time.perf_counter(), 0.0
    for event in events:
        before = time.perf_counter()
        record.emit(event)
        longest = max(longest, time.perf_counter() - before)
    spent = time.perf_counter() - begun
    print(
        f"{name}: {spent:.1f} s, {1e6 * spent / ROWS:.0f} us a row, "
        f"the engine's lock is held for {1000 * longest:.0f} ms at most"
    )


def test_fifty_thousand_rows(record: Recorder) -> None:
    print()
    told(record, "found in the store, a row an event", learned(1, fresh=False))
    told(record, "measured, 500 rows an event", learned(500, fresh=True))
    why = "its rows of 100 are no whole blocks"
    told(
        record,
        "fallbacks, a row an event",
        (p.Fallback(layer=name, format="q4_k", why=why) for name in NAMES),
    )
