"""The document of `qtui bench`."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from engine.report.schema.parts import Number, Part


class BenchBatch(Part, frozen=True, kw_only=True):
    """One batch size."""

    batch: int
    """Sequences at once."""
    prompt: int
    """Tokens of each prompt."""
    new: int
    """Tokens generated after it, for each sequence."""
    runs: int
    """Runs that count."""
    prompt_tokens_per_s: Number
    """Prompt tokens per second, of all sequences together: the mean of all runs."""
    prompt_tokens_per_s_se: Number | UnsetType = UNSET
    """Its standard error over runs."""
    tokens_per_s: Number
    """Generated tokens per second, of all sequences together: the mean of all runs."""
    tokens_per_s_se: Number | UnsetType = UNSET
    """Its standard error over runs."""
    p50_ms: Number | UnsetType = UNSET
    """Median time between two tokens of a sequence, milliseconds."""
    p90_ms: Number | UnsetType = UNSET
    """Nine tenths of these times are below, milliseconds."""
    peak_bytes: int | UnsetType = UNSET
    """Peak of resident memory of the runtime's processes, mapped files included."""
    device_bytes: int | UnsetType = UNSET
    """Peak of the device's memory, where the runtime says it."""


class BenchDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.bench/1"):
    """A finished checkpoint, timed in a runtime."""

    artefact: str
    """Path of the folder or file."""
    bytes: int
    """Size of its weights on disk."""
    runtime: str
    """The runtime."""
    version: str
    """The package or program that it was run by, with its version."""
    device: str
    """The device that it ran on."""
    processor: str
    """The machine's processor."""
    threads: int
    """Threads of the processor."""
    settings: dict[str, str]
    """Further settings of the runtime that figures may depend on, such as ``dtype``."""
    python: str
    """The interpreter that has the runtime."""
    warmup: int
    """Runs before those that count, of each batch size."""
    batches: list[BenchBatch]
    """By batch size."""
    notes: list[str]
    """What did not go as it was asked."""
    timings: dict[str, Number]
    """Seconds by what they were spent on: ``load_s``."""
