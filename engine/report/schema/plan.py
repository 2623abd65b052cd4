"""The document of `qtui plan`."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.report.schema.parts import BaselinePart, Model, Number, Part, PointPart, ScorePart


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
    """What simpler rules find within the same budget: ``uniform``, ``first-last``, ``greedy``, and
    the name of one of llama.cpp's mixes."""
    recovered: Number
    """Share of the best uniform recipe's KL that this one avoids."""
    timings: dict[str, Number]
    """Seconds by what they were spent on."""
