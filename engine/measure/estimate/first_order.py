"""First-order effects: how much a loss changes when a layer's weight changes a little.

For a layer with inputs ``x_t`` and output gradients ``g_t``, a change ``ΔW`` of its weight changes
the loss of a window by ``z = Σ_ti z_ti`` with ``z_ti = g_ti (ΔW x_t)_i`` to first order, over its
tokens and the rows of the weight. What is kept of them:

- of the text's own targets ``Σ_ti z_ti``, which is ``⟨ΔW, G⟩`` with ``G = Σ_t g_t x_tᵀ``: one
  product for each loss, whatever the number of changes;
- of drawn targets ``Σ_i (Σ_t z_ti)²``, from the same ``G``, row by row;
- of drawn targets and a share of the tokens ``Σ_ti z_ti²`` and ``Σ_t (Σ_i z_ti)²``, which need
  ``ΔW x_t`` of every change. Their ratio tells how errors of different rows add up.

Products are made in bfloat16 where the processor has matrix units for it: the errors of single
terms are random and drown in their sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine.formats.grammar import Format
from engine.model.gradients import Tap, WeightTap
from engine.model.network import StandIn
from engine.model.processor import has_matrix_units
from engine.quant.rows import matrices, row_chunks

SAMPLED = 2048
"""Tokens at which the sum over rows is taken, at most, over all windows."""
DRAWN = 64
"""Windows whose sums are taken of drawn targets, at least, where there are so many."""
GROUPS = 32
"""Groups of windows that a standard error is made of, where windows are more than twice as many."""
OPENING = 4
"""First tokens of a window that are always among them: attention may rest on them."""
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
    moved: Mapping[Format, Moved]
    """Where inputs change too: what that changes beside ``Ŵ − W``."""


@dataclass(frozen=True, eq=False)
class Moved:
    """A format that also changes a layer's inputs."""

    held: StandIn
    """What the layer computes with."""
    weight: Tensor
    """``Ŵ`` for unchanged inputs, ``[out, in]``."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """How far its output is from ``Ŵ x``, ``[..., out]``."""
        assert self.held.inputs is not None
        changed = functional.linear(self.held.inputs(inputs), self.held.weight.to(inputs.dtype))
        return changed - functional.linear(inputs, self.weight.to(inputs.dtype))


@dataclass(eq=False)
class Sums:
    """Sums over the tokens of each window for one change of one layer.

    What is summed before it is squared is kept by row until `close`, since the tokens of a window
    may come in parts and a layer may act in several places.
    """

    slope: Tensor
    """``Σ_ti z_ti`` of targets that were not drawn, float64 ``[losses, windows]``."""
    rows: Tensor
    """``Σ_i (Σ_t z_ti)²``, float64 ``[draws, windows]``; zero before `close`."""
    inputs: Tensor
    """``Σ_t z_t²`` of the change of inputs alone, float64 ``[draws, windows]``."""
    across: Tensor
    """``Σ_t (Σ_i z_ti)²``, ``Σ_ti z_ti²`` and ``Σ_t (Σ_i z_ti)⁴`` of sampled tokens, each of which
    counts for several, float64 ``[3, draws, windows]``."""
    open_rows: Tensor | None = None
    """``Σ_t z_ti``, float32 ``[draws, windows, rows]``."""

    @classmethod
    def empty(cls, losses: int, draws: int, windows: int) -> Sums:
        """Of no tokens yet, for some losses of targets that were not drawn."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        drawn = (draws, windows)
        return cls(zeros(losses, windows), zeros(*drawn), zeros(*drawn), zeros(3, *drawn))

    def add_rows(self, windows: slice, values: Tensor) -> None:
        """Add ``Σ_t z_ti`` of some windows, ``[draws, windows, rows]``."""
        if self.open_rows is None:
            self.open_rows = torch.zeros(*self.rows.shape, values.shape[-1])
        self.open_rows[:, windows] += values.cpu()

    def add(self, other: Sums, windows: slice) -> None:
        """Add those of some windows: other tokens, or another place that the layer acts in."""
        self.slope[:, windows] += other.slope
        self.rows[:, windows] += other.rows
        self.inputs[:, windows] += other.inputs
        self.across[..., windows] += other.across
        if other.open_rows is not None:
            self.add_rows(windows, other.open_rows)

    def of_first(self, windows: int) -> Sums:
        """Those of the first windows alone, once closed."""
        return Sums(
            self.slope[:, :windows],
            self.rows[:, :windows],
            self.inputs[:, :windows],
            self.across[..., :windows],
        )

    def close(self) -> None:
        """Square what was summed: no tokens will be added to these windows any more."""
        if self.open_rows is not None:
            self.rows += self.open_rows.double().square().sum(-1)
            self.open_rows = None


