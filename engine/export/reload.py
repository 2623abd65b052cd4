"""Loads an export once, as its users will, before it is called done.

Plain transformers builds the model that was exported, with the weights that were measured in the
layers that are stored as codes; then it loads the written folder. Both run one short forward, and
their logits must agree.
"""

from __future__ import annotations

import gc
import io
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint import Checkpoint
from engine.errors import EngineError, InfeasibleError
from engine.formats.grammar import Format
from engine.model.memory import memory_free
from engine.model.quiet import quiet
from engine.quant.kept import DTYPES
from engine.quant.methods.a8 import quantized_tokens

TOKENS = 16
"""Tokens of the forward."""
AGREE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest root mean square of differences, as a share of the logits' standard deviation; formats
of a few bits read wrongly differ by about 1."""


class UnloadableError(InfeasibleError):
    """Plain transformers cannot load an export, or loads another model."""


@dataclass
class Measured:
    """What was measured: formats by module, and the weights of modules stored as codes."""

    formats: Mapping[str, Format]
    """By the module's name; also those that are only cast."""
    loosely: bool = False
    """Whether layers are cast that transformers keeps under other names; they are not compared."""
    untied: str | None = None
    """The head, if it was tied to the embedding and is not any more."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """``[out, in]`` by the module's name, in the checkpoint's dtype; filled while writing."""


def why_not_reloaded(checkpoint: Checkpoint) -> str | None:
    """Why an export of this checkpoint cannot be loaded here; None if it can."""
    if find_spec("compressed_tensors") is None:
        return "compressed-tensors is not installed (pip install compressed-tensors)"
    free, needed = memory_free("cpu"), 3 * checkpoint.bytes
    if needed > free:
        return f"that needs about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
    return None


def check_reload(
    checkpoint: Checkpoint, folder: Path, measured: Measured, *, trust_remote_code: bool
) -> None:
    """Load the written folder with plain transformers, and compare its logits.

    Args:
        checkpoint: that was exported.
        folder: that was written.
        measured: what the export must compute with; its weights are used up.
        trust_remote_code: whether Python code of the checkpoint may run.

    Raises:
        UnloadableError: it does not load, does not run, or its logits differ.
    """
    config = checkpoint.config.get("text_config") or checkpoint.config
    ids = (torch.arange(TOKENS)[None] * 97 + 11) % min(int(config.get("vocab_size", 128)), 50_000)
    with quiet():
        expected = _expected(checkpoint, measured, ids, trusted=trust_remote_code)
        try:
            with redirect_stderr(io.StringIO()):  # compressed-tensors draws bars of its own
                found = _logits(_load(folder, trust_remote_code), ids)
        except EngineError:
            raise
        except Exception as error:  # a loader raises what it likes
            raise UnloadableError(
                f"plain transformers cannot load this export, so it is not kept: "
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]}; keep the layers "
                "named here, or export another format"
            ) from error
    dtype = getattr(torch, checkpoint.dtype)
    apart = float((found - expected).square().mean().sqrt() / expected.std())
    if not apart <= (max(AGREE.values()) if measured.loosely else AGREE[dtype]):
        raise UnloadableError(
            "plain transformers loads this export as another model, so it is not kept: its logits "
            f"differ by {apart:.2g} of their standard deviation from what was measured"
        )


def _expected(checkpoint: Checkpoint, measured: Measured, ids: Tensor, *, trusted: bool) -> Tensor:
    model = _load(checkpoint.folder, trusted)
    if measured.untied is not None:
        head = model.get_submodule(measured.untied)
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    hooks = []
    for name, fmt in measured.formats.items():
        module = model.get_submodule(name)
        if fmt.kept:
            stored = module.weight.detach()
            module.weight.data = stored.to(DTYPES[fmt.name]).to(stored.dtype)
            continue
        module.weight = nn.Parameter(measured.weights.pop(name), requires_grad=False)
        if any(method.name == "a8" for method in fmt.methods):
            hooks.append(module.register_forward_pre_hook(_rounded_inputs))
    found = _logits(model, ids)
    del model
    gc.collect()
    return found


def _rounded_inputs(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (quantized_tokens(args[0]), *args[1:])


def _load(folder: Path, trusted: bool) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        str(folder), dtype="auto", trust_remote_code=trusted
    ).eval()


@torch.no_grad()
def _logits(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return logits
