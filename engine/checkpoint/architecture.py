"""The name of a model's class, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def architecture_name(config: Mapping[str, Any]) -> str:
    """The name of the model's class by its config.json, else of its type; empty without either."""
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    return str(config.get("model_type", ""))
