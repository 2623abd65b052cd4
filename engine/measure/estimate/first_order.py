"""First-order effects: how much a loss changes when a layer's weight changes a little.

For a layer with inputs ``x_t`` and output gradients ``g_t``, a change ``ΔW`` of its weight changes
the loss by ``z = Σ_t z_t`` with ``z_t = g_tᵀ ΔW x_t`` to first order. Two sums over each window are
kept. ``Σ z_t`` comes from ``⟨ΔW, G⟩`` with ``G = Σ g_t x_tᵀ``: one product for each loss, whatever
the number of changes. ``Σ z_t²`` needs ``ΔW x_t`` of every change; it is a mean of so many terms
that a share of the tokens is enough for it.

Products are made in bfloat16 where the processor has matrix units for it: the errors of single
terms are random and drown in their sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine.formats.grammar import Format
from engine.model.gradients import Tap, WeightTap
from engine.model.network import StandIn
from engine.model.processor import has_matrix_units
from engine.quant.rows import matrices, row_chunks

SQUARES = 2048
"""Tokens whose squares are taken, at most, over all windows."""
COUPLED = 64
"""Windows whose sums are taken of drawn targets, at least, where there are so many."""
GROUPS = 32
"""Groups of windows that a standard error is made of, where windows are more than twice as many."""
OPENING = 4
"""First tokens of a window whose squares are always taken: attention may rest on them."""
TILE_BYTES = {"cpu": 4 << 20, "cuda": 128 << 20}
"""Bytes of gradients of a few rows of a weight, over all windows of a micro-batch: what fits a
cache, or where every product is a kernel to be started, what makes few of them."""


@dataclass(frozen=True, eq=False)
class Changes:
    """What one layer computes with instead of its weight."""

    formats: tuple[Format, ...]
    """Of ``deltas``."""
    deltas: Tensor
    """``Ŵ − W``, ``[formats, out, in]`` or ``[formats, experts, out, in]``, in the dtype products
    are made in."""
    moved: Mapping[Format, StandIn]
    """Where inputs change too."""


@dataclass(eq=False)
class Moments:
    """Sums over the tokens of each window, float64 ``[losses, windows]``."""

    total: Tensor
    """``Σ_t z_t``."""
    square: Tensor
    """``Σ_t z_t²``."""

    @classmethod
    def empty(cls, losses: int, windows: int) -> Moments:
        """Of no tokens yet."""
        shape = (losses, windows)
        return cls(torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64))

    def add(self, other: Moments) -> None:
        """Add those of other tokens, or of another place that the layer acts in."""
        self.total += other.total
        self.square += other.square


@dataclass(frozen=True, eq=False)
class Sample:
    """The tokens of each window whose squares are taken, and what each stands for."""

    positions: Tensor
    """int64 ``[tokens]``."""
    weights: Tensor
    """float32 ``[tokens]``: so many tokens of the window."""


def sample_of(window: int, windows: int, seq_len: int) -> Sample:
    """Some tokens of a window: the first few, and others at equal distances."""
    wanted = max(1, SQUARES // max(1, windows))
    if wanted >= seq_len:
        return Sample(torch.arange(seq_len), torch.ones(seq_len))
    first = min(OPENING, seq_len)
    step = max(1, (seq_len - first) // max(1, wanted - first))
    # Another beginning in every window, or some positions would never be seen.
    stride = next(n for n in (7, 11, 13, step + 1) if math.gcd(n, step) == 1)
    rest = first + window * stride % step + step * torch.arange((seq_len - first) // step)
    weights = torch.full((first + len(rest),), (seq_len - first) / max(1, len(rest)))
    weights[:first] = 1
    return Sample(torch.cat([torch.arange(first), rest]), weights)


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What products are made in: bfloat16 where that is faster, else the network's dtype."""
    if device.type == "cpu":
        return torch.bfloat16 if has_matrix_units() else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else dtype


