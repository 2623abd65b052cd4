"""The JSON documents that scripts read, schema 1, as Structs; `engine.report.json` writes them.

Keys may be added; those here stay. A number that is not finite is ``null``; what was not measured
is missing. NLL and KL are in nats per token, sizes in bytes, times in seconds; ``se`` is a standard
error over windows.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from engine import protocol as p

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
    errors: dict[str, ErrorPart] | UnsetType = UNSET
    """Quantisation errors by format."""
    input: ActivationPart | UnsetType = UNSET
    """Its inputs, with ``--activations``."""
    output: ActivationPart | UnsetType = UNSET
    """Its outputs; not of experts, nor of the head."""
    expert_tokens: list[int] | UnsetType = UNSET
    """Tokens of the calibration text given to each expert."""


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


class FloorPart(Part, frozen=True, kw_only=True):
    """What rounding alone may cause: figures below it say nothing."""

    kl: Number
    """Nats per token."""
    dnll: Number
    """Nats per token."""


class EstimatePart(Part, frozen=True, kw_only=True):
    """The effect of one layer changed alone, estimated from gradients."""

    kl: Number
    """KL divergence from the unchanged model, nats per token."""
    kl_se: Number
    """Standard error of ``kl`` over windows."""
    dnll: Number
    """Change of NLL, nats per token."""
    dnll_se: Number
    """Standard error of ``dnll`` over windows."""
    tokens: int
    """Number of targets behind the estimate."""
    draws: int
    """Draws of labels behind the estimate."""
    doubt: str | UnsetType = UNSET
    """Why the estimate may be wrong."""
    corrected_kl: Number | UnsetType = UNSET
    """KL expected by the fit of measured to estimated KL of the other layers, in nats per token."""


class MeasuredPart(Part, frozen=True, kw_only=True):
    """The measured effect of one layer changed alone."""

    kl: Number
    """KL divergence from the unchanged model, nats per token; for restore, KL regained."""
    kl_se: Number
    """Standard error of ``kl`` over windows."""
    dnll: Number
    """Change of NLL, nats per token."""
    dnll_se: Number
    """Standard error of ``dnll`` over windows."""
    dppl: Number
    """Change of perplexity."""
    dppl_ci95: tuple[Number, Number]
    """95% interval of ``dppl``."""
    tokens: int
    """Number of targets behind the figures."""
    top1_agreement: Number
    """Share of positions where both models have the same top token, 0 to 1."""
    below_floor: bool | UnsetType = UNSET
    """True if the KL is below the numeric floor."""


class AdvicePart(Part, frozen=True, kw_only=True):
    """The smallest known format that keeps a layer's share of the damage below a bound."""

    format: str
    """Canonical, or a kept one."""
    bits: Number
    """Bits per weight in it."""
    share: Number
    """Share of the damage that is left."""


class SweepLayer(Part, frozen=True, kw_only=True):
    """One layer in one format."""

    name: str
    """The layer's name."""
    kind: str
    """Last part of the name, such as ``q_proj``."""
    block: int
    """-1 for the embedding and the head."""
    format: str
    """Canonical format."""
    estimate: EstimatePart | UnsetType = UNSET
    """Missing if not estimated."""
    measured: MeasuredPart | UnsetType = UNSET
    """Missing if not measured."""
    category: str | UnsetType = UNSET
    """Place and part, such as ``first attention``."""
    share: Number | UnsetType = UNSET
    """Share of the damage of the format everywhere; missing unless all layers are known."""
    advice: AdvicePart | UnsetType = UNSET
    """Missing likewise, and for restore."""


class SweepUnit(Part, frozen=True, kw_only=True):
    """Layers that were changed at once, in one format."""

    name: str
    """A block number, the name of a kind, or the first layer of a fused group."""
    by: p.By
    """What was changed at once."""
    format: str
    """Canonical format."""
    layers: list[str]
    """Names of the layers in the unit."""
    estimate: EstimatePart | UnsetType = UNSET
    """Missing if not estimated."""
    measured: MeasuredPart | UnsetType = UNSET
    """Missing if not measured."""


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


class FormatAdditivity(Part, frozen=True, kw_only=True):
    """Effect of all body layers together over the sum of their single effects."""

    kl: Number
    """Ratio of KL."""
    dnll: Number
    """Ratio of the changes of NLL."""
    layers: int
    """Number of layers in the sum."""


