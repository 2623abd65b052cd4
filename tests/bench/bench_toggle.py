"""A toggle in the last quarter of the blocks: from the command to the first measured figure.

Every body layer holds a format already; one of the last quarter is given another, in an engine with
nothing else to do. Beside it, in the same run and by turns, what the suffix costs by itself: its
layer quantised, the blocks from its own on, the head and the comparison, on one micro-batch.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch

from engine import protocol as p
from engine.client import InProcess, in_process
from engine.formats.grammar import parse_format
from engine.measure.calibration.approximate import approximation
from engine.measure.evaluation.reference import reference_of
from engine.profiles import load_profile
from engine.workspace import Loaded
from tests import tiny
from tests.bench.suffix import suffix_cost
from tests.drive import ended, is_partial, until

ROUNDS = 12
FORMATS = ("int2-g64", "int3-g64", "int5-g64", "int6-g64")


def deep(folder: Path) -> Path:
    """24 blocks of width 256, random."""
    return tiny.build(
        "llama", folder, num_hidden_layers=24, hidden_size=256, intermediate_size=768,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=256,
    )  # fmt: skip


class Spent(NamedTuple):
    """Seconds by the clock, and of all processors that this process took."""

    clock: float
    processor: float

    @classmethod
    def since(cls, begun: Spent) -> Spent:
        """What was spent since then."""
        now = cls.now()
        return cls(now.clock - begun.clock, now.processor - begun.processor)

    @classmethod
    def now(cls) -> Spent:
        """Both clocks."""
        return cls(time.perf_counter(), time.process_time())


def toggled(client: InProcess, layer: str, format: str) -> tuple[Spent, Spent]:
    """From the command to its echo, and to the first measured figure."""
    begun = Spent.now()
    client.send(p.SetFormat((layer,), format))
    until(client, lambda event: isinstance(event, p.RecipeChanged))
    echoed = Spent.since(begun)
    until(client, is_partial)
    measured = Spent.since(begun)
    until(client, ended("evaluate"))
    return echoed, measured


def suffix(loaded: Loaded, layer: str, format: str) -> Spent:
    """Quantising a layer, and its suffix."""
    network, reference = loaded.network, reference_of(loaded)
    begun = Spent.now()
    approximation(loaded, layer, parse_format(format))
    quantised = Spent.since(begun)
    spent = Spent(*suffix_cost(reference, network.layers[layer].start))
    return Spent(quantised.clock + spent.clock, quantised.processor + spent.processor)


@pytest.mark.parametrize("model", ["demo", "deep"])
def test_toggle(model: str, tmp_path: Path, prose: Path) -> None:
    source = "demo" if model == "demo" else str(deep(tmp_path / "deep"))
    given = {} if model == "demo" else {"text": str(prose), "tokens": 8192}
    chosen = load_profile().settings("standard", seq_len=256, **given)
    client = in_process(source)
    try:
        client.send(p.Open(source, chosen))
        until(client, lambda event: isinstance(event, p.ModelReady))
        loaded = client._engine._workspace.need(Loaded)
        network, reference = loaded.network, reference_of(loaded)
        body = tuple(name for name, layer in network.layers.items() if layer.block is not None)
        client.send(p.SetFormat(body, "int4-g128"))
        until(client, ended("evaluate"))
        blocks = len(network.blocks)
        late = [n for n in body if network.layers[n].start >= 3 * blocks / 4]
        rows: list[tuple[Spent, Spent, Spent, Spent]] = []
        for i in range(ROUNDS):
            layer = late[i * len(late) // ROUNDS]
            format = FORMATS[i % len(FORMATS)]
            before = suffix(loaded, layer, format)
            echoed, measured = toggled(client, layer, format)
            rows.append((echoed, measured, before, suffix(loaded, layer, format)))
        whole = suffix_cost(reference, -1)
    finally:
        client.close()
    print()
    print(f"{model}: {blocks} blocks, micro-batch {list(reference.batches[0].shape)}")
    print(f"{len(late)} layers in the last quarter, {ROUNDS} toggles")
    print(f"load of the machine {psutil.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads")
    print(f"the whole model on one micro-batch {whole[0] * 1e3:.0f} ms")
    print(f"echo of the command {statistics.median(row[0].clock for row in rows) * 1e3:.1f} ms")
    for i, clock in enumerate(("by the clock", "of processor")):
        measured = [row[1][i] for row in rows]
        alone = [(row[2][i] + row[3][i]) / 2 for row in rows]
        ratios = sorted(a / b for a, b in zip(measured, alone, strict=True))
        print(
            f"{clock}: first figure {statistics.median(measured) * 1e3:5.0f} ms, "
            f"suffix alone {statistics.median(alone) * 1e3:5.0f} ms, "
            f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            "   aim: 1.2"
        )
