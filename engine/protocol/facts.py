"""Measurements: written once, under a key made of all they depend on, never changed."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from engine.protocol.keys import By, Direction, EffectKey
from engine.protocol.message import Message


class Fact(Message, frozen=True, gc=False):
    """A measurement: written once under a key made of all it depends on, never changed.

    None is part of a circle: without ``gc``, tables of many are not walked again and again.
    """


class Outliers(msgspec.Struct, frozen=True, gc=False):
    """Weights beyond ``sigma`` standard deviations of the layer's own."""

    sigma: float
    count: int
    fraction: float
    max_abs: float


class WeightError(msgspec.Struct, frozen=True, gc=False):
    """Distance between a weight and its quantised value."""

    frobenius: float
    relative: float
    """``‖W − Ŵ‖ / ‖W‖``."""
    max_abs: float
    mean_abs: float
    sqnr_db: float


class LayerWeights(Fact, frozen=True, gc=False, kw_only=True):
    """What triage found in one layer's weights.

    As a fact, statistics alone: errors are facts of their own, one a format, but in facts of the
    version before. In a session, the errors in all formats that are known stand beside them.
    """

    layer: str
    outliers: Outliers
    range_ratio: float
    waste: float
    kurtosis: float
    nan: int
    inf: int
    zero_rows: int
    dead_columns: int = 0
    denormals: int = 0
    mean: float = 0.0
    std: float = 0.0
    worst_column: int = -1
    """Input channel with the largest weights, and how many σ its largest is."""
    worst_column_sigma: float = 0.0
    errors: dict[str, WeightError] = {}
    """By canonical format."""
    refused: dict[str, str] = {}
    """Formats the layer cannot hold, with the reason."""


class LayerError(Fact, frozen=True, gc=False):
    """The error of one layer's weights in one format."""

    layer: str
    format: str
    """Canonical."""
    error: WeightError | None = None
    """None where the layer cannot hold the format."""
    refused: str = ""
    """Why it cannot."""


class Baseline(Fact, frozen=True, gc=False):
    """The unchanged model's score."""

    nll: float
    nll_se: float
    ppl: float
    tokens: int


class Control(Fact, frozen=True, gc=False):
    """A layer swapped for itself: what a change of nothing measures; and what rounding measures."""

    layer: str
    max_abs_dnll: float
    """0 on a CPU; elsewhere at most about the floor."""
    max_abs_kl: float
    floor_dnll: float = 0.0
    """Largest difference of a window between evaluations that are mathematically the same and
    rounded differently: products added up in two orders, what goes into layers rounded anew where
    it has 16 bits, off a CPU also the same run twice. A figure below it says nothing."""
    floor_kl: float = 0.0


class Sensitivity(Fact, frozen=True, gc=False, kw_only=True):
    """The effect of one layer changed alone, or to restore, of one left as it is among all changed.

    To degrade, figures are of the network with the layer changed against the reference. To restore,
    they are of the network with all of the body changed less those of the same network with the
    layer given back: a layer that hurts has positive ones in both directions.
    """

    layer: str
    format: str
    direction: Direction = "degrade"
    kl: float
    kl_se: float
    """Over windows; to restore, over the windows' differences."""
    dnll: float
    dnll_se: float
    dppl: float
    """Perplexity with the layer changed less without; to restore ``exp(nll) − exp(nll − dnll)``
    with the NLL of all changed."""
    dppl_low: float
    dppl_high: float
    tokens: int
    """Targets behind the figures: fewer than the protocol has where fewer were enough."""
    by: By = "layer"
    """What was changed at once; ``layer`` names it then: a block by its number, a kind, or the
    first layer of a fused group."""
    top1: float = float("nan")
    """Share of positions where both models' first choice is the same; to restore, the reference's
    and that of the network with the layer given back."""

    @property
    def key(self) -> EffectKey:
        """Among which effects it belongs."""
        return EffectKey(self.direction, self.format, self.by)


class Estimate(Fact, frozen=True, gc=False, kw_only=True):
    """The effect of one layer changed alone, from gradients: not measured."""

    layer: str
    format: str
    direction: Direction = "degrade"
    kl: float
    kl_se: float
    dnll: float
    dnll_se: float
    tokens: int
    draws: int = 1
    """Draws of labels from the model's own distribution."""
    by: By = "layer"
    doubt: str = ""
    """Why the figure may not hold: where the quadratic model ends; empty where it holds."""

    @property
    def key(self) -> EffectKey:
        """Among which effects it belongs."""
        return EffectKey(self.direction, self.format, self.by)


class RecipeScore(Fact, frozen=True, gc=False, kw_only=True):
    """The effect of a whole recipe. Sent unfinished too, with ``done=False``."""

    recipe: str
    """Hash of the layers that are not kept, with their formats."""
    nll: float
    ppl: float
    ppl_low: float
    ppl_high: float
    dnll: float
    dnll_se: float
    kl: float
    kl_se: float
    top1: float
    tokens: int
    bits_per_weight: float
    """Stored bits over weights, of the body and of whatever else is quantised."""
    bytes: int
    """Size of the whole artefact."""
    done: bool = True
    calibration: Literal["", "sequential"] = ""
    """Where methods looked at inputs: those that the blocks before give as the recipe has them."""


class Additivity(Fact, frozen=True, gc=False, kw_only=True):
    """Effect of all body layers together over the sum of their single effects.

    To restore, the single effects are what giving back each alone regains.
    """

    format: str
    direction: Direction = "degrade"
    layers: int
    kl: float
    dnll: float
    together_kl: float
    sum_kl: float

    @property
    def key(self) -> EffectKey:
        """Among which effects it belongs."""
        return EffectKey(self.direction, self.format)


AnyFact: TypeAlias = (
    LayerWeights
    | LayerError
    | Baseline
    | Control
    | Sensitivity
    | Estimate
    | RecipeScore
    | Additivity
)
