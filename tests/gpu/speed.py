"""Times and memory of a random model of 8 billion parameters in bfloat16."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import protocol as p
from tests.gpu.models import (
    LARGE,
    TINY_LARGE,
    counts,
    ended,
    learnt,
    opened,
    random_checkpoint,
)  # fmt: skip
from tests.gpu.rows import Recorder
from tests.gpu.steps import Options

if TYPE_CHECKING:
    from engine.measure.counts import JobCounts
    from engine.workspace import Loaded

FORMATS = (
    "int2-g128", "int3-g128", "int4-g128", "int6-g128", "int8", "fp8-e4m3", "nf4", "q4_k",
)  # fmt: skip
GIB = 1 << 30


class Clock:
    """Seconds of a step on the device, and the most memory it had."""

    def __init__(self, device: str) -> None:
        self.device = device

    def wait(self) -> None:
        """Until the device has done all it was asked for."""
        import torch

        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def seconds(self, step: Callable[[], Any]) -> float:
        """Of one run."""
        self.wait()
        begun = time.perf_counter()
        step()
        self.wait()
        return time.perf_counter() - begun

    def median(self, step: Callable[[], Any], runs: int = 5) -> float:
        """Of some runs after one that is not counted."""
        self.seconds(step)
        return statistics.median(self.seconds(step) for _ in range(runs))

    def tell_memory(self, figures: Recorder, what: str, foretold: float | None = None) -> None:
        """The most that was allocated and reserved since the last time this was told."""
        import torch

        if self.device == "cpu":
            return
        allocated = torch.cuda.max_memory_allocated(self.device)
        reserved = torch.cuda.max_memory_reserved(self.device)
        note = (
            ""
            if foretold is None
            else f"{allocated / foretold:.2f} of the {foretold / GIB:.1f} GiB foretold"
        )
        figures.tell(f"{what}: most memory allocated", allocated / GIB, "GiB", note)
        figures.tell(f"{what}: most memory reserved", reserved / GIB, "GiB")
        torch.cuda.reset_peak_memory_stats(self.device)


def checkpoint(options: Options) -> Path:
    """The large checkpoint of this run; built on first use."""
    folder = options.folder / "large"
    if not folder.exists():
        random_checkpoint("Llama", folder, options.device, TINY_LARGE if options.tiny else LARGE)
    return folder


def run(options: Options, figures: Recorder) -> None:
    """In order of worth: a run cut short has the first ones."""
    clock = Clock(options.device)
    began = time.perf_counter()
    source = checkpoint(options)
    figures.tell("building and writing the checkpoint", time.perf_counter() - began, "s")
    peak = product_rate(clock, options.tiny)
    figures.tell("peak of a matrix product", peak / 1e12, "TFLOP/s", "bfloat16, 8192³")
    began = time.perf_counter()
    loaded = large(options, source)
    clock.wait()
    figures.tell("opening it", time.perf_counter() - began, "s")
    clock.tell_memory(figures, "opening", memory_of(loaded))
    measure(options, figures, clock, loaded, peak)
    _toggle(options, figures, source)
    _triage(options, figures)


def large(options: Options, source: Path) -> Loaded:
    """The checkpoint on 16,384 tokens of Python's library."""
    given: dict[str, Any] = (
        {"tokens": 512, "seq_len": 64, "batch_tokens": 128} if options.tiny
        else {"tokens": 16384, "seq_len": 2048, "batch_tokens": 2048, "calib_tokens": 8192}
    )  # fmt: skip
    dtype = "fp32" if options.tiny else "bf16"
    return opened(options, source, options.device, dtype, **given)


def memory_of(loaded: Loaded) -> int:
    """Bytes of the model's parameters."""
    return sum(each.nbytes for each in loaded.network.model.parameters())


def product_rate(clock: Clock, tiny: bool) -> float:
    """Floating-point operations a second of a large product in bfloat16."""
    import torch

    size = 256 if tiny else 8192
    a, b = (torch.randn(size, size, device=clock.device, dtype=torch.bfloat16) for _ in "ab")
    return 2 * size**3 / clock.median(lambda: a @ b, 10)


