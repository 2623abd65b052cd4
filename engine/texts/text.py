"""A text to measure on, and where it came from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

JOINT = "\n\n"
"""Separator of the documents of a text."""


@dataclass(frozen=True)
class Text:
    """A text to evaluate or calibrate on."""

    name: str
    """Shown with every perplexity."""
    content: str
    column: str = ""
    """The column of the dataset that was read; empty for a text without columns."""
    documents: int = 1
    """How many were joined."""
    skipped: int = 0
    """Rows of the dataset without text."""
    special_tokens: bool = True
    """Whether the tokenizer adds its own; not to chats, whose template writes them."""

    @cached_property
    def sha256(self) -> str:
        """Hash of the UTF-8 bytes."""
        return hashlib.sha256(self.content.encode()).hexdigest()
