"""The sweep as anybody would write it first: plain transformers on whole windows.

Nothing is cached but what the unchanged model says, for a caller that compares many changes. Every
layer's weight is replaced by what compressed-tensors' functions make of it with the stored scale,
the whole model is run on every window before and after, and log-softmaxes are subtracted in
float64.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Effect:
    """Means over all counted targets, nats per token."""

    dnll: float
    kl: float


def quantised(weight: Tensor, bits: int, group: int, scale_dtype: torch.dtype) -> Tensor:
    """Asymmetric groups along ``in`` of ``[out, in]`` float32, scales rounded as stored."""
    args = QuantizationArgs(num_bits=bits, type="int", strategy="channel", symmetric=False)
    parts = []
    for columns in weight.split(group, dim=1):
        lo, hi = columns.aminmax(dim=1, keepdim=True)
        scale, zero_point = calculate_qparams(lo, hi, args)
        parts.append(fake_quantize(columns, scale.to(scale_dtype).float(), zero_point, args))
    return torch.cat(parts, dim=1)


def windows(folder: Path, text: str, tokens: int, seq_len: int) -> Tensor:
    """``[windows, seq_len]``: the text in one call, the first ``tokens // seq_len`` windows."""
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    rows = min(tokens, len(ids)) // seq_len
    return torch.tensor(ids[: rows * seq_len]).view(rows, seq_len)


def load(folder: Path) -> nn.Module:
    """The model in float32; a tied head has a weight of its own."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.detach().clone())
    return model


def weights(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer's module by name: linear maps, GPT-2's transposed ones, embedding, head."""
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) or module is model.get_input_embeddings()
    }
    return found


@torch.no_grad()
def log_probabilities(model: nn.Module, rows: Tensor, batch: int) -> Iterable[Tensor]:
    """Of every target of each batch, ``[batch, seq_len − 1, vocabulary]`` in float64."""
    for ids in rows.split(batch):
        yield model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)


@torch.no_grad()
def baseline(model: nn.Module, rows: Tensor, batch: int) -> float:
    """Mean NLL over ``seq_len − 1`` targets of each window."""
    total = 0.0
    for ids, logp in zip(rows.split(batch), log_probabilities(model, rows, batch), strict=True):
        total -= float(logp.gather(-1, ids[:, 1:, None]).sum())
    return total / (rows.shape[0] * (rows.shape[1] - 1))


def effect(
    model: nn.Module,
    module: nn.Module,
    changed: Tensor,
    rows: Tensor,
    batch: int,
    before: Iterable[Tensor] | None = None,
) -> Effect:
    """The effect of one module holding ``changed``, ``[out, in]``."""
    return together(model, {module: changed}, rows, batch, before)


@torch.no_grad()
def together(
    model: nn.Module,
    changes: Mapping[nn.Module, Tensor],
    rows: Tensor,
    batch: int,
    before: Iterable[Tensor] | None = None,
) -> Effect:
    """The effect of several modules holding what each is changed to, ``[out, in]``, at once.

    Args:
        before: `log_probabilities` of the model as it is, where the caller has them.
    """
    before = list(log_probabilities(model, rows, batch)) if before is None else before
    originals = {module: module.weight.data for module in changes}
    for module, changed in changes.items():
        transposed = isinstance(module, Conv1D)
        module.weight.data = changed.t().contiguous() if transposed else changed
    dnll = kl = 0.0
    afterwards = log_probabilities(model, rows, batch)
    for ids, old, new in zip(rows.split(batch), before, afterwards, strict=True):
        targets = ids[:, 1:, None]
        dnll += float((old.gather(-1, targets) - new.gather(-1, targets)).sum())
        kl += float((old.exp() * (old - new)).sum())
    for module, original in originals.items():
        module.weight.data = original
    count = rows.shape[0] * (rows.shape[1] - 1)
    return Effect(dnll / count, kl / count)


def restored(
    model: nn.Module,
    changes: Mapping[nn.Module, Tensor],
    back: Collection[nn.Module],
    rows: Tensor,
    batch: int,
    before: Iterable[Tensor] | None = None,
) -> Effect:
    """What giving modules back their own weights regains where all of ``changes`` is held."""
    kept = {module: changed for module, changed in changes.items() if module not in back}
    before = list(log_probabilities(model, rows, batch)) if before is None else before
    all_of_them = together(model, changes, rows, batch, before)
    all_but = together(model, kept, rows, batch, before)
    return Effect(all_of_them.dnll - all_but.dnll, all_of_them.kl - all_but.kl)


def oriented(module: nn.Module) -> Tensor:
    """A module's weight as ``[out, in]``."""
    weight = module.weight.detach()
    return weight.t().contiguous() if isinstance(module, Conv1D) else weight


def close(ours: float, theirs: float) -> bool:
    """Within 1e-5 of the value, or 1e-7 absolutely."""
    return abs(ours - theirs) <= max(1e-5 * abs(theirs), 1e-7)
