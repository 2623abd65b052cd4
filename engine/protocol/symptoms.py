"""Prompts continued by the reference and by a recipe: how, and what came of them."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from engine.protocol.divergence import DivergenceTable
from engine.protocol.tasks import TaskResult


class Sampling(msgspec.Struct, frozen=True):
    """How prompts are continued."""

    new_tokens: int = 64
    """At most."""
    temperature: float = 0.0
    """That logits are divided by; 0 takes the most likely token each time."""
    top_p: float = 1.0
    """The most likely tokens that together have this probability are chosen from."""
    chat: bool = False
    """Whether each prompt is written as a message by the tokenizer's chat template."""


class Choice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A token that may come next."""

    token: str
    """Its text."""
    p: float
    """Its probability at temperature 1."""


class Continuation(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a model wrote after a prompt."""

    text: str
    """Without special tokens."""
    tokens: tuple[int, ...]
    """Its ids; the last one is an end token if it ``ended``."""
    ended: bool
    """Whether it ended by itself, before the most tokens."""
    finite: bool = True
    """Whether all logits were finite."""
    surprise: float = float("nan")
    """Mean NLL of its tokens under the reference, nats per token: text that the reference would not
    write has a large one."""


RestoredBy: TypeAlias = Literal["layer", "module", "block"]
"""``module``: a direct child of a block with several layers, as its attention or its MLP."""


class Symptoms(msgspec.Struct, frozen=True):
    """What a job on symptoms returns."""

    recipe: str
    """Hash of the recipe."""
    prompts: tuple[str, ...]
    """Keys of the prompts, in their order; see `Continued`."""
    failing: str = ""
    """Key of the prompts whose symptoms were traced to layers; see `SymptomRestored`."""
    tasks: tuple[TaskResult, ...] = ()
    """In the order in which they were named."""
    divergence: DivergenceTable | None = None
    """Of the evaluation windows, position by position."""
