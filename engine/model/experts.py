"""Fused experts computed one by one, so that the inputs of each can be seen and changed.

A model runs its experts in one grouped product whose inputs no hook sees. The forwards here replace
it while inputs are watched or changed. They follow the grouped implementation of
``transformers.integrations.moe`` step by step (same sorting, same sum over a token's experts): on
CPU the outputs are bitwise equal, elsewhere within the rounding of one product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.model.blocks import Forward
from engine.model.transformers_internals import gated, has_grouped_experts

Change = Callable[[Tensor], Tensor]
"""A change of the inputs ``[tokens, in]`` of one expert."""
TakeExpert = Callable[[str, int, Tensor], None]
"""Called with the parameter's name, the expert's index and its inputs before any change."""


def why_fused(module: nn.Module) -> str | None:
    """Why the inputs of this module's experts cannot be separated; None if they can."""
    kind = type(module).__name__
    if (
        has_grouped_experts(module)
        or kind == "Llama4TextExperts"
        or kind.endswith("ParallelExperts")
    ):
        return None
    return f"{kind} has its own implementation of experts, so their inputs cannot be seen"


def forward_by_expert(
    module: nn.Module, changes: Mapping[str, Change], take: TakeExpert | None = None
) -> Forward:
    """A forward for ``module`` that runs one expert after the other.

    Weights are read when it runs, so weights held then are those it computes with.

    Args:
        module: for which :func:`why_fused` is None.
        changes: by parameter name, what becomes of every expert's inputs.
        take: called for each parameter and each expert that is given tokens.
    """

    def given(attribute: str, expert: int, inputs: Tensor) -> Tensor:
        if take is not None:
            take(attribute, expert, inputs)
        change = changes.get(attribute)
        return inputs if change is None else change(inputs)

    if has_grouped_experts(module):
        return _routed(module, given)
    if type(module).__name__ == "Llama4TextExperts":
        return _scored(module, given)
    return _sorted_before(module, given)


Given = Callable[[str, int, Tensor], Tensor]


def _routed(module: Any, given: Given) -> Forward:
    """``grouped_mm_experts_forward`` of transformers, a product an expert."""
    first = "gate_up_proj" if module.has_gate else "up_proj"

    def linear(attribute: str, expert: int, inputs: Tensor) -> Tensor:
        inputs = given(attribute, expert, inputs)
        weight = getattr(module, attribute)[expert]
        output: Tensor = inputs @ (weight if module.is_transposed else weight.T)
        if module.has_bias:
            output = output + getattr(module, f"{attribute}_bias")[expert]
        return output

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        top_k = top_k_index.shape[-1]
        ids, order = torch.sort(top_k_index.reshape(-1))
        routed = hidden_states[order // top_k]
        outputs = []
        counts = torch.bincount(ids, minlength=module.num_experts).tolist()
        for expert, inputs in enumerate(torch.split(routed, counts)):
            if inputs.shape[0] == 0:
                continue
            inner = gated(module, linear(first, expert, inputs))
            outputs.append(linear("down_proj", expert, inner))
        output = torch.cat(outputs)
        if getattr(module, "has_post_expert_norm", False):  # transformers before 5.23 has none
            output = module.post_expert_norm(output)
        output = output * top_k_weights.reshape(-1)[order].unsqueeze(-1)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        summed = output[back].view(-1, top_k, output.shape[-1]).sum(dim=1)
        return summed.to(hidden_states.dtype)

    return forward


def _scored(module: Any, given: Given) -> Forward:
    """Llama 4: every expert is given all tokens times their score, which is 0 for most."""

    def routed_only(attribute: str, inputs: Tensor, routed: Tensor) -> Tensor:
        changed = inputs.clone()
        for expert, rows in enumerate(routed):
            if bool(rows.any()):
                changed[expert, rows] = given(attribute, expert, inputs[expert, rows])
        return changed

    def forward(hidden_states: Tensor) -> Tensor:
        scored = hidden_states.view(module.num_experts, -1, hidden_states.shape[-1])
        routed = (scored != 0).any(-1)
        scored = routed_only("gate_up_proj", scored, routed)
        gate, up = torch.bmm(scored, module.gate_up_proj).chunk(2, dim=-1)
        inner = routed_only("down_proj", up * module.act_fn(gate), routed)
        return torch.bmm(inner, module.down_proj).view(-1, hidden_states.shape[-1])

    return forward


def _sorted_before(module: Any, given: Given) -> Forward:
    """JetMoE: the rows come sorted by expert, with the number of rows of each."""

    def forward(inputs: Tensor, expert_size: Any) -> Tensor:
        counts = expert_size.tolist() if isinstance(expert_size, Tensor) else list(expert_size)
        outputs = [
            (given("weight", expert, rows) if rows.shape[0] else rows) @ module.weight[expert].T
            for expert, rows in enumerate(torch.split(inputs, counts))
        ]
        return torch.cat(outputs)

    return forward
