"""Text and continuation as tokens, cut as lm-eval cuts them (``TemplateLM._encode_pair``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.errors import TextError
from engine.texts.tokenizing import encoded, token_ids


class Pair(NamedTuple):
    """Tokens that are given, and those whose probability is asked for."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Encoder:
    """Cuts pairs of texts into tokens.

    Args:
        tokenizer: of transformers; its own special tokens are added to a text, as lm-eval does.
        most: tokens that the model takes at once; None if it does not say.
    """

    def __init__(self, tokenizer: Any, most: int | None) -> None:
        self._tokenizer, self._most = tokenizer, most
        self.cut = 0
        """Pairs whose context is longer than the model takes: its beginning is left out."""
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._prefix: int | None = eos if bos is None else bos
        self._prefix_text: str = "" if self._prefix is None else tokenizer.decode([self._prefix])

    def pair(self, context: str, continuation: str) -> Pair:
        """Tokens of both: spaces at the end of the context belong to the continuation.

        Raises:
            TextError: the continuation has no token, or the context is empty and the tokenizer has
                no token that begins a text.
            CheckpointError: the tokenizer fails.
        """
        if not context:
            return self._alone(continuation)
        bare = context.rstrip()
        continuation, context = context[len(bare) :] + continuation, bare
        if not context:
            return self._alone(continuation)
        both = self._ids(context + continuation)
        given = self._ids(context)
        return self._fitted(given, both[len(given) :], continuation)

    def _alone(self, continuation: str) -> Pair:
        if self._prefix is None:
            raise TextError(
                "an item has an empty prompt, and the tokenizer has no token that begins a text: "
                "write a prompt"
            )
        ids = encoded(self._tokenizer, continuation, False)
        if ids[:1] == [self._prefix]:
            return self._fitted(ids[:1], ids[1:], continuation)
        return self._fitted([self._prefix], ids, continuation)

    def _ids(self, text: str) -> list[int]:
        begun = bool(self._prefix_text) and text.startswith(self._prefix_text)
        return token_ids(self._tokenizer, text, special_tokens=not begun)

    def _fitted(self, context: Sequence[int], continuation: Sequence[int], text: str) -> Pair:
        if not continuation:
            raise TextError(f"the answer {text!r} has no token of its own after its prompt")
        if self._most is not None:
            if len(continuation) > self._most:
                raise TextError(
                    f"an answer has {len(continuation)} tokens, and the model takes {self._most}"
                )
            kept = context[-(self._most + 1 - len(continuation)) :]
            self.cut += len(kept) < len(context)
            context = kept
        return Pair(tuple(context), tuple(continuation))
