"""What a finding is, and what checks look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import msgspec

from engine import protocol as p
from engine.diagnosis.fixes import best_fix, layer_fixes
from engine.diagnosis.serving import Serving, by_kernels
from engine.diagnosis.thresholds import Thresholds
from engine.formats.storage import can_hold
from engine.session import KnownEffects, Session, uniform_recipe
from engine.session.artefact import OUTSIDE

Severity: TypeAlias = Literal["alert", "warning", "note", "info"]
"""An alert spoils figures or the model; a warning costs quality; a note is worth knowing; an info
says something of every checkpoint, clean ones too."""
ORDER: dict[Severity, int] = {"alert": 0, "warning": 1, "note": 2, "info": 3}


class Fix(msgspec.Struct, frozen=True, kw_only=True):
    """The cheapest format that wins back most of a layer's KL."""

    format: str
    """Empty for as stored."""
    kl: float
    """Of the layer alone in it, nats per token."""
    kl_se: float
    measured: bool
    """Whether ``kl`` was measured."""
    recovered: float
    """Share of the layer's KL that it wins back."""
    bits: float
    """Stored bits per weight that it takes more."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that stands out."""

    id: str
    """The check's name."""
    severity: Severity
    layer: str = ""
    """Empty where it is about several."""
    channels: tuple[int, ...] = ()
    """Input channels."""
    sentence: str
    evidence: dict[str, float] = {}
    """The figures behind it, by name."""
    fix: Fix | None = None


@dataclass
class Looked:
    """A session as checks look at it."""

    session: Session
    format: str
    """Whose effects are judged."""
    limits: Thresholds

    @cached_property
    def effects(self) -> KnownEffects:
        """Effects of single layers."""
        return KnownEffects(self.session)

    @cached_property
    def serving(self) -> Serving:
        """What a fix may be."""
        return by_kernels(self.session)

    @cached_property
    def kl(self) -> dict[str, float]:
        """Known effects of the format, by layer; those filled in from other formats are not."""
        column = self.effects.column(self.format)
        names = self.session.layers.names
        return {
            name: max(0.0, known[0])
            for name, known in zip(names, column, strict=True)
            if known is not None
        }

    @cached_property
    def weights(self) -> list[tuple[int, p.LayerWeights]]:
        """Rows whose statistics are known, with these; of a tied pair only the embedding."""
        layers = self.session.layers
        tied = self.session.tied and "embedding" in layers.roles
        return [
            (row, known)
            for row, known in enumerate(layers.weights)
            if known is not None and not (tied and layers.roles[row] == "head")
        ]

    @cached_property
    def kinds(self) -> dict[str, list[int]]:
        """Rows of each kind within the blocks."""
        layers = self.session.layers
        found: dict[str, list[int]] = {}
        for row, (kind, role) in enumerate(zip(layers.kinds, layers.roles, strict=True)):
            if role not in OUTSIDE:
                found.setdefault(kind, []).append(row)
        return found

    @cached_property
    def by_block(self) -> dict[int, float]:
        """Damage of each block; empty unless that of all is known."""
        found: dict[int, float] = {}
        if self.whole:
            for name in self.body:
                block = self.session.layers.blocks[self.session.index[name]]
                if block >= 0:
                    found[block] = found.get(block, 0.0) + self.kl[name]
        return found

    @cached_property
    def formats(self) -> list[str]:
        """Formats with known effects of single layers."""
        known = [k.format for k in self.session.effects.known("degrade") if k.by == "layer"]
        return list(dict.fromkeys(known))

    def weights_of(self, row: int) -> int:
        """Number of a layer's weights."""
        return math.prod(self.session.layers.shapes[row])

    def where(self, row: int) -> str:
        """A layer's name."""
        return self.session.layers.names[row]

    @cached_property
    def body(self) -> list[str]:
        """Layers of the body with a known effect."""
        layers = self.session.layers
        return [n for n in self.kl if layers.roles[self.session.index[n]] not in OUTSIDE]

    @cached_property
    def whole(self) -> bool:
        """Whether the effects of all layers of the body that can hold the format are known."""
        return 0 < len(uniform_recipe(self.session, self.format)) == len(self.body)

    @cached_property
    def damage(self) -> float:
        """KL of the body's layers together, as a sum."""
        return math.fsum(self.kl[name] for name in self.body)

    def fix(self, layer: str) -> Fix | None:
        """The format that wins back enough of a layer's KL at the fewest bits."""
        session = self.session
        before = self.kl.get(layer)
        if not before:
            return None
        if layer in session.fixes:
            return self._tried(layer)
        row = session.index[layer]
        shape = session.layers.shapes[row]
        weights = math.prod(shape)
        now = session.bits_in(row, self.format)
        candidates: list[tuple[int, Fix]] = []
        for held in ("", *self.formats):
            effect = self.effects.known(layer, held)
            if effect is None or held == self.format:
                continue
            recovered = 1 - max(0.0, effect.kl) / before
            if recovered < self.limits.wins_back:
                continue
            if held and not (can_hold(held, shape) and self.serving.takes(held, row)):
                continue
            bits = session.bits_in(row, held)
            fix = Fix(
                format=held,
                kl=effect.kl,
                kl_se=effect.kl_se,
                measured=effect.measured,
                recovered=recovered,
                bits=(bits - now) / weights,
            )
            candidates.append((bits, fix))
        return min(candidates, key=lambda each: each[0])[1] if candidates else None

    def _tried(self, layer: str) -> Fix | None:
        """The best of the formats that were tried: a measured one where there is one."""
        session = self.session
        best = best_fix(
            layer_fixes(session, layer, self.format), self.format, self.limits.wins_back
        )
        if best is None:
            return None
        row = session.index[layer]
        more = best.bits - session.bits_in(row, self.format)
        return Fix(
            format=best.format,
            kl=best.kl,
            kl_se=best.kl_se,
            measured=best.measured,
            recovered=best.recovered,
            bits=more / math.prod(session.layers.shapes[row]),
        )


Check: TypeAlias = Callable[[Looked], Iterator[Finding]]
