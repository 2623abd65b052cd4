"""The document of `qtui diagnose`."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.report.schema.parts import BaselinePart, FindingPart, Model, Number, Part, VerdictPart


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
