"""Checks on opening, on a few tokens: the model leaves its weights alone, gives the same logits
twice and sees no later tokens, where its layers act, and whether it can be resumed at every block.

A model with layers that do nothing on a few tokens is checked on a whole window as well: it may
pass something from block to block on longer texts alone, such as which tokens to attend to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.errors import CheckpointError, EngineError, is_out_of_memory
from engine.model.blocks import Forward, hidden_of, split_output
from engine.model.network import Network
from engine.model.torch_internals import version_of
from engine.model.uses import find_uses

TOKENS = 16
KEPT = 11
"""Of these, how many the text begins with that comes before a later one is changed."""
CANNOT_RUN = (LookupError, TypeError, AttributeError, ValueError, RuntimeError)
"""Errors of a model that needs what skipped blocks would have left behind."""


class Findings(NamedTuple):
    """Results of the check."""

    reason: str | None
    """Why the model cannot be resumed, or None."""
    head: bool
    """The output of the last block is all that the logits depend on."""
    chunks: bool
    """The model's forward computes logits for chosen positions only (``logits_to_keep``)."""


def check_resuming(network: Network) -> bool:
    """Whether resuming is exact; notes it in the network, with the reason where it is not.

    Notes also where layers act: see `engine.model.uses`.

    Raises:
        EngineError: the model's logits are not finite, or differ from one run to the next.
        CheckpointError: it writes into its own weights.
    """
    network.resumable = network.head_resumable = False
    found = try_resuming(network)
    find_uses(network, some_ids(network), CANNOT_RUN)
    note(network, found)
    return network.resumable


def check_on_window(network: Network, ids: Tensor) -> None:
    """The same check on a window, where some layers act on longer texts alone.

    Args:
        network: checked on a few tokens.
        ids: a window, ``[1, tokens]``.

    Raises:
        EngineError, CheckpointError: as `check_resuming`.
    """
    if not network.without_effect or ids.shape[1] <= TOKENS:
        return
    few, why = network.head_resumable and network.takes_positions, network.why_not_resumable
    found = try_resuming(network, ids)
    if found.reason is not None:
        found = found._replace(reason=f"on {ids.shape[1]} tokens {found.reason}")
    head, chunks = found.head and network.head_resumable, found.chunks and few
    note(network, found._replace(head=head, chunks=chunks))
    if why is not None:
        network.resumable, network.why_not_resumable = False, why


def note(network: Network, found: Findings) -> None:
    """Write the results into the network."""
    network.head_resumable, network.takes_positions = found.head, found.chunks
    network.resumable = found.reason is None
    network.why_not_resumable = (
        found.reason and f"{found.reason}: every measurement runs the whole model"
    )


def try_resuming(network: Network, ids: Tensor | None = None) -> Findings:
    """Runs each block alone on its recorded input, then the head alone on the last output.

    Block *k* alone, the others skipped, giving what it gave in the whole forward, for every *k*:
    by induction the forward resumed at any *k* equals the whole one. Equality is exact; on CUDA
    the difference of running the same twice is allowed. Costs about four forwards.

    Args:
        network: at rest.
        ids: ``[1, tokens]``; None takes a few.
    """
    ids = some_ids(network) if ids is None else ids
    whole, floor = _first_run(network, ids), 0.0
    refuse_not_finite(network, whole)
    if network.device.type != "cpu":
        floor = float((network.run(ids, None) - whole).abs().max())
    states, again, unfit = _record(network, ids)
    if network.device.type == "cpu" and not torch.equal(again, whole):
        raise EngineError(
            f"{type(network.model).__name__} gives other logits each time it runs the same text: "
            "no difference can be measured"
        )
    other, kept = other_tokens(network, ids)
    if kept < ids.shape[1]:
        refuse_unless_causal(network, network.run(other, None), whole, kept, floor)
    # What blocks leave behind is now of another text.
    if unfit is not None:
        return Findings(unfit, False, False)
    n = len(network.blocks)
    head = head_is_alone(network, ids, states[n], whole, floor)
    reason = _blocks_differ(network, ids, states, floor)
    if reason is None and not head:
        reason = "the head depends on more than the output of the last block"
    chunks = head and network.takes_positions
    chunks = chunks and chunk_is_right(network, ids, states[n], whole, floor)
    return Findings(reason, head, chunks)


def refuse_not_finite(network: Network, logits: Tensor) -> None:
    """Raise EngineError for logits that nothing can be measured with."""
    if bool(torch.isnan(logits).any() | torch.isposinf(logits).any()):
        raise EngineError(
            f"the model's logits are not finite in {str(network.dtype).removeprefix('torch.')}: "
            "choose --dtype bf16 or fp32"
        )


def _first_run(network: Network, ids: Tensor) -> Tensor:
    """The logits, from a model that is checked to leave its weights as they are."""
    before = [version_of(p) for p in network.model.parameters()]
    logits = network.run(ids, None)
    refuse_written(network, network.model, before)
    return logits


def refuse_written(network: Network, module: nn.Module, before: Sequence[int]) -> None:
    """Raise CheckpointError if parameters of a module are no longer of these versions."""
    for (name, parameter), version in zip(module.named_parameters(), before, strict=True):
        if version_of(parameter) != version:
            raise CheckpointError(
                f"{type(network.model).__name__} writes into its own weights when it runs "
                f"({name}), so it computes with others than are stored: such models cannot be "
                "measured"
            )


