"""Which layers of a block belong together, from the norms of their rows and columns.

Training balances what two linear maps share: ``up_proj`` and ``down_proj`` may trade any factor
for each channel between them, and weight decay makes both norms alike; so ``v_proj`` and
``o_proj``, and ``q_proj`` and ``k_proj`` for each pair of rotated channels. In trained models these
norms correlate within a block and not across blocks, so two layers that were swapped are seen: each
fits the partner of the other. A model that was never trained has no such correlation, and shows
nothing; nor do layers that are fused with others, or a swap that takes the partners along.

Norms are kept as a sketch: ranks, projected on `SKETCH` random signs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine import protocol as p

Array: TypeAlias = NDArray[Any]

SKETCH = 128
"""Numbers of a sketch, of a byte each; a correlation of sketches is off by 1 / √128."""
FLOOR = 0.4
"""Least correlation with another block's partner that is reported."""
MARGIN = 0.3
"""By how much it must exceed that with its own."""
CERTAIN = 5.0
"""Standard errors of a chance correlation that one must exceed."""
MANY = 8
"""Blocks from which on what all have in common is left out, such as the order of frequencies."""
AT_ONCE = 1 << 11
"""Layers compared with all others at a time."""

PARTS: Mapping[str, str] = {
    **dict.fromkeys(("up_proj", "gate_up_proj", "w3", "fc1", "c_fc", "fc_in"), "up"),
    **dict.fromkeys(("dense_h_to_4h", "wi"), "up"),
    **dict.fromkeys(("gate_proj", "w1"), "gate"),
    **dict.fromkeys(("down_proj", "w2", "fc2", "c_proj", "fc_out", "dense_4h_to_h"), "down"),
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    **dict.fromkeys(("o_proj", "out_proj", "dense"), "output"),
}
"""What a layer does in its block, by its kind."""

LINKS = (
    ("up", "rows", "down", "columns"),
    ("gate", "rows", "down", "columns"),
    ("gate", "rows", "up", "rows"),
    ("query", "rows", "key", "rows"),
    ("value", "rows", "output", "columns"),
)
"""Which side of which part shares its channels with which side of which other."""


class Heads(NamedTuple):
    """Attention heads of a model; 0 where its config does not say."""

    queries: int = 0
    values: int = 0
    """Heads of keys and values."""


def heads_of(config: Mapping[str, Any]) -> Heads:
    """The heads that a config tells of."""
    inner = config.get("text_config")
    for names in (inner if isinstance(inner, Mapping) else {}, config):
        queries = _whole(names, "num_attention_heads", "n_head", "n_heads")
        if queries:
            shared = _whole(names, "num_key_value_heads", "num_kv_heads", "n_head_kv")
            return Heads(queries, shared or queries)
    return Heads()


