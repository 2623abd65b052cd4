"""Rotations that were multiplied into a stored weight, as QuaRot and SpinQuant do.

An orthogonal matrix between two layers changes every weight and no output: ``stored = O · W · I``
with blocks of orthogonal matrices on its diagonals. Three are looked for, where nothing simpler
explains a weight:

- the *residual stream*: one matrix for the whole model, told by the embedding (orthogonal
  Procrustes, Schönemann 1966), which is on the input of layers that read the stream and on the
  output of those that write it;
- *heads*: one matrix for each head of values, between ``v_proj`` and ``o_proj``;
- the *input* of a layer: a Hadamard matrix, which must be applied to activations when the model
  runs (QuaRot, arXiv 2404.00456, §4; SpinQuant, arXiv 2405.16406, R4). Of another matrix it can
  only be told that there is one: products of rows are what they were.

A rotation is believed if, with every column fitted to the original's, much less is left. One of
heads that is no Hadamard matrix is fitted to the layer itself, and takes up to
``(head - 1) / (2 · width)`` of the squared error with it: of heads of 128 in 4096, 1.6%.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.measure.compare.folded import blocks as spans_of

APART = 0.7
"""Share of a stored weight that columns of the original, each with a factor, leave unexplained: of
weights in 2 bits up to 0.6, of weights that have nothing in common nearly 1."""
LEFT = 0.7
"""And the share of that which is left where a rotation is right."""
LEFT_OF_HEADS = 0.6
"""The same where the rotation was fitted to the layer itself: chance fits up to 0.75."""
ALIKE = 0.7
"""Correlation of the products of rows, where an unknown matrix was applied to them."""
LENGTHS = 0.1
"""By how much the norms of rows may differ from those before they were rotated: the median."""
ROWS = 256
"""Rows that tell, evenly spread."""
FOR_EACH = 8
"""Rows of the embedding for every column, with which a rotation is solved."""
LEVEL = 0.35
"""By how much an entry of a fitted Hadamard matrix may differ from its level."""


@dataclass(frozen=True, eq=False)
class Turn:
    """Rotations of one stored weight: ``stored = outputs · W · inputs``, blocks on the diagonal."""

    inputs: Tensor | None = None
    """``[blocks, size, size]``, float32, orthogonal; None for none."""
    outputs: Tensor | None = None
    """``[blocks, size, size]``, float32, orthogonal; None for none."""
    kinds: tuple[str, ...] = ()
    """What was rotated: ``residual stream``, ``heads``, ``input``; ``input, not undone``."""
    doubt: float = 0.0
    """Relative error of a rotation that was fitted; 0 where it is exactly known."""

    def into(self, weight: Tensor) -> Tensor:
        """An original weight ``[…, out, in]`` as it was stored; float32 if anything was rotated."""
        found = weight
        if self.inputs is not None:
            found = _on_inputs(found.float(), self.inputs)
        if self.outputs is not None:
            found = _on_outputs(found.float(), self.outputs)
        return found

    def out_of(self, stored: Tensor) -> Tensor:
        """A stored weight ``[…, out, in]`` rotated back; float32 if anything was rotated."""
        found = stored
        if self.inputs is not None:
            found = _on_inputs(found.float(), self.inputs.mT)
        if self.outputs is not None:
            found = _on_outputs(found.float(), self.outputs.mT)
        return found


@dataclass(frozen=True, eq=False)
class Stream:
    """The rotation of the residual stream."""

    matrix: Tensor
    """``[width, width]``, float32: ``stored = W · matrix`` for the embedding."""
    doubt: float
    """See `Turn.doubt`."""


def is_apart(weight: Tensor, stored: Tensor) -> bool:
    """Whether a stored weight has nothing to do with its original, as far as some rows tell.

    Args:
        weight: ``[…, out, in]``, the original.
        stored: the same shape.
    """
    return unexplained(_some(weight), _some(stored)) > APART


def unexplained(weight: Tensor, stored: Tensor) -> float:
    """Share of a stored weight that the original's columns, each with a factor, do not explain.

    Args:
        weight: ``[…, out, in]``, the original.
        stored: the same shape.
    """
    power, products = (torch.zeros(weight.shape[-1], dtype=torch.float64) for _ in range(2))
    whole = 0.0
    for _, mine, theirs in spans_of(weight, stored):
        power += mine.square().sum(0)
        products += (mine * theirs).sum(0)
        whole += float(theirs.square().sum())
    explained = products.square() / power.where(power > 0, 1.0)
    left = max(0.0, 1.0 - float(explained.sum()) / whole) if whole > 0 else 0.0
    return float(left**0.5)


def stream_of(embedding: Tensor, stored: Tensor) -> Stream | None:
    """The rotation of the residual stream, told by the embedding; None if there is none.

    Args:
        embedding: ``[tokens, width]``, the original's.
        stored: the same shape.
    """
    step = max(1, len(embedding) // (FOR_EACH * embedding.shape[1]))
    mine, theirs = embedding[::step].double(), stored[::step].double()
    width = mine.shape[1]
    if len(mine) <= width or not bool(torch.isfinite(theirs).all()):
        return None
    before = float((mine - theirs).norm() / mine.norm())
    if before < APART or not _same_lengths(mine, theirs):
        return None
    found = _procrustes(mine, theirs)
    left = float((mine @ found - theirs).norm() / theirs.norm())
    if not left < LEFT * before:
        return None
    exact = hadamard(found)
    if exact is not None:
        return Stream(exact.float(), 0.0)
    return Stream(found.float(), left * (width / len(mine)) ** 0.5)


def _same_lengths(mine: Tensor, theirs: Tensor) -> bool:
    before, after = mine.norm(dim=1), theirs.norm(dim=1)
    some = before > 0
    if not bool(some.any()):
        return False
    return float((after[some] / before[some] - 1).abs().median()) < LENGTHS


def _procrustes(mine: Tensor, theirs: Tensor) -> Tensor:
    """The orthogonal matrices nearest to ``mine · Q = theirs``; of a batch, each."""
    left, _, right = torch.linalg.svd(mine.mT @ theirs)
    found: Tensor = left @ right
    return found


def hadamard(found: Tensor) -> Tensor | None:
    """The Hadamard matrices, with any signs, next to orthogonal ones; None if they are others.

    All entries that are not zero have one size, also where several smaller ones lie side by side.

    Args:
        found: ``[…, size, size]``.
    """
    size = found.abs()
    level = size.amax((-1, -2), keepdim=True) / (1 + LEVEL)
    level = size.sum((-1, -2), keepdim=True) / (size > level / 2).sum((-1, -2), keepdim=True)
    count = (1 / level.square()).round()
    level = count.rsqrt()
    zero = size < LEVEL * level
    if not bool((zero | ((size - level).abs() < LEVEL * level)).all()):
        return None
    exact = torch.where(zero, 0.0, found.sign() * level)
    unit = torch.eye(found.shape[-1], dtype=found.dtype)
    return exact if bool(((exact @ exact.mT - unit).abs() < 1e-6).all()) else None


def turn_of(
    weight: Tensor,
    stored: Tensor,
    stream: Stream | None,
    *,
    rows: int = 0,
    columns: int = 0,
    scales: Iterable[Tensor] = (),
) -> Turn | None:
    """The rotations of one stored weight; None if none explains it.

    Args:
        weight: ``[…, out, in]``, the original.
        stored: the same shape, not like it.
        stream: the rotation of the residual stream, if there is one.
        rows: heads of its rows, where they are those of values; else 0.
        columns: heads of its columns, where they are those of outputs of attention; else 0.
        scales: what may have been folded into its columns, each ``[in]``.
    """
    before = unexplained(weight, stored)
    if before < APART:
        return None
    sides = [] if stream is None else list(_sides(weight, len(stream.matrix)))
    if rows or columns:
        sides = [side for side in sides if side == (bool(rows), bool(columns))]
    turn, left = _of_stream(weight, stored, stream, sides)
    if left < LEFT * before:
        return turn
    if weight.dim() != 2:
        return None
    # The layer's own rotation hides that of the stream, which is on the only side it can be on.
    turn = turn if len(sides) == 1 else Turn()
    back = turn.out_of(stored)
    own = _of_heads(weight, back, rows, columns, scales, left) or _of_input(weight, back, left)
    return None if own is None else _together(turn, own)


def _of_stream(
    weight: Tensor, stored: Tensor, stream: Stream | None, sides: Iterable[tuple[bool, bool]]
) -> tuple[Turn, float]:
    """The residual stream rotated on the sides where that leaves least, with what it leaves."""
    best, left = Turn(), 1.0
    for inputs, outputs in sides:
        assert stream is not None
        turn = Turn(
            stream.matrix[None] if inputs else None,
            stream.matrix.T[None] if outputs else None,
            ("residual stream",),
            stream.doubt,
        )
        found = _left_of(weight, stored, turn)
        if found < left or not best.kinds:
            best, left = turn, found
    return best, left


def _left_of(weight: Tensor, stored: Tensor, turn: Turn) -> float:
    """What is left of a weight rotated back; of some rows or columns where those suffice."""
    if turn.outputs is None:
        return unexplained(_some(weight), turn.out_of(_some(stored)))
    if turn.inputs is None:
        places = torch.linspace(0, weight.shape[-1] - 1, min(ROWS, weight.shape[-1])).long()
        weight, stored = weight[..., places], stored[..., places]
    return unexplained(weight, turn.out_of(stored))


def _sides(weight: Tensor, width: int) -> Iterator[tuple[bool, bool]]:
    if weight.shape[-1] == width:
        yield True, False
    if weight.shape[-2] == width:
        yield False, True
    if weight.shape[-1] == weight.shape[-2] == width:
        yield True, True


def _of_heads(
    weight: Tensor,
    stored: Tensor,
    rows: int,
    columns: int,
    scales: Iterable[Tensor],
    before: float,
) -> Turn | None:
    """A rotation of every head of values."""
    if rows and weight.shape[0] % rows == 0:
        return _best_rows(weight, stored, rows, scales, before)
    if columns and weight.shape[1] % columns == 0:
        mine, theirs = (each.double().reshape(len(each), columns, -1) for each in (weight, stored))
        found = _procrustes(mine.transpose(0, 1), theirs.transpose(0, 1))
        turn = Turn(inputs=_known(found).float(), kinds=("heads",))
        left = unexplained(weight, turn.out_of(stored))
        return turn if left < LEFT_OF_HEADS * before else None
    return None


def _best_rows(
    weight: Tensor, stored: Tensor, heads: int, scales: Iterable[Tensor], before: float
) -> Turn | None:
    best, least = Turn(), 1.0
    theirs = stored.double().reshape(heads, -1, stored.shape[1])
    for scale in (torch.ones(()), *scales):
        mine = (weight.double() * scale.double()).reshape(heads, -1, weight.shape[1])
        found = _procrustes(mine.mT, theirs.mT).mT  # theirs = found · mine
        turn = Turn(outputs=_known(found).float(), kinds=("heads",))
        left = unexplained(weight, turn.out_of(stored))
        if left < least:
            best, least = turn, left
    return best if least < LEFT_OF_HEADS * before else None


def _known(found: Tensor) -> Tensor:
    exact = hadamard(found)
    return found if exact is None else exact


def _of_input(weight: Tensor, stored: Tensor, before: float) -> Turn | None:
    """A Hadamard matrix before the layer, or another that its weights do not tell."""
    inputs = weight.shape[1]
    size = inputs & -inputs
    if size > 1:
        blocks = walsh(size).expand(inputs // size, -1, -1)
        back = _on_inputs(stored.float(), blocks)
        if unexplained(weight, back) < LEFT * before:
            signs = (weight.double() * back.double()).sum(0).sign().float()
            signed = signs.view(-1, size, 1) * blocks
            return Turn(inputs=signed, kinds=("input",))
    if _same_products(_some(weight), _some(stored)):
        return Turn(kinds=("input, not undone",))
    return None


def walsh(size: int) -> Tensor:
    """The Walsh–Hadamard matrix of a power of two, orthogonal: ``[size, size]`` float32."""
    found = torch.ones(1, 1)
    while len(found) < size:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found.mul_(float(size) ** -0.5)


def _same_products(weight: Tensor, stored: Tensor) -> bool:
    """Whether the products of different rows are those of the original's."""
    mine, theirs = (each.double() @ each.double().T for each in (weight, stored))
    apart = torch.triu_indices(len(mine), len(mine), 1)
    if apart.shape[1] < ROWS:
        return False
    pairs = torch.stack([mine[apart[0], apart[1]], theirs[apart[0], apart[1]]])
    return float(torch.corrcoef(pairs)[0, 1]) > ALIKE


