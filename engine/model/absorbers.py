"""Finds what absorbs a scale per channel: by the identity of tensors, verified numerically.

One block runs on a few tokens. A norm is a candidate where the tensor that it returns is the
tensor that the layers are given. A projection is one where the layers' input is its output channel
by channel; which channel is which is read off by scaling every output channel by digits of its own
number. Either is accepted only if a scale on its outputs reaches exactly the inputs of these
layers, and with weights that undo it changes nothing else. Scales are powers of two, which no
floating-point product rounds: the comparison is exact but for kernels that sum in another order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.model.inputs import why_not_gathered, why_unseen
from engine.model.network import Network
from engine.model.torch_internals import own_parameters
from engine.model.trial import ROUNDING_32, Trace, Trial


@dataclass(frozen=True, eq=False)
class Found:
    """What was found for layers that share an input."""

    layers: tuple[str, ...]
    absorber: str = ""
    why_not: str = ""
    norm: float | None = None
    """Of a norm: what it adds to its weight."""
    channels: Tensor | None = None
    """Of a layer: its output channel for each input channel."""
    source: tuple[str, Tensor] | None = None
    """The layer whose output channels make up the input, even if it cannot absorb a scale."""


def block_groups(
    network: Network,
    ids: Tensor,
    block: int,
    state: Tensor,
    before: Mapping[int, Sequence[Found]],
) -> list[Found]:
    """The groups of one block, or of the head for ``block == n_blocks``.

    Args:
        before: what was found in other blocks. Layers of the same place are looked up there: the
            projection that fed them in another block is the only one that is tried here.

    Raises:
        Preempted: ``should_stop`` said so.
    """
    run = Trial(network, ids, block, state)
    with torch.no_grad(), network.at_hand([block]):
        seen = run.trace(survey=True)
        groups: list[Found] = []
        for layers in _together(run, seen):
            groups.append(_absorber(run, seen, layers, before))
    unseen = [n for n in run.names if n not in seen.inputs]
    groups += [
        Found((name,), why_not=f"{name} was given nothing on a few tokens") for name in unseen
    ]
    for name, layer in network.layers.items():
        why = why_unseen(network, name) or why_not_gathered(network, name)
        if layer.start == block and why:
            groups.append(Found((name,), why_not=why))
    return groups


def _together(run: Trial, seen: Trace) -> list[tuple[str, ...]]:
    """Layers by the tensor they are given, in the model's order."""
    groups: dict[object, list[str]] = {}
    for name in run.names:
        if name in seen.inputs:
            groups.setdefault(seen.keys[name], []).append(name)
    return [tuple(names) for names in groups.values()]


def _absorber(
    run: Trial,
    seen: Trace,
    layers: tuple[str, ...],
    before: Mapping[int, Sequence[Found]],
) -> Found:
    key = seen.keys[layers[0]]
    if key in seen.makers:
        return _norm(run, seen, layers, seen.makers[key])
    why, source = f"nothing before {layers[0]} makes its input channel by channel", None
    for candidate, known in _candidates(run, seen, layers, before):
        channels = _channels(run, seen, layers, candidate) if known is None else known
        if channels is None or not _reads(run, seen, layers, candidate, channels):
            continue
        source, used = (candidate, channels), len(set(channels.tolist()))
        if used < len(channels):
            why = (
                f"{candidate} makes this input, but each of its channels is read "
                f"{len(channels) // used} times and cannot have a scale for each"
            )
            continue
        why = _leak(run, seen, layers, candidate, channels)
        if not why:
            return Found(layers, candidate, channels=channels, source=source)
    return Found(layers, why_not=why, source=source)


