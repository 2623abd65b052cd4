"""Resumed forwards against plain ones, the control against the floor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.gpu.models import ARCHITECTURES, counts, ended, opened, tiny_checkpoint
from tests.gpu.rows import Recorder
from tests.gpu.steps import Options

if TYPE_CHECKING:
    from torch import Tensor

    from engine.workspace import Loaded

WITHIN = {"fp32": 2e-4, "bf16": 5e-3, "fp16": 5e-3}
"""Of KL: what compares 16-bit logits in chunks against what compares them whole."""
STORED = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def run(options: Options, figures: Recorder) -> None:
    """Six architectures in float32, one in both 16-bit dtypes."""
    cases = [(arch, "fp32") for arch in ARCHITECTURES]
    cases += [(arch, dtype) for arch in ("llama", "qwen3_moe") for dtype in ("bf16", "fp16")]
    for arch, dtype in cases:
        source = tiny_checkpoint(options, arch, STORED[dtype])
        loaded = opened(options, source, options.device, dtype)
        name = f"{arch} {dtype}"
        network = loaded.network
        figures.same(f"{name}: can be resumed", float(network.resumable), 1.0,
                     note=network.why_not_resumable or "")  # fmt: skip
        _control(loaded, name, figures)
        _suffix(loaded, name, dtype, figures)


def _control(loaded: Loaded, name: str, figures: Recorder) -> None:
    from engine.measure.sweep.control import control

    fact = next(
        each for event in control(loaded, counts()) if event is not None
        for each in getattr(event, "facts", ()) if hasattr(each, "floor_kl")
    )  # fmt: skip
    exact = loaded.network.device.type == "cpu"
    figures.most(f"{name}: control, KL", fact.max_abs_kl, 0.0 if exact else fact.floor_kl)
    figures.most(f"{name}: control, ΔNLL", fact.max_abs_dnll, 0.0 if exact else fact.floor_dnll)
    figures.tell(f"{name}: floor, KL", fact.floor_kl)


def _suffix(loaded: Loaded, name: str, dtype: str, figures: Recorder) -> None:
    """The KL of a late and an early layer, resumed, against whole forwards in float64."""
    import torch

    from engine.formats.grammar import parse_format
    from engine.measure.calibration.approximate import approximation
    from engine.measure.evaluation.evaluate import run_reference
    from engine.measure.evaluation.reference import reference_of

    network, reference = loaded.network, reference_of(loaded)
    ended(run_reference(reference, 0, counts()))
    ids = reference.batches[0]
    layers = [n for n, layer in network.layers.items() if layer.block is not None]
    found, expected = {}, {}
    for layer in (layers[0], layers[len(layers) // 2], layers[-1]):
        weight = approximation(loaded, layer, parse_format("int3-g32"))
        tally = reference.measure(0, network.layers[layer].start, {layer: weight})
        found[layer] = float(tally.kl.sum())
        with torch.no_grad():
            plain = network.run(ids, None)
            with network.holding({layer: weight}):
                changed = network.run(ids, None)
        expected[layer] = kl(plain[:, :-1], changed[:, :-1])
    figures.worst(f"{name}: KL of a resumed forward", found, expected, WITHIN[dtype])


def kl(reference: Tensor, changed: Tensor) -> float:
    """Summed over positions, on the processor."""
    p, q = (logits.double().cpu().log_softmax(-1) for logits in (reference, changed))
    return float((p.exp() * (p - q)).sum())
