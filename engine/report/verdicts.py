"""The verdict as a sentence."""

from __future__ import annotations

from engine.diagnosis.verdict import WORST, Verdict
from engine.report.wording import short, size

TIMES = "×"


def costs(
    found: Verdict,
    *,
    kilo: str = "·10³",
    plus_minus: str = "±",
    about: str = "≈",
    times: str = TIMES,
) -> str:
    """What the uniform format costs, and how much of it the worst layers cause."""
    mark = "" if found.measured else about
    said = (
        f"{found.format} everywhere: PPL {mark}{_percent(found.ppl, found.baseline_ppl, times)} "
        f"(KL{kilo} {mark}{short(1000 * found.kl)} {plus_minus} {short(1000 * found.kl_se)})"
    )
    count = len(found.worst)
    if count < WORST or found.layers <= WORST:
        return said
    return f"{said}, {found.share:.0%} of it from {count} of {found.layers} layers"


def remedy(found: Verdict, *, about: str = "≈", times: str = TIMES) -> str:
    """The mix that takes most of it away; empty where there is none."""
    if not found.mix:
        return ""
    formats = ", ".join(f"{held} for {many}" for held, many in found.better)
    return (
        f"{formats}: PPL {about}{_percent(found.mix_ppl, found.baseline_ppl, times)}, "
        f"{found.mix_bits:.2f} bits, {size(found.mix_bytes)}"
    )


def in_short(
    found: Verdict, *, about: str = "≈", times: str = TIMES, others: bool = True
) -> tuple[str, str]:
    """What it costs and what helps, in few words; in fewer without the mix's other formats."""
    mark = "" if found.measured else about
    said = f"{found.format}: PPL {mark}{_percent(found.ppl, found.baseline_ppl, times)}"
    if len(found.worst) == WORST < found.layers:
        said += f", {found.share:.0%} in {WORST} of {found.layers}"
    if not found.mix:
        return said, ""
    held, many = found.better[0]
    rest = sum(number for _, number in found.better[1:])
    more = f", {rest} more" if rest and others else ""
    after = _percent(found.mix_ppl, found.baseline_ppl, times)
    return said, f"{held} for {many}{more}: {about}{after}, {found.mix_bits:.2f} bits"


def sentence(found: Verdict, *, arrow: str = "→") -> str:
    """Both, in one line."""
    said = remedy(found)
    return f"{costs(found)} {arrow} {said}" if said else costs(found)


def _percent(now: float, before: float, times: str) -> str:
    change = 100 * (now / before - 1)
    return f"{change:+.1f}%" if abs(change) < 100 else f"{times}{short(now / before)}"
