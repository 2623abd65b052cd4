"""What several documents are made of."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

Number: TypeAlias = float | None
"""A figure; None if it is NaN or infinite."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Model(Part, frozen=True, kw_only=True):
    """The checkpoint."""

    name: str
    """Folder name or hub id."""
    params: int
    """Number of parameters stored."""
    bytes: int
    """Bytes of all tensors as stored."""
    fingerprint: str
    """SHA-256 of configuration and weights."""


class LayerFallback(Part, frozen=True, kw_only=True):
    """A layer that does not get the format that was asked for everywhere."""

    layer: str
    """The layer's name."""
    format: str
    """The format asked for."""
    why: str
    """Why the layer does not get it."""
    holds: str | UnsetType = UNSET
    """Its format instead; missing if it is kept, or not measured."""


class HistogramPart(Part, frozen=True, kw_only=True):
    """Histogram of one layer's finite weights, in equal bins between ``low`` and ``high``."""

    layer: str
    """The layer's name."""
    low: Number
    """Lower end of the first bin."""
    high: Number
    """Upper end of the last bin."""
    counts: list[int]
    """Number of weights in each bin."""
    mean: Number
    """Mean of the weights."""
    std: Number
    """Standard deviation of the weights."""
    format: str | UnsetType = UNSET
    """Format of the grid."""
    grid: list[Number] | UnsetType = UNSET
    """Values that the weights of a typical group can take in that format, ascending."""
    step: Number | UnsetType = UNSET
    """Median distance between neighbouring values of the grid."""


class BaselinePart(Part, frozen=True, kw_only=True):
    """The score of the unchanged model."""

    nll: Number
    """Mean negative log-likelihood, nats per token."""
    ppl: Number
    """Perplexity, ``exp(nll)``."""


class ControlPart(Part, frozen=True, kw_only=True):
    """A layer swapped for itself, and what rounding alone may cause."""

    max_abs_dnll: Number
    """Largest absolute change of NLL of a no-op, nats per token."""
    max_abs_kl: Number
    """Largest KL of a no-op, nats per token."""
    floor_dnll: Number
    """Largest change of NLL that rounding alone may cause, nats per token."""
    floor_kl: Number
    """Largest KL that rounding alone may cause, nats per token."""


class AgreementPart(Part, frozen=True, kw_only=True):
    """How well the estimates of a format agree with its measurements."""

    layers: int
    """Number of layers that are both estimated and measured."""
    rank_kl: Number
    """Spearman's rank correlation of KL."""
    rank_dnll: Number
    """Spearman's rank correlation of the change of NLL."""
    ratio: Number
    """Median of measured over estimated KL."""


class CalibrationPart(Part, frozen=True, kw_only=True):
    """The calibration text of methods that use inputs; empty if there were none."""

    text: str | UnsetType = UNSET
    """Name of the text."""
    text_sha256: str | UnsetType = UNSET
    """Hash of the text."""
    column: str | UnsetType = UNSET
    """Column of the dataset that was read; empty for a text without columns."""
    documents: int | UnsetType = UNSET
    """Documents that the text was joined from."""
    skipped: int | UnsetType = UNSET
    """Rows of the dataset that were left out, since they have no text."""
    tokens: int | UnsetType = UNSET
    """Tokens in all windows."""
    seq_len: int | UnsetType = UNSET
    """Tokens in a window."""
    seed: int | UnsetType = UNSET
    """Seed that chose the windows."""
    mode: Literal["reference", "sequential"] | UnsetType = UNSET
    """Whether inputs come from the unchanged model (``reference``) or from the already quantised
    blocks before (``sequential``)."""


class MixPart(Part, frozen=True, kw_only=True):
    """The cheapest recipe that takes half of a uniform format's damage away, or more."""

    kl: Number
    """Nats per token, measured where it was."""
    ppl: Number
    """Perplexity."""
    bits_per_weight: Number
    """Stored bits per weight of the body."""
    bytes: int
    """Size of the whole artefact."""
    layers: dict[str, str]
    """Its layers that are not in the uniform format, with theirs."""


class VerdictPart(Part, frozen=True, kw_only=True):
    """What a uniform format costs, where, and the cheapest mix that helps."""

    format: str
    """Of every layer of the body that can hold it."""
    kl: Number
    """Of the uniform recipe: measured, else the sum of single effects; nats per token."""
    kl_se: Number
    """Standard error of ``kl``."""
    ppl: Number
    """Perplexity of the uniform recipe."""
    measured: bool
    """Whether the uniform recipe was measured."""
    top5_share: Number
    """Share of the damage from the worst five layers, 0 to 1."""
    worst: list[str]
    """These layers, the worst first."""
    to: str | UnsetType = UNSET
    """The export target that holds the mix, with ``--to``."""
    unable: int | UnsetType = UNSET
    """Layers that cannot have the format there: the target does not hold it, or no serving kernel
    takes it."""
    kernels: list[str]
    """Serving kernels that take the mix, or without one the uniform format: one that takes every
    layer, else as few as do; those of layers that none takes are missing."""
    mix: MixPart | UnsetType = UNSET
    """Missing where no better format is known."""
    sentence: str
    """All of it in a line."""


class FixPart(Part, frozen=True, kw_only=True):
    """A format that wins back a layer's KL."""

    format: str
    """Canonical; the kept format for as stored."""
    kl: Number
    """Of the layer alone in it, nats per token."""
    kl_se: Number
    """Standard error of ``kl``."""
    measured: bool
    """Whether ``kl`` was measured rather than estimated."""
    recovered: Number
    """Share of the layer's KL that it wins back."""
    bits: Number
    """Stored bits per weight of the layer that it takes more."""


class FindingPart(Part, frozen=True, kw_only=True):
    """Something that stands out."""

    id: str
    """What it is, such as ``outlier-channel``."""
    severity: str
    """``alert``, ``warning``, ``note`` or ``info``."""
    layer: str | UnsetType = UNSET
    """Missing where it is about several."""
    channels: list[int] | UnsetType = UNSET
    """Input channels."""
    sentence: str
    """In words."""
    evidence: dict[str, Number]
    """The figures behind it, by name."""
    fix: FixPart | UnsetType = UNSET
    """The cheapest known format that wins back half of the layer's KL."""


class ScorePart(Part, frozen=True, kw_only=True):
    """A recipe's measured score."""

    kl: Number
    """KL divergence from the unchanged model, nats per token."""
    kl_se: Number
    """Standard error of ``kl`` over windows."""
    ppl: Number
    """Perplexity."""


class PointPart(Part, frozen=True, kw_only=True):
    """A recipe by its size and KL."""

    bits: Number
    """Stored bits per weight of the body."""
    bytes: int
    """Size of the whole artefact."""
    kl: Number
    """Predicted: the sum of single effects."""
    measured: ScorePart | UnsetType = UNSET
    """Its score, where it was measured."""
