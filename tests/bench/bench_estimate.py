"""The estimate's price and its truth, from the documents of ``qtui sweep``.

Price: seconds of estimating all layers in eight formats, quantising included, over seconds of one
plain forward pass on the same tokens in the same run. Truth: the estimates held against exact
values of the same run, same tokens. One run and one number of draws stand in one line.

``demo`` and a random Llama of a hundred million parameters always; a second trained checkpoint
where ``QTUI_BENCH_SECOND`` names its folder (`tests/bench/train_second.py` makes one).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.quant import parse_format
from tests import tiny
from tests.bench.truth import NEAR, TOP, Truth, hold_against, machine

SECOND = os.environ.get("QTUI_BENCH_SECOND")
FORMATS = (
    "int2-g128", "int3-g128", "int4-g128", "int6-g128", "int8", "fp8-e4m3", "nf4", "q4_k",
)  # fmt: skip
MEASURED = ("int4-g128", "int3-g128", "int8")
STANDARD_DRAWS = 2
"""Of profile ``standard``."""
DRAWS = (1, 2, 4)
ROUNDS = 3
"""Runs for the price, which a busy machine moves."""
FIRST_AIM, FURTHER_AIM = 6.0, 2.5
"""Forward passes that true labels and one draw may cost, and every further draw."""

BIG = {
    "vocab_size": 8192, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 12, "max_position_embeddings": 512,
}  # fmt: skip
BIG_TOKENS = 4096

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
        return self._passes("estimate_s")

    @property
    def quantising(self) -> float:
        """Of which quantising; of exact values too, where the run measures."""
        return self._passes("quantize_s")

    def _passes(self, name: str) -> float:
        timings = self.document["timings"]
        return float(timings[name] / timings["forward_s"])

    @property
    def aim(self) -> float:
        """Passes that so many draws may cost."""
        return FIRST_AIM + FURTHER_AIM * (self.draws - 1)

    def truth(self, format: str) -> Truth:
        """Estimates of a format against its exact values."""
        rows = [row for row in self.rows if row["format"] == format]
        both = [row for row in rows if "estimate" in row and "measured" in row]
        assert len(both) == len(rows) > TOP, "every layer is estimated and measured"
        return hold_against(
            [(row["estimate"]["kl"], row["estimate"]["dnll"]) for row in both],
            [[row["measured"][name] for name in ("kl", "kl_se", "dnll")] for row in both],  # type: ignore[misc]
        )


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


def test_price(tmp_path: Path) -> None:
    big = str(tiny.build("llama", tmp_path / "big", dtype=torch.float16, **BIG))
    print(f"\n\n{machine()}\n")
    print("| checkpoint | K | forward passes, by rounds | quantising among them | aim |")
    print("|---|---|---|---|---|")
    notes: list[str] = []
    for name, source, options in (
        ("demo", "demo", ()),
        ("random Llama, 98M", big, ("--tokens", str(BIG_TOKENS), "--seq-len", "512")),
    ):
        rounds = [[sweep(source, k, "--exact", "none", *options) for k in DRAWS]
                  for _ in range(ROUNDS)]  # fmt: skip
        for at, draws in enumerate(DRAWS):
            runs = sorted((each[at] for each in rounds), key=lambda run: run.forwards)
            cost = ", ".join(f"{run.forwards:.1f}" for run in runs)
            middle = runs[len(runs) // 2]
            print(f"| {name} | {draws} | {cost} | {middle.quantising:.1f} | {middle.aim:.1f} |")
        further = sorted(
            (each[-1].forwards - each[0].forwards) / (DRAWS[-1] - DRAWS[0]) for each in rounds
        )
        print(f"| {name} | each further | {', '.join(f'{x:.1f}' for x in further)} | | "
              f"{FURTHER_AIM} |")  # fmt: skip
        notes.append(f"{name}: {told(rounds[0][0].document)}")
    print(f"\n{len(FORMATS)} formats; {'; '.join(notes)}")


@pytest.mark.parametrize("direction", ["degrade", "restore"])
@pytest.mark.parametrize("source", sources())
def test_truth(source: str, direction: str) -> None:
    name = "demo" if source == "demo" else "the second checkpoint"
    print(f"\n\n{machine()}\n")
    header = (
        "checkpoint, direction | format | K | forward passes | rank of KL | rank of ΔNLL | "
        f"top {TOP}, with near-ties | KL within {NEAR[0]}–{NEAR[1]} | median ratio"
    )
    print(f"| {header} |\n|{'---|' * (header.count('|') + 1)}")
    run = sweep(source, STANDARD_DRAWS, "--exact", "all", "--direction", direction,
                estimated=FORMATS if direction == "degrade" else MEASURED)  # fmt: skip
    for format in MEASURED:
        it = run.truth(format)
        print(
            f"| {name}, {direction} | {format} | {run.draws} | {run.forwards:.1f} | "
            f"{it.rank_kl:.3f} | {it.rank_dnll:.3f} | {it.top}, {it.top_near} | "
            f"{it.right:.0%} of {it.layers} | {it.ratio:.2f} |"
        )
    formats = {row["format"] for row in run.rows}
    print(f"\n{name}: perplexity {run.document['baseline']['ppl']:.2f}, {told(run.document)}, "
          f"{len(formats)} formats estimated")  # fmt: skip
