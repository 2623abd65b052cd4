"""The tokenizer of a GGUF file as ``tokenizer.json`` has it, made from metadata.

llama.cpp has three kinds for the families that are read here: ``gpt2``, bytes and merges;
``llama``, SentencePiece's pieces with scores, which merge where the result has the highest; and
``t5``, pieces of which the likeliest are taken. The chat template is carried along as text, and
never rendered here.
"""

from __future__ import annotations

from typing import Any

from engine.checkpoint.gguf.metadata import Metadata
from engine.checkpoint.gguf.pre_tokenizers import COMPOSED, IGNORE_MERGES, PRE_TOKENIZERS
from engine.checkpoint.gguf.unigram import unigram_document
from engine.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of token (``gguf.TokenType``)."""
_MOST_LETTERS, _LONGEST = 1 << 23, 1000
"""Of the pieces of a vocabulary: real ones have a quarter of it, and a tenth."""
SPACE = "▁"
"""What SentencePiece writes for a space."""
_SPECIAL = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}


def tokenizer_of(metadata: Metadata) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``tokenizer.json`` would hold, and the special tokens and chat template by transformers'
    names.

    Raises:
        CheckpointError: there is none, or of a kind that is not read; names the key.
    """
    kind = metadata.text("tokenizer.ggml.model")
    tokens = metadata.texts("tokenizer.ggml.tokens")
    types = metadata.numbers("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError(
            f"{metadata.file} has {len(tokens)} tokens and {len(types)} types of them; "
            "convert it again"
        )
    if kind == "gpt2":
        document = _byte_level(metadata, tokens)
    elif kind == "llama":
        document = _pieces(metadata, tokens, types)
    elif kind == "t5":
        filling = {number for number, each in enumerate(types) if each == UNUSED}
        document = unigram_document(metadata, tokens, filling)
    else:
        raise CheckpointError(
            f"{metadata.file} has a tokenizer of the kind {kind!r}; qtui reads gpt2, llama and t5: "
            "open the checkpoint that it was made from"
        )
    special = {
        name: tokens[_id(metadata, key, len(tokens))]
        for name, key in _SPECIAL.items()
        if f"tokenizer.ggml.{key}_token_id" in metadata
    }
    vocabulary = _vocabulary(tokens) if kind == "t5" else document["model"]["vocab"]
    document["added_tokens"] = _added(vocabulary, tokens, types, special)
    document["post_processor"] = _template(metadata, kind, special, vocabulary)
    if "tokenizer.chat_template" in metadata:
        special["chat_template"] = metadata.text("tokenizer.chat_template")
    return document, special


def _id(metadata: Metadata, key: str, count: int) -> int:
    found = metadata.whole(f"tokenizer.ggml.{key}_token_id")
    if found >= count:
        raise CheckpointError(
            f"{metadata.file} gives 'tokenizer.ggml.{key}_token_id' as {found}, of {count} tokens; "
            "convert it again"
        )
    return found


def _document(model: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            **model,
        },
        **parts,
    }


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    """Ids by token; the first of equal ones, as llama.cpp finds it."""
    found: dict[str, int] = {}
    for number, token in enumerate(tokens):
        found.setdefault(token, number)
    return found


def _byte_level(metadata: Metadata, tokens: list[str]) -> dict[str, Any]:
    name = metadata.text("tokenizer.ggml.pre", "default")
    rule = PRE_TOKENIZERS.get(name)
    if rule is None:
        raise CheckpointError(
            f"{metadata.file} cuts text before merging by the rule {name!r} (tokenizer.ggml.pre), "
            "which qtui does not know: open the checkpoint that it was made from"
        )
    vocabulary = _vocabulary(tokens)
    merges = []
    for text in metadata.texts("tokenizer.ggml.merges"):
        left, _, right = text.partition(" ")
        if left in vocabulary and right in vocabulary and left + right in vocabulary:
            merges.append([left, right])
    return _document(
        {"vocab": vocabulary, "merges": merges, "ignore_merges": name in IGNORE_MERGES},
        normalizer={"type": "NFC"} if name in COMPOSED else None,
        pre_tokenizer=rule,
        decoder={
            "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True
        },
    )  # fmt: skip


