"""Small networks straight from a config, of architectures without a tiny checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from engine.model.network import Network
from engine.model.selfcheck import check_resuming
from tests import tiny


def small(
    config: str, *, change: Callable[[Any], None] = lambda _model: None, **fields: Any
) -> Network:
    """A random network of that config; ``change`` is called with the model before."""
    torch.manual_seed(0)
    made = getattr(transformers, config)(**{**tiny.SIZES, **fields})
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)
        change(model)
    network = Network(model, {})
    check_resuming(network)
    return network
