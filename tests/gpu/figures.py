"""Sweeps, estimates, recipes and methods: the device's figures against the processor's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engine import protocol as p
from tests.gpu.models import ARCHITECTURES, counts, ended, learnt, opened, tiny_checkpoint
from tests.gpu.resuming import STORED
from tests.gpu.rows import Recorder
from tests.gpu.steps import Options

if TYPE_CHECKING:
    from engine.workspace import Loaded

FORMAT = "int4-g32"
METHODS = (
    "int4-g32+gptq", "int4-g32+awq", "int8+smooth.5+a8", "int8+outlier6", "int4-g32+gptq+a8",
)  # fmt: skip
MIXTURE_METHODS = ("int4-g32+gptq", "int8+a8")
WITHIN = {"fp32": 2e-3, "bf16": 0.05, "fp16": 0.02}
"""Of KL: a chaotic network's small differences, in 16 bits those of rounding once more."""
SOLVED = 0.05
"""Of the KL of solved weights: where two codes are as good, rounding chooses."""

KINDS = ("measured KL", "measured ΔNLL", "estimated KL", "estimated ΔNLL", "additivity")
KINDS_OF_DRIFT = ("drift", "injected", "propagated", "control")
Figures = Mapping[str, float]


def run(options: Options, figures: Recorder) -> None:
    """Every job on both, in the order of their worth."""
    for arch in ARCHITECTURES:
        _compared(options, figures, arch, "fp32", METHODS if arch == "llama" else ())
    _compared(options, figures, "llama", "fp32", (), "restore")
    _compared(options, figures, "llama", "bf16", ())
    _compared(options, figures, "llama", "fp16", ())
    _compared(options, figures, "qwen3_moe", "fp32", MIXTURE_METHODS, "degrade", sweep=False)
    if not options.tiny:
        _compared(options, figures, "qwen3_moe", "bf16", ())
        _compared(options, figures, "llama", "bf16", METHODS, sweep=False)


def _compared(
    options: Options,
    figures: Recorder,
    arch: str,
    dtype: str,
    methods: tuple[str, ...],
    direction: p.Direction = "degrade",
    *,
    sweep: bool = True,
) -> None:
    source = tiny_checkpoint(options, arch, STORED[dtype])
    here = opened(options, source, "cpu", dtype)
    there = opened(options, source, options.device, dtype)
    alike = options.device == "cpu"
    within = 0.0 if alike else WITHIN[dtype]
    solved = 0.0 if alike else max(SOLVED, WITHIN[dtype])
    name = f"{arch} {dtype}" if direction == "degrade" else f"{arch} {dtype} {direction}"
    if sweep:
        expected, found = _swept(here, direction), _swept(there, direction)
        floor = 0.0 if alike else 2 * max(expected.pop("floor"), found.pop("floor"))
        for both in (expected, found):
            both.pop("floor", None)
        slack = {} if alike else _slack(expected, found, floor, dtype)
        figures.same(f"{name}: perplexity", found.pop("ppl"), expected.pop("ppl"), within / 10)
        for kind in KINDS:
            own, other = ({k: v for k, v in each.items() if k.startswith(kind)}
                          for each in (found, expected))  # fmt: skip
            lax = 3 * within if kind.startswith("estimated") else within
            figures.worst(f"{name}: {kind}", own, other, lax, 0.0 if alike else floor, slack)
    if sweep and direction == "degrade" and dtype == "fp32":
        own, other = _errors(there), _errors(here)
        figures.worst(f"{name}: errors inside the model", own, other, within, 1e-6)
    if methods:
        own, other = _scored(there, methods), _scored(here, methods)
        for method in methods:
            figures.same(f"{name}: KL with {method}", own[method], other[method], solved)
    if arch == "llama" and direction == "degrade" and sweep:
        _toggled(options, source, dtype, figures, name, within)


