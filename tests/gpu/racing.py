"""Two threads, each with a stream of its own: each finds what it finds alone, every time."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from tests.gpu.models import counts, ended, opened, tiny_checkpoint
from tests.gpu.rows import Recorder
from tests.gpu.steps import Options

if TYPE_CHECKING:
    from engine.workspace import Loaded

FORMAT = "int4-g32"


def run(options: Options, figures: Recorder) -> None:
    """One thread measures layers of one model, the other those of another."""
    runs = 3 if options.tiny else 20
    both = {
        arch: opened(options, tiny_checkpoint(options, arch), options.device)
        for arch in ("llama", "qwen3")
    }
    alone = {arch: _measured(loaded) for arch, loaded in both.items()}
    again = {arch: _measured(loaded) for arch, loaded in both.items()}
    figures.worst("KL, once more alone", _flat(again), _flat(alone))
    found: dict[str, list[dict[str, float]]] = {arch: [] for arch in both}
    failures: list[BaseException] = []

    def repeat(arch: str) -> None:
        try:
            with _stream(options.device):
                for _ in range(runs):
                    found[arch].append(_measured(both[arch]))
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=repeat, args=(arch,)) for arch in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    for turn in range(runs):
        each = {arch: found[arch][turn] for arch in both}
        figures.worst(f"KL beside another, run {turn + 1}", _flat(each), _flat(alone))


def _stream(device: str) -> Any:
    import torch

    if device == "cpu":
        return contextlib.nullcontext()
    stream = torch.cuda.Stream(torch.device(device))
    stream.wait_stream(torch.cuda.current_stream())
    return torch.cuda.stream(stream)


def _measured(loaded: Loaded) -> dict[str, float]:
    from engine.formats.grammar import parse_format
    from engine.measure.calibration.approximate import approximation
    from engine.measure.evaluation.evaluate import run_reference
    from engine.measure.evaluation.reference import reference_of

    reference = reference_of(loaded)
    found = {}
    for batch in range(len(reference.batches)):
        ended(run_reference(reference, batch, counts()))
    for name, layer in list(loaded.network.layers.items())[::5]:
        weight = approximation(loaded, name, parse_format(FORMAT))
        found[name] = float(reference.measure(0, layer.start, {name: weight}).kl.sum())
    return found


def _flat(found: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"{arch} {name}": kl for arch, own in found.items() for name, kl in own.items()}
