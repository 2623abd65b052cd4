"""The model class that a folder's config.json names, and whether it can run here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint import Checkpoint
from engine.checkpoint.quantised.reader import readable_methods
from engine.errors import CheckpointError
from engine.model.transformers_internals import (
    causal_classes,
    class_from_code,
    known_model_types,
)

OTHER_HEAD = re.compile(r"For(?!CausalLM|ConditionalGeneration)\w+$")


def architecture_name(config: Mapping[str, Any]) -> str:
    """The name of the model's class by its config.json, else of its type; empty without either."""
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    return str(config.get("model_type", ""))


def read_config(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Any:
    """The config as parsed by transformers, checked to be a causal language model.

    Raises:
        CheckpointError: an unknown architecture, code of its own that was not asked for, not a
            causal language model, or quantised in a way not read here.
    """
    folder, raw = checkpoint.folder, checkpoint.config
    file = folder / "config.json"
    _refuse_foreign_code(file, raw, trust_remote_code)
    refuse_other_models(file, raw)
    config = _parse(folder, file, raw, trust_remote_code)
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"{file}: {raw.get('model_type')!r} is an encoder-decoder; "
            "a causal language model is needed"
        )
    return config


def model_class(folder: Path, config: Any, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """The class to load ``config`` with, and the config it takes (its text part, if it is so)."""
    reference = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if trust_remote_code and reference is not None:
        return class_from_code(reference, folder), config
    mapping = causal_classes()
    if type(config) not in mapping:
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


def _refuse_foreign_code(file: Path, raw: dict[str, Any], trusted: bool) -> None:
    from transformers import __version__

    kind = raw.get("model_type")
    known = isinstance(kind, str) and kind in known_model_types()
    own_code = raw.get("auto_map")
    if own_code and not known and not trusted:
        raise CheckpointError(
            f"{file}: model_type {kind!r} runs Python code that comes with the checkpoint "
            "(auto_map); read that code, then allow it with --trust-remote-code"
        )
    if known or (own_code and trusted):
        return
    if kind is None:
        raise CheckpointError(
            f"{file} has no model_type; transformers needs it to know the architecture"
        )
    raise CheckpointError(
        f"{file}: model_type {kind!r} is unknown to transformers {__version__}; "
        "a newer transformers may know it"
    )


def refuse_other_models(file: Path, raw: dict[str, Any]) -> None:
    """Refuse a config that is not a causal language model, or is quantised already.

    Args:
        file: of the config, for messages.
        raw: what it holds.

    Raises:
        CheckpointError: saying which.
    """
    architectures = [a for a in raw.get("architectures") or () if isinstance(a, str)]
    if architectures and all(OTHER_HEAD.search(a) for a in architectures):
        raise CheckpointError(
            f"{file}: {architectures[0]} is not a causal language model, and only those are read"
        )
    stored = raw.get("quantization_config")
    if isinstance(stored, dict) and stored.get("quant_method") not in readable_methods():
        raise CheckpointError(
            f"{file}: this checkpoint is already quantised "
            f"(quant_method {stored.get('quant_method')!r}); give the original it was made from"
        )


def _parse(folder: Path, file: Path, raw: dict[str, Any], trusted: bool) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=trusted)
    except (
        StrictDataclassError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ImportError,
        OSError,
        ZeroDivisionError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{file} does not describe a {raw.get('model_type')} model: {reason}"
        ) from error