def _whole(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


class Profile(NamedTuple):
    """Sketches of the norms of a layer's rows and columns; empty where they tell nothing."""

    rows: bytes = b""
    columns: bytes = b""


def profile_of(kind: str, experts: int, rows: Array, columns: Array, heads: Heads) -> Profile:
    """Sketches of a layer.

    Args:
        kind: of the layer.
        experts: how many lie one below the other; 1 for other layers.
        rows: sum of squares of each row.
        columns: sum of squares of each column.
        heads: of the model.
    """
    part = PARTS.get(kind)
    if part is None:
        return Profile()
    rows = rows.reshape(experts, -1).sum(0)
    if kind == "gate_up_proj":
        rows = rows[len(rows) // 2 :]  # the gates come first
    if part in ("query", "key"):
        rows = _rotated(_shared(rows, heads, of_queries=part == "query"), heads)
    if part == "output":
        columns = _shared(columns, heads, of_queries=True)
    return Profile(sketch(rows), sketch(columns))


def _shared(norms: Array, heads: Heads, *, of_queries: bool) -> Array:
    """Summed over the query heads that share a key."""
    if not of_queries or heads.queries <= heads.values or len(norms) % heads.queries:
        return norms
    if heads.queries % heads.values:
        return norms
    size = len(norms) // heads.queries
    found: Array = norms.reshape(heads.values, -1, size).sum(1).reshape(-1)
    return found


def _rotated(norms: Array, heads: Heads) -> Array:
    """Summed over the two channels that a rotation mixes."""
    if not heads.values or len(norms) % (2 * heads.values):
        return norms
    found: Array = norms.reshape(heads.values, 2, -1).sum(1).reshape(-1)
    return found


def sketch(norms: Array) -> bytes:
    """Ranks of some norms as a short vector of signed bytes; empty if they are all alike."""
    if len(norms) < 8 or not np.isfinite(norms).all() or norms.min() == norms.max():
        return b""
    ranks = np.empty(len(norms), np.float32)
    ranks[np.argsort(norms, kind="stable")] = np.arange(len(norms), dtype=np.float32)
    ranks -= ranks.mean()
    short = ranks @ _signs(len(ranks)) if len(ranks) > SKETCH else ranks
    most = float(np.abs(short).max())
    return bytes(np.rint(short * (127 / most)).astype(np.int8).tobytes()) if most else b""


@lru_cache(maxsize=16)
def _signs(length: int) -> Array:
    """Random signs, the same for the same length: ``[length, SKETCH]``."""
    random = np.random.default_rng(length)
    found: Array = random.integers(0, 2, (length, SKETCH), np.int8).astype(np.float32) * 2 - 1
    return found


class Placed(NamedTuple):
    """A layer, and where it is."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: p.LayerWeights


def misplaced(layers: Sequence[Placed]) -> tuple[p.Swap, ...]:
    """Pairs of layers, each of which fits the partner of the other better than its own."""
    homes: dict[str, dict[str, Placed]] = defaultdict(dict)
    for layer in layers:
        if (part := PARTS.get(layer.kind)) is not None:
            homes[layer.name.rpartition(".")[0]][part] = layer
    found: list[tuple[str, str, p.Swap]] = []
    for first, side, second, other in LINKS:
        for pairs in _alike(homes.values(), first, second):
            sketches = [
                [getattr(one.weights, side) for one, _ in pairs],
                [getattr(two.weights, other) for _, two in pairs],
            ]
            for i, j, fits, own in _crossed(*sketches):
                for part, at in ((first, 0), (second, 1)):
                    swap = p.Swap(pairs[i][at].name, pairs[j][at].name, fits, own)
                    found.append((part, f"{first} {second}", swap))
    return _judged(found, {layer.name: layer for layer in layers})


def _alike(homes: Any, first: str, second: str) -> list[list[tuple[Placed, Placed]]]:
    """Pairs of partners, by their shapes."""
    found: dict[tuple[object, ...], list[tuple[Placed, Placed]]] = defaultdict(list)
    for parts in homes:
        if first in parts and second in parts:
            one, two = parts[first], parts[second]
            found[one.kind, two.kind, one.shape, two.shape].append((one, two))
    return [pairs for pairs in found.values() if len(pairs) > 1]


def _crossed(ones: list[bytes], twos: list[bytes]) -> list[tuple[int, int, float, float]]:
    """Pairs that fit crosswise: their numbers, the lesser such fit, the greater of their own."""
    length = max(map(len, ones), default=0)
    known = [
        at for at, (a, b) in enumerate(zip(ones, twos, strict=True)) if len(a) == len(b) == length
    ]
    if len(known) < 2 or not length:
        return []
    a, b = (_unit([side[at] for at in known], common=True) for side in (ones, twos))
    own = np.einsum("ij,ij->i", a, b)
    least = max(FLOOR, CERTAIN / length**0.5)
    best = np.empty(len(a), np.int64)
    for top in range(0, len(a), AT_ONCE):
        fits = a[top : top + AT_ONCE] @ b.T
        best[top : top + len(fits)] = fits.argmax(1)
    found = []
    for i in range(len(a)):
        j = int(best[i])
        if j <= i or best[j] != i:
            continue
        fit, mine = float(min(a[i] @ b[j], a[j] @ b[i])), float(max(own[i], own[j]))
        if fit >= least and fit >= mine + MARGIN:
            found.append((known[i], known[j], fit, mine))
    return found


def _unit(sketches: list[bytes], *, common: bool = False) -> Array:
    """Sketches of length 1; what all of many have in common is left out, if so wanted."""
    vectors = np.stack([np.frombuffer(each, np.int8) for each in sketches]).astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    if common and len(vectors) >= MANY:
        vectors -= vectors.mean(0)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9))


def _judged(
    found: list[tuple[str, str, p.Swap]], by_name: Mapping[str, Placed]
) -> tuple[p.Swap, ...]:
    """Of two partners, the one that other partners accuse too; else that which the neighbours do.

    Args:
        found: part, link, and the pair.
        by_name: all layers.
    """
    between = _Neighbours(by_name)
    accused: dict[tuple[str, str], list[tuple[str, p.Swap]]] = defaultdict(list)
    for _, link, swap in found:
        accused[swap.layer, swap.other].append((link, swap))
    kept: dict[tuple[str, str], p.Swap] = {}
    taken: set[tuple[str, ...]] = set()
    gains = {names: between.gain(*names) for names in accused}
    order = sorted(accused.items(), key=lambda each: (-len(each[1]), -gains[each[0]]))
    for names, charges in order:
        mine = {(link, *map(_home, names)) for link, _ in charges}
        if mine <= taken:
            continue
        taken |= mine
        swap = max((swap for _, swap in charges), key=lambda swap: swap.fits)
        rival = _rival(names, charges, accused)
        attention = PARTS[by_name[names[0]].kind] not in ("up", "gate", "down")
        if rival is not None and (attention or abs(gains[names] - gains[rival]) < MARGIN):
            swap = msgspec.structs.replace(swap, partner=by_name[rival[0]].kind)
        kept[names] = swap
    return tuple(kept.values())


def _rival(
    names: tuple[str, str],
    charges: list[tuple[str, p.Swap]],
    accused: Mapping[tuple[str, str], list[tuple[str, p.Swap]]],
) -> tuple[str, str] | None:
    """The partners that as many links accuse, if there are any."""
    mine = {(link, *map(_home, names)) for link, _ in charges}
    for other, theirs in accused.items():
        links = {(link, *map(_home, other)) for link, _ in theirs}
        if other != names and len(theirs) == len(charges) and links & mine:
            return other
    return None


class _Neighbours:
    """The side that layers of a kind share with those of the blocks beside them.

    All layers of a kind read or write the same residual stream, whose channels keep their sizes
    from block to block.
    """

    def __init__(self, by_name: Mapping[str, Placed]) -> None:
        self._by_name = by_name
        self._rows: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
        for layer in by_name.values():
            self._rows[layer.kind, layer.shape].append(layer.name)

    def gain(self, one: str, two: str) -> float:
        """How much better both fit their neighbours once they are swapped back."""
        layer = self._by_name[one]
        names = self._rows[layer.kind, layer.shape]
        i, j = names.index(one), names.index(two)
        beside = [
            (near, far, at)
            for near, far in ((i, j), (j, i))
            for at in (near - 1, near + 1)
            if 0 <= at < len(names) and at not in (i, j)
        ]
        return sum(
            self._fit(names[far], names[at]) - self._fit(names[near], names[at])
            for near, far, at in beside
        ) / max(1, len(beside))

    def _fit(self, one: str, two: str) -> float:
        written = PARTS[self._by_name[one].kind] in ("down", "output")
        side = "rows" if written else "columns"
        a, b = (getattr(self._by_name[name].weights, side) for name in (one, two))
        if not a or len(a) != len(b):
            return 0.0
        return float(np.dot(*_unit([a, b])))


def _home(name: str) -> str:
    return name.rpartition(".")[0]
