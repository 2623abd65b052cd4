"""Statistics of all activations over one plain forward pass on the same tokens, in one run.

``demo``, and a real checkpoint where ``QTUI_BENCH_REAL`` names its folder. A plain forward pass
makes logits, which the statistics do not need. Rounds alternate, since a busy machine moves both.
Run alone: ``python -m pytest tests/bench/bench_activations.py -s``.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import pytest

from engine.measure.activations.gather import Gathered, step
from engine.measure.calibration.calibration import need_calibration
from engine.protocol import Settings
from engine.store.facts import FactStore
from tests.drive import load

REAL = os.environ.get("QTUI_BENCH_REAL")
ROUNDS = 5
"""At least."""
SECONDS = 20.0
"""Rounds go on for that long: a short one moves by a third from one to the next."""
TOKENS = 4096
AIM = 1.5
"""Forward passes."""

pytestmark = pytest.mark.timeout(0)


@pytest.mark.parametrize("source", ["demo", *([REAL] if REAL else [])])
def test_price_of_activations(source: str, tmp_path: Path) -> None:
    settings = Settings(calib_tokens=TOKENS, tokens=TOKENS, seq_len=512)
    loaded = load(source, FactStore(tmp_path / "facts.db"), settings)
    gathering = need_calibration(loaded)
    calibration = None
    while calibration is None:
        try:
            next(gathering)
        except StopIteration as end:
            calibration = end.value
    network, batches = loaded.network, calibration.batches
    plain, with_statistics = [], []
    while len(plain) < ROUNDS or sum(plain) + sum(with_statistics) < SECONDS:
        begun = time.perf_counter()
        for ids in batches:
            network.run(ids, None)
        plain.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        gathered = Gathered(network, calibration.windows.ids.shape[1])
        for batch in range(len(batches)):
            step(network, calibration, gathered, batch)
        with_statistics.append(time.perf_counter() - begun)
    ratios = [a / b for a, b in zip(with_statistics, plain, strict=True)]
    print(
        f"\n{Path(source).name}: forward {min(plain):.2f} s, with statistics "
        f"{min(with_statistics):.2f} s: {min(with_statistics) / min(plain):.2f} of the fastest, "
        f"median of rounds {statistics.median(ratios):.2f}   aim: under {AIM}"
    )
