"""Everything we use of torch beyond its public interface, with what it is used for.

torch may rename any of it: `tests/model/test_internals.py` names each one and what stops working
without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to in place: shows that a weight or a state was changed."""
    return tensor._version


def leaves_of(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that require gradients at the beginning of a tensor's graph."""
    open_nodes, seen = [tensor.grad_fn], set()
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        open_nodes += [before for before, _ in node.next_functions]


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """A module's own parameters, without registration: where a weight is swapped for another."""
    return module._parameters


def hook_tables(module: nn.Module) -> tuple[Mapping[int, object], ...]:
    """A module's hooks: whether one was left behind."""
    return (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )


def multiplies_bfloat16() -> bool:
    """Whether torch multiplies bfloat16 faster than float32 here: by AMX or AVX-512 BF16."""
    asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(found() for name in asked if (found := getattr(torch.cpu, name, None)) is not None)
