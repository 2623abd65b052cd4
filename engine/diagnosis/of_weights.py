"""Findings of weights alone: faults of the files, and weights that are hard to quantise."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator

from engine import protocol as p
from engine.diagnosis.finding import Finding, Looked
from engine.session.artefact import OUTSIDE

MOST = 0.5
"""Share of the body's layers from which on something is said of the checkpoint, once."""
FIRST = 1024
"""Weights of a row whose distinct values are counted; see `LayerWeights.row_levels`."""
WIDE = 512
"""Weights of a row from which on that number tells a grid of 8 bits."""
SPREAD = 3
"""Such a grid gives so many times fewer values than a row has weights: 32 normal rows of 1,024 in
bfloat16 have 640 and more, on a grid of 8 bits 190 or fewer."""
LOST = 2
"""Bits of the mantissa that a layer needs fewer than others of its kind, at least."""
MANTISSAS = {"bfloat16": 7, "float16": 10, "float32": 23, "float64": 23}
"""Bits of the mantissa by dtype, as float32 holds them."""


def not_finite(looked: Looked) -> Iterator[Finding]:
    """NaN or Inf among the weights."""
    for row, known in looked.weights:
        if known.nan or known.inf:
            half = known.inf and looked.session.layers.dtypes[row] == "float16"
            why = "; float16 ends at 65,504, which a cast from bfloat16 exceeds" if half else ""
            yield Finding(
                id="not-finite",
                severity="alert",
                layer=known.layer,
                sentence=f"{known.nan:,} NaN and {known.inf:,} Inf among its weights: the file is "
                "damaged, or was saved from a run that diverged" + why,
                evidence={"nan": known.nan, "inf": known.inf},
            )


def outlier_channel(looked: Looked) -> Iterator[Finding]:
    """An input channel whose weights stretch the grid."""
    limit = looked.limits.outlier_column
    for _, known in looked.weights:
        if not known.worst_column_sigma > limit:
            continue
        pairs = zip(known.large_columns, known.large_columns_sigma, strict=True)
        channels = [channel for channel, sigma in pairs if sigma > limit] or [known.worst_column]
        listed, reach = ", ".join(map(str, channels)), f"{known.worst_column_sigma:.1f}σ"
        said = f"channel {listed} reaches {reach}"
        if len(channels) > 1:
            said = f"channels {listed} reach up to {reach}"
        yield Finding(
            id="outlier-channel",
            severity="warning",
            layer=known.layer,
            channels=tuple(channels),
            sentence=f"input {said}; outliers waste {known.waste:.0%} of the grid",
            evidence={"sigma": known.worst_column_sigma, "waste": known.waste},
            fix=looked.fix(known.layer),
        )


def two_heaps(looked: Looked) -> Iterator[Finding]:
    """Weights about two values rather than one."""
    limit = looked.limits.two_heaps
    for _, known in looked.weights:
        # A grid of a few values is another matter.
        if known.kurtosis < limit and (known.levels == 0 or known.levels > 8):
            yield Finding(
                id="two-heaps",
                severity="warning",
                layer=known.layer,
                sentence=f"its weights lie in two heaps (kurtosis {known.kurtosis:.2f}; uniform is "
                "-1.2): most of a uniform grid is between them; nf4 or kmeans fit it",
                evidence={"kurtosis": known.kurtosis},
                fix=looked.fix(known.layer),
            )


def mixed_groups(looked: Looked) -> Iterator[Finding]:
    """Groups that hold weights of two sizes, whose small ones lose most of the grid."""
    limit = looked.limits.mixed_groups
    for _, known in looked.weights:
        if not known.mixed > limit:
            continue
        helps = (
            ""
            if math.isnan(known.noise_g32)
            else (f"; groups of 32 leave {known.noise_g32:.0%} of the rounding noise")
        )
        yield Finding(
            id="mixed-groups",
            severity="warning",
            layer=known.layer,
            sentence=f"{known.mixed:.0%} of its groups of 128 hold weights of two sizes, one four "
            f"times the other: the group is too large for them{helps}",
            evidence={"mixed": known.mixed, "noise_g32": known.noise_g32},
            fix=looked.fix(known.layer),
        )


