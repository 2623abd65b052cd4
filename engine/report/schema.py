"""The JSON that scripts read, schema 1, as Structs; `engine.report.json` writes it.

Keys may be added; those here stay. A number that is not finite is ``null``; what was not measured
has no key. NLL and KL are in nats per token, sizes in bytes, times in seconds; ``se`` is a
standard error over windows.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from engine import protocol as p

Number: TypeAlias = float | None
"""A figure; None where it is NaN or infinite."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Model(Part, frozen=True, kw_only=True):
    """The checkpoint."""

    name: str
    params: int
    bytes: int
    fingerprint: str


class LayerFallback(Part, frozen=True, kw_only=True):
    """A layer that does not hold what was asked for everywhere."""

    layer: str
    format: str
    why: str
    holds: str | UnsetType = UNSET
    """What it holds instead; it is kept, or not measured, where this is missing."""


class OutlierPart(Part, frozen=True, kw_only=True):
    """Weights beyond ``sigma`` standard deviations."""

    sigma: Number
    count: int
    fraction: Number
    max_abs: Number


class ErrorPart(Part, frozen=True, kw_only=True):
    """Distance between a weight and its quantised value."""

    frobenius: Number
    relative: Number
    max_abs: Number
    mean_abs: Number
    sqnr_db: Number


class TriageLayer(Part, frozen=True, kw_only=True):
    """One layer's weights."""

    name: str
    kind: str
    block: int
    """-1 for the embedding and the head."""
    shape: tuple[int, ...]
    dtype: str
    outliers: OutlierPart | UnsetType = UNSET
    range_ratio: Number | UnsetType = UNSET
    waste: Number | UnsetType = UNSET
    kurtosis: Number | UnsetType = UNSET
    nan: int | UnsetType = UNSET
    inf: int | UnsetType = UNSET
    zero_rows: int | UnsetType = UNSET
    errors: dict[str, ErrorPart] | UnsetType = UNSET


class HistogramPart(Part, frozen=True, kw_only=True):
    """Counts of one layer's finite weights in equal bins between ``low`` and ``high``."""

    layer: str
    low: Number
    high: Number
    counts: list[int]
    mean: Number
    std: Number
    format: str | UnsetType = UNSET
    """Whose grid this is."""
    grid: list[Number] | UnsetType = UNSET
    """Values that weights of a typical group take in that format, ascending."""
    step: Number | UnsetType = UNSET
    """Median distance between two neighbours of such a grid."""


class ExpertsPart(Part, frozen=True, kw_only=True):
    """Weights of one fused layer's experts: lists with an entry an expert."""

    layer: str
    std: list[Number]
    max_abs: list[Number]
    outliers: list[Number]
    """Share of weights beyond the run's sigma, of the expert's own standard deviation."""
    nonfinite: list[int]
    relative: dict[str, list[Number]]
    """``‖W − Ŵ‖ / ‖W‖`` by format."""


class TriageDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.triage/1"):
    """Weights alone, with no forward pass."""

    model: Model
    versions: dict[str, str]
    layers: list[TriageLayer]
    fallbacks: list[LayerFallback]
    resumed: int
    timings: dict[str, Number]
    histogram: HistogramPart | UnsetType = UNSET
    """Of the layer that ``--histogram`` names."""
    experts: ExpertsPart | UnsetType = UNSET
    """Of the layer that ``--experts`` names."""


class BaselinePart(Part, frozen=True, kw_only=True):
    """The unchanged model's score."""

    nll: Number
    ppl: Number


class ControlPart(Part, frozen=True, kw_only=True):
    """A layer swapped for itself, and what rounding alone may measure."""

    max_abs_dnll: Number
    max_abs_kl: Number
    floor_dnll: Number
    floor_kl: Number


class FloorPart(Part, frozen=True, kw_only=True):
    """What rounding alone may measure: figures below it tell nothing."""

    kl: Number
    dnll: Number


class EstimatePart(Part, frozen=True, kw_only=True):
    """The effect of one layer changed alone, as gradients have it."""

    kl: Number
    kl_se: Number
    dnll: Number
    dnll_se: Number
    tokens: int
    draws: int
    """Draws of labels behind it."""
    doubt: str | UnsetType = UNSET
    """Why the figure may not hold."""
    corrected_kl: Number | UnsetType = UNSET
    """What to expect by the fit of measured to estimated KL of the other layers."""


