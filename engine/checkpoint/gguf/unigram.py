"""SentencePiece's unigram pieces as llama.cpp has them (``t5``): the likeliest cut of a text.

llama.cpp replaces letters by a table, puts a space before a text, and may drop spaces at its ends
and all but one between words; then it takes the pieces with the highest sum of scores. What is read
here does the same with the parts of ``tokenizer.json``.

Source: ``llm_tokenizer_ugm`` of llama.cpp's ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

import base64
from collections.abc import Collection
from typing import Any

from engine.checkpoint.gguf.metadata import Metadata
from engine.errors import CheckpointError

CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
MERGES_SPACES = "tokenizer.ggml.remove_extra_whitespaces"
PREFIX = "tokenizer.ggml.add_space_prefix"
SPACE = "▁"
ENDS = r"\A +| +\z"
"""Spaces at the ends of a text; ``^`` and ``$`` are those of a line in tokenizers."""


def unigram_document(
    metadata: Metadata, tokens: list[str], unused: Collection[int]
) -> dict[str, Any]:
    """What ``tokenizer.json`` would hold, without added tokens and what stands around a text.

    Args:
        metadata: of the file.
        tokens: by id.
        unused: ids of tokens that fill up the embedding. They get the least score of the others,
            by which tokenizers scores unknown letters.

    Raises:
        CheckpointError: scores, the unknown token or the table of letters are missing or none.
    """
    scores = metadata.numbers("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise CheckpointError(
            f"{metadata.file} has {len(tokens)} tokens and {len(scores or ())} scores of them; "
            "convert it again"
        )
    unknown = metadata.whole("tokenizer.ggml.unknown_token_id", 2)
    if unknown >= len(tokens):
        raise CheckpointError(
            f"{metadata.file} gives 'tokenizer.ggml.unknown_token_id' as {unknown}, of "
            f"{len(tokens)} tokens; convert it again"
        )
    used = [score for number, score in enumerate(scores) if number not in unused]
    least = min(used, default=0.0)
    steps: list[dict[str, Any]] = []
    table = metadata.numbers(CHARSMAP)
    if table:
        steps.append({"type": "Precompiled", "precompiled_charsmap": _encoded(metadata, table)})
    prefix = metadata.flag(PREFIX, True)
    merges = metadata.flag(MERGES_SPACES, False)
    if merges:
        steps += [_replaced(ENDS, ""), _replaced(" {2,}", " ")]
    elif prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    begins = "always" if merges else "never"
    spaces = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": begins, "split": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": spaces,
        "decoder": {**spaces, "prepend_scheme": "always" if merges or prefix else "never"},
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [
                [token, least if number in unused else score]
                for number, (token, score) in enumerate(zip(tokens, scores, strict=True))
            ],
            "byte_fallback": False,
        },
    }


def _encoded(metadata: Metadata, table: list[float]) -> str:
    try:
        return base64.b64encode(bytes(int(each) & 0xFF for each in table)).decode()
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{metadata.file} gives {CHARSMAP!r} as something else than bytes; convert it again"
        ) from error


def _replaced(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
