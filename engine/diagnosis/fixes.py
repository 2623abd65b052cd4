"""What other formats do for one layer: sizes, errors, KL won back, the kernels that take them.

From what a session knows: errors that were tried on calibration inputs, effects that are estimated
or measured. Where an effect is not known it is filled in from another format of the layer: KL grows
with the square of the output error, or where that is not known of the weight error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from engine import protocol as p
from engine.diagnosis.serving import by_kernels
from engine.formats.grammar import parse_format
from engine.formats.kernels import kernels_for
from engine.formats.storage import can_hold, stored_bits
from engine.session import KnownEffects, Session, expected

MEGABYTE = 1e6


class LayerFix(msgspec.Struct, frozen=True, kw_only=True):
    """One layer in one format, against the format that it is to better."""

    format: str
    """Empty for as stored."""
    bits: int
    """Stored bits of the layer."""
    weight_error: float = math.nan
    """``‖W − Ŵ‖ / ‖W‖``."""
    output_error: float = math.nan
    """``‖ŷ − y‖ / ‖y‖`` over calibration tokens."""
    kl_estimated: float = math.nan
    """Nats per token, of the layer alone."""
    filled: bool = False
    """Whether the estimate is filled in from another format of the layer."""
    kl_measured: float = math.nan
    kl_se: float = math.nan
    """Of the measured KL."""
    recovered: float = math.nan
    """Share of the KL of the format to better that it wins back; negative where it costs more."""
    per_megabyte: float = math.nan
    """KL won back per megabyte more: infinite where it is no larger, nan where it wins nothing."""
    kernels: tuple[str, ...] = ()
    served: bool = True
    """Whether it may be the best: some kernel takes it, or the settings allow others too."""
    refused: str = ""
    """Why the layer cannot take it."""
    better: str | None = None
    """A format that is no larger and costs no more KL; None where there is none."""

    @property
    def kl(self) -> float:
        """Measured, else estimated; nan if neither is known."""
        return self.kl_estimated if math.isnan(self.kl_measured) else self.kl_measured

    @property
    def measured(self) -> bool:
        """Whether its KL was measured."""
        return not math.isnan(self.kl_measured)


def layer_fixes(session: Session, layer: str, format: str) -> list[LayerFix]:
    """A layer in every format that was tried or whose effect is known, the smallest first.

    Args:
        session: with effects, or formats tried.
        layer: a name.
        format: canonical; to better. It is among the fixes, as is the layer as stored.
    """
    row = session.index[layer]
    shape = session.layers.shapes[row]
    effects, tried = KnownEffects(session), session.fixes.get(layer, {})
    known = [key.format for key in session.effects.known("degrade") if key.by == "layer"]
    formats = [
        held
        for held in dict.fromkeys((format, *tried, *known))
        if can_hold(held, shape)
        and (held == format or held in tried or effects.known(layer, held) is not None)
    ]
    reader = _Reader(session, effects, row, formats)
    base = reader.read(format)
    found = [_against(base, reader.read(held)) for held in formats]
    found.append(_against(base, reader.as_stored()))
    found.sort(key=lambda fix: (fix.bits, fix.kl if not math.isnan(fix.kl) else math.inf))
    takes = by_kernels(session).takes
    found = [msgspec.structs.replace(fix, served=takes(fix.format, row)) for fix in found]
    return [msgspec.structs.replace(fix, better=_better(fix, found)) for fix in found]


class _Reader:
    """Reads one layer's formats from a session."""

    def __init__(
        self, session: Session, effects: KnownEffects, row: int, formats: Sequence[str]
    ) -> None:
        self._session, self._effects, self._row = session, effects, row
        self._layer = session.layers.names[row]
        self._shape = session.layers.shapes[row]
        self._tried = session.fixes.get(self._layer, {})
        self._known = {
            held: effect
            for held in formats
            if (effect := effects.known(self._layer, held)) is not None
        }

    def as_stored(self) -> LayerFix:
        kept = self._session.kept(self._row)
        return LayerFix(
            format="",
            bits=self._session.bits_in(self._row, ""),
            weight_error=0.0,
            output_error=0.0,
            kl_measured=0.0,
            kl_se=0.0,
            kernels=kernels_for(kept, self._shape),
        )

    def read(self, held: str) -> LayerFix:
        session, tried = self._session, self._tried.get(held)
        fmt = parse_format(held)
        if tried is not None and tried.refused:
            bits = stored_bits(fmt, self._shape)
            return LayerFix(format=held, bits=bits, refused=tried.refused)
        weights = session.layers.weights[self._row]
        error = None if weights is None else weights.errors.get(held)
        estimated, filled = self._estimated(held)
        measured = session.sensitivity(self._row, p.EffectKey("degrade", held))
        return LayerFix(
            format=held,
            bits=stored_bits(fmt, self._shape, tried.columns if tried else 0),
            weight_error=(tried.weight_error if tried else error.relative if error else math.nan),
            output_error=tried.output_error if tried else math.nan,
            kl_estimated=estimated,
            filled=filled,
            kl_measured=measured.kl if measured else math.nan,
            kl_se=measured.kl_se if measured else math.nan,
            kernels=kernels_for(fmt, self._shape),
        )

    def _estimated(self, held: str) -> tuple[float, bool]:
        """KL as estimated, or filled in; and whether it is filled in."""
        key = p.EffectKey("degrade", held)
        if self._session.estimate(self._row, key) is not None:
            estimate = expected(self._session, self._row, key)
            if estimate is not None and math.isfinite(estimate.kl):
                return estimate.kl, False
        if (by_output := self._by_output_error(held)) is not None:
            return by_output, True
        if held in self._known:
            return math.nan, False  # measured: nothing needs filling in
        effect = self._effects.of(self._layer, held)
        return (math.nan, False) if effect is None else (effect.kl, True)

    def _by_output_error(self, held: str) -> float | None:
        """From the format with the nearest output error among those whose effect is known."""
        mine = self._tried.get(held)
        if mine is None or not mine.output_error > 0:
            return None
        near: list[tuple[float, float]] = []
        for other, effect in self._known.items():
            theirs = self._tried.get(other)
            if other != held and theirs is not None and theirs.output_error > 0:
                ratio = mine.output_error / theirs.output_error
                near.append((ratio, effect.kl))
        if not near:
            return None
        ratio, kl = min(near, key=lambda each: abs(math.log(each[0])))
        return max(0.0, kl) * ratio**2