def _together(first: Turn, then: Turn) -> Turn:
    """Two rotations of different sides as one; of the same side, one after the other."""
    inputs, outputs = first.inputs, first.outputs
    if then.inputs is not None:
        inputs = then.inputs if inputs is None else _dense(then.inputs) @ _dense(inputs)
    if then.outputs is not None:
        outputs = then.outputs if outputs is None else _dense(outputs) @ _dense(then.outputs)
    return Turn(inputs, outputs, first.kinds + then.kinds, max(first.doubt, then.doubt))


def _dense(blocks: Tensor) -> Tensor:
    count, size, _ = blocks.shape
    found = torch.zeros(count, size, count, size)
    for place, block in enumerate(blocks):
        found[place, :, place] = block
    return found.view(1, count * size, count * size)


def _some(weight: Tensor) -> Tensor:
    rows = weight.reshape(-1, weight.shape[-1])
    if len(rows) > ROWS:
        rows = rows[torch.linspace(0, len(rows) - 1, ROWS).long()]
    return rows.float()


def _on_inputs(weight: Tensor, blocks: Tensor) -> Tensor:
    """Columns multiplied from the right by blocks on a diagonal."""
    parts = weight.reshape(-1, len(blocks), blocks.shape[1]).transpose(0, 1)
    found = torch.bmm(parts, blocks.to(weight.device))
    return found.transpose(0, 1).reshape(weight.shape)


def _on_outputs(weight: Tensor, blocks: Tensor) -> Tensor:
    """Rows multiplied from the left by blocks on a diagonal."""
    parts = weight.reshape(*weight.shape[:-2], len(blocks), -1, weight.shape[-1])
    found = torch.matmul(blocks.to(weight.device), parts)
    return found.reshape(weight.shape)