def _pieces(metadata: Metadata, tokens: list[str], types: list[float]) -> dict[str, Any]:
    scores = metadata.numbers("tokenizer.ggml.scores") or [0.0] * len(tokens)
    if len(scores) != len(tokens):
        raise CheckpointError(
            f"{metadata.file} has {len(tokens)} tokens and {len(scores)} scores of them; "
            "convert it again"
        )
    # Runs of spaces that a user defined are stored as they are matched, with real spaces.
    spelled = [
        token.replace(" ", SPACE) if kind == USER_DEFINED and not token.strip(" ") else token
        for token, kind in zip(tokens, types, strict=True)
    ]
    merging = {
        token: score
        for token, score, kind in zip(spelled, scores, types, strict=True)
        if kind in (NORMAL, USER_DEFINED)
    }
    if (letters := sum(map(len, merging))) > _MOST_LETTERS or max(map(len, merging), default=0) > (
        _LONGEST
    ):
        raise CheckpointError(
            f"{metadata.file} has pieces of {letters} letters together, or one beyond {_LONGEST}, "
            "as no real vocabulary has; convert it again"
        )
    vocabulary = _vocabulary(spelled)
    unknown = next((t for t, kind in zip(spelled, types, strict=True) if kind == UNKNOWN), None)
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    back: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _document(
        {
            "vocab": vocabulary,
            "merges": _merges(merging, vocabulary),
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": BYTE in types,
        },
        normalizer={"type": "Sequence", "normalizers": steps},
        decoder={"type": "Sequence", "decoders": back},
    )


def _merges(scores: dict[str, float], vocabulary: dict[str, int]) -> list[list[str]]:
    """Pairs of pieces that make a piece, those with the highest score first.

    Of equal scores the earlier token is first.
    """
    found = []
    for token, score in scores.items():
        place = vocabulary[token]
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in scores and right in scores:
                found.append((-score, place, vocabulary[left], vocabulary[right], left, right))
    return [[left, right] for *_, left, right in sorted(found)]


def _added(
    vocabulary: dict[str, int], tokens: list[str], types: list[float], special: dict[str, Any]
) -> list[dict[str, Any]]:
    """Tokens that are found in text before anything else: those of control, and a user's own."""
    named = set(special.values())
    found = []
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        control = kind == CONTROL or (token in named and kind != NORMAL)
        if not token or not (control or kind == USER_DEFINED):
            continue
        content = token if control else token.replace(" ", SPACE) if not token.strip(" ") else token
        if vocabulary.get(content) != number:
            continue
        found.append(
            {
                "id": number,
                "content": token if vocabulary.get(token) == number else content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": not control and vocabulary.get(token) != number,
                "special": control,
            }
        )
    return found


def _template(
    metadata: Metadata, kind: str, special: dict[str, Any], vocabulary: dict[str, int]
) -> dict[str, Any]:
    """What is added before and after every text."""
    usual = kind == "llama" or metadata.text("tokenizer.ggml.pre", "default") in IGNORE_MERGES
    adds = {
        "bos_token": metadata.flag("tokenizer.ggml.add_bos_token", usual),
        "eos_token": metadata.flag("tokenizer.ggml.add_eos_token", kind == "t5"),
    }
    used = [name for name, wanted in adds.items() if wanted and name in special]
    text: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    other: dict[str, Any] = {"Sequence": {"id": "B", "type_id": 1}}

    def around(part: dict[str, Any], place: int) -> list[dict[str, Any]]:
        token = {name: {"SpecialToken": {"id": special[name], "type_id": place}} for name in used}
        before = [token["bos_token"]] if "bos_token" in token else []
        after = [token["eos_token"]] if "eos_token" in token else []
        return [*before, part, *after]

    return {
        "type": "TemplateProcessing",
        "single": around(text, 0),
        "pair": [*around(text, 0), *around(other, 1)],
        "special_tokens": {
            special[name]: {
                "id": special[name],
                "ids": [vocabulary[special[name]]],
                "tokens": [special[name]],
            }
            for name in used
        },
    }
