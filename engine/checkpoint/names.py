"""What the names of tensors say."""

from __future__ import annotations


def block_of(name: str) -> tuple[str, int] | None:
    """The outermost list of a tensor, and its index: ``model.layers.3.x`` → 3 of that."""
    words = name.split(".")
    for i, word in enumerate(words[1:-1], 1):
        if word.isascii() and word.isdigit() and len(word) < 7:
            return ".".join(words[:i]), int(word)
    return None
