"""The model class that a folder's config.json names, and whether it can run here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError
from engine.model.known_models import why_not_causal, why_unknown
from engine.model.transformers_internals import (
    causal_classes,
    class_from_code,
    multimodal_classes,
)

OTHER_HEAD = re.compile(r"For(?=[A-Z])(?!CausalLM|ConditionalGeneration)\w+$")


def read_config(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Any:
    """The config as parsed by transformers, checked to be a causal language model.

    Raises:
        CheckpointError: an unknown architecture, code of its own that was not asked for, or not a
            causal language model.
    """
    file, raw = checkpoint.config_file, checkpoint.config
    refuse_other_models(file, raw, trusted=trust_remote_code)
    config = _parse(checkpoint, file, raw, trust_remote_code)
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"{file}: {raw.get('model_type')!r} is an encoder-decoder; "
            "a causal language model is needed"
        )
    return config


def model_class(folder: Path, config: Any, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """The class to load ``config`` with, and the config it takes (its text part, if it is so).

    A model that sees or hears beside its language is loaded whole where transformers has no class
    for its language model alone; given tokens only, it is a causal language model.
    """
    reference = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if trust_remote_code and reference is not None:
        return class_from_code(reference, folder), config
    mapping = next((each for each in _mappings() if type(config) in each), None)
    if mapping is None:
        raise CheckpointError(
            f"{folder / 'config.json'}: transformers has no causal language model "
            f"for model_type {config.model_type!r}"
        )
    found = mapping[type(config)]
    chosen = found[0] if isinstance(found, tuple | list) else found
    text = config.sub_configs.get("text_config")
    if text is not None and getattr(chosen, "config_class", None) == text:
        return chosen, config.get_text_config()
    return chosen, config


def auto_class(config: Any) -> Any:
    """The auto-class that loads a config's model as `model_class` does."""
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    causal, multimodal = _mappings()
    other = type(config) in multimodal and type(config) not in causal
    return AutoModelForMultimodalLM if other else AutoModelForCausalLM


def _mappings() -> tuple[Any, Any]:
    """Classes by config class, the ones to prefer first."""
    return causal_classes(), multimodal_classes()


def refuse_other_models(file: Path, raw: dict[str, Any], *, trusted: bool = False) -> None:
    """Refuse a config that transformers does not know, or that is not a causal language model.

    Args:
        file: of the config, for messages.
        raw: what it holds.
        trusted: whether code that comes with the checkpoint may run.

    Raises:
        CheckpointError: saying which.
    """
    refuse_not_causal(file, raw, trusted=trusted)
    if (why := why_unknown(raw, trusted=trusted)) is not None:
        raise CheckpointError(f"{file}: {why}")


def refuse_not_causal(file: Path, raw: dict[str, Any], *, trusted: bool = False) -> None:
    """Refuse a config that is known not to be a causal language model.

    Raises:
        CheckpointError: saying what it is.
    """
    kind = raw.get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise CheckpointError(f"{file} gives model_type as {kind!r:.100}, not as a word")
    if (why := why_not_causal(raw, trusted=trusted)) is not None:
        raise CheckpointError(f"{file}: {why}")
    named = raw.get("architectures")
    architectures = [a for a in named if isinstance(a, str)] if isinstance(named, list) else []
    if architectures and all(OTHER_HEAD.search(a) for a in architectures):
        raise CheckpointError(
            f"{file}: {architectures[0]} is not a causal language model, and only those are read"
        )


def _parse(checkpoint: Checkpoint, file: Path, raw: dict[str, Any], trusted: bool) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        if checkpoint.container:
            return AutoConfig.for_model(**raw)
        return AutoConfig.from_pretrained(str(checkpoint.folder), trust_remote_code=trusted)
    except (
        StrictDataclassError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ImportError,
        OSError,
        ArithmeticError,
        RecursionError,
        AssertionError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{file} does not describe a {raw.get('model_type')} model: {reason}"
        ) from error