def measure(options: Options, figures: Recorder, clock: Clock, loaded: Loaded, peak: float) -> None:
    """Forward, reference, estimate, suffixes."""
    from engine.measure.evaluation.evaluate import baseline
    from engine.measure.evaluation.reference import reference_of

    network, reference = loaded.network, reference_of(loaded)
    batches = len(reference.batches)
    forward = batches * clock.median(lambda: reference.plain(0), 3)
    work = 2 * loaded.windows.tokens * multiplied(loaded)
    figures.tell("one forward of all tokens", forward, "s",
                 f"{loaded.windows.tokens:,} tokens, {work / forward / 1e12:.0f} TFLOP/s, "
                 f"{work / forward / peak:.0%} of the peak")  # fmt: skip
    clock.tell_memory(figures, "forward")
    took = clock.seconds(lambda: ended(baseline(loaded, counts())))
    figures.tell("reference", took / forward, "forwards")
    foretold = memory_of(loaded) + reference.sizes.states(1) + reference.sizes.logits
    clock.tell_memory(figures, "reference", foretold)
    _estimate(figures, clock, loaded, forward)
    _suffixes(options, figures, clock, loaded)
    _truth(figures, loaded)
    del network


def multiplied(loaded: Loaded) -> float:
    """Weights that one token is multiplied with; of experts, those of the ones it goes to."""
    text = loaded.network.config.get_text_config()
    experts = getattr(text, "num_experts", None) or 1
    share = getattr(text, "num_experts_per_tok", None) or 1
    total = 0.0
    for layer in loaded.network.layers.values():
        if layer.role == "embedding":
            continue
        size = 1.0
        for length in layer.shape:
            size *= length
        total += size * (share / experts if layer.role == "experts" else 1)
    return total


