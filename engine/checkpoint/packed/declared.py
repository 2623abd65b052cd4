"""What a checkpoint says of its own quantisation, wherever it says it.

Nothing here is trusted: what a weight is read as follows from its tensors, and where the two
disagree that is said.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from engine.checkpoint.checkpoint import DECLARED_BESIDE, Checkpoint
from engine.checkpoint.files import is_there
from engine.checkpoint.json_files import read_object
from engine.errors import CheckpointError
from engine.patterns import Pattern

_WHEN_RUN = ("input", "output")
MOST_NAMED = 8
"""Modules of a group that are named."""


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
    for name in DECLARED_BESIDE:
        if found := beside(checkpoint, name):
            return found
    return {}


def beside(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The JSON object in a file of the checkpoint's folder; empty without one.

    Raises:
        CheckpointError: it is not a JSON object, or no file that may be read.
    """
    file = checkpoint.folder / name
    if not is_there(file):
        return {}
    return read_object(checkpoint.folder, file, follow=checkpoint.follow_links)[0]


def model_dtype(checkpoint: Checkpoint) -> str:
    """The dtype that the config gives the model, where weights do not tell; else bfloat16."""
    text = checkpoint.config.get("text_config")
    for config in (checkpoint.config, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            if config.get(key) in ("float16", "bfloat16", "float32"):
                return str(config[key])
    return "bfloat16"


def rotated_when_run(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Modules whose inputs or outputs a config has rotated when the model runs; empty for none.

    compressed-tensors' ``transform_config`` (by its ``TransformLocation``, ``input`` and ``output``
    are applied to activations; queries and keys are rotated alike, which changes nothing) and
    AutoRound's ``rotation_config``, which rotates what comes into every quantised layer.

    Args:
        config: a ``quantization_config``.
    """
    found: dict[str, None] = {}
    if config.get("rotation_config"):
        found["every quantised layer"] = None
    transforms = config.get("transform_config")
    groups = transforms.get("config_groups") if isinstance(transforms, dict) else None
    for group in groups.values() if isinstance(groups, dict) else ():
        places = group.get("apply") if isinstance(group, dict) else None
        for place in places if isinstance(places, list) else ():
            if not isinstance(place, dict) or place.get("location") not in _WHEN_RUN:
                continue
            targets = place.get("targets")
            names = targets if isinstance(targets, list) else [targets]
            found |= dict.fromkeys(str(name) for name in names[:MOST_NAMED])
    return tuple(found)


def whole_number(config: Mapping[str, Any], name: str) -> int | None:
    """A setting that is a whole number; None if it is absent or anything else."""
    found = config.get(name)
    return found if type(found) is int else None


def overridden(config: Mapping[str, Any], module: str) -> dict[str, Any] | None:
    """GPTQ's settings for one module: those of the first ``dynamic`` rule that matches it.

    Returns:
        None for a module that a rule leaves in 16 bits.

    Raises:
        CheckpointError: a rule is no regular expression, or takes too long to match.
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
        CheckpointError: it is none, or takes too long.
    """
    return _pattern(pattern).match(module)


@functools.lru_cache(maxsize=256)
def _pattern(rule: str) -> Pattern:
    return Pattern(rule, "quantization_config", CheckpointError)
