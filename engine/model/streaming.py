"""Builds a model whose blocks are streamed: everything else is loaded, blocks are read as they run.

A model is streamed where it does not fit. Not every one can be: its blocks have to be independent
of one another but for the hidden state, and no two may share a weight.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from engine.checkpoint import Checkpoint
from engine.model.block_reader import BlockReader, Mend
from engine.model.blocks import find_blocks
from engine.model.checkpoint_tensors import CheckpointTensors
from engine.model.names import join_names
from engine.model.quiet import quiet
from engine.model.streamed_blocks import StreamedBlocks, without_values
from engine.model.torch_internals import own_parameters
from engine.model.transformers_internals import fill, reading_no_values

RESIDENT = 7 / 8
"""Of a budget, what the weights of a resident model may take; states and estimates need the rest.
"""


class CannotStream(Exception):
    """Why the blocks of this model cannot be read one by one, as the end of a sentence."""


def fits(needed: int, free: int, budget: int | None) -> bool:
    """Whether a model is loaded as a whole.

    Args:
        needed: bytes of its weights.
        free: bytes free on its device.
        budget: that a checkpoint may take there, if it is set.
    """
    return needed <= free and (budget is None or needed <= budget * RESIDENT)


def without_weights(load: Callable[[dict[str, Any]], Any], stored: CheckpointTensors) -> Any:
    """What ``load`` gives of the checkpoint's tensors, none of which is read.

    Args:
        load: builds a model from tensors by their names on disk.
        stored: the tensors.
    """
    named = {
        name: torch.empty(tensor.shape, dtype=stored.dtype, device="meta")
        for name, tensor in stored.tensors.items()
    }
    with reading_no_values():
        return load(named)


def refuse_unstreamable(model: Any, checkpoint: Checkpoint, stored: CheckpointTensors) -> None:
    """Refuse a model whose blocks cannot be read one by one, as far as shows without running it.

    Args:
        model: as `without_weights` gives it.
        checkpoint: that it is read from.
        stored: its tensors.

    Raises:
        CannotStream: blocks share weights, or have some that are no tensors of the checkpoint.
    """
    if checkpoint.pickled and not all(tensor.start for tensor in checkpoint.tensors.values()):
        raise CannotStream("of a .bin file every tensor is read with the whole file")
    name, modules = find_blocks(model)
    if len(modules) < 2:
        raise CannotStream("it has one block only")
    _refuse_shared(model, name, modules)
    sources = join_names(model, stored.tensors)
    for key in (key for of_block in _keys(model) for key in of_block):
        if key not in sources:
            raise CannotStream(f"{key} is not made from tensors of the checkpoint")


def least_memory(model: Any) -> int:
    """Bytes of weights that are in memory at a time: those outside of blocks, and two blocks."""
    blocks = [sum(map(_bytes, block.parameters())) for block in find_blocks(model)[1]]
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(head, "weight", None) is embedding.weight  # it gets a weight of its own
    whole = sum(map(_bytes, model.parameters())) + tied * _bytes(embedding.weight)
    return whole - sum(blocks) + sum(sorted(blocks)[-2:])


def load_around_blocks(
    model: Any, checkpoint: Checkpoint, stored: CheckpointTensors, device: str, mend: Mend
) -> Callable[[list[nn.Module]], StreamedBlocks]:
    """Load everything but the parameters of blocks into a model without values.

    Args:
        model: as `without_weights` gives it.
        checkpoint: that it is read from.
        stored: its tensors.
        device: that it is to be on.
        mend: see `BlockReader`.

    Returns:
        What makes the source of its blocks.

    Raises:
        CannotStream: a tensor belongs to a block and to what is outside.
    """
    modules = find_blocks(model)[1]
    keys, sources = _keys(model), join_names(model, stored.tensors)
    skeleton = copy.deepcopy(model)
    inside = {key for of_block in keys for key in of_block}
    late = {source for key in inside for source in sources[key]}
    early = {source for key, made in sources.items() if key not in inside for source in made}
    if both := sorted(late & early):
        raise CannotStream(f"{both[0]} is a tensor of a block and of what is outside")
    with quiet():
        fill(model, {source: stored.tensors[source] for source in sorted(early)})
        # As loading a whole model does: what is on disk with other values is not tied.
        named = model.named_parameters(remove_duplicate=False)
        absent = {key for key, each in named if each.is_meta and key not in inside}
        model.tie_weights(missing_keys=absent, recompute_mapping=False)
    for module in modules:
        _empty(module, device)
    model.to(device)
    files = {info.file for info in checkpoint.tensors.values()}
    reader = BlockReader(skeleton, sources, stored.tensors, files, mend)
    return lambda found: StreamedBlocks(found, keys, reader)


def _keys(model: Any) -> list[list[str]]:
    """Of every block, the keys of its parameters."""
    name, modules = find_blocks(model)
    return [
        [f"{name}.{k}.{each}" for each, _ in module.named_parameters()]
        for k, module in enumerate(modules)
    ]


def _bytes(parameter: torch.Tensor) -> int:
    return parameter.numel() * parameter.element_size()


def _refuse_shared(model: Any, name: str, modules: Sequence[nn.Module]) -> None:
    places = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for k, module in enumerate(modules):
        for each, parameter in module.named_parameters():
            if places[id(parameter)] > 1:
                raise CannotStream(f"{name}.{k}.{each} is used in several places")


def _empty(block: nn.Module, device: str) -> None:
    """Give the parameters of a block no values, on the device."""
    for module in block.modules():
        own = own_parameters(module)
        for name, parameter in own.items():
            if parameter is not None:
                hollow = torch.empty((), dtype=parameter.dtype, device=device)
                shaped = without_values(hollow.expand(parameter.shape))
                own[name] = nn.Parameter(shaped, requires_grad=False)
