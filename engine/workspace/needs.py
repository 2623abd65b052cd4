"""What a job needs at least, beside what is open, from the sizes of its layers and micro-batches.

Caches are not in it: they take what is left, unless a budget is set, which then counts as a whole.
A `engine.service.jobs.JobSpec` names one of these functions; the engine compares before the job's
first step, and says so where it does not fit. Every function is called on the job's own thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from engine.formats.grammar import parse_format
from engine.formats.storage import stored_bits
from engine.service.jobs import Context, Need
from engine.workspace.loaded import Loaded
from engine.workspace.opened import Opened
from engine.workspace.workspace import Workspace

SINGLE = 4
"""Bytes of a number in the arithmetic of formats."""
Memory = Callable[[Context[Workspace], Any], Need | None]


def of_weights(context: Context[Workspace], command: object) -> Need | None:
    """A weight, what it becomes, and their difference, one layer after the other."""
    opened = context.workspace.need(Opened)
    needed = 3 * SINGLE * _largest(row.shape for row in opened.rows.values())
    return _need(needed, "cpu")


def of_passes(streams: int = 1, *, backward: bool = False, layers: int = 2) -> Memory:
    """Micro-batches that cross the model, and weights that are made meanwhile.

    Args:
        streams: micro-batches at a time, such as reference and candidate.
        backward: whether a block's activations are kept for its gradients.
        layers: weights of the largest layer in single precision.
    """

    def needed(context: Context[Workspace], command: object) -> Need | None:
        loaded = context.workspace.need(Loaded)
        whole = streams * _micro_batch(loaded, backward=backward)
        whole += layers * SINGLE * _largest(_shapes(loaded))
        return _of_model(loaded, whole + _recipe(loaded, context.recipe))

    return needed


def of_second_model(context: Context[Workspace], command: Any) -> Need | None:
    """Another model of the same size; only its largest layer where it is not run."""
    if not command.score:
        return of_weights(context, command)
    loaded = context.workspace.need(Loaded)
    model = sum(map(math.prod, _shapes(loaded))) * loaded.network.dtype.itemsize
    if loaded.network.streamed:  # then the other one is streamed too
        model = min(model, loaded.network.weights_in_memory)
    return _of_model(loaded, model + 2 * _micro_batch(loaded), "--no-score")


def of_either(needs_model: Callable[[Any], bool], memory: Memory) -> Memory:
    """One need for commands that run the model, and `of_weights` for those that read files."""
    return lambda context, command: (memory if needs_model(command) else of_weights)(
        context, command
    )


def _need(needed: int, device: str, *change: str) -> Need:
    from engine.model import memory

    return Need(needed, memory.memory_free(device), device, change)


def _of_model(loaded: Loaded, needed: int, *change: str) -> Need:
    budget = loaded.beside() if loaded.settings.memory_budget else 0
    ways = (*change, "a smaller --seq-len", *["a smaller --memory-budget"] * bool(budget))
    return _need(needed + budget, str(loaded.network.device), *ways, "another --device")


def _micro_batch(loaded: Loaded, *, backward: bool = False) -> int:
    """Bytes of states and of the widest layer's input and output; of all in a block, to go back."""
    seq_len = loaded.windows.seq_len
    tokens = max(1, loaded.batch_tokens // seq_len) * seq_len
    blocks: dict[int, list[int]] = {}
    for layer in loaded.network.layers.values():
        if layer.block is not None and layer.role == "linear":
            blocks.setdefault(layer.block, []).append(sum(layer.shape))
    together: Callable[[list[int]], int] = sum if backward else max
    widest = max(map(together, blocks.values()), default=0)
    return tokens * (2 * loaded.network.state_size + widest) * loaded.network.dtype.itemsize


def _recipe(loaded: Loaded, recipe: Mapping[str, str]) -> int:
    """Bytes of a recipe's weights, kept beside the model as they are stored; none if blocks are
    streamed, since they are made again as a block runs."""
    if loaded.network.streamed:
        return 0
    layers = loaded.network.layers
    return sum(
        stored_bits(parse_format(text), layers[name].shape) // 8
        for name, text in recipe.items()
        if name in layers
    )


def _shapes(loaded: Loaded) -> list[tuple[int, ...]]:
    return [tuple(layer.shape) for layer in loaded.network.layers.values()]


def _largest(shapes: Iterable[tuple[int, ...]]) -> int:
    """Numbers in the largest weight; of fused experts, in one of them."""
    return max((math.prod(shape[-2:]) for shape in shapes), default=0)
