"""Advice for each layer: where it is, and the smallest format that keeps its damage bounded.

The bound is a share of what the shown format costs everywhere: ``advised_share`` of the profile
times an even share of it, so that no layer is left worse than the average is now. But for the shown
format, those that no serving kernel takes are not advised, unless the settings allow them; with an
export target none that it does not hold.
"""

from __future__ import annotations

import re
from functools import cached_property

import msgspec

from engine.diagnosis.finding import Looked
from engine.diagnosis.serving import Serving
from engine.diagnosis.thresholds import thresholds
from engine.formats.storage import can_hold
from engine.session import Session
from engine.session.artefact import OUTSIDE

ATTENTION = re.compile(r"attn|attention|mixer|mamba|conv", re.IGNORECASE)
"""Part of the names of layers that mix tokens; others of a block are of its MLP."""


class Advice(msgspec.Struct, frozen=True):
    """The smallest known format that keeps a layer's share of the damage below a bound."""

    format: str
    """Empty for as stored."""
    share: float
    """Of what the shown format costs everywhere, with this layer alone in the advised one."""
    bound: float
    """The share that it must not exceed."""
    now: float
    """Its share in the shown format."""
    bits: float
    """Bits per weight in the advised format."""
    measured: bool
    """Whether the effect in the advised format was measured."""


def category(session: Session, row: int) -> str:
    """Where a layer is: head, embedding, or its block and part, such as ``first attention``."""
    layers = session.layers
    role, block, name = layers.roles[row], layers.blocks[row], layers.names[row]
    if role in OUTSIDE:
        return role
    part = (
        "experts"
        if role == "experts" or ".experts." in name
        else ("attention" if ATTENTION.search(name) else "MLP")
    )
    if block < 0:
        return part
    first, last = layers.ends
    return f"{'first' if block == first else 'last' if block == last else 'middle'} {part}"


class Adviser:
    """Advises layers, given the effects of all of the body in a format."""

    def __init__(self, session: Session, format: str, serving: Serving | None = None) -> None:
        """
        Args:
            session: with effects.
            format: canonical; whose damage everywhere is shared out.
            serving: what may be advised; None for the shown format and what some kernel takes.
        """
        self.session, self._serving = session, serving
        self._looked = Looked(session, format, thresholds(session))

    @cached_property
    def _known(self) -> tuple[float, float]:
        """The whole damage, and the share that a layer may cause; 0 while not all is known."""
        looked = self._looked
        if not looked.whole or not looked.damage > 0:
            return 0.0, 0.0
        return looked.damage, looked.limits.advised_share / len(looked.body)

    def share(self, row: int) -> float | None:
        """A layer's share of the damage in the shown format; None while not all is known."""
        damage, _ = self._known
        kl = self._looked.kl.get(self._looked.where(row))
        return kl / damage if damage and kl is not None else None

    def advice(self, row: int) -> Advice | None:
        """The smallest format below the bound; as stored if none of the known ones is."""
        damage, bound = self._known
        if not damage:
            return None
        looked, session = self._looked, self._looked.session
        name, shape = looked.where(row), session.layers.shapes[row]
        if name not in looked.kl:
            return None
        found: list[tuple[int, Advice]] = []
        for held in ("", *looked.formats):
            able = self._able(held, row)
            if held and not (can_hold(held, shape) and able):
                continue
            effect = looked.effects.known(name, held)
            if effect is None or (share := max(0.0, effect.kl) / damage) > bound:
                continue
            bits = session.bits_in(row, held)
            weights = max(1, looked.weights_of(row))
            now = looked.kl[name] / damage
            advice = Advice(held, share, bound, now, bits / weights, effect.measured)
            found.append((bits, advice))
        return min(found, key=lambda each: each[0])[1] if found else None

    def _able(self, format: str, row: int) -> bool:
        """Whether a format may be advised for a layer."""
        if self._serving is not None and self._serving.to:
            return self._serving.takes(format, row)
        return format == self._looked.format or self._looked.serving.takes(format, row)


_last: dict[str, tuple[object, Adviser]] = {}
"""The last adviser of each format: a table asks for one on every repaint."""


def adviser(session: Session, format: str, serving: Serving | None = None) -> Adviser:
    """An adviser; the one before while nothing has changed."""
    effects = session.effects
    to = serving.to if serving is not None else ""
    state = id(session), session.seq, len(effects.measured), len(effects.estimated), to
    known = _last.get(format)
    if known is None or known[0] != state or known[1].session is not session:
        if len(_last) > 32:
            _last.clear()
        known = _last[format] = state, Adviser(session, format, serving)
    return known[1]
