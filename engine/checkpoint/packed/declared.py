"""What a checkpoint says of its own quantisation, wherever it says it.

Nothing here is trusted: what a weight is read as follows from its tensors, and where the two
disagree that is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.checkpoint.checkpoint import Checkpoint, read_json
from engine.checkpoint.links import check_link
from engine.errors import CheckpointError

_BESIDE = ("quantize_config.json", "quant_config.json")
"""Where GPTQ's and AWQ's first tools put it."""


def quantization_config(checkpoint: Checkpoint) -> dict[str, object]:
    """The ``quantization_config`` of ``config.json`` or of its text model; empty without one."""
    text = checkpoint.config.get("text_config")
    for config in (checkpoint.config, text if isinstance(text, dict) else {}):
        found = config.get("quantization_config")
        if isinstance(found, dict):
            return found
    return {}


def declared_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The ``quantization_config`` of ``config.json``, else of the file that older tools wrote."""
    if found := quantization_config(checkpoint):
        return found
    for name in _BESIDE:
        if found := beside(checkpoint, name):
            return found
    return {}


def beside(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The JSON object in a file of the checkpoint's folder; empty without one.

    Raises:
        CheckpointError: it is not a JSON object, or a link out of the folder.
    """
    file = checkpoint.folder / name
    if not file.is_file():
        return {}
    check_link(checkpoint.folder, file, follow=checkpoint.follow_links)
    return read_json(file)[0]


def whole_number(config: Mapping[str, Any], name: str) -> int | None:
    """A setting that is a whole number; None if it is absent or anything else."""
    found = config.get(name)
    return found if type(found) is int else None


def overridden(config: Mapping[str, Any], module: str) -> dict[str, Any] | None:
    """GPTQ's settings for one module: those of the first ``dynamic`` rule that matches it.

    Returns:
        None for a module that a rule leaves in 16 bits.

    Raises:
        CheckpointError: a rule is no regular expression.
    """
    rules = config.get("dynamic")
    if not isinstance(rules, dict):
        return dict(config)
    for rule, values in rules.items():
        negative = rule.startswith("-:")
        if not matches(rule.removeprefix("-:").removeprefix("+:"), module):
            continue
        if negative:
            return None
        return {**config, **(values if isinstance(values, dict) else {})}
    return dict(config)


def matches(pattern: str, module: str) -> bool:
    """Whether a regular expression of a config matches the beginning of a module's name.

    Raises:
        CheckpointError: it is none.
    """
    try:
        return re.match(pattern, module) is not None
    except (re.error, RecursionError) as error:
        raise CheckpointError(
            f"quantization_config has the rule {pattern!r}, which is no regular expression: {error}"
        ) from error
