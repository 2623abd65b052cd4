"""Budgets, and plans: the recipe proposed for one, with what else there was to choose."""

from __future__ import annotations

import math

import msgspec

from engine.protocol.facts import RecipeScore

CACHE_BITS = (16, 8, 4)
"""Bits that a cached number may have."""


class CacheBlocks(msgspec.Struct, frozen=True):
    """Blocks whose keys and values take as much room."""

    blocks: int
    values: int
    """Numbers that one block caches per token."""
    window: int = 0
    """Tokens that it caches at most; 0 for all."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What a recipe may cost: exactly one of ``bits``, ``gib`` and ``kl`` is given."""

    bits: float | None = None
    """Stored bits per weight of the body."""
    gib: float | None = None
    """GiB of the artefact; with a context, of the artefact and its cache of keys and values."""
    kl: float | None = None
    """Nats per token."""
    context: int = 0
    """Tokens of a sequence that the cache must hold; 0 for none."""
    batch: int = 1
    """Sequences at once."""
    cache_bits: int = 16
    """Of a number in the cache: 16, 8 or 4."""

    @property
    def given(self) -> dict[str, float]:
        """What is set: the budget's own figure first."""
        found = {name: getattr(self, name) for name in ("bits", "gib", "kl")}
        given = {name: value for name, value in found.items() if value is not None}
        if self.context:
            given |= {"context": self.context, "batch": self.batch, "cache_bits": self.cache_bits}
        return given

    def __str__(self) -> str:
        if self.bits is not None:
            return f"{self.bits:g} bits per weight"
        if self.kl is not None:
            return f"KL {self.kl:g}"
        said = f"{self.gib:g} GiB"
        if self.context:
            said += f" with {self.batch} × {self.context:,} tokens cached in {self.cache_bits} bits"
        return said


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One recipe on a frontier, or beside it."""

    bits_per_weight: float
    """Of the body."""
    bytes: int
    """Of the whole artefact."""
    kl: float
    """Predicted: the sum of single effects."""
    score: RecipeScore | None = None
    """As measured."""


class PlanUnit(msgspec.Struct, frozen=True):
    """Layers that take one format."""

    layers: tuple[str, ...]
    format: str
    """Of the first of them; those of a fused group share it."""


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe for a budget: what the job ``plan`` returns."""

    budget: Budget
    recipe: dict[str, str]
    """Layers that are not left as stored, with canonical formats."""
    point: Point
    """Of that recipe."""
    kl_se: float
    """Standard error of the predicted KL: of the single effects, not of their adding up."""
    bound: float
    """No recipe within the budget has a smaller sum of effects; for a budget of KL, no fewer
    bytes."""
    units: list[PlanUnit]
    frontier: list[Point]
    """The best recipes of all sizes, smallest first."""
    baselines: dict[str, Point]
    """What simpler rules find within the same budget, by the rule's name."""
    forwards: float = 0.0
    """What measuring took, in plain forward passes."""

    @property
    def recovered(self) -> float:
        """Share of the best uniform recipe's KL that this one avoids; nan where not known, and for
        a budget of KL."""
        uniform = self.baselines.get("uniform")
        if uniform is None or self.budget.kl is not None:
            return math.nan
        one, other = self.point, uniform
        if one.score is not None and other.score is not None:
            return 1 - one.score.kl / other.score.kl if other.score.kl > 0 else math.nan
        return 1 - one.kl / other.kl if other.kl > 0 else math.nan
