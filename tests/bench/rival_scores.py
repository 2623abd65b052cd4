"""What other tools' scores say of every layer in every format, by plain autograd on whole windows.

Each takes the model as transformers loads it, in float32, and the weights that our formats store,
so that tools differ by their scores and rules alone. Losses are of the text's own targets unless
said otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from tests.brute_force import oriented

Rounded = Mapping[str, Mapping[str, Tensor]]
"""Every layer's weight in every format, ``[out, in]``; as stored where it cannot hold it."""
Scores = dict[str, dict[str, float]]
"""By format, by layer."""

DRAWS = 2
"""Passes with drawn targets for the trace of the Hessian."""


class Plain:
    """A model and the layers that are scored."""

    def __init__(self, model: nn.Module, layers: Sequence[str], windows: Tensor) -> None:
        """
        Args:
            model: in float32.
            layers: names of modules with a weight.
            windows: int64 ``[windows, seq_len]``.
        """
        self.model, self.windows = model, windows
        self.modules = {name: model.get_submodule(name) for name in layers}
        self.original = {name: oriented(each).clone() for name, each in self.modules.items()}
        for parameter in model.parameters():
            parameter.requires_grad_(False)

    def logits(self, ids: Tensor) -> Tensor:
        """``[1, seq_len − 1, vocabulary]`` of one window."""
        found: Tensor = self.model(input_ids=ids).logits[:, :-1]
        return found

    def gradients(self, loss: Tensor, *, again: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Of every layer's weight, ``[out, in]``."""
        weights = [module.weight for module in self.modules.values()]
        found = torch.autograd.grad(loss, weights, retain_graph=again)
        for (name, module), gradient in zip(self.modules.items(), found, strict=True):
            yield name, gradient.t() if isinstance(module, Conv1D) else gradient

    @contextmanager
    def weights_wanted(self) -> Iterator[None]:
        """Gradients of weights are asked for."""
        for module in self.modules.values():
            module.weight.requires_grad_(True)
        yield
        for module in self.modules.values():
            module.weight.requires_grad_(False)

    def hold(self, weights: Mapping[str, Tensor]) -> None:
        """Give layers other weights, ``[out, in]``."""
        for name, weight in weights.items():
            module = self.modules[name]
            module.weight.data = weight.t().contiguous() if isinstance(module, Conv1D) else weight


def cross_entropy(logits: Tensor, ids: Tensor, reduction: str = "mean") -> Tensor:
    """Of one window's targets."""
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction=reduction)


def squares(plain: Plain, rounded: Rounded) -> Scores:
    """``Σ_ti (g_ti (ΔW x_t)_i)²``: Model Optimizer's score of the method ``gradient``.

    nvidia-modelopt 0.47, ``_get_auto_quantize_score`` in ``torch/quantization/algorithms.py``.
    """
    found: Scores = {format: dict.fromkeys(plain.modules, 0.0) for format in rounded}
    inputs: dict[str, Tensor] = {}

    def back(name: str, gradient: Tensor) -> None:
        x, g = inputs.pop(name).flatten(0, -2), gradient.flatten(0, -2)
        for format, held in rounded.items():
            change = held[name] - plain.original[name]
            found[format][name] += float((g * (x @ change.t())).square().sum())

    def forth(name: str, _: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        inputs[name] = given[0].detach()
        output.register_hook(partial(back, name))

    hooks = [
        module.register_forward_hook(partial(forth, name)) for name, module in plain.modules.items()
    ]
    embedding = plain.model.get_input_embeddings().weight
    embedding.requires_grad_(True)
    for ids in plain.windows.split(1):
        torch.autograd.grad(cross_entropy(plain.logits(ids), ids, "sum"), [embedding])
    embedding.requires_grad_(False)
    for hook in hooks:
        hook.remove()
    return found


def wholly_rounded(plain: Plain, rounded: Rounded) -> tuple[Scores, dict[str, Scores]]:
    """Scores from gradients of the model that holds one format everywhere.

    Returns:
        ``Σ |G ∘ (W − Ŵ)|`` of every window's mean cross-entropy, AutoRound's score (auto-round
        0.16, ``AutoSchemeWrapperLinear`` in ``auto_scheme/delta_loss.py``), and by the format held
        ``⟨G, Ŵ − W'⟩`` of mean KL from the unchanged model, for every other format ``W'``, mlx-lm's
        alignment (mlx-lm 0.32, ``estimate_sensitivities`` in ``quant/dynamic_quant.py``).
    """
    with torch.no_grad():
        before = [plain.logits(ids).log_softmax(-1) for ids in plain.windows.split(1)]
    absolute: Scores = {format: dict.fromkeys(plain.modules, 0.0) for format in rounded}
    aligned: dict[str, Scores] = {}
    for format, held in rounded.items():
        plain.hold(held)
        sums = {name: torch.zeros_like(weight) for name, weight in held.items()}
        with plain.weights_wanted():
            for ids, old in zip(plain.windows.split(1), before, strict=True):
                logits = plain.logits(ids)
                for name, gradient in plain.gradients(cross_entropy(logits, ids), again=True):
                    change = plain.original[name] - held[name]
                    absolute[format][name] += float((gradient * change).abs().sum())
                new = logits.log_softmax(-1)
                kl = (old.exp() * (old - new)).sum(-1).mean()
                for name, gradient in plain.gradients(kl):
                    sums[name] += gradient / len(before)
        aligned[format] = {
            other: {
                name: float((gradient * (held[name] - weights[name])).sum())
                for name, gradient in sums.items()
            }
            for other, weights in rounded.items()
        }
        plain.hold(plain.original)
    return absolute, aligned


def traces(plain: Plain, seed: int = 0) -> dict[str, float]:
    """Trace of the Hessian of every layer's weight, nats per token, by targets that are drawn.

    The Fisher information, which is the Hessian of KL at the unchanged model: HAWQ-V2 (Dong et al.
    2020, arXiv 1911.03852) weighs ``‖ΔW‖²`` with the mean of the trace.
    """
    random = torch.Generator().manual_seed(seed)
    found = dict.fromkeys(plain.modules, 0.0)
    targets = DRAWS * plain.windows[:, 1:].numel()
    with plain.weights_wanted():
        for ids in plain.windows.split(1):
            for _ in range(DRAWS):
                logits = plain.logits(ids)
                chosen = torch.multinomial(
                    logits.detach()[0].softmax(-1), 1, generator=random
                ).squeeze(-1)
                loss = functional.cross_entropy(logits[0], chosen, reduction="sum")
                for name, gradient in plain.gradients(loss):
                    found[name] += float(gradient.square().sum()) / targets
    return found


def squared_errors(plain: Plain, rounded: Rounded) -> Scores:
    """``‖Ŵ − W‖²``."""
    return {
        format: {
            name: float((weight - plain.original[name]).double().square().sum())
            for name, weight in held.items()
        }
        for format, held in rounded.items()
    }