class AdditivityPart(Part, frozen=True, kw_only=True):
    """The first format's ratio, and that of every format."""

    kl: Number
    """Ratio of KL."""
    dnll: Number
    """Ratio of the changes of NLL."""
    by_format: dict[str, FormatAdditivity]
    """Ratios by format."""


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


class SweepDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.sweep/1"):
    """The sensitivity of every layer."""

    direction: p.Direction
    """``degrade``: each quantised alone; ``restore``: each kept alone."""
    resumed: int
    """Number of results taken from the cache."""
    model: Model
    """The checkpoint."""
    protocol: p.Protocol
    """Text, windows and arithmetic behind the figures."""
    calibration: CalibrationPart
    """The calibration text."""
    versions: dict[str, str]
    """Versions of libraries that figures may depend on, by name."""
    baseline: BaselinePart | UnsetType = UNSET
    """The score of the unchanged model."""
    control: ControlPart | UnsetType = UNSET
    """The no-op control."""
    floor: FloorPart | UnsetType = UNSET
    """The numeric floor."""
    layers: list[SweepLayer]
    """Layers in the formats that were asked for."""
    estimated: list[SweepLayer] | UnsetType = UNSET
    """Layers in further formats, which the profile estimates."""
    units: list[SweepUnit] | UnsetType = UNSET
    """Units of a sweep by block, kind or group."""
    fallbacks: list[LayerFallback]
    """Layers that do not get a format asked for."""
    agreement: dict[str, AgreementPart] | UnsetType = UNSET
    """Agreement by format."""
    verdict: VerdictPart | UnsetType = UNSET
    """What the format costs everywhere, and what helps; of the first format that was degraded."""
    additivity: AdditivityPart | UnsetType = UNSET
    """Effect of all layers together over the sum of single effects."""
    timings: dict[str, Number]
    """Seconds by what they were spent on."""


class RecipePart(Part, frozen=True, kw_only=True):
    """A recipe's score and its size."""

    name: str
    """How the user named the recipe."""
    nll: Number
    """Mean negative log-likelihood, nats per token."""
    ppl: Number
    """Perplexity, ``exp(nll)``."""
    ppl_ci95: tuple[Number, Number]
    """95% interval of ``ppl``."""
    dnll: Number
    """Change of NLL, nats per token."""
    dnll_se: Number
    """Standard error of ``dnll`` over windows."""
    kl: Number
    """KL divergence from the unchanged model, nats per token."""
    kl_se: Number
    """Standard error of ``kl`` over windows."""
    top1_agreement: Number
    """Share of positions where both models have the same top token, 0 to 1."""
    bits_per_weight: Number | UnsetType = UNSET
    """Stored bits per weight of the body: codes, scales and zero points."""
    bits_all: Number | UnsetType = UNSET
    """The same over every layer, head and embedding among them; the weights of a tied pair count
    once."""
    bytes: int | UnsetType = UNSET
    """Size of the whole artefact."""


class EvalDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.eval/1"):
    """Perplexity and KL of one recipe."""

    resumed: int
    """Number of results taken from the cache."""
    model: Model
    """The checkpoint."""
    protocol: p.Protocol
    """Text, windows and arithmetic behind the figures."""
    calibration: CalibrationPart
    """The calibration text."""
    versions: dict[str, str]
    """Versions of libraries that figures may depend on, by name."""
    baseline: BaselinePart | UnsetType = UNSET
    """The score of the unchanged model."""
    recipe: RecipePart
    """The recipe's score and size."""
    fallbacks: list[LayerFallback]
    """Layers that do not get a format asked for."""
    timings: dict[str, Number]
    """Seconds by what they were spent on."""


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


class TriedPart(Part, frozen=True, kw_only=True):
    """One format of one layer."""

    format: str
    """Canonical."""
    weight_error: Number | UnsetType = UNSET
    """``‖W − Ŵ‖ / ‖W‖``."""
    output_error: Number | UnsetType = UNSET
    """``‖ŷ − y‖ / ‖y‖`` over calibration tokens; missing where it was not tried."""
    kl_estimated: Number | UnsetType = UNSET
    """Of the layer alone, corrected by measurements of others; nats per token."""
    filled: bool = False
    """Whether ``kl_estimated`` is filled in from another format of the layer, by the square of the
    output error, or of the weight error where that is not known."""
    kl_measured: Number | UnsetType = UNSET
    """As measured."""
    kl_se: Number | UnsetType = UNSET
    """Standard error of ``kl_measured`` over windows."""
    recovered: Number | UnsetType = UNSET
    """Share of the KL of the judged format that it wins back; negative where it costs more."""
    kl_per_megabyte: Number | UnsetType = UNSET
    """KL won back per megabyte more; null where it is no larger."""
    bits: Number
    """Stored bits per weight."""
    bytes: int
    """Stored bytes of the layer."""
    kernels: list[str]
    """Serving kernels that take it, ``dense`` for weights as stored; empty if none does."""
    verdict: str
    """What to make of it, in a few words."""
    refused: str | UnsetType = UNSET
    """Why the layer cannot take it."""


