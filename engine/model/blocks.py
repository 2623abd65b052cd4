"""The decoder's blocks, and the inputs and outputs of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from engine.checkpoint import is_other_sense
from engine.errors import CheckpointError

Forward = Callable[..., Any]


class Reached(Exception):
    """Ends a forward once the wanted state is recorded."""


def decoder_of(model: Any) -> nn.Module:
    """The part of a model that is its language model, as far as it says so; else the whole."""
    found: nn.Module = model.get_decoder()  # a hint: some return themselves, one its head
    whole: nn.Module = model
    return found if any(isinstance(each, nn.ModuleList) for each in found.modules()) else whole


def find_blocks(model: Any) -> tuple[str, list[nn.Module]]:
    """The shallowest ModuleList of the decoder that holds most parameters, and its name.

    What sees or hears may be inside the decoder and be larger: it is told by its name, as on disk.

    Raises:
        CheckpointError: the model has no such list, or one module appears in it twice.
    """
    lists = [
        (name, module)
        for name, module in decoder_of(model).named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and not is_other_sense(name.split("."))
    ]
    if not lists:
        raise CheckpointError(f"{type(model).__name__} has no list of blocks, so it cannot be read")
    best = max(
        lists, key=lambda one: (sum(p.numel() for p in one[1].parameters()), -one[0].count("."))
    )[1]
    if len({id(block) for block in best}) != len(best):
        raise CheckpointError(f"{type(model).__name__} runs one block several times; not supported")
    name = next(name for name, module in model.named_modules() if module is best)
    return name, list(best)


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden state a block was called with."""
    hidden = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden, Tensor):
        raise CheckpointError("a block is called with no hidden state as its first argument")
    return hidden


def with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with another hidden state."""
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def split_output(output: Any) -> tuple[Tensor, tuple[Any, ...] | None]:
    """The hidden state a block returned, and its other outputs (None: it returned a tensor)."""
    if isinstance(output, Tensor):
        return output, None
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0], tuple(output[1:])
    raise CheckpointError(f"a block returned {type(output).__name__}; a hidden state is expected")


def join_output(hidden: Tensor, beside: tuple[Any, ...] | None) -> Any:
    """The inverse of :func:`split_output`."""
    return hidden if beside is None else (hidden, *beside)


@contextmanager
def patched(blocks: Sequence[nn.Module], forwards: Sequence[Forward]) -> Iterator[None]:
    """Inside, block *i* runs ``forwards[i]``; every exit restores the previous forwards."""
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.__dict__["forward"] = forward
        yield
    finally:
        for block, forward_before in zip(blocks, before, strict=True):
            if forward_before is None:
                block.__dict__.pop("forward", None)
            else:
                block.__dict__["forward"] = forward_before