Embed = Callable[[Tensor], Tensor]
"""How an embedding turns a change of its weight into one of its output."""


@dataclass(frozen=True, eq=False)
class Part:
    """Which windows taps are of, and what is summed over them."""

    windows: slice
    """Among all windows."""
    samples: Sequence[Sample]
    """Of each of these windows, as many tokens each."""
    coupled: Tensor
    """Which of these windows couple, bool ``[windows]``: see `coupled`."""
    group: int
    """Windows whose sums for targets that were not drawn are made together."""
    drawn_from: int
    """The first loss of drawn targets."""


def subtract(approx: Tensor, weight: Tensor, into: Tensor) -> None:
    """``Ŵ − W`` in float32, a few rows at a time, then rounded."""
    for one, other, found in zip(*map(matrices, (approx, weight, into)), strict=True):
        for rows in row_chunks(one):
            found[rows] = one[rows].float() - other[rows].float()


@torch.no_grad()
def add_effects(
    tap: Tap | WeightTap,
    changes: Changes,
    moments: Mapping[Format, Moments],
    part: Part,
    inputs: Tensor,
    weight: Tensor,
    embed: Embed | None = None,
) -> None:
    """Add what reached a layer on some windows to the moments of its changes.

    Args:
        tap: what reached it.
        changes: of that layer; of experts those of the weight alone.
        moments: of each format.
        part: which windows these are.
        inputs: the tap's, in the dtype that products are made in.
        weight: ``W``, for changes of inputs.
        embed: for an embedding.
    """
    windows = part.windows
    if isinstance(tap, WeightTap):
        for format, z in zip(changes.formats, _weight_sums(tap, changes.deltas), strict=True):
            moments[format].total[:, windows] += z[:, None]
            moments[format].square[:, windows] += z.square()[:, None]
        return
    if embed is not None:
        for format, delta in zip(changes.formats, changes.deltas, strict=True):
            _add_tokens(tap, embed(delta), moments[format], windows)
    elif changes.formats:
        cast = Tap(tap.layer, inputs, tuple(g.to(inputs.dtype) for g in tap.gradients))
        picked, weights = _picked(cast, part)
        squares = (_effects(picked, changes.deltas).square() * weights).sum(-1).double().cpu()
        totals = _window_sums(cast, changes.deltas, part)
        for at, format in enumerate(changes.formats):
            moments[format].total[:, windows] += totals[:, at]
            moments[format].square[part.drawn_from :, windows] += squares[:, at]
    for format, change in changes.moved.items():
        _add_tokens(tap, _moved(tap.inputs, change, weight), moments[format], windows)


def _add_tokens(tap: Tap, moved: Tensor, found: Moments, windows: slice) -> None:
    """Add what comes of a change of the layer's output, ``[windows, tokens, out]``."""
    for loss, gradient in enumerate(tap.gradients):
        z = torch.linalg.vecdot(gradient.float(), moved.float()).double().cpu()
        found.total[loss, windows] += z.sum(-1)
        found.square[loss, windows] += z.square().sum(-1)


def _picked(tap: Tap, part: Part) -> tuple[Tap, Tensor]:
    """Sampled tokens of a tap for drawn targets alone, and their weights ``[windows, tokens]``."""
    windows, tokens = tap.inputs.shape[:2]
    device = tap.inputs.device
    weights = torch.stack([sample.weights for sample in part.samples]).to(device)
    gradients = tap.gradients[part.drawn_from :]
    if weights.shape[1] == tokens:
        return Tap(tap.layer, tap.inputs, gradients), weights
    rows = torch.cat([w * tokens + each.positions for w, each in enumerate(part.samples)])
    rows = rows.to(device)

    def chosen(x: Tensor) -> Tensor:
        return x.reshape(windows * tokens, -1)[rows].view(windows, -1, x.shape[-1])

    return Tap(tap.layer, chosen(tap.inputs), tuple(map(chosen, gradients))), weights


