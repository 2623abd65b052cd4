"""Settings of a session, and the protocol printed with its figures."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A profile overridden by options of the command line: how everything is measured."""

    profile: str = "standard"
    text: str | None = None
    """A text file or a dataset, with a split and a column after colons; None means the default
    text."""
    calib: str | None = None
    imatrix: str | None = None
    """A file of llama.cpp with the importance of inputs; None takes it from calibration text."""
    tokens: int = 16384
    seq_len: int = 2048
    """Tokens in a window; shortened, with a notice, if the model takes fewer."""
    stride: int | None = None
    """None cuts windows that do not overlap; with N only the last N targets of each window
    count."""
    batch_tokens: int = 2048
    """Tokens in a micro-batch, after which a more urgent job may run."""
    formats: tuple[str, ...] = ("int3-g128", "int4-g128", "int8")
    """Formats whose weight errors triage reports."""
    sweep_formats: tuple[str, ...] = ("int4-g128",)
    estimate_formats: tuple[str, ...] = ()
    """Formats that are estimated for every layer, in addition to those that a sweep measures."""
    draws: int = 1
    """Draws of labels behind an estimate of KL."""
    calib_tokens: int = 32768
    """Tokens of calibration text, in windows of ``seq_len``."""
    unserved: bool = False
    """Whether verdicts, advice and plans may choose formats that no serving kernel takes."""
    context: int = 0
    """Tokens of a sequence whose keys and values a card must hold beside the weights, where nothing
    else is said; 0 for none."""
    batch: int = 1
    """Sequences of that many tokens."""
    cache_bits: int = 16
    """Of a number in the cache: 16, 8 or 4."""
    sigma: float = 4.0
    """Weights beyond this many standard deviations count as outliers."""
    bos: bool = False
    """Begin every window with the tokenizer's BOS token, which takes the place of one of text."""
    device: str = "auto"
    dtype: str | None = None
    """``fp32``, ``fp16`` or ``bf16``; None takes float32 on a CPU, 16 bits on a GPU."""
    memory_budget: int | None = None
    """Bytes that a checkpoint may take on its device, weights included. A model whose weights take
    more than seven eighths of it is streamed from disk. Of what weights leave, half is for states
    and logits, a quarter each for calibration and for estimates. None allows all free memory for
    weights, and half of what is left for states and logits."""
    workers: str = ""
    """Who measures beside the engine: see `engine.workers.asked`; empty for nobody."""
    seed: int = 0
    fresh: bool = False
    """Measure again, and start a new history of the session."""
    trust_remote_code: bool = False
    follow_links: bool = False
    """Read files of a checkpoint that are links to anywhere."""

    @property
    def cache(self) -> dict[str, int]:
        """Context, batch and bits of cached numbers."""
        return {"context": self.context, "batch": self.batch, "cache_bits": self.cache_bits}


class Protocol(msgspec.Struct, frozen=True, kw_only=True):
    """What a perplexity depends on: the text, how it was cut, and the arithmetic."""

    text: str
    """Name of the evaluation text."""
    text_sha256: str
    """Hash of the text."""
    column: str | UnsetType = UNSET
    """Column of the dataset that was read, empty for a text without columns; absent, as the two
    below, in what an earlier version wrote."""
    documents: int | UnsetType = UNSET
    """Documents that the text was joined from."""
    skipped: int | UnsetType = UNSET
    """Rows of the dataset that were left out, since they have no text."""
    bos: bool | UnsetType = UNSET
    """True if every window begins with the tokenizer's BOS token, else absent."""
    streamed: bool | UnsetType = UNSET
    """True if blocks were read from disk as they were needed, else absent; figures are the same."""
    tokens: int
    """Tokens in all windows; figures come from the targets that count."""
    seq_len: int
    """Tokens in a window."""
    stride: int
    """Targets that count in each window."""
    windows: int
    """Number of windows."""
    dtype: str
    """The model's dtype, by torch's name."""
    device: str
    """Device that ran the model."""
    seed: int = 0
    """Seed of everything random."""
    draws: int = 0
    """Draws of labels behind an estimate."""
    interval: float = 0.95
    """Coverage of the confidence intervals."""

    @property
    def text_read(self) -> str:
        """The text with what was read of it: ``stack, column content, 60 documents``."""
        said = self.text
        if self.column:
            said += f", column {self.column}"
        if self.documents and (self.column or self.skipped):
            said += f", {self.documents:,} document{'' if self.documents == 1 else 's'}"
        if self.skipped:
            said += (
                f" ({self.skipped:,} row{'' if self.skipped == 1 else 's'} without text skipped)"
            )
        return said + (", BOS before each window" if self.bos else "")
