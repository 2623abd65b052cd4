"""The document of `qtui sweep`."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.report.schema.parts import (
    AgreementPart,
    BaselinePart,
    CalibrationPart,
    ControlPart,
    LayerFallback,
    Model,
    Number,
    Part,
    VerdictPart,
)


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
