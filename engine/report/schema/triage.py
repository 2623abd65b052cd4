"""The document of `qtui triage`."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from engine.report.schema.parts import (
    HistogramPart,
    LayerFallback,
    Model,
    Number,
    Part,
    VerdictPart,
)


class OutlierPart(Part, frozen=True, kw_only=True):
    """Weights beyond ``sigma`` standard deviations."""

    sigma: Number
    """The bound, in standard deviations of the layer."""
    count: int
    """Number of weights beyond it."""
    fraction: Number
    """Share of weights beyond it, 0 to 1."""
    max_abs: Number
    """Largest absolute weight."""


class ErrorPart(Part, frozen=True, kw_only=True):
    """Difference between a weight and its quantised value."""

    frobenius: Number
    """``‖W − Ŵ‖``, Frobenius norm."""
    relative: Number
    """``‖W − Ŵ‖ / ‖W‖``."""
    max_abs: Number
    """Largest absolute error of a weight."""
    mean_abs: Number
    """Mean absolute error of a weight."""
    sqnr_db: Number
    """Signal to quantisation noise ratio, decibels."""


class ActivationPart(Part, frozen=True, kw_only=True):
    """One tensor of activations over the calibration text."""

    max: Number
    """Largest magnitude."""
    mean: Number
    """Mean magnitude."""
    std: Number
    """Standard deviation."""
    p99: Number
    """99th percentile of the magnitudes, within 1.6% of its value."""
    ratio: Number
    """Largest over mean magnitude."""
    outlier_channels: list[int]
    """Channels whose largest magnitude is more than six times the median channel's, the largest
    first; sixteen at most."""
    by_median: int
    """How many there are."""
    by_mean: int
    """Channels above six times the mean of all channels' largest magnitudes."""
    massive_tokens: int
    """Tokens whose norm is at least twenty times the median."""
    position: int | UnsetType = UNSET
    """Place in its window of the token with the largest norm."""
    nonfinite: int
    """Numbers that are NaN or infinite."""


class StoredPart(Part, frozen=True, kw_only=True):
    """How a layer that is stored quantised uses its codes."""

    layout: str
    """The layout it is read as."""
    levels: int | UnsetType = UNSET
    """Codes that there are; missing where they are numbers in themselves."""
    unused: int | UnsetType = UNSET
    """Codes that no weight has."""
    saturated: Number | UnsetType = UNSET
    """Share of the weights that have the first or the last code."""
    scales: int
    """How many scales there are."""
    scale_min: Number
    """Smallest magnitude of a scale, but for 0."""
    scale_max: Number
    """Largest magnitude of a scale."""
    bad_scales: int
    """Scales that are zero, NaN or infinite."""
    zero_min: int | UnsetType = UNSET
    """Smallest zero point; missing where there are none."""
    zero_max: int | UnsetType = UNSET
    """Largest zero point."""


class TriageLayer(Part, frozen=True, kw_only=True):
    """One layer's weights."""

    name: str
    """The layer's name."""
    kind: str
    """Last part of the name, such as ``q_proj``."""
    block: int
    """-1 for the embedding and the head."""
    shape: tuple[int, ...]
    """``[out, in]`` or ``[experts, out, in]``."""
    dtype: str
    """Stored dtype, by torch's name."""
    category: str | UnsetType = UNSET
    """Place and part, such as ``first attention``."""
    outliers: OutlierPart | UnsetType = UNSET
    """Weights far from the mean."""
    range_ratio: Number | UnsetType = UNSET
    """Range of the weights over the range without outliers."""
    waste: Number | UnsetType = UNSET
    """Share of a uniform grid spent on outliers, 0 to 1."""
    kurtosis: Number | UnsetType = UNSET
    """Excess kurtosis of the weights."""
    nan: int | UnsetType = UNSET
    """Number of weights that are NaN."""
    inf: int | UnsetType = UNSET
    """Number of weights that are infinite."""
    zero_rows: int | UnsetType = UNSET
    """Number of rows that are all zero."""
    stored: StoredPart | UnsetType = UNSET
    """Its codes, if it is stored quantised."""
    errors: dict[str, ErrorPart] | UnsetType = UNSET
    """Quantisation errors by format."""
    input: ActivationPart | UnsetType = UNSET
    """Its inputs, with ``--activations``."""
    output: ActivationPart | UnsetType = UNSET
    """Its outputs; not of experts, nor of the head."""
    module: ActivationPart | UnsetType = UNSET
    """What the attention or MLP that ends with this layer returns."""
    expert_tokens: list[int] | UnsetType = UNSET
    """Tokens of the calibration text given to each expert."""


class ExpertsPart(Part, frozen=True, kw_only=True):
    """Weights of one fused layer's experts: lists with one entry per expert."""

    layer: str
    """The fused layer's name."""
    std: list[Number]
    """Standard deviation of the weights."""
    max_abs: list[Number]
    """Largest absolute weight."""
    outliers: list[Number]
    """Share of weights beyond the run's sigma, by the expert's own standard deviation."""
    nonfinite: list[int]
    """Number of weights that are NaN or infinite."""
    relative: dict[str, list[Number]]
    """``‖W − Ŵ‖ / ‖W‖`` by format."""


class TriageDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.triage/1"):
    """Weight statistics and errors, without a forward pass."""

    model: Model
    """The checkpoint."""
    versions: dict[str, str]
    """Versions of libraries that figures may depend on, by name."""
    layers: list[TriageLayer]
    """All layers, in the model's order."""
    fallbacks: list[LayerFallback]
    """Layers that cannot hold a format."""
    resumed: int
    """Number of results taken from the cache."""
    timings: dict[str, Number]
    """Seconds by what they were spent on."""
    histogram: HistogramPart | UnsetType = UNSET
    """Histogram of the layer that ``--histogram`` names."""
    experts: ExpertsPart | UnsetType = UNSET
    """Experts of the layer that ``--experts`` names."""
    remarks: list[str] | UnsetType = UNSET
    """What the table does not show, such as layers that one block lacks and its neighbours have."""
    verdict: VerdictPart | UnsetType = UNSET
    """What a format costs; missing unless the session knows the effects of all layers."""
    outlook: str | UnsetType = UNSET
    """Where there is no verdict, what can be said from weights alone."""