def few_levels(looked: Looked) -> Iterator[Finding]:
    """Weights that lie on a grid already."""
    layers = looked.session.layers
    found: list[tuple[int, p.LayerWeights, str]] = []
    for row, known in looked.weights:
        if layers.dtypes[row] not in MANTISSAS or not known.levels:
            continue
        some = min(FIRST, layers.shapes[row][-1])
        if known.levels <= looked.limits.few_levels:
            said = f"at most {known.levels} distinct values among 32 weights"
            found.append((row, known, f"{said}: already rounded to {_bits(known.levels)}"))
        elif some >= WIDE and known.row_levels <= min(256, some // SPREAD):
            said = f"at most {known.row_levels} distinct values among {some:,} weights of a row"
            found.append((row, known, f"{said}: already rounded to 8 bits or fewer"))
    if len(found) > 1 and len(found) > MOST * len(looked.weights):
        most = max(known.levels for _, known, _ in found)
        yield Finding(
            id="few-levels",
            severity="info",
            sentence=f"{len(found)} of {len(looked.weights)} layers are on a grid already, of "
            f"{_bits(most)}: the checkpoint was made from a quantised one, "
            "and only formats on just that grid cost next to nothing",
            evidence={"layers": len(found), "levels": most},
        )
        return
    for _, known, said in found:
        yield Finding(
            id="few-levels",
            severity="warning",
            layer=known.layer,
            sentence=f"{said}, unlike the other layers",
            evidence={"levels": known.levels, "row_levels": known.row_levels},
        )


def _bits(levels: int) -> str:
    return f"{max(1, math.ceil(math.log2(max(2, levels))))} bits" if levels <= 16 else "8 bits"


def other_dtype(looked: Looked) -> Iterator[Finding]:
    """A layer in another dtype than all others of its kind."""
    layers = looked.session.layers
    for kind, rows in looked.kinds.items():
        counted = Counter(layers.dtypes[row] for row in rows)
        if len(counted) < 2 or len(rows) < 3:
            continue
        usual, many = counted.most_common(1)[0]
        if many < 0.75 * len(rows):
            continue
        for row in rows:
            if layers.dtypes[row] != usual:
                yield Finding(
                    id="other-dtype",
                    severity="warning",
                    layer=layers.names[row],
                    sentence=f"stored in {layers.dtypes[row]}, as {many} other {kind} are in "
                    f"{usual}",
                    evidence={"others": many},
                )


def narrow_mantissa(looked: Looked) -> Iterator[Finding]:
    """Weights with fewer bits than their dtype has, as those that went through a smaller one."""
    layers = looked.session.layers
    used = {row: known.mantissa for row, known in looked.weights if known.mantissa >= 0}
    for rows in looked.kinds.values():
        known = [used[row] for row in rows if row in used]
        if len(known) < 3:
            continue
        usual = statistics.median(known)
        for row in rows:
            if row in used and used[row] <= usual - LOST:
                yield Finding(
                    id="narrow-mantissa",
                    severity="warning",
                    layer=layers.names[row],
                    sentence=f"its weights need {used[row]} bits of the mantissa, those of other "
                    f"{layers.kinds[row]} {usual:g}: it was rounded to a smaller dtype on the way",
                    evidence={"mantissa": used[row], "usual": usual},
                )
    body = [row for row in used if layers.roles[row] not in OUTSIDE]
    if not body:
        return
    most, dtype = max(used[row] for row in body), layers.dtypes[body[0]]
    if dtype == "float32" and most <= MANTISSAS["float16"]:
        yield Finding(
            id="wider-dtype",
            severity="info",
            sentence=f"stored in float32, and all weights have {most} bits of mantissa at most: "
            "half of the file is zeros",
            evidence={"mantissa": most},
        )


def denormals(looked: Looked) -> Iterator[Finding]:
    """A float16 layer whose weights are too small for it."""
    layers, limit = looked.session.layers, looked.limits.denormals
    for row, known in looked.weights:
        if not known.denormals or layers.dtypes[row] != "float16":
            continue
        share = known.denormals / math.prod(layers.shapes[row])
        if share > limit:
            yield Finding(
                id="denormals",
                severity="warning",
                layer=known.layer,
                sentence=f"{share:.0%} of its weights are below 6e-5, where float16 loses bits: "
                "a cast from bfloat16 or float32 rounded them",
                evidence={"share": share},
            )


def duplicates(looked: Looked) -> Iterator[Finding]:
    """Layers whose weights are the same as another's.

    The same to the last bit in every statistic, which sums over all weights are among.
    """
    layers = looked.session.layers
    seen: dict[tuple[object, ...], int] = {}
    for row, known in looked.weights:
        if not known.std > 0 or known.kurtosis != known.kurtosis:
            continue
        same = (
            layers.shapes[row], known.mean, known.std, known.kurtosis, known.outliers.max_abs,
            known.outliers.count, known.range_ratio,
        )  # fmt: skip
        first = seen.setdefault(same, row)
        if first == row or {layers.roles[row], layers.roles[first]} == set(OUTSIDE):
            continue  # a head may be a copy of the embedding
        yield Finding(
            id="duplicate",
            severity="warning",
            layer=known.layer,
            sentence=f"its weights are those of {layers.names[first]}: copied by mistake, or "
            "blocks that were repeated",
            evidence={"row": row, "same": first},
        )


def swapped(looked: Looked) -> Iterator[Finding]:
    """Two layers, each of which fits the block of the other."""
    limit = looked.limits.belongs
    for swap in looked.session.layers.swaps:
        if swap.fits < limit:
            continue
        instead = f", or their {swap.partner}" if swap.partner else ""
        yield Finding(
            id="swapped",
            severity="warning",
            layer=swap.layer,
            sentence=f"seems swapped with {swap.other}{instead}: each fits the block of the other "
            f"(norms correlate by {swap.fits:.2f}, with its own by {swap.own:.2f})",
            evidence={"fits": swap.fits, "own": swap.own},
        )


def dead_rows(looked: Looked) -> Iterator[Finding]:
    """Outputs or inputs that are all zero."""
    for _, known in looked.weights:
        if not (known.zero_rows or known.dead_columns):
            continue
        parts = []
        if known.zero_rows:
            parts.append(f"{known.zero_rows:,} output row{'s' if known.zero_rows > 1 else ''}")
        if known.dead_columns:
            many = "s" if known.dead_columns > 1 else ""
            parts.append(f"{known.dead_columns:,} input channel{many}")
        yield Finding(
            id="dead-rows",
            severity="note",
            layer=known.layer,
            sentence=f"{' and '.join(parts)} all zero: pruned, padded, or never trained",
            evidence={"zero_rows": known.zero_rows, "dead_columns": known.dead_columns},
        )
