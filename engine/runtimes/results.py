"""What was timed, and the figures of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec


class Progress(msgspec.Struct, frozen=True, tag_field="kind", tag="progress"):
    """How far it is."""

    done: int
    total: int
    """0 while that is not known."""
    subject: str


class Missing(msgspec.Struct, frozen=True, tag_field="kind", tag="missing"):
    """The runtime is not installed."""


class Started(msgspec.Struct, frozen=True, tag_field="kind", tag="loaded"):
    """The runtime has loaded the checkpoint."""

    seconds: float | None
    about: dict[str, str]
    """``version``, ``device``, ``threads`` and further settings that figures depend on."""


class TimedRun(msgspec.Struct, frozen=True):
    """One run: prompts, then generation."""

    prompt_s: float
    """Seconds for the prompts of all sequences."""
    generated: int
    """Tokens generated after, of all sequences together."""
    steps_s: tuple[float, ...] = ()
    """Seconds of each step; empty where the runtime only says the whole."""
    whole_s: float | None = None
    """Seconds of generation, where the runtime says the whole."""

    @property
    def generation_s(self) -> float:
        """Seconds of generation."""
        return sum(self.steps_s) if self.whole_s is None else self.whole_s


class TimedBatch(msgspec.Struct, frozen=True, tag_field="kind", tag="batch"):
    """A batch size that was timed."""

    batch: int
    """Sequences at once."""
    runs: tuple[TimedRun, ...]
    peak_bytes: int | None
    """Peak of resident memory of the runtime's processes."""
    device_bytes: int | None
    """Peak of a device's memory."""

    def prompt_rates(self, prompt: int) -> list[float]:
        """Prompt tokens per second of each run, as llama-bench counts them."""
        return [self.batch * prompt / run.prompt_s for run in self.runs]

    def rates(self) -> list[float]:
        """Generated tokens per second of each run, of all sequences together."""
        return [run.generated / run.generation_s for run in self.runs]

    def latencies(self) -> list[float]:
        """Seconds of every step of every run: the time between two tokens of a sequence."""
        return [step for run in self.runs for step in run.steps_s]


class Done(msgspec.Struct, frozen=True, tag_field="kind", tag="done"):
    """Everything was timed."""


class Failed(msgspec.Struct, frozen=True, tag_field="kind", tag="failed"):
    """The runtime raised an error."""

    why: str
    type: str
    of: Literal["memory", "import", "other"]


Answer: TypeAlias = Progress | Missing | Started | TimedBatch | Done | Failed


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """A finished checkpoint, timed in a runtime."""

    artefact: str
    """Path on disk."""
    bytes: int
    """Size of its weights on disk."""
    runtime: str
    about: dict[str, str]
    """As in `Started`."""
    python: str
    """The interpreter that the runtime is installed for."""
    processor: str
    load_s: float | None
    prompt: int
    """Tokens of each prompt."""
    new: int
    """Tokens generated after it."""
    warmup: int
    """Runs before those that count."""
    repeats: int
    batches: tuple[TimedBatch, ...]
    notes: tuple[str, ...] = ()
    """What did not go as it was asked."""


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and its standard error where there is more than one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, statistics.stdev(values) / math.sqrt(len(values))


def quantile(values: Sequence[float], share: float) -> float:
    """A quantile, linear between neighbours, as NumPy's default.

    Args:
        values: at least one.
        share: from 0 to 1.
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
