"""The document of what was timed."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from engine.report import schema as s
from engine.report.json import finite
from engine.runtimes.results import Bench, TimedBatch, mean_and_error, quantile


def bench_document(timed: Bench) -> s.BenchDocument:
    """A finished checkpoint that was timed, as a document."""
    settings = dict(timed.about)
    version, device, threads = (settings.pop(name) for name in ("version", "device", "threads"))
    return s.BenchDocument(
        artefact=timed.artefact,
        bytes=timed.bytes,
        runtime=timed.runtime,
        version=version,
        device=device,
        processor=timed.processor,
        threads=int(threads),
        settings=settings,
        python=timed.python,
        warmup=timed.warmup,
        batches=[_batch(timed, each) for each in timed.batches],
        notes=list(timed.notes),
        timings={} if timed.load_s is None else {"load_s": finite(timed.load_s)},
    )


def _batch(timed: Bench, of: TimedBatch) -> s.BenchBatch:
    prompt, prompt_se = mean_and_error(of.prompt_rates(timed.prompt))
    new, new_se = mean_and_error(of.rates())
    steps = of.latencies()
    return s.BenchBatch(
        batch=of.batch,
        prompt=timed.prompt,
        new=timed.new,
        runs=len(of.runs),
        prompt_tokens_per_s=finite(prompt),
        prompt_tokens_per_s_se=_known(prompt_se),
        tokens_per_s=finite(new),
        tokens_per_s_se=_known(new_se),
        p50_ms=finite(1000 * quantile(steps, 0.5)) if steps else UNSET,
        p90_ms=finite(1000 * quantile(steps, 0.9)) if steps else UNSET,
        peak_bytes=UNSET if of.peak_bytes is None else of.peak_bytes,
        device_bytes=UNSET if of.device_bytes is None else of.device_bytes,
    )


def _known(value: float | None) -> s.Number | UnsetType:
    return UNSET if value is None else finite(value)