def _effects(tap: Tap, deltas: Tensor) -> Tensor:
    """``z`` of every token, ``[losses, changes, windows, tokens]``, float32."""
    windows, tokens = tap.inputs.shape[:2]
    inputs = tap.inputs.reshape(windows * tokens, -1).to(deltas.dtype)
    moved = functional.linear(inputs, deltas.flatten(0, 1)).view(len(inputs), len(deltas), -1)
    gradients = torch.stack([g.reshape(len(inputs), -1) for g in tap.gradients], -1)
    z = torch.bmm(moved.float(), gradients.float())  # [tokens of all windows, changes, losses]
    return z.permute(2, 1, 0).reshape(-1, len(deltas), windows, tokens)


def _moved(inputs: Tensor, change: StandIn, weight: Tensor) -> Tensor:
    """``Ŵ x' − W x``, where inputs change."""
    assert change.inputs is not None
    changed = functional.linear(change.inputs(inputs), change.weight.to(inputs.dtype))
    return changed - functional.linear(inputs, weight.to(inputs.dtype))


def coupled(windows: int) -> Tensor:
    """The windows whose sums are taken of drawn targets too: one in a few, bool ``[windows]``."""
    found = torch.zeros(windows, dtype=torch.bool)
    found[:: max(1, windows // COUPLED)] = True
    return found


def group_of(windows: int, batch: int) -> int:
    """Windows whose sums are made together: so many that `GROUPS` are left, and whole batches."""
    size = max(1, windows // GROUPS)
    while batch % size or windows % size:
        size -= 1
    return size


def _window_sums(tap: Tap, deltas: Tensor, part: Part) -> Tensor:
    """``⟨ΔW, G⟩`` of every loss, change and window, ``[losses, changes, windows]``, float64.

    Of targets that were not drawn a group of windows has its mean in the place of each.
    """
    windows, _, width = tap.inputs.shape
    group = part.group if windows % part.group == 0 else 1
    tile_bytes = TILE_BYTES.get(deltas.device.type, TILE_BYTES["cpu"])
    rows = max(1, tile_bytes // (windows * width * deltas.dtype.itemsize))
    total = torch.zeros(
        len(tap.gradients), len(deltas), windows, dtype=torch.float64, device=deltas.device
    )
    some = part.coupled.nonzero().flatten().tolist()
    together = tap.inputs.reshape(windows // group, -1, width)
    apart = tap.inputs[some]
    gradients = [
        g.reshape(windows // group, -1, g.shape[-1]) if loss < part.drawn_from else g[some]
        for loss, g in enumerate(tap.gradients)
    ]
    for top in range(0, deltas.shape[1], rows):
        tile = slice(top, top + rows)
        # In float32: oneDNN divides by zero in a thin, long product of bfloat16.
        delta = deltas[:, tile].flatten(1).float()
        for loss, g in enumerate(gradients):
            inputs = together if loss < part.drawn_from else apart
            if not len(inputs):
                continue
            G = torch.bmm(g[..., tile].transpose(1, 2), inputs)
            found = (delta @ G.flatten(1).float().T).double()
            if loss < part.drawn_from:
                total[loss] += found.repeat_interleave(group, -1) / group
            else:
                total[loss, :, some] += found
    return total.cpu()


def _weight_sums(tap: WeightTap, deltas: Tensor) -> Tensor:
    """``⟨ΔW, G⟩`` of experts, one matrix after the other: ``[changes, losses]``, float64."""
    total = torch.zeros(len(deltas), len(tap.gradients), dtype=torch.float64, device=deltas.device)
    for expert in range(deltas.shape[1]):
        delta = deltas[:, expert].flatten(1).float()
        for loss, gradient in enumerate(tap.gradients):
            total[:, loss] += torch.linalg.vecdot(
                delta, gradient[expert].flatten().float()
            ).double()
    return total.cpu()