class ClippingPart(Part, frozen=True, kw_only=True):
    """Error of a layer's outputs in the recipe, on the unchanged model's inputs. That of an output
    channel is ``mean |y − ŷ| / mean |y|``; of experts, each has channels of its own."""

    relative: Number
    """``‖Y − Ŷ‖ / ‖Y‖``."""
    channels: int
    """Channels that have an error."""
    over_10: int
    """Channels whose error is above 10%."""
    over_50: int
    """Channels whose error is above 50%."""
    worst_channels: list[int]
    """Numbers of the channels with the largest errors, the worst first; sixteen at most."""
    worst_experts: list[int] | UnsetType = UNSET
    """The experts that these channels belong to."""
    worst_error: Number
    """The largest error."""
    unseen_experts: int | UnsetType = UNSET
    """Experts that got no token."""
    nonfinite: int
    """Channels with an output that is not finite."""


class DriftPart(Part, frozen=True, kw_only=True):
    """One block: ``‖h′ − h‖ / ‖h‖`` of its output, the mean over tokens."""

    block: int
    """Its number."""
    drift: Number
    """Of the recipe against the reference."""
    injected: Number | UnsetType = UNSET
    """With this block alone quantised, on the reference's input."""
    propagated: Number | UnsetType = UNSET
    """With this block unquantised, on the recipe's input."""
    control: Number | UnsetType = UNSET
    """With this block unquantised, on the reference's input plus random noise of the norm of the
    recipe's drift."""
    attention: list[Number] | UnsetType = UNSET
    """By head, the mean over queries of KL(reference ‖ recipe) of its attention, nats."""


class ErrorsPart(Part, frozen=True, kw_only=True):
    """What the errors of outputs, and the drift, are of."""

    recipe: dict[str, str]
    """Formats of the layers that are not kept."""
    tokens: int
    """Tokens that they were measured on, the first of the protocol's text."""
    embedding: Number
    """Drift before the first block."""
    attention_windows: int | UnsetType = UNSET
    """Windows that attention was compared on."""
    attention_tokens: int | UnsetType = UNSET
    """Positions of each."""
    no_attention: str | UnsetType = UNSET
    """Why attention was not compared."""
    not_split: str | UnsetType = UNSET
    """Why what a block adds is not known apart from what it is given."""
    not_measured: dict[str, str] | UnsetType = UNSET
    """Layers whose outputs cannot be compared, with the reason."""


class DiagnosedLayer(Part, frozen=True, kw_only=True):
    """One of the worst layers, in every format whose effect is known; with ``--errors``, every
    layer of the recipe."""

    name: str
    """The layer's name."""
    clipping: ClippingPart | UnsetType = UNSET
    """Error of its outputs, with ``--errors``."""
    fixes: list[TriedPart]
    """The smallest first."""


class DiagnoseDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.diagnose/1"):
    """What quantising costs, where, why, and what helps."""

    resumed: int
    """Number of results taken from the cache."""
    model: Model
    """The checkpoint."""
    protocol: p.Protocol
    """Text, windows and arithmetic behind the figures."""
    versions: dict[str, str]
    """Versions of libraries that figures may depend on, by name."""
    baseline: BaselinePart | UnsetType = UNSET
    """The score of the unchanged model."""
    verdict: VerdictPart | UnsetType = UNSET
    """Missing where a layer of the body has no known effect."""
    findings: list[FindingPart]
    """What stands out, the most severe first; empty for a clean model."""
    layers: list[DiagnosedLayer]
    """The worst layers, the worst first; then, with ``--errors``, the others of the recipe."""
    errors: ErrorsPart | UnsetType = UNSET
    """What ``clipping`` and ``drift`` are of, with ``--errors``."""
    drift: list[DriftPart] | UnsetType = UNSET
    """Every block in order, with ``--errors``."""
    timings: dict[str, Number]
    """Seconds by what they were spent on."""


