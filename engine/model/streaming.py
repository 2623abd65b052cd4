"""Builds a model whose blocks are streamed: everything else is loaded, blocks are read as they run.

A model is streamed where it does not fit. Not every one can be: its blocks have to be independent
of one another but for the hidden state, and no two may share a weight.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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


def least_memory(model: Any, *, outside: bool = False) -> int:
    """Bytes of weights that are in memory at a time: those outside of blocks, and two blocks.

    Args:
        model: as `without_weights` gives it.
        outside: whether embedding and head are read like blocks, each alone.
    """
    blocks = [sum(map(_bytes, block.parameters())) for block in find_blocks(model)[1]]
    head, embedding = _head(model), model.get_input_embeddings()
    tied = getattr(head, "weight", None) is embedding.weight  # it gets a weight of its own
    whole = sum(map(_bytes, model.parameters())) + tied * _bytes(embedding.weight)
    two = sum(sorted(blocks)[-2:])
    if not outside:
        return whole - sum(blocks) + two
    tables = [_bytes(embedding.weight), _bytes(head.weight)]
    return whole - sum(blocks) - sum(tables) + max(two, *tables)


def load_around_blocks(
    model: Any,
    checkpoint: Checkpoint,
    stored: CheckpointTensors,
    device: str,
    mend: Mend,
    *,
    outside: bool = False,
) -> Callable[[list[nn.Module]], StreamedBlocks]:
    """Load everything but the parameters of blocks into a model without values.

    Args:
        model: as `without_weights` gives it.
        checkpoint: that it is read from.
        stored: its tensors.
        device: that it is to be on.
        mend: see `BlockReader`.
        outside: whether embedding and head are not loaded either, if they can be read by
            themselves. A head that is tied gets a weight of its own then.

    Returns:
        What makes the source of its blocks.

    Raises:
        CannotStream: a tensor belongs to a block and to what is outside.
    """
    modules = find_blocks(model)[1]
    keys, sources = _keys(model), join_names(model, stored.tensors)
    skeleton = copy.deepcopy(model)
    inside = {key for of_block in keys for key in of_block}
    around = _around(model, sources) if outside else {}
    inside |= set(around.values())
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
    weights = {}
    for k, module in ((-1, model.get_input_embeddings()), (len(modules), _head(model))):
        if k in around:
            own_parameters(module)["weight"] = _hollow(module.weight, device)
            weights[k] = around[k], module.weight
    if around:
        never_tied(model)
    model.to(device)
    files = {info.file for info in checkpoint.tensors.values()}
    reader = BlockReader(skeleton, sources, stored.tensors, files, mend)
    return lambda found: StreamedBlocks(found, keys, reader, weights)


def is_tied(model: Any) -> bool:
    """Whether head and embedding have one weight, or are to have one if they are equal."""
    own = getattr(_head(model), "weight", None)
    if own is not None and own is model.get_input_embeddings().weight:
        return True
    return bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))


def never_tied(model: Any) -> None:
    """Have nothing tie head and embedding again."""
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def _head(model: Any) -> Any:
    return model.get_output_embeddings()


def reads_around(model: Any, stored: CheckpointTensors) -> bool:
    """Whether embedding and head can be read by themselves."""
    return bool(_around(model, join_names(model, stored.tensors)))


def _around(model: Any, sources: Mapping[str, tuple[str, ...]]) -> dict[int, str]:
    """The keys that weights of embedding (-1) and head (the number of blocks) are read by; nothing
    if one of them is more than a table, or whether they are tied depends on their values."""
    embedding, head = model.get_input_embeddings(), _head(model)
    if not isinstance(embedding, nn.Embedding) or type(head) is not nn.Linear:
        return {}
    named = {id(module): name for name, module in model.named_modules()}
    keys = [f"{named[id(module)]}.weight" for module in (embedding, head)]
    weights = (embedding.weight, head.weight)
    every = model.named_parameters(remove_duplicate=False)
    if any(name not in keys and any(p is each for each in weights) for name, p in every):
        return {}
    if is_tied(model):
        if keys[1] in sources:
            return {}
        keys[1] = keys[0]
    if any(key not in sources for key in keys):
        return {}
    return {-1: keys[0], len(find_blocks(model)[1]): keys[1]}


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
                own[name] = _hollow(parameter, device)


def _hollow(parameter: torch.Tensor, device: str) -> nn.Parameter:
    hollow = torch.empty((), dtype=parameter.dtype, device=device)
    return nn.Parameter(without_values(hollow.expand(parameter.shape)), requires_grad=False)