def _against(base: LayerFix, fix: LayerFix) -> LayerFix:
    """A fix with what it wins back of the KL of another format."""
    if not base.kl > 0 or math.isnan(fix.kl):
        return fix
    before, after = base.kl, max(0.0, fix.kl)
    won, more = before - after, (fix.bits - base.bits) / 8
    per = math.nan
    if won > 0:
        per = won / more * MEGABYTE if more > 0 else math.inf
    return msgspec.structs.replace(fix, recovered=won / before, per_megabyte=per)


def _better(fix: LayerFix, fixes: Sequence[LayerFix]) -> str | None:
    """Another format that is no larger and costs no more KL, and is better in one of the two.

    One that no kernel takes does not better one that some kernel does.
    """
    for other in fixes:
        if fix.served and not other.served:
            continue
        alike = (other.bits, other.kl) == (fix.bits, fix.kl)
        if other.bits <= fix.bits and other.kl <= fix.kl and not alike:
            return other.format
    return None


def front(fixes: Sequence[LayerFix]) -> list[LayerFix]:
    """Fixes that may be the best and that none betters in both size and KL, the smallest first."""
    return [
        fix
        for fix in fixes
        if fix.served and not fix.refused and fix.better is None and not math.isnan(fix.kl)
    ]


def best_fix(fixes: Sequence[LayerFix], format: str, enough: float) -> LayerFix | None:
    """The fewest bits that win back enough of a layer's KL; measured ones before all others.

    Args:
        fixes: of one layer.
        format: to better.
        enough: share of its KL; `Thresholds.wins_back`.
    """
    able = [
        fix
        for fix in fixes
        if fix.format != format and fix.served and not fix.refused and fix.recovered >= enough
    ]
    measured = [fix for fix in able if fix.measured and fix.format]
    kept = [fix for fix in able if not fix.format]
    for some in (measured, [fix for fix in able if fix.format], kept):
        if some:
            return min(some, key=lambda fix: (fix.bits, fix.kl))
    return None


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 9.95 else f"{ratio:.2g} times"


def verdict_of(fix: LayerFix, format: str, best: LayerFix | None) -> str:
    """What to make of a fix, in a few words.

    Args:
        fix: one of a layer.
        format: to better.
        best: see `best_fix`.
    """
    if fix.refused:
        return "not possible"
    if fix.format == format:
        return "as it is"
    if math.isnan(fix.recovered):
        return "not known"
    about = "" if fix.measured else "about "
    if best is not None and fix.format == best.format:
        return f"best: wins back {about}{fix.recovered:.0%}"
    if fix.recovered <= 0:
        return f"costs {about}{_times(1 - fix.recovered)} as much" if fix.recovered else "no gain"
    if fix.better is not None:
        return f"{fix.better or 'as stored'} is better"
    return f"wins back {about}{fix.recovered:.0%}"