class ScorePart(Part, frozen=True, kw_only=True):
    """A recipe's measured score."""

    kl: Number
    """KL divergence from the unchanged model, nats per token."""
    kl_se: Number
    """Standard error of ``kl`` over windows."""
    ppl: Number
    """Perplexity."""


class PredictedPart(Part, frozen=True, kw_only=True):
    """KL as predicted from single effects."""

    kl: Number
    """Their sum, or that of further changes of a measured recipe, nats per token."""
    kl_se: Number | UnsetType = UNSET
    """Standard error of the sum: of the effects, not of their adding up."""


class BoundPart(Part, frozen=True, kw_only=True):
    """What no recipe can pass, if effects add up."""

    kl: Number | UnsetType = UNSET
    """The least KL within the budget."""
    bytes: Number | UnsetType = UNSET
    """The fewest bytes within a budget of KL."""


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


class UnitPart(Part, frozen=True, kw_only=True):
    """Layers that take one format, since serving engines store them as one tensor."""

    name: str
    """The first of them."""
    layers: list[str]
    """All of them."""
    format: str
    """Canonical format; the kept format for as stored."""


class PlanDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.plan/1"):
    """The best recipe found within a budget."""

    resumed: int
    """Number of results taken from the cache."""
    model: Model
    """The checkpoint."""
    protocol: p.Protocol
    """Text, windows and arithmetic behind the figures."""
    versions: dict[str, str]
    """Versions of libraries that figures may depend on, by name."""
    baseline: BaselinePart | UnsetType = UNSET
    """The score of the unchanged model."""
    budget: dict[str, Number]
    """The budget as given: ``bits``, ``gib`` or ``kl``, and ``context``, ``batch``, ``cache_bits``
    with a context."""
    bits_per_weight: Number
    """Stored bits per weight of the body."""
    bytes: int
    """Size of the whole artefact."""
    predicted: PredictedPart
    """KL before it was measured."""
    measured: ScorePart | UnsetType = UNSET
    """Its score."""
    bound: BoundPart
    """How good any recipe could be."""
    forwards: Number
    """Plain forward passes that measuring took; an estimate of all layers counts as 7."""
    layers: dict[str, str]
    """Format of every layer, kept formats among them."""
    kernels: list[str]
    """Serving kernels that take the quantised layers: one that takes all, else as few as do."""
    unserved: int | UnsetType = UNSET
    """Layers whose format none takes."""
    units: list[UnitPart]
    """Layers that were decided together."""
    frontier: list[PointPart]
    """The best recipes of all sizes by single effects, smallest first."""
    baselines: dict[str, PointPart]
    """What simpler rules find within the same budget: ``uniform``, ``first-last``, ``greedy``."""
    recovered: Number
    """Share of the best uniform recipe's KL that this one avoids."""
    timings: dict[str, Number]
    """Seconds by what they were spent on."""


class ExportDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.export/1"):
    """A recipe written for an export target."""

    checkpoint: Model
    """The checkpoint that was exported."""
    recipe: dict[str, str]
    """Layers that are not kept, with canonical formats."""
    to: str
    """Name of the export target."""
    codes: bool
    """Whether the codes were written; otherwise a recipe, by which another tool makes them."""
    folder: str
    """Path of the written folder, or file."""
    bytes: int
    """Bytes of all tensors on disk, including padding to 32-bit words; or of the file."""
    bits_per_weight: Number
    """Bits per weight of the body, as in an evaluation."""
    bits_all: Number | UnsetType = UNSET
    """Bits per weight of every layer, as in an evaluation."""
    layers: int
    """Number of layers stored as codes, or quantised by the file."""
    fallbacks: list[LayerFallback]
    """Layers that do not get a format asked for."""
    notes: list[str]
    """Sentences about anything unexpected."""
    versions: dict[str, str]
    """Versions of libraries that figures may depend on, by name."""
    timings: dict[str, Number]
    """Seconds by what they were spent on."""


class ReportEffect(Part, frozen=True, kw_only=True):
    """What one layer alone costs in one format."""

    kl: Number
    """KL in nats per token."""
    kl_se: Number | UnsetType = UNSET
    dppl: Number | UnsetType = UNSET
    """Change of perplexity."""
    measured: bool
    """Whether it was measured; else estimated."""