def _candidates(
    run: Trial,
    seen: Trace,
    layers: tuple[str, ...],
    before: Mapping[int, Sequence[Found]],
) -> list[tuple[str, Tensor | None]]:
    """Layers that run before these, the latest first, with their channels where they are known."""
    network, place = run.network, [_in_block(run.network, name) for name in layers]
    order = list(seen.inputs)
    earlier = order[: min(order.index(name) for name in layers)]
    for found in (one for groups in before.values() for one in groups):
        if [_in_block(network, name) for name in found.layers] == place:
            if found.source is None:
                return []
            source, channels = found.source
            same = [n for n in earlier if _in_block(network, n) == _in_block(network, source)]
            return [(name, channels) for name in same]
    width = network.layers[layers[0]].shape[-1]
    outputs = {name: network.layers[name].shape[-2] for name in earlier}
    fit = [n for n in reversed(earlier) if outputs[n] >= width or width % outputs[n] == 0]
    return [(name, None) for name in fit]


def _in_block(network: Network, name: str) -> str:
    """Its name without the block's index."""
    layer = network.layers[name]
    return layer.module.replace(f".{layer.block}.", ".", 1)


def _channels(run: Trial, seen: Trace, layers: tuple[str, ...], candidate: str) -> Tensor | None:
    """The candidate's output channel that each input channel is; None where it is not one."""
    x = seen.inputs[layers[0]]
    for part in _parts(run.network, candidate, x.shape[-1]):
        found = _part_read(run, x, layers[0], candidate, part.to(x.device))
        if found is not None:
            return found
    return None


