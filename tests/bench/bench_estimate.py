"""The estimate's price and its truth.

Price: seconds of estimating all layers in eight formats, quantising included, over seconds of one
plain forward pass on the same tokens in the same run, both by the clock and in processor time; the
reference's own pass, which every measurement needs, is told apart. Truth: the document of one
``qtui sweep``, its estimates held against its exact values on the same tokens; what they cost, by
the clock of that run, stands beside.

``demo`` and a random Llama of a hundred million parameters always; a second trained checkpoint
where ``QTUI_BENCH_SECOND`` names its folder (`tests/bench/train_second.py` makes one). Both trained
ones are scored on the modules that neither learnt from.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from engine.formats.grammar import parse_format
from engine.measure.counts import JobCounts
from engine.measure.estimate.estimate import Found, estimate
from engine.measure.evaluation.evaluate import baseline, forward_seconds
from engine.profiles import load_profile
from engine.protocol import Settings
from engine.store.facts import FactStore
from engine.texts.corpora import held_out_library
from tests import tiny
from tests.bench.truth import NEAR, TOP, Truth, hold_against, machine
from tests.drive import load

SECOND = os.environ.get("QTUI_BENCH_SECOND")
FORMATS = (
    "int2-g128", "int3-g128", "int4-g128", "int6-g128", "int8", "fp8-e4m3", "nf4", "q4_k",
)  # fmt: skip
MEASURED = ("int4-g128", "int3-g128", "int8")
STANDARD_DRAWS = load_profile("standard").draws
DRAWS = (1, 2, 4)
ROUNDS = 3
"""Runs for the price, which a busy machine moves."""
FIRST_AIM, FURTHER_AIM = 6.0, 2.5
"""Forward passes that true labels and one draw may cost, and every further draw."""

BIG = {
    "vocab_size": 8192, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 12, "max_position_embeddings": 512,
}  # fmt: skip
TOKENS, BIG_TOKENS = 16384, 4096

T = TypeVar("T")

pytestmark = pytest.mark.timeout(0)


@dataclass(frozen=True)
class Run:
    """One ``qtui sweep`` as its document tells it."""

    draws: int
    document: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Layers in the swept formats, and in those that were estimated beside them."""
        return [*self.document["layers"], *self.document.get("estimated", [])]

    @property
    def forwards(self) -> float:
        """Price of the estimate in plain forward passes over the same tokens."""
        timings = self.document["timings"]
        return float(timings["estimate_s"] / timings["forward_s"])

    def truth(self, format: str) -> Truth:
        """Estimates of a format against its exact values."""
        rows = [row for row in self.rows if row["format"] == format]
        both = [row for row in rows if "estimate" in row and "measured" in row]
        assert len(both) == len(rows) > TOP, "every layer is estimated and measured"
        return hold_against(
            [_figures(row["estimate"]) for row in both],
            [_figures(row["measured"]) for row in both],
        )


def _figures(effect: dict[str, Any]) -> tuple[float, float, float]:
    return effect["kl"], effect["kl_se"], effect["dnll"]


def sweep(
    source: str,
    draws: int,
    *options: str,
    formats: Sequence[str] = MEASURED,
    estimated: Sequence[str] = FORMATS,
) -> Run:
    """``qtui sweep SOURCE`` in a home of its own, nothing known before.

    Args:
        source: a checkpoint.
        draws: of labels.
        options: of the command line.
        formats: those that are swept.
        estimated: those that every layer is estimated in.
    """
    with tempfile.TemporaryDirectory() as home:
        config = Path(home, "config", "qtui")
        config.mkdir(parents=True)
        (config / "profiles.toml").write_text(
            f"[bench]\ndraws = {draws}\nsweep_formats = {json.dumps(list(formats))}\n"
            f"estimate_formats = {json.dumps(list(estimated))}\n"
        )
        found = subprocess.run(
            [sys.executable, "-m", "qtui", "sweep", source, "--device", "cpu", "--json", "-",
             "--profile", "bench", *options],
            env={
                **os.environ,
                "XDG_CONFIG_HOME": str(config.parent),
                "XDG_STATE_HOME": str(Path(home, "state")),
                "XDG_RUNTIME_DIR": home,
                "HF_HUB_OFFLINE": "1",
            },
            stdout=subprocess.PIPE,
            check=True,
        )  # fmt: skip
    run = Run(draws, json.loads(found.stdout))
    wanted = {str(parse_format(text)) for text in (*formats, *estimated)}
    assert {row["format"] for row in run.rows if "estimate" in row} == wanted
    return run


def sources() -> list[str]:
    """Trained checkpoints."""
    return ["demo", SECOND] if SECOND else ["demo"]


def told(document: dict[str, Any]) -> str:
    """The protocol in a few words."""
    it = document["protocol"]
    return f"{it['tokens']} tokens in windows of {it['seq_len']}, {it['dtype']}"


