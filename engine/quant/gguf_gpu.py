"""Searches of `engine.quant.gguf_search` on a GPU: by Triton where that gives the same bits.

Step by step a search starts thousands of small kernels. One of `engine.quant.gguf_triton` does the
same in one launch. Before it is used it searches a sample on the device at hand, which must come
out as step by step, every bit; if it does not, or there is no Triton, that is logged once and the
search goes on step by step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from engine.errors import first_line

log = logging.getLogger(__name__)
refused: list[str] = []
"""Why kernels were not used, in this process."""

Search: TypeAlias = Callable[..., tuple[Tensor, ...]]
"""Of ``x``, ``[n, blocks]``, and what else it is given; numbers as tuples."""


def searched(name: str, step_by_step: Search, x: Tensor, *given: Any) -> tuple[Tensor, ...]:
    """The result of a search, by the kernel of that name if it can be trusted here.

    Args:
        name: of the kernel.
        step_by_step: the search.
        x: float32 ``[n, blocks]``.
        given: what else it is called with.
    """
    if x.device.type == "cuda":
        fixed = tuple(each for each in given if not isinstance(each, Tensor))
        if (run := _trusted(name, step_by_step, x.device, len(x), fixed)) is not None:
            return run(
                x, *(each.contiguous() if isinstance(each, Tensor) else each for each in given)
            )
    return step_by_step(x, *given)


@cache
def _trusted(
    name: str, step_by_step: Search, device: torch.device, n: int, fixed: tuple[Any, ...]
) -> Search | None:
    """The kernel, if it gives what the search gives; otherwise None, which is logged."""
    if (kernels := _kernels()) is None:
        return None
    run: Search = getattr(kernels, name)
    x = _sample(n).to(device)
    weighted = "weights" in run.__annotations__
    given = ((x.abs() + x.abs().mean(0)), *fixed) if weighted else fixed
    try:
        found, expected = run(x, *given), step_by_step(x, *given)
    except Exception as error:  # noqa: BLE001 - a compiler refuses a device in many ways
        _say(f"{name} fails on {device} ({type(error).__name__}: {first_line(error)[:120]})")
        return None
    if not all(map(_same, found, expected)):
        _say(f"{name} does not give the same bits on {device}")
        return None
    return run


@cache
def _kernels() -> ModuleType | None:
    try:
        from engine.quant import gguf_triton
    except Exception as error:  # noqa: BLE001 - it is missing, or refuses this Python
        _say(f"{type(error).__name__}: {first_line(error)[:120]}")
        return None
    return gguf_triton


def _say(why: str) -> None:
    refused.append(why)
    log.warning(
        "Triton kernels are not used: %s; K-quants are searched for step by step, which takes many "
        "times as long",
        why,
    )


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether all bits are the same; one NaN is like another."""
    bits = one.view(torch.int32) == other.view(torch.int32)
    return bool((bits | (one.isnan() & other.isnan())).all())


def _sample(n: int, blocks: int = 256) -> Tensor:
    """float32 ``[n, blocks]`` that a search may stumble over."""
    normal = torch.randn(n, blocks, generator=torch.Generator().manual_seed(0))
    halves = (torch.arange(n * blocks) * 7 % 31 - 15).reshape(n, blocks) / 2
    parts = [
        normal * 0.05, normal.abs() + 0.01, -normal.abs(), normal**3 * 100, normal.clamp(min=0.0),
        halves, normal * 1e-6, normal * 1e-20, normal * 1e-38, normal * 1e30,
        torch.zeros(n, blocks), -torch.zeros(n, blocks), torch.full((n, blocks), 0.3),
        normal * torch.logspace(-30, 30, blocks), normal.to(torch.float16).float(),
    ]  # fmt: skip
    return torch.cat(parts, 1).contiguous()