def _slack(
    expected: dict[str, float], found: dict[str, float], floor: float, dtype: str
) -> dict[str, float]:
    """How far figures in 16 bits may differ, where their logits are rounded otherwise.

    A KL of rounding is a spread of NLL of ``√(2 KL / T)`` over ``T`` tokens, here of the model and
    of its reference on either device. Labels drawn from other logits are other draws.
    """
    if dtype == "fp32":
        return {}
    tokens = expected["tokens"]
    slack = {name: 4 * math.sqrt(2 * floor / tokens) for name in found if "measured ΔNLL" in name}
    for name in found:
        if name.startswith("error of "):
            slack[name.removeprefix("error of ")] = 2 * (found[name] + expected[name])
    return slack


def _swept(loaded: Loaded, direction: p.Direction) -> dict[str, float]:
    """Figures by kind, layer and format."""
    from engine.measure.sweep.sweep import sweep

    found: dict[str, float] = {}
    for fact in learnt(sweep(loaded, [FORMAT], direction, "job")):
        if isinstance(fact, p.Baseline):
            found["ppl"] = fact.ppl
        elif isinstance(fact, p.Control):
            found["floor"] = fact.floor_kl
        elif isinstance(fact, p.Sensitivity):
            found[f"measured KL {fact.layer}"] = fact.kl
            found[f"measured ΔNLL {fact.layer}"] = fact.dnll
            found["tokens"] = fact.tokens
        elif isinstance(fact, p.Estimate):
            found[f"estimated KL {fact.layer} {fact.format}"] = fact.kl
            found[f"estimated ΔNLL {fact.layer} {fact.format}"] = fact.dnll
            found[f"error of estimated KL {fact.layer} {fact.format}"] = fact.kl_se
            found[f"error of estimated ΔNLL {fact.layer} {fact.format}"] = fact.dnll_se
        elif isinstance(fact, p.Additivity):
            found["additivity"] = fact.kl
    return found


def _errors(loaded: Loaded) -> dict[str, float]:
    """Errors of outputs, drift and attention of a recipe."""
    from engine.measure.errors.measuring import measure_errors

    layers = loaded.network.layers
    recipe = {name: FORMAT for name, layer in layers.items() if layer.role != "embedding"}
    found: dict[str, float] = {}
    for fact in learnt(measure_errors(loaded, recipe, counts())):
        if isinstance(fact, p.OutputError):
            found[f"output {fact.layer}"] = fact.relative
            found[f"worst channel {fact.layer}"] = fact.worst_errors[0]
        elif isinstance(fact, p.Drift):
            for each in fact.blocks:
                figures = each.drift, each.injected, each.propagated, each.control
                for kind, value in zip(KINDS_OF_DRIFT, figures, strict=True):
                    found[f"{kind} {each.block}"] = value
                found |= {f"head {each.block} {h}": kl for h, kl in enumerate(each.attention)}
    return found


def _scored(loaded: Loaded, formats: tuple[str, ...]) -> dict[str, float]:
    """The KL of recipes with the whole body in a format."""
    from engine.formats.grammar import parse_format
    from engine.measure.sweep.candidates import why_not

    found = {}
    for text in formats:
        fmt = parse_format(text)
        body = [
            name for name, layer in loaded.network.layers.items()
            if layer.block is not None and why_not(loaded, name, fmt) is None
        ]  # fmt: skip
        found[text] = _score(loaded, dict.fromkeys(body, text)).kl
    return found


def _score(loaded: Loaded, recipe: Mapping[str, str], job: str = "") -> p.RecipeScore:
    from engine.measure.evaluation.evaluate import baseline, score

    nll = ended(baseline(loaded, counts())).nll
    found: p.RecipeScore = ended(score(loaded, recipe, nll, counts(), job))
    return found


def _toggled(
    options: Options, source: Path, dtype: str, figures: Recorder, name: str, within: float
) -> None:
    """A late layer changed in a recipe that has run, against the same recipe from the start."""
    toggled = opened(options, source, options.device, dtype)
    fresh = opened(options, source, options.device, dtype)
    body = [n for n, layer in toggled.network.layers.items() if layer.block is not None]
    recipe = dict.fromkeys(body, FORMAT)
    changed = {**recipe, body[-1]: "int3-g32"}
    _score(toggled, recipe, "job")
    found, expected = _score(toggled, changed, "job"), _score(fresh, changed, "job")
    figures.same(f"{name}: KL after a late toggle", found.kl, expected.kl, within)
