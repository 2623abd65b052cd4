"""Which architectures the installed transformers can load, without importing it.

Its tables are parsed as text: importing them takes seconds, and a tensor library.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple


class KnownModels(NamedTuple):
    """The tables of the installed transformers; empty if it stores them differently."""

    configs: Mapping[str, str]
    """Config class by model type."""
    causal: Mapping[str, str]
    """Causal language model by model type."""
    multimodal: Mapping[str, str]
    """Language model with other senses beside it, by model type."""
    seq2seq: Mapping[str, str]
    """Encoder-decoder, by model type."""


def why_unknown(config: Mapping[str, Any], *, trusted: bool) -> str | None:
    """Why transformers cannot tell what a config describes; None if it may.

    Args:
        config: as read from config.json.
        trusted: whether code that comes with a checkpoint may run.
    """
    kind = config.get("model_type")
    if kind is None:
        return "there is no model_type, which tells transformers the architecture"
    known = known_models().configs
    if not isinstance(kind, str) or not known or kind in known:
        return None
    if not config.get("auto_map"):
        return (
            f"model_type {kind!r} is unknown to transformers {_transformers()}; "
            "a newer transformers may know it"
        )
    if trusted:
        return None
    return (
        f"model_type {kind!r} runs Python code that comes with the checkpoint "
        "(auto_map); read that code, then allow it with --trust-remote-code"
    )


def why_not_causal(config: Mapping[str, Any], *, trusted: bool) -> str | None:
    """Why a known architecture is not a causal language model; None if it may be one."""
    kind = config.get("model_type")
    if config.get("is_encoder_decoder"):
        return f"{kind!r} is an encoder-decoder; a causal language model is needed"
    configs, causal, multimodal, seq2seq = known_models()
    if not isinstance(kind, str) or kind not in configs or not causal:
        return None
    if trusted and "AutoModelForCausalLM" in (config.get("auto_map") or {}):
        return None
    if configs[kind] in {configs.get(each) for each in (*causal, *multimodal)}:
        return None
    if kind in seq2seq:
        return f"{kind!r} is an encoder-decoder; a causal language model is needed"
    return f"transformers has no causal language model for model_type {kind!r}"


@functools.cache
def known_models() -> KnownModels:
    """The tables of the installed transformers."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return KnownModels({}, {}, {}, {})
    folder = Path(spec.origin).parent / "models" / "auto"
    configs = _table(folder / "auto_mappings.py", "CONFIG_MAPPING_NAMES")
    for name, config in _table(folder / "configuration_auto.py", "CONFIG_MAPPING_NAMES").items():
        configs.setdefault(name, config)
    models = folder / "modeling_auto.py"
    return KnownModels(
        configs,
        _table(models, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
        {
            **_table(models, "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"),
            **_table(models, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES"),
        },
        _table(models, "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
    )


def _table(file: Path, name: str) -> dict[str, str]:
    """The entries of a table in a Python file, from every literal assigned or added to it."""
    found: dict[str, str] = {}
    for statement in _statements(file):
        value = getattr(statement, "value", None)
        if not isinstance(value, ast.Call) or name not in _assigned(statement):
            continue
        for given in [*value.args, *(word.value for word in value.keywords)]:
            # A table may begin with the entries of another, which is no literal.
            parts = given.elts if isinstance(given, ast.List) else [given]
            for part in parts:
                try:
                    entry = ast.literal_eval(part)
                    found.update(dict([entry] if isinstance(given, ast.List) else entry))
                except (ValueError, TypeError):
                    continue
    return {key: str(value) for key, value in found.items() if isinstance(key, str)}


@functools.cache
def _statements(file: Path) -> list[ast.stmt]:
    try:
        return ast.parse(file.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return []


def _assigned(statement: ast.stmt) -> set[str]:
    """The names that a statement assigns to, or whose method it calls."""
    if isinstance(statement, ast.Assign):
        return {target.id for target in statement.targets if isinstance(target, ast.Name)}
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return {statement.target.id}
    call = statement.value if isinstance(statement, ast.Expr) else None
    called = call.func if isinstance(call, ast.Call) else None
    owner = called.value if isinstance(called, ast.Attribute) else None
    return {owner.id} if isinstance(owner, ast.Name) else set()


def _transformers() -> str:
    try:
        return version("transformers")
    except PackageNotFoundError:
        return "?"