class MeasuredPart(Part, frozen=True, kw_only=True):
    """The effect of one layer changed alone."""

    kl: Number
    kl_se: Number
    dnll: Number
    dnll_se: Number
    dppl: Number
    dppl_ci95: tuple[Number, Number]
    tokens: int
    top1_agreement: Number
    below_floor: bool | UnsetType = UNSET
    """True where the KL is less than the numeric floor."""


class SweepLayer(Part, frozen=True, kw_only=True):
    """One layer in one format."""

    name: str
    kind: str
    block: int
    format: str
    estimate: EstimatePart | UnsetType = UNSET
    measured: MeasuredPart | UnsetType = UNSET


class SweepUnit(Part, frozen=True, kw_only=True):
    """Layers that were changed at once, in one format."""

    name: str
    """Of a block its number, of a kind its name, of a fused group its first layer."""
    by: p.By
    format: str
    layers: list[str]
    estimate: EstimatePart | UnsetType = UNSET
    measured: MeasuredPart | UnsetType = UNSET


class AgreementPart(Part, frozen=True, kw_only=True):
    """How well the estimates of a format agree with what was measured of it."""

    layers: int
    """That are both estimated and measured."""
    rank_kl: Number
    """Spearman's rank correlation of KL."""
    rank_dnll: Number
    ratio: Number
    """Median of measured over estimated KL."""


class FormatAdditivity(Part, frozen=True, kw_only=True):
    """Effect of all body layers together over the sum of their single effects."""

    kl: Number
    dnll: Number
    layers: int


class AdditivityPart(Part, frozen=True, kw_only=True):
    """The first format's ratio, and every format's."""

    kl: Number
    dnll: Number
    by_format: dict[str, FormatAdditivity]


class CalibrationPart(Part, frozen=True, kw_only=True):
    """The text that methods looked at a layer's inputs of; empty where none did."""

    text: str | UnsetType = UNSET
    text_sha256: str | UnsetType = UNSET
    tokens: int | UnsetType = UNSET
    seq_len: int | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    mode: Literal["reference", "sequential"] | UnsetType = UNSET
    """Whether inputs are those of the unchanged model, or those that the blocks before give as the
    recipe has them."""


class SweepDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.sweep/1"):
    """The sensitivity of every layer."""

    direction: p.Direction
    resumed: int
    model: Model
    protocol: p.Protocol
    calibration: CalibrationPart
    versions: dict[str, str]
    baseline: BaselinePart | UnsetType = UNSET
    control: ControlPart | UnsetType = UNSET
    floor: FloorPart | UnsetType = UNSET
    layers: list[SweepLayer]
    """In the formats that were asked for."""
    estimated: list[SweepLayer] | UnsetType = UNSET
    """In further formats that the profile has estimated."""
    units: list[SweepUnit] | UnsetType = UNSET
    """Of a sweep by block, kind or group."""
    fallbacks: list[LayerFallback]
    agreement: dict[str, AgreementPart] | UnsetType = UNSET
    """By format."""
    additivity: AdditivityPart | UnsetType = UNSET
    timings: dict[str, Number]


class RecipePart(Part, frozen=True, kw_only=True):
    """A recipe's score and its size."""

    name: str
    nll: Number
    ppl: Number
    ppl_ci95: tuple[Number, Number]
    dnll: Number
    dnll_se: Number
    kl: Number
    kl_se: Number
    top1_agreement: Number
    bits_per_weight: Number | UnsetType = UNSET
    bytes: int | UnsetType = UNSET


class EvalDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.eval/1"):
    """Perplexity and KL of one recipe."""

    resumed: int
    model: Model
    protocol: p.Protocol
    calibration: CalibrationPart
    versions: dict[str, str]
    baseline: BaselinePart | UnsetType = UNSET
    recipe: RecipePart
    fallbacks: list[LayerFallback]
    timings: dict[str, Number]


class ExportDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.export/1"):
    """A recipe that was written as a checkpoint."""

    checkpoint: Model
    recipe: dict[str, str]
    """Layers that are not kept, with canonical formats."""
    folder: str
    bytes: int
    """Of all tensors as they lie on disk, padding to 32-bit words included."""
    bits_per_weight: Number
    """As of an evaluation: codes, scales and zero points, of what is body or quantised."""
    layers: int
    """How many are stored as codes."""
    fallbacks: list[LayerFallback]
    notes: list[str]
    """What is not as one might expect, in sentences."""
    versions: dict[str, str]
    timings: dict[str, Number]


Document: TypeAlias = TriageDocument | SweepDocument | EvalDocument | ExportDocument