def other_tokens(network: Network, ids: Tensor) -> tuple[Tensor, int]:
    """The same tokens with others in place of the last ones, and how many are the same."""
    kept = ids.shape[1] * KEPT // TOKENS
    other = ids.clone()
    other[:, kept:] = (ids[:, kept:] + 1) % network.model.get_input_embeddings().weight.shape[0]
    return other, kept


def refuse_unless_causal(
    network: Network, logits: Tensor, whole: Tensor, kept: int, floor: float
) -> None:
    """Raise CheckpointError if other tokens at the end changed earlier logits.

    Rows of a product do not depend on one another, so that they are equal to the last bit; only
    experts multiply other numbers of tokens at once, which may round differently.

    Args:
        network: that was run.
        logits: of the tokens of which the first ``kept`` are the same.
        whole: the logits before.
        kept: see `other_tokens`.
        floor: difference of running the same twice.
    """
    experts = any(layer.role == "experts" for layer in network.layers.values())
    rounding = (16 if experts else 1) * torch.finfo(whole.dtype).eps * float(whole.abs().max())
    if kept and not same(logits[:, :kept], whole[:, :kept], floor + rounding):
        config = network.config.get_text_config()
        decoder = getattr(config, "is_decoder", None) is False
        raise CheckpointError(
            f"{type(network.model).__name__} is not causal: another token at position {kept} "
            "changes the logits of earlier positions, so it would be scored on text that it has "
            "already seen"
            + ('; if it was trained as a decoder, config.json needs "is_decoder": true' * decoder)
        )


def some_ids(network: Network) -> Tensor:
    """A few random token ids of the model, ``[1, tokens]``."""
    vocabulary = network.model.get_input_embeddings().weight.shape[0]
    longest = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    generator = torch.Generator().manual_seed(0)
    limit = longest if isinstance(longest, int) and longest > 0 else TOKENS  # XLNet says -1
    tokens = min(TOKENS, limit)
    return torch.randint(0, vocabulary, (1, tokens), generator=generator).to(network.device)


def _record(network: Network, ids: Tensor) -> tuple[list[Tensor], Tensor, str | None]:
    """Every block's input and the last one's output; the logits; what makes the blocks unfit.

    Keeps what each block returns beside the hidden state in ``network.beside``, but for tensors:
    they belong to this text only, and a model that makes use of them then fails the comparison.
    """
    states: list[Tensor] = []
    versions: list[int] = []
    n = len(network.blocks)

    def keep(state: Tensor) -> None:
        states.append(state)
        versions.append(version_of(state))

    own = network.resuming(0, None)

    def recording(i: int) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            keep(hidden_of(args, kwargs))
            output = own[i](*args, **kwargs)
            hidden, beside = split_output(output)
            network.beside[i] = beside and tuple(lasting(one) for one in beside)
            if i == n - 1:
                keep(hidden)
            return output

        return forward

    logits = network.run(ids, [recording(i) for i in range(n)])
    if states:
        network.state_size = max(state.numel() for state in states) // ids.numel()
    if len(states) != n + 1:
        return states, logits, f"{len(states) - 1} calls were seen of {n} blocks"
    for i, (state, version) in enumerate(zip(states, versions, strict=True)):
        if version_of(state) != version:
            return states, logits, f"the input of block {i} is written to after it was read"
    return states, logits, None


def head_is_alone(
    network: Network, ids: Tensor, state: Tensor, whole: Tensor, floor: float
) -> bool:
    """Whether the last block's output, all blocks skipped, gives the same logits."""
    forwards = network.resuming(len(network.blocks), state)
    try:
        return same(network.run(ids, forwards), whole, floor)
    except CANNOT_RUN as error:
        if is_out_of_memory(error):
            raise
        return False


def _blocks_differ(network: Network, ids: Tensor, states: list[Tensor], floor: float) -> str | None:
    for k in reversed(range(len(network.blocks))):  # earlier blocks have not seen this text again
        try:
            output = _one_block(network, ids, k, states[k])
        except CANNOT_RUN as error:
            if is_out_of_memory(error):
                raise
            return f"block {k} cannot run without the blocks before it"
        if not same(output, states[k + 1], floor):
            return f"block {k} depends on more than its input"
    return None


def _one_block(network: Network, ids: Tensor, k: int, state: Tensor) -> Tensor:
    return network.output_of(ids, k, network.resuming(k, state))


def chunk_is_right(
    network: Network, ids: Tensor, state: Tensor, whole: Tensor, floor: float
) -> bool:
    """The later half by its positions; matrices of another shape may round differently."""
    a, b = ids.shape[1] // 2, ids.shape[1]
    keep = torch.arange(a, b, device=network.device)
    forwards = network.resuming(len(network.blocks), state)
    chunk = network.run(ids, forwards, logits_to_keep=keep)
    rounding = 16 * torch.finfo(whole.dtype).eps * float(whole.abs().max())
    return same(chunk, whole[:, a:b], floor + rounding)


def lasting(one: Any) -> Any:
    """What a block returned besides, if it does not belong to the text that it was run on."""
    return None if isinstance(one, Tensor) else one


def same(a: Tensor, b: Tensor, floor: float) -> bool:
    """Whether two tensors are equal but for the floor."""
    if a.shape != b.shape:
        return False
    return torch.allclose(a, b, rtol=0.0, atol=floor, equal_nan=True)
