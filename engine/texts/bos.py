"""The token that some models need at the beginning of every window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.errors import UsageError

PROBE = 64
"""Tokens of text in the window that is tried with and without BOS; the second half is scored."""
MUCH = 0.5
"""Nats per token by which a model that needs BOS scores worse without it."""


def bos_token(tokenizer: Any) -> int:
    """The BOS token.

    Raises:
        UsageError: the tokenizer has none.
    """
    token: int | None = tokenizer.bos_token_id
    if token is None:
        raise UsageError("--bos: this model's tokenizer has no BOS token; leave the option out")
    return token


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer begins every text with BOS by itself."""
    first: Sequence[int] = tokenizer("a")["input_ids"][:1]
    return bool(first) and first[0] == tokenizer.bos_token_id


def probe(ids: Sequence[int]) -> Sequence[int]:
    """Tokens from the middle of a text, to be tried with and without BOS; none if too short."""
    middle = len(ids) // 2
    return ids[middle : middle + PROBE] if len(ids) >= 2 * PROBE else ()


def warning(without: float, with_bos: float) -> str:
    """What to say of the NLL of a window without and with BOS; empty if it makes no difference."""
    if not without > with_bos + MUCH:
        return ""
    return (
        f"this model needs a BOS token at the beginning of every window: {without:.2f} nats per "
        f"token without, {with_bos:.2f} with it; only the first window has one, so perplexities "
        "are far too high: measure with --bos"
    )
