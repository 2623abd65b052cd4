"""Tensors of a checkpoint that are no layers: which are expected, and which leave a gap.

The table of layers is made from names and shapes. What it does not know is measured by no command,
so that it must be said: a block none of whose weights is known is refused, anything else of some
size is a remark.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.companions import plain_note
from engine.checkpoint.headers import TensorInfo
from engine.checkpoint.other_formats import adapter_note
from engine.errors import CheckpointError, few

_EXPECTED = re.compile(
    r"norm|^ln_|bias|rout|gate$|conv|pos|^wpe$|type_emb|^A_log$|inv_freq|mask|time_|decay|slope"
)
"""Words of names of tensors that are quantised by nobody: small, or tables of positions."""
_NOT_LANGUAGE = re.compile(r"vision|visual|audio|image|speech|projector|connector|^mtp$|^merger$")
_SOME = 0.01
"""Share of a checkpoint's weights from which on unlisted ones are worth a remark."""


class Row(Protocol):
    """A row of the table of layers, as far as it matters here."""

    @property
    def name(self) -> str:
        """Of the layer."""

    @property
    def block(self) -> int | None:
        """Index of its block; None outside of blocks."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The tensors that it is made of."""

    @property
    def scales(self) -> tuple[str, ...]:
        """Their scales."""


def check_blocks(
    checkpoint: Checkpoint,
    body: str,
    blocks: Mapping[int, Sequence[TensorInfo]],
    with_layers: Iterable[int],
) -> None:
    """Refuse blocks that hold weights, none of which is a layer.

    Args:
        checkpoint: for messages.
        body: the name of the list of blocks.
        blocks: tensors by block.
        with_layers: the blocks that have layers.

    Raises:
        CheckpointError: names a block and what it holds instead.
    """
    for index in sorted(set(blocks) - set(with_layers)):
        weights = [tensor for tensor in blocks[index] if _is_matrix(tensor)]
        if weights:
            stored = [f"{t.name!r} ({t.dtype} {list(t.shape)})" for t in weights]
            raise CheckpointError(
                f"{checkpoint.folder}: no weight of {body}.{index} is one that qtui knows as a "
                f"layer; it holds {few(stored)}: if another tool quantised this checkpoint, open "
                "the one it was made from"
            )


def remarks(checkpoint: Checkpoint, rows: Sequence[Row]) -> list[str]:
    """What the table of layers does not show, as sentences.

    Args:
        checkpoint: whose layers they are.
        rows: its layers.
    """
    found = [
        adapter_note(checkpoint.folder),
        plain_note(checkpoint),
        _unlisted(checkpoint, rows),
        *_lacking(rows),
    ]
    return [sentence for sentence in found if sentence]


def _is_matrix(tensor: TensorInfo) -> bool:
    words = tensor.name.removesuffix(".weight").split(".")
    return len(tensor.shape) > 1 and not any(_EXPECTED.search(word) for word in words)


def _unlisted(checkpoint: Checkpoint, rows: Sequence[Row]) -> str:
    """The tensors that are neither layers nor known others, if they are many or hold codes."""
    used = {name for row in rows for name in (*row.parts, *row.scales)}
    others = [
        tensor
        for name, tensor in checkpoint.tensors.items()
        if name not in used
        and _is_matrix(tensor)
        and not any(_NOT_LANGUAGE.search(word) for word in name.split("."))
    ]
    weights, total = (
        sum(t.elements for t in others),
        sum(t.elements for t in checkpoint.tensors.values()),
    )
    codes = [tensor for tensor in others if "int" in tensor.dtype]
    if weights < _SOME * total and not codes:
        return ""
    named = list(dict.fromkeys(_numberless(t.name) for t in (codes or others)))
    return (
        f"{len(others)} tensors, {weights / total:.1%} of all numbers in the files, are not layers "
        f"that qtui knows by their names, and are not in the table: {few(named)}"
    )


def _numberless(name: str) -> str:
    return re.sub(r"\.[0-9]+\.", ".*.", name)


def _lacking(rows: Sequence[Row]) -> list[str]:
    """Blocks that lack layers which all others like it have, and gaps between blocks."""
    kinds: dict[int, set[str]] = {}
    for row in rows:
        if row.block is not None:
            path = row.name.partition(f".{row.block}.")[2]
            kinds.setdefault(row.block, set()).add(path)
    if not kinds:
        return []
    found = []
    if gaps := sorted(set(range(max(kinds))) - set(kinds)):
        found.append(f"block {few([str(i) for i in gaps])} of {max(kinds) + 1} has no layers")
    shapes = Counter(frozenset(each) for each in kinds.values())
    for block, has in sorted(kinds.items()):
        if shapes[frozenset(has)] > 1:
            continue
        more = [other - has for other, count in shapes.items() if count > 1 and other > has]
        if more:
            fewest = min(more, key=len)
            found.append(
                f"block {block} lacks {few(sorted(fewest))}, which other blocks have; unless the "
                "architecture has it so, a file is missing"
            )
    return found
