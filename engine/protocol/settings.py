"""What a session is asked to be, and what stands beside every figure of it."""

from __future__ import annotations

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A profile with the command line's own values laid over it: how everything is measured."""

    profile: str = "standard"
    text: str | None = None
    """A text file or a dataset; None takes the default text."""
    calib: str | None = None
    tokens: int = 16384
    seq_len: int = 2048
    """Tokens in a window; shortened, and said so, where the model takes fewer."""
    stride: int | None = None
    """None cuts windows that do not overlap; N counts only the last N targets of each."""
    batch_tokens: int = 2048
    """Tokens in a micro-batch, the step between two looks at what is more urgent."""
    formats: tuple[str, ...] = ("int3-g128", "int4-g128", "int8")
    """Formats whose weight errors triage reports."""
    sweep_formats: tuple[str, ...] = ("int4-g128",)
    estimate_formats: tuple[str, ...] = ()
    """Formats that are estimated for every layer beside those that a sweep measures."""
    draws: int = 1
    """Draws of labels that an estimate of KL rests on."""
    calib_tokens: int = 32768
    """Tokens of calibration text, in windows of ``seq_len``."""
    sigma: float = 4.0
    """Weights beyond this many standard deviations count as outliers."""
    device: str = "auto"
    dtype: str | None = None
    """``fp32``, ``fp16`` or ``bf16``; None takes float32 on a CPU, 16 bits on a GPU."""
    memory_budget: int | None = None
    """Bytes beside the model: half for states and logits, a quarter each for calibration and for
    estimates. None takes half of what is free for states and logits."""
    seed: int = 0
    fresh: bool = False
    """Measure anew, and begin the session's history anew."""
    trust_remote_code: bool = False


class Protocol(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside every perplexity: the text, how it was cut, and the arithmetic."""

    text: str
    text_sha256: str
    tokens: int
    """Tokens in all windows together; figures rest on the targets that count."""
    seq_len: int
    stride: int
    """Targets that count in each window."""
    windows: int
    dtype: str
    device: str
    seed: int = 0
    draws: int = 0
    interval: float = 0.95