@dataclass(frozen=True, eq=False)
class Sample:
    """Some tokens of a window, and what each stands for."""

    positions: Tensor
    """int64 ``[tokens]``."""
    weights: Tensor
    """float32 ``[tokens]``: so many tokens of the window."""


def sample_of(window: int, windows: int, seq_len: int) -> Sample:
    """Some tokens of a window: the first few, and others at equal distances."""
    wanted = max(1, SAMPLED // max(1, windows))
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
    """What products are made in: bfloat16 where that is faster, else the network's dtype.

    On a GPU a network in float32 was asked to be exact, and has its products in float32.
    """
    if device.type == "cpu":
        return torch.bfloat16 if has_matrix_units() else torch.float32
    faster = dtype != torch.float32 and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if faster else dtype


Embed = Callable[[Tensor], Tensor]
"""How an embedding turns a change of its weight into one of its output."""


@dataclass(frozen=True, eq=False)
class Part:
    """Which windows taps are of, and what is summed over them."""

    windows: slice
    """Among those that the sums are of."""
    numbers: range
    """Of these windows among all."""
    sharing: int
    """Windows, or parts of them, that share `SAMPLED` tokens."""
    drawn: Tensor
    """Of which of these windows rows are summed, bool ``[windows]``: see `drawn_windows`."""
    group: int
    """Windows whose sums for targets that were not drawn are made together."""
    drawn_from: int
    """The first loss of drawn targets."""

    def samples(self, tokens: int) -> list[Sample]:
        """Of each of these windows, of which a layer is given so many tokens."""
        return [sample_of(number, self.sharing, tokens) for number in self.numbers]


def subtract(approx: Tensor, weight: Tensor, into: Tensor) -> None:
    """``Ŵ − W`` in float32, a few rows at a time, then rounded."""
    for one, other, found in zip(*map(matrices, (approx, weight, into)), strict=True):
        for rows in row_chunks(one):
            found[rows] = one[rows].float() - other[rows].float()


@torch.no_grad()
def add_effects(
    tap: Tap | WeightTap,
    changes: Changes,
    sums: Mapping[Format, Sums],
    part: Part,
    inputs: Tensor,
    embed: Embed | None = None,
) -> None:
    """Add what reached a layer on some windows to the sums of its changes.

    Args:
        tap: what reached it.
        changes: of that layer; of experts those of the weight alone.
        sums: of each format.
        part: which windows these are.
        inputs: the tap's, in the dtype that products are made in.
        embed: for an embedding.
    """
    if isinstance(tap, WeightTap):
        _add_weight_rows(tap, changes.deltas, [sums[f] for f in changes.formats], part)
        return
    if embed is not None:
        for format, delta in zip(changes.formats, changes.deltas, strict=True):
            _add_tokens(tap, embed(delta), sums[format], part)
        return
    cast = Tap(tap.layer, inputs, tuple(g.to(inputs.dtype) for g in tap.gradients))
    across = _across(*_picked(cast, part), changes.deltas).double().cpu()
    found = [sums[format] for format in changes.formats]
    _add_slopes(cast, changes.deltas, found, part)
    _add_rows(cast, changes.deltas, found, part)
    for at, each in enumerate(found):
        each.across[..., part.windows] += across[:, :, at]
    for format, moved in changes.moved.items():
        _add_inputs(tap, moved(tap.inputs), sums[format], part)


def _add_tokens(tap: Tap, moved: Tensor, found: Sums, part: Part) -> None:
    """Add what comes of a change of the layer's output, ``[windows, tokens, out]``."""
    drawn = part.drawn.to(moved.device)[:, None]
    rows: list[Tensor] = []
    for loss, gradient in enumerate(tap.gradients):
        z = gradient.float() * moved.float()
        if loss < part.drawn_from:
            found.slope[loss, part.windows] += z.sum((1, 2)).double().cpu()
            continue
        squares = z.sum(-1).square()
        each = (squares.sum(-1), z.square().sum((1, 2)), squares.square().sum(-1))
        found.across[:, len(rows), part.windows] += torch.stack(each).double().cpu()
        rows.append(z.sum(1) * drawn)
    found.add_rows(part.windows, torch.stack(rows))


def _add_inputs(tap: Tap, moved: Tensor, found: Sums, part: Part) -> None:
    """Add what comes of a change of the layer's inputs, ``[windows, tokens, out]``."""
    for loss, gradient in enumerate(tap.gradients):
        z = torch.linalg.vecdot(gradient.float(), moved.float()).double().cpu()
        draw = loss - part.drawn_from
        if draw < 0:
            found.slope[loss, part.windows] += z.sum(-1)
        else:
            found.inputs[draw, part.windows] += z.square().sum(-1)


def _picked(tap: Tap, part: Part) -> tuple[Tap, Tensor]:
    """Sampled tokens of a tap for drawn targets alone, and their weights ``[windows, tokens]``."""
    windows, tokens = tap.inputs.shape[:2]
    device = tap.inputs.device
    samples = part.samples(tokens)
    weights = torch.stack([sample.weights for sample in samples]).to(device)
    gradients = tap.gradients[part.drawn_from :]
    if weights.shape[1] == tokens:
        return Tap(tap.layer, tap.inputs, gradients), weights
    rows = torch.cat([w * tokens + each.positions for w, each in enumerate(samples)])
    rows = rows.to(device)

    def chosen(x: Tensor) -> Tensor:
        return x.reshape(windows * tokens, -1)[rows].view(windows, -1, x.shape[-1])

    return Tap(tap.layer, chosen(tap.inputs), tuple(map(chosen, gradients))), weights


def _across(tap: Tap, weights: Tensor, deltas: Tensor) -> Tensor:
    """What rows add up to at single tokens, ``[3, draws, changes, windows]``: see `Sums.across`."""
    windows, tokens = tap.inputs.shape[:2]
    inputs = tap.inputs.reshape(windows * tokens, -1)
    moved = functional.linear(inputs, deltas.flatten(0, 1)).view(len(inputs), len(deltas), -1)
    moved = moved.float()
    gradients = torch.stack([g.reshape(len(inputs), -1) for g in tap.gradients], -1).float()

    def by_token(products: Tensor) -> Tensor:  # [tokens of all windows, changes, draws]
        return products.permute(2, 1, 0).reshape(-1, len(deltas), windows, tokens)

    whole = by_token(torch.bmm(moved, gradients)).square()
    apart = by_token(torch.bmm(moved.square_(), gradients.square_()))
    return torch.stack([
        (whole * weights).sum(-1),
        (apart * weights).sum(-1),
        (whole * weights).square().sum(-1),
    ])  # fmt: skip


def drawn_windows(windows: int) -> Tensor:
    """The windows whose rows are summed of drawn targets: one in a few, bool ``[windows]``."""
    found = torch.zeros(windows, dtype=torch.bool)
    found[:: max(1, windows // DRAWN)] = True
    return found


def group_of(windows: int, batch: int) -> int:
    """Windows whose sums are made together: so many that `GROUPS` are left, and whole batches."""
    size = max(1, windows // GROUPS)
    while batch % size or windows % size:
        size -= 1
    return size


def _tiles(deltas: Tensor, windows: int) -> Iterator[slice]:
    """Rows whose gradients of all windows fit a tile."""
    size = TILE_BYTES.get(deltas.device.type, TILE_BYTES["cpu"])
    rows = max(1, size // (windows * deltas.shape[-1] * deltas.dtype.itemsize))
    for top in range(0, deltas.shape[1], rows):
        yield slice(top, top + rows)


def _add_slopes(tap: Tap, deltas: Tensor, found: Sequence[Sums], part: Part) -> None:
    """Add ``⟨ΔW, G⟩`` of targets that were not drawn.

    A group of windows has its mean in the place of each.
    """
    windows, _, width = tap.inputs.shape
    group = part.group if windows % part.group == 0 else 1
    inputs = tap.inputs.reshape(windows // group, -1, width)
    shape = (part.drawn_from, len(deltas), windows // group)
    total = torch.zeros(shape, dtype=torch.float64, device=deltas.device)
    for tile in _tiles(deltas, windows):
        # In float32: oneDNN divides by zero in a thin, long product of bfloat16.
        delta = deltas[:, tile].flatten(1).float()
        for loss in range(part.drawn_from):
            g = tap.gradients[loss].reshape(len(inputs), -1, deltas.shape[1])
            G = torch.bmm(g[..., tile].transpose(1, 2), inputs)
            total[loss] += (delta @ G.flatten(1).float().T).double()
    total = (total.repeat_interleave(group, -1) / group).cpu()
    for at, each in enumerate(found):
        each.slope[:, part.windows] += total[:, at]


def _add_rows(tap: Tap, deltas: Tensor, found: Sequence[Sums], part: Part) -> None:
    """Add ``Σ_t z_ti`` of drawn targets."""
    some = part.drawn.nonzero().flatten().tolist()
    if not some:
        return
    inputs = tap.inputs if len(some) == len(tap.inputs) else tap.inputs[some]
    gradients = [g if len(some) == len(g) else g[some] for g in tap.gradients[part.drawn_from :]]
    count, rows = deltas.shape[:2]
    shape = (count, len(gradients), len(tap.inputs), rows)
    total = torch.zeros(shape, device=deltas.device)
    for tile in _tiles(deltas, len(some)):
        delta = deltas[:, tile].float().permute(1, 2, 0)  # [rows, in, changes]
        for draw, g in enumerate(gradients):
            G = torch.bmm(g[..., tile].transpose(1, 2), inputs).float()
            total[:, draw, some, tile] = torch.bmm(G.transpose(0, 1), delta).permute(2, 1, 0)
    for each, of_change in zip(found, total.cpu(), strict=True):
        each.add_rows(part.windows, of_change)


def _add_weight_rows(tap: WeightTap, deltas: Tensor, found: Sequence[Sums], part: Part) -> None:
    """Add ``Σ_t z_ti`` and slopes of one window, one matrix of a weight after the other."""
    drawn = bool(part.drawn.all())
    several = tap.gradients[0].dim() == 3
    deltas = deltas if several else deltas[:, None]
    gradients = tap.gradients if drawn else tap.gradients[: part.drawn_from]
    # Of every loss and change, the sums of one matrix after the other.
    z: list[list[list[Tensor]]] = [[[] for _ in found] for _ in gradients]
    for at in range(deltas.shape[1]):
        changes = deltas[:, at].float()
        for of_loss, gradient in zip(z, gradients, strict=True):
            matrix = (gradient[at] if several else gradient).float()
            for of_change, delta in zip(of_loss, changes, strict=True):
                of_change.append(torch.linalg.vecdot(delta, matrix))
    for at, each in enumerate(found):
        sums = [torch.cat(of_loss[at]) for of_loss in z]
        for loss in range(part.drawn_from):
            each.slope[loss, part.windows] += sums[loss].double().sum().cpu()
        if drawn:
            each.add_rows(part.windows, torch.stack(sums[part.drawn_from :])[:, None])
