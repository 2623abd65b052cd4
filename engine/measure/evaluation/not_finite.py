"""Why the unchanged model's logits are not finite: the first value of a forward that is not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import EngineError
from engine.model.network import Network


class NotFiniteError(EngineError):
    """A figure would not be finite; the message names tensor, token and value."""


class _Found(NamedTuple):
    tensor: str
    """Such as ``the output of model.layers.0.mlp.down_proj``."""
    position: int
    value: float
    exact: float | None
    """What the value would be in float32, if the module is linear."""


def check_finite(network: Network, ids: Tensor, nll: Tensor) -> None:
    """Raise if the NLL of a window is not finite.

    Args:
        network: at its reference weights.
        ids: ``[windows, seq_len]``.
        nll: of each window, ``[windows]``.

    Raises:
        NotFiniteError: it is not.
    """
    bad = (~torch.isfinite(nll)).nonzero().flatten().tolist()
    if bad:
        raise NotFiniteError(_sentence(network, ids[bad[0] : bad[0] + 1]))


def _sentence(network: Network, ids: Tensor) -> str:
    dtype = str(network.dtype).removeprefix("torch.")
    other = "--dtype bf16 or fp32" if network.dtype == torch.float16 else "--dtype fp32"
    found = first_not_finite(network, ids)
    if found is None:
        return f"the model's logits in {dtype} are not finite: try {other}"
    token = int(ids[0, found.position])
    at = f"token {token}{_text(network, token)} (position {found.position} of its window)"
    limit = torch.finfo(network.dtype).max
    what = f"{found.value}"
    if found.exact is not None and abs(found.exact) > limit:
        what = f"{found.exact:.6g}"
    return (
        f"{found.tensor} is {what} at {at}, and {dtype} ends at {limit:.6g}: no figure of this "
        f"text would be finite; use {other}"
    )


def _text(network: Network, token: int) -> str:
    from engine.model.load import load_tokenizer

    with contextlib.suppress(EngineError):
        tokenizer = load_tokenizer(Path(network.config.name_or_path))
        return f" {tokenizer.decode([token])!r}"
    return ""


@torch.no_grad()
def first_not_finite(network: Network, ids: Tensor) -> _Found | None:
    """The first input or output of a module, in the order they run, that is not finite.

    Args:
        network: at its reference weights.
        ids: one window, ``[1, seq_len]``.
    """
    found: list[_Found] = []
    hooks = []
    for name, module in network.model.named_modules():
        if not name:
            continue
        hooks.append(module.register_forward_pre_hook(_before(name, found)))
        hooks.append(module.register_forward_hook(_after(name, found)))
    stop, network.should_stop = network.should_stop, None  # an error is worth one forward
    try:
        network.run(ids, None)
    finally:
        network.should_stop = stop
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _before(name: str, found: list[_Found]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not found and args and (at := _place(args[0])) is not None:
            found.append(_Found(f"the input of {name}", *at, None))

    return hook


def _after(name: str, found: list[_Found]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if found:
            return
        first = output[0] if isinstance(output, tuple) and output else output
        if (at := _place(first)) is None:
            return
        found.append(_Found(f"the output of {name}", *at, _exact(module, args, at[0])))

    return hook


def _place(tensor: Any) -> tuple[int, float] | None:
    """The first position ``[windows, positions, …]`` with a value that is not finite, and it."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dim() < 3:
        return None
    bad = ~torch.isfinite(tensor[0])
    if not bool(bad.any()):
        return None
    position = int(bad.flatten(1).any(-1).nonzero()[0])
    return position, float(tensor[0, position][bad[position]].flatten()[0])


def _exact(module: nn.Module, args: tuple[Any, ...], position: int) -> float | None:
    """The largest value that a linear module gives there in float32."""
    if not isinstance(module, nn.Linear) or not args:
        return None
    bias = None if module.bias is None else module.bias.float()
    values = functional.linear(args[0][0, position].float(), module.weight.float(), bias)
    return float(values[values.abs().argmax()])
