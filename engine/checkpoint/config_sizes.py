"""Numbers of a config that no model can have.

They size lists and tables before any weight is read: a config of a billion blocks would take hours,
and one with heads of 10^12 dimensions more memory than there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint.names import block_of
from engine.errors import CheckpointError

LARGEST = 1 << 31
"""Of any number but seeds and the like."""
_LIMITS = (
    (re.compile(r"heads?$|_heads_|^n_head"), 1 << 16),
    (re.compile(r"experts"), 1 << 16),
    (re.compile(r"_size$|_dim$|^dim$|_rank$|_channels$|^n_embd$|^d_model$|^n_inner$"), 1 << 25),
    (re.compile(r"layers$|^n_layer$|_blocks$|_nextn_|depth$"), 1 << 14),
)
"""Limits by what a number is called; the largest real ones are far below."""
_AT_LEAST_ONE = re.compile(r"^(num_attention_heads|n_head|hidden_size|n_embd|d_model|vocab_size)$")
_BLOCKS = re.compile(r"^(num_hidden_layers|n_layers?|num_layers)$")
_NO_SIZE = re.compile(r"token_id|seed|max_length|^model_max|_version$|bos|eos|pad")
_SHARED = 16
"""Blocks that a model may have for each that its files hold, since some models share weights."""


def check_sizes(file: Path, config: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Refuse a config with a number that no model has.

    Args:
        file: of the config, for messages.
        config: what it holds.
        tensors: the names of the tensors in the weight files.

    Raises:
        CheckpointError: names the entry of config.json.
    """
    held = _blocks(tensors)
    for name, value in _numbers(config):
        key = name.rpartition(".")[2]
        limit = next((most for words, most in _LIMITS if words.search(key)), LARGEST)
        if value > limit and not _NO_SIZE.search(key):
            _refuse(file, name, value, f"more than any model has ({limit} at most)")
        if value < 1 and _AT_LEAST_ONE.match(key):
            _refuse(file, name, value, "but a model has at least one")
        outer = name.count(".") == 0 or name.startswith("text_config.")
        if outer and _BLOCKS.match(key) and held and not 1 <= value <= _SHARED * held:
            _refuse(file, name, value, f"but the files hold {held} blocks")


def _refuse(file: Path, name: str, value: int, why: str) -> None:
    raise CheckpointError(
        f"{file} gives {name} as {value}, {why}; config.json is another model's, or damaged"
    )


def _numbers(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number of a config with its name, those of parts within after a point."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield prefix + key, value


def _blocks(tensors: Iterable[str]) -> int:
    """The blocks of the longest list of them in the files."""
    found: dict[str, set[int]] = {}
    for name in tensors:
        if (block := block_of(name)) is not None:
            found.setdefault(block[0], set()).add(block[1])
    return max((len(each) for each in found.values()), default=0)
