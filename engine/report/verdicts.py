"""The verdict as a sentence."""

from __future__ import annotations

import math
import statistics

from engine.diagnosis.advice import Advice
from engine.diagnosis.verdict import WORST, Verdict
from engine.formats.kernels import kernel_named
from engine.report.wording import percent, short, size
from engine.session import Session
from engine.session.artefact import OUTSIDE

TIMES = "×"


def costs(
    found: Verdict,
    *,
    kilo: str = "·10³",
    plus_minus: str = "±",
    about: str = "≈",
    times: str = TIMES,
) -> str:
    """What the uniform format costs, how much of it the worst layers cause, and whether it runs."""
    mark = "" if found.measured else about
    said = (
        f"{found.format} everywhere: PPL {mark}{_percent(found.ppl, found.baseline_ppl, times)} "
        f"(KL{kilo} {mark}{short(1000 * found.kl)} {plus_minus} {short(1000 * found.kl_se)})"
    )
    count = len(found.worst)
    if count == WORST < found.layers:
        said += f", {found.share:.0%} of it from {count} of {found.layers} layers"
    return said + (f"; {cannot}" if (cannot := unable(found)) else "")


def unable(found: Verdict) -> str:
    """How many layers cannot run in the uniform format; empty if all can."""
    if not found.unable:
        return ""
    many = "" if found.unable == found.layers else f" for {found.unable} of {found.layers} layers"
    if found.to:
        return f"{found.to} does not hold it{many}"
    return f"no serving kernel takes it{many}"


def runs(found: Verdict) -> str:
    """Where the mix runs: its export target, else the kernels that take it; empty if none does."""
    if found.to:
        return f"for {found.to}"
    titles = [kernel_named(name).title for name in found.kernels]
    return f"by {' and '.join(titles)}" if titles else ""


def remedy(found: Verdict, *, about: str = "≈", times: str = TIMES) -> str:
    """The mix that takes most of it away; empty where there is none."""
    if not found.mix:
        return ""
    mark = "" if found.mix_measured else about
    formats = ", ".join(_change(held, many) for held, many in found.better)
    said = (
        f"{formats}: PPL {mark}{_percent(found.mix_ppl, found.baseline_ppl, times)}, "
        f"{found.mix_bits:.2f} bits, {size(found.mix_bytes)}"
    )
    return f"{said}, {where}" if (where := runs(found)) else said


def in_short(
    found: Verdict,
    *,
    about: str = "≈",
    times: str = TIMES,
    others: bool = True,
    worst: bool = True,
) -> tuple[str, str]:
    """What it costs and what helps, in few words.

    In fewer without the mix's ``others``, its further formats and where it runs, and without the
    share of the ``worst`` layers.
    """
    mark = "" if found.measured else about
    said = f"{found.format}: PPL {mark}{_percent(found.ppl, found.baseline_ppl, times)}"
    if worst and len(found.worst) == WORST < found.layers:
        said += f", {found.share:.0%} in {WORST} of {found.layers}"
    if found.unable:
        said += f"; not in {found.to}" if found.to else "; no kernel"
        said += "" if found.unable == found.layers else f" for {found.unable}"
    if not found.mix:
        return said, ""
    held, many = found.better[0]
    rest = sum(number for _, number in found.better[1:])
    more = f", {rest} more" if rest and others else ""
    after = _percent(found.mix_ppl, found.baseline_ppl, times)
    where = f" {runs(found)}" if others else ""
    mark = "" if found.mix_measured else about
    change = _change(held, many, short=True)
    return said, f"{change}{more}: {mark}{after}, {found.mix_bits:.2f} bits{where}"


def _change(held: str, many: int, *, short: bool = False) -> str:
    """A better format, or ``kept``, with the number of layers that have it."""
    if held != "kept":
        return f"{held} for {many}"
    if short:
        return f"{many} as stored"
    return f"{many} layer{'' if many == 1 else 's'} kept as stored"


def sentence(found: Verdict, *, arrow: str = "→") -> str:
    """Both, in one line."""
    said = remedy(found)
    return f"{costs(found)} {arrow} {said}" if said else costs(found)


def advice_sentence(found: Advice, format: str, kept: str, *, about: str = "≈") -> str:
    """The advised format of a layer, with the reason and the number behind it.

    Args:
        found: the advice.
        format: whose damage everywhere it is about.
        kept: what the layer is as stored.
    """
    mark = "" if found.measured or not found.format else about
    bound = f"an even share of it is {percent(found.bound)}"
    held = found.format or f"keep {kept}"
    if found.format == format:
        return f"{held} will do: {percent(found.now)} of the damage everywhere, {bound}"
    return (
        f"{held}: leaves {mark}{percent(found.share)} of what {format} costs everywhere, now "
        f"{percent(found.now)}; {bound}"
    )


def from_weights(session: Session, format: str) -> str:
    """What weights alone tell, while effects are not known: the largest errors; what to run next.

    Empty before weights are read.

    Args:
        session: after a triage.
        format: canonical; whose errors are told.
    """
    layers = session.layers
    errors = {
        known.layer: error.relative
        for known in layers.weights
        if known is not None
        and (error := known.errors.get(format)) is not None
        and math.isfinite(error.relative)
        and layers.roles[session.index[known.layer]] not in OUTSIDE
    }
    if not errors:
        return ""
    worst = sorted(errors, key=lambda name: -errors[name])[:3]
    usual = statistics.median(errors.values())
    named = ", ".join(f"{name} {percent(errors[name])}" for name in worst)
    return (
        f"{format} everywhere: weight errors of {percent(usual)} in the median layer, most in "
        f"{named}; what that costs is not known from weights alone: qtui diagnose tells"
    )


def _percent(now: float, before: float, times: str) -> str:
    change = 100 * (now / before - 1)
    return f"{change:+.1f}%" if abs(change) < 100 else f"{times}{short(now / before)}"