class ReportLayer(Part, frozen=True, kw_only=True):
    """One layer of a report."""

    name: str
    kind: str
    block: int | None
    role: str
    shape: list[int]
    dtype: str
    holds: str
    """Its format in the recipe."""
    bits: Number
    """Bits per weight that it takes in that format."""
    bytes: int
    errors: dict[str, Number]
    """Relative weight error by format, where it is known."""
    outliers: Number | UnsetType = UNSET
    """Share of weights beyond the protocol's number of standard deviations."""
    effects: dict[str, ReportEffect]
    """By format."""


class ReportRecipe(Part, frozen=True, kw_only=True):
    """The session's recipe."""

    changed: int
    """Layers that are not kept."""
    bits_per_weight: Number
    bits_all: Number
    bytes: int
    """Of the whole artefact."""
    stored_bytes: int
    """Of the checkpoint as it is."""
    measured: ScoredPart | UnsetType = UNSET
    """Missing if it was not measured."""
    layers: dict[str, str]
    """Layers that are not kept, with their formats."""


class ScoredPart(Part, frozen=True, kw_only=True):
    """A measured score of a recipe."""

    ppl: Number
    ppl_ci95: tuple[Number, Number]
    kl: Number
    kl_se: Number
    top1_agreement: Number


class TriedRecipe(Part, frozen=True, kw_only=True):
    """A recipe that the session held at some time."""

    name: str
    """As it was named, else what its layers hold."""
    changed: int
    bits_per_weight: Number
    bytes: int
    measured: ScoredPart | UnsetType = UNSET
    current: bool
    frontier: bool
    """Whether none measured has less KL in as few bytes."""


class ReportPlan(Part, frozen=True, kw_only=True):
    """The last plan."""

    budget: dict[str, Number]
    frontier: list[PointPart]
    baselines: dict[str, PointPart]


class ReportDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.report/1"):
    """All that a session knows of a checkpoint, for people who were not there."""

    session: str
    """Its name."""
    made: str
    """When, as ISO 8601 has it."""
    model: Model
    architecture: str
    versions: dict[str, str]
    """Versions of libraries that figures may depend on, by name."""
    protocol: p.Protocol | UnsetType = UNSET
    """Missing, as what follows, where it is not known."""
    calibration: CalibrationPart
    baseline: BaselinePart | UnsetType = UNSET
    control: ControlPart | UnsetType = UNSET
    interval_factor: Number
    """Standard errors that half of a 95% interval is, by Student's t for the number of windows."""
    format: str
    """Whose effects verdict, findings and map are about; empty if none is known."""
    verdict: VerdictPart | UnsetType = UNSET
    findings: list[FindingPart]
    recipe: ReportRecipe
    layers: list[ReportLayer]
    histograms: list[HistogramPart]
    """Of the layers that cost most, as far as they were read."""
    tried: list[TriedRecipe]
    plan: ReportPlan | UnsetType = UNSET
    agreement: dict[str, AgreementPart]
    """Estimates beside measurements, by format."""
    fallbacks: list[LayerFallback]
    warnings: list[str]
    commands: dict[str, str]
    """What reproduces the figures, by what it gives."""


SessionState: TypeAlias = Literal["working", "idle", "headless", "past"]
"""What a session's engine does: it has jobs; it has none; it is a command without an interface;
there is no engine."""


class SessionJob(Part, frozen=True, kw_only=True):
    """What an engine does."""

    title: str
    done: Number
    total: int
    """In units of the job; 0 where it is not known."""
    seconds_left: Number


class SessionPart(Part, frozen=True, kw_only=True):
    """A session."""

    name: str
    source: str
    """What it has open: ``demo``, a folder, or a hub id."""
    state: SessionState
    job: SessionJob | UnsetType = UNSET
    """The most urgent of its jobs."""
    waiting: int
    """Its other jobs."""
    pid: int | UnsetType = UNSET
    memory_bytes: int | UnsetType = UNSET
    """Resident memory of its engine."""
    layers: int
    measured: int
    """Layers whose effect was measured in some format."""
    changed: int
    """Layers that its recipe quantises."""
    ppl: Number
    """Of the unchanged model."""
    ppl_recipe: Number
    last_used: float
    """Seconds since 1970."""
    problem: str | UnsetType = UNSET
    """Why it cannot be opened again."""


class SessionsDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.sessions/1"):
    """Engines that run, and past sessions."""

    sessions: list[SessionPart]


Document: TypeAlias = (
    TriageDocument
    | SweepDocument
    | EvalDocument
    | DiagnoseDocument
    | PlanDocument
    | ExportDocument
    | ReportDocument
    | SessionsDocument
)