def _parts(network: Network, candidate: str, width: int) -> list[Tensor]:
    """The output channels that may be the input: all, or what can lie in a fused tensor.

    The second half, of gate and up; every other one; the last of q, k and v, or of each head.
    """
    outputs = network.layers[candidate].shape[-2]
    numbers = torch.arange(outputs)
    if outputs <= width:
        return [numbers]
    parts = []
    if outputs == 2 * width:
        parts += [numbers[width:], numbers[:width], numbers[1::2], numbers[::2]]
    if (outputs - width) % 2 == 0:
        parts.append(numbers[-((outputs - width) // 2) :])  # v after q and k
    config = network.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or width
    for name in ("num_attention_heads", "num_key_value_heads", "num_kv_heads"):
        split = getattr(config, name, None)
        if split and outputs % split == 0 and width % heads == 0:
            parts.append(numbers.view(split, -1)[:, -(width // heads) :].reshape(-1))
    return parts


def _part_read(run: Trial, x: Tensor, layer: str, candidate: str, part: Tensor) -> Tensor | None:
    """Which channel of ``part`` each channel of a layer's input ``x`` is, as channels of all.

    Channel ``part[j]`` is multiplied by ``2^−d`` for every digit ``d`` of ``j + 1`` in turn; an
    input that none of them changes is made of something else. One that is 0 on all tokens tells
    nothing: it follows the others where these are in a row.
    """
    base = 4 if run.network.dtype == torch.float16 else 16  # 2^−15 is none of its numbers
    largest, row = x.abs().max(dim=0)
    alive = largest > 0
    numbers = torch.arange(1, len(part) + 1, device=x.device)
    found = torch.zeros(x.shape[-1], dtype=torch.int64, device=x.device)
    factor = torch.ones(run.network.layers[candidate].shape[-2], device=x.device)
    place = 1
    while place <= len(part):
        factor[part] = 2.0 ** -((numbers // place) % base)
        changed = run.trace(scaled=(candidate, factor)).inputs[layer]
        if changed.shape != x.shape:
            return None
        ratio = (changed.gather(0, row[None]) / x.gather(0, row[None]))[0].float()
        digit = torch.where(alive, -ratio.log2(), 0).nan_to_num(-1, -1, -1).round()
        off = (changed - x * 2.0**-digit).abs() > run.rounding * largest
        if bool((digit < 0).any() | (digit >= base).any() | off.any()):
            return None
        if place == 1 and not bool(digit.any()):
            return None  # it does not depend on the candidate
        found += digit.long() * place
        place *= base
    found -= 1
    if not bool(alive.all()):
        ahead = (found - torch.arange(len(found), device=x.device))[alive]
        if not bool((ahead == ahead[:1]).all()):
            return None
        found = torch.arange(len(found), device=x.device) + ahead[0]
    if int(found.min()) < 0 or int(found.max()) >= len(part):
        return None
    return part[found]


def _scale(width: int, like: Tensor) -> Tensor:
    """Powers of two, none of them 1, ``[width]``."""
    generator = torch.Generator().manual_seed(width)
    exponent = torch.tensor([-2.0, -1.0, 1.0, 2.0])
    chosen = exponent[torch.randint(0, 4, (width,), generator=generator)]
    return (2.0**chosen).to(like.device)


def _reads(
    run: Trial, seen: Trace, layers: tuple[str, ...], candidate: str, channels: Tensor
) -> bool:
    """Whether a scale on the candidate's outputs arrives in the inputs, channel by channel."""
    x = seen.inputs[layers[0]]
    random = 1 / _scale(run.network.layers[candidate].shape[-2], x)
    factor = torch.ones_like(random)
    factor[channels] = random[channels]
    changed = run.trace(scaled=(candidate, factor)).inputs[layers[0]]
    return run.same(changed, x * factor[channels])


def _leak(
    run: Trial, seen: Trace, layers: tuple[str, ...], absorber: str, channels: Tensor | None
) -> str:
    """What else changes when the absorber takes a scale and the layers undo it; empty: nothing."""
    network, x = run.network, seen.inputs[layers[0]]
    scale = _scale(x.shape[-1], x)
    factor = 1 / scale
    if channels is not None:
        factor = torch.ones(network.layers[absorber].shape[-2], device=x.device)
        factor[channels] = 1 / scale
    whole = not network.resumable  # what a block leaves to later ones is not in its output
    undone = dict.fromkeys(layers, scale)
    after = run.trace(scaled=(absorber, factor), undone=undone, whole=whole)
    same = run.same(after.output, run.output(seen, whole=whole))
    for name, inputs in seen.inputs.items():
        same = same and run.same(after.inputs[name], inputs / scale if name in layers else inputs)
    return "" if same else f"what {absorber} gives is read elsewhere too"


def _norm(run: Trial, seen: Trace, layers: tuple[str, ...], norm: str) -> Found:
    module, width = run.network.model.get_submodule(norm), seen.inputs[layers[0]].shape[-1]
    readers = seen.readers.get(seen.keys[layers[0]], ())
    others = [path for path in readers if path != norm]
    unit = None
    if others:
        why = f"{others[0]}, which is no layer, reads what {norm} gives too"
    elif run.network.shares(module):
        why = f"other blocks compute with the weight of {norm} too"
    elif module.weight.numel() != width:
        why = f"{norm} has {module.weight.numel()} weights for {width} channels"
    elif (unit := _unit(module, *seen.calls[norm])) is None:
        why = f"{norm} does not multiply by its weight channel by channel"
    else:
        why = _leak(run, seen, layers, norm, None)
    return Found(layers, why_not=why) if why else Found(layers, norm, norm=unit)


def _unit(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    """What a norm adds to its weight before it multiplies, 0 or 1; None where it does not.

    Read off its outputs for weights of 0 and of 1 with no bias, in float32, and checked on its own.
    """
    own = {name: one.float() for name, one in own_parameters(module).items() if one is not None}
    none = {name: torch.zeros_like(one) for name, one in own.items()}
    given = tuple(map(_float, args)), {name: _float(one) for name, one in kwargs.items()}

    def output(parameters: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(module, parameters, *given)
        return result

    at_0, at_1 = output(none), output({**none, "weight": torch.ones_like(own["weight"])})
    normed, plain = at_1 - at_0, output(own)
    for unit in (0.0, 1.0):
        found = (own["weight"] + unit) * normed + own.get("bias", 0.0)
        if _close(at_0, unit * normed) and _close(plain, found):
            return unit
    return None


def _float(one: Any) -> Any:
    return one.float() if isinstance(one, Tensor) and one.is_floating_point() else one


def _close(a: Tensor, b: Tensor) -> bool:
    largest = max(float(a.abs().max()), float(b.abs().max()))
    return bool((a - b).abs().max() <= ROUNDING_32 * largest)