def _estimate(figures: Recorder, clock: Clock, loaded: Loaded, forward: float) -> None:
    """All layers in all formats, by parts: each part waits for the device, the total does not."""
    from engine.formats.grammar import parse_format
    from engine.measure.counts import JobCounts
    from engine.measure.estimate.estimate import estimate

    class Waiting(JobCounts):
        """Attributes what the device does to the part that asked for it."""

        def timed(self, name: str, step: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> Any:
                found = step()
                clock.wait()
                return found

            clock.wait()
            return super().timed(name, run)

    formats = [parse_format(text) for text in FORMATS]
    parts: JobCounts = Waiting()
    took = clock.seconds(lambda: ended(estimate(loaded, formats, "degrade", parts, "job")))
    figures.tell(f"estimate of {len(loaded.network.layers)} layers in {len(FORMATS)} formats",
                 took / forward, "forwards", f"{took:.1f} s")  # fmt: skip
    for name, seconds in sorted(parts.timings.items()):
        figures.tell(f"estimate, {name}", seconds / forward, "forwards")
    clock.tell_memory(figures, "estimate", memory_of(loaded) + loaded.budget())


def _suffixes(options: Options, figures: Recorder, clock: Clock, loaded: Loaded) -> None:
    """Exact runs of layers at three depths over what their arithmetic takes alone."""
    from engine.formats.grammar import parse_format
    from engine.measure.calibration.approximate import approximation
    from engine.measure.evaluation.reference import reference_of
    from tests.bench.suffix import suffix_cost

    network, reference = loaded.network, reference_of(loaded)
    body = [n for n, layer in network.layers.items() if layer.block is not None]
    for name in (body[0], body[len(body) // 2], body[-1], "lm_head"):
        if name not in network.layers:
            continue
        start = network.layers[name].start
        quantise = partial(approximation, loaded, name, parse_format("int4-g128"))
        took = clock.median(partial(reference.measure, 0, start, {name: quantise()}), 3)
        suffix_cost(reference, start)
        alone = statistics.median(suffix_cost(reference, start)[0] for _ in range(3))
        quantising = clock.median(quantise, 3)
        figures.tell(f"exact run of {name}", took / alone, "of its arithmetic",
                     f"{took * 1e3:.1f} ms, quantising {quantising * 1e3:.1f} ms")  # fmt: skip


def _truth(figures: Recorder, loaded: Loaded) -> None:
    """What was timed was right: one layer against whole forwards in float64."""
    import torch

    from engine.formats.grammar import parse_format
    from engine.measure.calibration.approximate import approximation
    from engine.measure.evaluation.reference import reference_of
    from tests.gpu.resuming import WITHIN, kl

    network, reference = loaded.network, reference_of(loaded)
    body = [n for n, layer in network.layers.items() if layer.block is not None]
    name = body[-1]
    weight = approximation(loaded, name, parse_format("int2-g128"))
    found = float(reference.measure(0, network.layers[name].start, {name: weight}).kl.sum())
    expected, step = 0.0, 256
    ids = reference.batches[0]
    with torch.no_grad():
        plain = network.final_state(ids, -1, None)
        with network.holding({name: weight}):
            changed = network.final_state(ids, -1, None)
        for a in range(0, ids.shape[1] - 1, step):
            b = min(a + step, ids.shape[1] - 1)
            expected += kl(network.logits(ids, plain, (a, b)), network.logits(ids, changed, (a, b)))
    short = "fp32" if network.dtype == torch.float32 else "bf16"
    figures.same(f"KL of {name} in int2-g128", found, expected, WITHIN[short])


def _toggle(options: Options, figures: Recorder, source: Path) -> None:
    """From the command to the first measured figure, one layer of the last quarter changed."""
    from engine.client import in_process
    from tests.drive import ended as job_ended
    from tests.drive import is_partial, until
    from tests.gpu.models import settings

    given: dict[str, Any] = (
        {"tokens": 512, "seq_len": 64, "batch_tokens": 128} if options.tiny
        else {"tokens": 8192, "seq_len": 2048}
    )  # fmt: skip
    dtype = "fp32" if options.tiny else "bf16"
    client = in_process(str(source))
    try:
        began = time.perf_counter()
        client.send(p.Open(str(source), settings(options, options.device, dtype, **given)))
        until(client, lambda event: isinstance(event, p.ModelReady))
        figures.tell("from the command to a ready model", time.perf_counter() - began, "s")
        session = client.session
        names = [n for n, block in zip(session.layers.names, session.layers.blocks, strict=True)
                 if block >= 0]  # fmt: skip
        client.send(p.SetFormat(tuple(names), "int4-g128"))
        until(client, job_ended("evaluate"))
        late = names[-len(names) // 8]
        times = []
        for text in ("int8", "int3-g128", "int6-g128"):
            began = time.perf_counter()
            client.send(p.SetFormat((late,), text))
            until(client, is_partial)
            times.append(time.perf_counter() - began)
            until(client, job_ended("evaluate"))
        figures.tell("first figure of a late toggle", statistics.median(times) * 1e3, "ms")
    finally:
        client.close()


def _triage(options: Options, figures: Recorder) -> None:
    """Of a checkpoint of two blocks: what is read and quantised in a second."""
    from uuid import uuid4

    from engine.measure.weights.triage import triage
    from engine.store.facts import FactStore
    from tests.drive import open_files
    from tests.gpu.models import settings

    fields = TINY_LARGE if options.tiny else {**LARGE, "num_hidden_layers": 2, "vocab_size": 32_000}
    source = random_checkpoint("Llama", options.folder / "two", options.device, fields)
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    files = open_files(
        source, FactStore(options.folder / f"{uuid4().hex}.sqlite"),
        settings(options, options.device),
    )  # fmt: skip
    began = time.perf_counter()
    facts = learnt(triage(files, ["int4-g128", "int4-g32", "int8", "int3-g128"], "job"))
    took = time.perf_counter() - began
    figures.tell("triage", size / 1e9 / took, "GB/s", f"{size / 1e9:.2f} GB, {len(facts)} facts")
