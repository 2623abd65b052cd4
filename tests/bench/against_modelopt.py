"""Our estimates beside ``auto_quantize`` of NVIDIA Model Optimizer, on the same tokens.

Not run with the tests: it needs an environment of its own, see `against_modelopt.md`. Then

    python -m tests.bench.against_modelopt PATH/OF/ITS/python

prints, for each of its methods and for ours, what all fused groups cost in plain forward passes
over the same tokens, both timed in the process that did the work, and Spearman's rank correlation
with the exact KL of every group. Exact is: plain transformers, the whole model run on every window
with that group rounded and without, log-softmaxes subtracted. Each is held against the rounding
that it scored: theirs, or ours. Each side scores two formats of the same kind; ours estimates six
more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor, nn

from engine.demo import DEMO_PATH
from engine.formats.grammar import parse_format
from engine.model.load import load_tokenizer
from engine.quant.quantize import dequantized
from engine.texts.corpora import evaluation_text, first_tokens
from tests import brute_force
from tests.bench import bench_estimate
from tests.bench.truth import machine

ROOT = Path(__file__).resolve().parents[2]
COMPARED = ("int4-g128-sym", "int8")
FORMATS = (*COMPARED, "int2-g128", "int3-g128", "int4-g128", "fp8-e4m3", "nf4", "q4_k")
METHODS = ("gradient", "kl_div")
SEQ_LEN, BATCH = 256, 8
SPEED_AIM = 2.0
"""How many times faster than their faster method, with four times the formats."""

Group = tuple[str, ...]
"""Layers that hold one format."""


@torch.no_grad()
def exact(
    model: nn.Module, windows: Tensor, groups: Sequence[Group], rounded: Mapping[str, Tensor]
) -> list[float]:
    """KL(unchanged ‖ group rounded) of every group, nats per token, by brute force."""
    modules = brute_force.weights(model)
    kl = [0.0] * len(groups)
    for ids in windows.split(BATCH):
        before = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        for at, group in enumerate(groups):
            originals = {name: modules[name].weight.data for name in group}
            for name in group:
                modules[name].weight.data = rounded[name]
            after = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
            for name, weight in originals.items():
                modules[name].weight.data = weight
            kl[at] += float((before.exp() * (before - after)).sum(dtype=torch.float64))
    return [total / (windows.shape[0] * (windows.shape[1] - 1)) for total in kl]


def theirs(python: str, source: Path, windows: Path, method: str, out: Path) -> dict[str, Any]:
    """One of their methods, in a process of its own."""
    subprocess.run(
        [python, str(ROOT / "tests" / "bench" / "modelopt_scores.py"), str(source), str(windows),
         method, str(BATCH), str(out)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return json.loads(out.with_suffix(".json").read_text())  # type: ignore[no-any-return]


def rank(scores: Sequence[float], kl: Sequence[float]) -> float:
    """Spearman's correlation."""
    return float(spearmanr(scores, kl).statistic)


def main() -> None:
    """Compare, with the options given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("python", help="of the environment that has nvidia-modelopt")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--draws", type=int, default=bench_estimate.STANDARD_DRAWS)
    given = parser.parse_args()
    print(f"{machine()}\n")
    text = evaluation_text(None, demo=True, notify=print)
    row = torch.tensor(first_tokens(load_tokenizer(DEMO_PATH), text.content, given.tokens))
    windows = row[: given.tokens - given.tokens % SEQ_LEN].view(-1, SEQ_LEN)
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder, "windows.npy")
        np.save(ids, windows.numpy())
        found = {
            method: theirs(given.python, DEMO_PATH, ids, method, Path(folder, method))
            for method in METHODS
        }
        weights = load_file(Path(folder, f"{METHODS[0]}.safetensors"))
        ours = bench_estimate.price(
            "demo", given.draws, given.tokens, SEQ_LEN, Path(folder), FORMATS
        )

    model = brute_force.load(DEMO_PATH)
    groups = list(dict.fromkeys(tuple(each["layers"]) for each in found["gradient"]["scores"]))
    held = brute_force.weights(model)
    ranks: dict[str, list[str]] = {method: [] for method in (*METHODS, "ours")}
    for format in COMPARED:
        by_them = {
            name: weights[f"{format}/{name}"] for group in groups for name in group
        }  # fmt: skip
        by_us = {
            name: dequantized(
                brute_force.oriented(held[name]), parse_format(format), torch.float16, name=name
            )
            for name in by_them
        }
        kl = exact(model, windows, groups, by_them)
        for method in METHODS:
            scored = {
                tuple(each["layers"]): each["score"]
                for each in found[method]["scores"]
                if each["format"] == format
            }
            ranks[method].append(f"{rank([scored[group] for group in groups], kl):.3f}")
        estimates = ours.found[format]
        sums = [sum(estimates[name].kl for name in group) for group in groups]
        ranks["ours"].append(f"{rank(sums, exact(model, windows, groups, by_us)):.3f}")

    heads = " | ".join(f"rank, {format}" for format in COMPARED)
    print(f"| method | formats | forward passes, processor time | by the clock | {heads} |")
    print(f"|---|---|---|---|{'---|' * len(COMPARED)}")
    for method in METHODS:
        cost = found[method]
        figures = " | ".join([f"{cost['processor']:.1f}", f"{cost['clock']:.1f}", *ranks[method]])
        print(f"| auto_quantize, {method} | {len(COMPARED)} | {figures} |")
    figures = " | ".join([f"{ours.processor:.1f}", f"{ours.clock:.1f}", *ranks["ours"]])
    print(f"| ours, K = {given.draws} | {len(FORMATS)} | {figures} |")
    times = [found[method]["processor"] / ours.processor for method in METHODS]
    print(
        f"\nnvidia-modelopt {found['gradient']['version']}, {len(groups)} fused groups, "
        f"{windows.numel()} tokens in windows of {SEQ_LEN}, float32. Ours is {times[0]:.1f} × "
        f"faster than gradient (aim {SPEED_AIM:g} ×) and {times[1]:.1f} × faster than kl_div, with "
        f"{len(FORMATS) // len(COMPARED)} × the formats, in processor time."
    )


if __name__ == "__main__":
    main()