@dataclass(frozen=True)
class Price:
    """One estimate of all layers, over the plain forward pass of the same run."""

    found: Found

    processor: float
    """In processor time of all threads: next to the same on a busy machine."""
    clock: float
    quantising: float
    """Of the clock's passes, those spent on quantising."""
    before: float
    """In processor time, the reference's pass: perplexity, states and logits to measure against."""


def spent(steps: Generator[object, None, T]) -> tuple[T, float, float]:
    """What a job's steps return, and their processor and clock seconds."""
    processor, clock = time.process_time(), time.perf_counter()
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value, time.process_time() - processor, time.perf_counter() - clock


def price(
    source: str,
    draws: int,
    tokens: int,
    seq_len: int,
    home: Path,
    formats: Sequence[str] = FORMATS,
) -> Price:
    """Open a checkpoint with nothing known, estimate all of it, and time a plain pass around it."""
    facts = FactStore(home / f"{uuid.uuid4().hex}.sqlite")
    settings = Settings(device="cpu", tokens=tokens, seq_len=seq_len, draws=draws)
    loaded = load(source, facts, settings)
    counts = JobCounts()
    parsed = [parse_format(text) for text in formats]
    plain = [spent(forward_seconds(loaded))]
    before = spent(baseline(loaded, counts))
    found, *cost = spent(estimate(loaded, parsed, "degrade", counts, "bench"))
    plain += [spent(forward_seconds(loaded)) for _ in range(2)]
    facts.close()
    processor, clock = (statistics.median(each[at] for each in plain) for at in (1, 2))
    quantising = counts.timings.get("quantize_s", 0.0)
    return Price(
        found, cost[0] / processor, cost[1] / clock, quantising / clock, before[1] / processor
    )


def test_price(tmp_path: Path) -> None:
    big = str(tiny.build("llama", tmp_path / "big", dtype=torch.float16, **BIG))
    print(f"\n\n{machine()}\n")
    print("| checkpoint | K | in processor time, by rounds | by the clock | quantising among "
          "them | the reference's pass before | aim |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for name, source, tokens, seq_len in (
        ("demo", "demo", TOKENS, 256),
        ("random Llama, 98M", big, BIG_TOKENS, 512),
    ):
        rounds = [
            [price(source, draws, tokens, seq_len, tmp_path) for draws in DRAWS]
            for _ in range(ROUNDS)
        ]
        for at, draws in enumerate(DRAWS):
            runs = sorted((each[at] for each in rounds), key=lambda one: one.processor)
            middle = runs[len(runs) // 2]
            aim = FIRST_AIM + FURTHER_AIM * (draws - 1)
            print(
                f"| {name}, {tokens} tokens | {draws} | "
                f"{', '.join(f'{one.processor:.1f}' for one in runs)} | "
                f"{', '.join(f'{one.clock:.1f}' for one in runs)} | "
                f"{middle.quantising:.1f} | {middle.before:.1f} | {aim:.1f} |"
            )
        further = sorted(
            (each[-1].processor - each[0].processor) / (DRAWS[-1] - DRAWS[0]) for each in rounds
        )
        cost = ", ".join(f"{one:.1f}" for one in further)
        print(f"| {name} | each further | {cost} | | | | {FURTHER_AIM} |")
    print(f"\nPlain forward passes over the same tokens; {len(FORMATS)} formats, float32.")


@pytest.mark.parametrize("direction", ["degrade", "restore"])
@pytest.mark.parametrize("source", sources())
def test_truth(source: str, direction: str, tmp_path: Path) -> None:
    text = tmp_path / "held-out.txt"
    text.write_text(held_out_library().content)
    name = "demo" if source == "demo" else "the second checkpoint"
    print(f"\n\n{machine()}\n")
    header = (
        "checkpoint, direction | format | K | forward passes | rank of KL | rank of ΔNLL | "
        f"top {TOP}, with near-ties | KL within {NEAR[0]}–{NEAR[1]}, two errors | median ratio"
    )
    print(f"| {header} |\n|{'---|' * (header.count('|') + 1)}")
    run = sweep(source, STANDARD_DRAWS, "--exact", "all", "--direction", direction,
                *(() if source == "demo" else ("--text", str(text))),
                estimated=FORMATS if direction == "degrade" else MEASURED)  # fmt: skip
    for format in MEASURED:
        it = run.truth(format)
        print(
            f"| {name}, {direction} | {format} | {run.draws} | {run.forwards:.1f} | "
            f"{it.rank_kl:.3f} | {it.rank_dnll:.3f} | {it.top}, {it.top_near} | "
            f"{it.right:.0%}, {it.covered:.0%} of {it.layers} | {it.ratio:.2f} |"
        )
    formats = {row["format"] for row in run.rows}
    print(f"\n{name}: perplexity {run.document['baseline']['ppl']:.2f}, {told(run.document)}, "
          f"{len(formats)} formats estimated")  # fmt: skip
