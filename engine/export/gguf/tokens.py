"""The metadata of a GGUF file that describes the tokenizer, from transformers' tokenizer.

Three kinds are written, as `engine.checkpoint.gguf.tokenizer` reads them: bytes and merges
(``gpt2``), SentencePiece's pieces that merge (``llama``), and its unigram pieces (``t5``). Of those
that merge, a ``tokenizer.json`` has merges in place of scores: a piece that is merged earlier gets
a higher one, and llama.cpp merges in the same order.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from engine.checkpoint.gguf.metadata import Metadata
from engine.checkpoint.gguf.pre_tokenizers import pre_tokenizer_name
from engine.checkpoint.gguf.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    tokenizer_of,
)
from engine.checkpoint.gguf.unigram import CHARSMAP, ENDS, MERGES_SPACES, PREFIX
from engine.errors import CheckpointError
from engine.export.gguf.settings import GgufKey

_IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_TRIMMED = {"type": "Replace", "pattern": {"Regex": ENDS}, "content": ""}
"""Spaces dropped at the ends of a text, as llama.cpp does where it merges others."""
_LAST = -1e6
"""Score of pieces that no merge makes."""


def tokens_of(tokenizer: Any, count: int) -> list[GgufKey]:
    """The metadata of a tokenizer.

    Args:
        tokenizer: transformers' own, backed by tokenizers.
        count: rows of the embedding; tokens beyond those that there are become unused.

    Raises:
        CheckpointError: llama.cpp has no tokenizer of this kind.
    """
    inner: Any = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        _refuse(tokenizer, "is written in Python, and llama.cpp has its own kinds alone")
    state = json.loads(inner.to_str())
    model = state["model"]
    if model["type"] not in ("BPE", "Unigram"):
        _refuse(
            tokenizer,
            f"is of the kind {model['type']}, and qtui writes those that merge pairs or take the "
            "likeliest pieces",
        )
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    if names and max(names) >= count:
        _refuse(tokenizer, f"has token {max(names)}, and the embedding {count} rows")
    byte_level = _has(state.get("pre_tokenizer"), "ByteLevel")
    if model["type"] == "Unigram":
        keys = _unigram(tokenizer, state, count)
    elif byte_level:
        keys = _byte_level(tokenizer, state)
    elif model.get("byte_fallback"):
        keys = _pieces(tokenizer, state, names, count)
    else:
        _refuse(tokenizer, "merges neither bytes nor SentencePiece's pieces with bytes among them")
    texts, types = _listed(state, names, count, byte_level=byte_level)
    keys += [
        ("tokenizer.ggml.tokens", texts, "array"),
        ("tokenizer.ggml.token_type", types, "array"),
    ]
    for name, key in _IDS.items():
        number = getattr(tokenizer, f"{name}_token_id", None)
        known = any(each == f"tokenizer.ggml.{key}_token_id" for each, *_ in keys)
        if isinstance(number, int) and 0 <= number < count and not known:
            keys.append((f"tokenizer.ggml.{key}_token_id", number, "uint32"))
    keys += _around(tokenizer)
    template = getattr(tokenizer, "chat_template", None)
    template = template.get("default") if isinstance(template, dict) else template
    if isinstance(template, str):
        keys.append(("tokenizer.chat_template", template, "string"))
    return keys


PROBES = (
    "The quick brown fox: it's 12345 o'clock.",
    "two  spaces,\n\ttabs",
    " a space before",
    "naïve café — 数学 🙂",
    "a space behind ",
)
"""Texts on which a tokenizer and what is written of it are compared."""


def cut_otherwise(tokenizer: Any, keys: Sequence[GgufKey]) -> str | None:
    """A text that a reader of the metadata cuts into other tokens; None if none is found.

    Args:
        tokenizer: whose metadata it is.
        keys: see `tokens_of`.
    """
    from tokenizers import Tokenizer

    values = {key: [*value] if isinstance(value, bytes) else value for key, value, _ in keys}
    document, _ = tokenizer_of(Metadata(Path(str(tokenizer.name_or_path)), values))
    read = Tokenizer.from_str(json.dumps(document))
    ends = [f"one{token}two" for token in (tokenizer.eos_token,) if token]
    for text in (*PROBES, *ends):
        if read.encode(text).ids != list(tokenizer(text).input_ids):
            return text
    return None


def _refuse(tokenizer: Any, why: str) -> NoReturn:
    raise CheckpointError(
        f"the tokenizer in {tokenizer.name_or_path} {why}: no GGUF file can be written with it"
    )


def _has(rule: Any, kind: str) -> bool:
    """Whether a rule of ``tokenizer.json`` is of a kind, or has a step that is."""
    if not isinstance(rule, Mapping):
        return False
    steps = [*rule.get("pretokenizers", ()), *rule.get("normalizers", ())]
    return rule.get("type") == kind or any(_has(step, kind) for step in steps)


def _byte_level(tokenizer: Any, state: dict[str, Any]) -> list[GgufKey]:
    model, normalizer = state["model"], state.get("normalizer")
    name = pre_tokenizer_name(
        state["pre_tokenizer"], ignore_merges=bool(model.get("ignore_merges"))
    )
    if name is None:
        _refuse(tokenizer, "cuts text before merging by a rule that llama.cpp has no name for")
    if normalizer is not None and normalizer.get("type") != "NFC":
        _refuse(tokenizer, "changes text before cutting it, which llama.cpp does not")
    merges = [" ".join(_pair(merge)) for merge in model["merges"]]
    if not merges:
        _refuse(tokenizer, "has no merges, without which llama.cpp takes none")
    return [
        ("tokenizer.ggml.model", "gpt2", "string"),
        ("tokenizer.ggml.pre", name, "string"),
        ("tokenizer.ggml.merges", merges, "array"),
    ]


def _unigram(tokenizer: Any, state: dict[str, Any], count: int) -> list[GgufKey]:
    """Of pieces of which the likeliest are taken; llama.cpp has no bytes for unknown letters."""
    model = state["model"]
    if model.get("byte_fallback") or model.get("unk_id") is None:
        _refuse(
            tokenizer, "has bytes in place of unknown letters, which llama.cpp's unigrams have not"
        )
    spaces = [step for step in _steps(state.get("pre_tokenizer")) if step["type"] == "Metaspace"]
    others = {step["type"] for step in _steps(state.get("pre_tokenizer"))}
    if len(spaces) != 1 or others - {"Metaspace", "WhitespaceSplit"}:
        _refuse(tokenizer, "cuts text into words by another rule than spaces, as llama.cpp has it")
    merges, table = "WhitespaceSplit" in others, b""
    for step in _steps(state.get("normalizer")):
        if step["type"] == "Precompiled":
            table = base64.b64decode(step["precompiled_charsmap"] or "")
        elif step["type"] == "Replace" and (step["pattern"].get("Regex") == " {2,}"):
            merges = True
        elif step != _TRIMMED:
            _refuse(tokenizer, "changes text before cutting it, in a way that llama.cpp does not")
    scores = [float(score) for _, score in model["vocab"]]
    keys: list[GgufKey] = [
        ("tokenizer.ggml.model", "t5", "string"),
        ("tokenizer.ggml.pre", "default", "string"),
        ("tokenizer.ggml.scores", scores + [_LAST] * (count - len(scores)), "array"),
        (PREFIX, spaces[0].get("prepend_scheme", "always") != "never", "bool"),
        (MERGES_SPACES, merges, "bool"),
        ("tokenizer.ggml.unknown_token_id", int(model["unk_id"]), "uint32"),
    ]
    return [*keys, (CHARSMAP, table, "array")] if table else keys


def _steps(rule: Any) -> list[Any]:
    """The steps of a rule of ``tokenizer.json``, in order."""
    if not rule:
        return []
    inner = rule.get("pretokenizers") or rule.get("normalizers")
    return [step for each in inner for step in _steps(each)] if inner else [rule]


def _pair(merge: Any) -> tuple[str, str]:
    """The two parts of a merge, which newer files have as a list."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _pieces(
    tokenizer: Any, state: dict[str, Any], names: Mapping[int, str], count: int
) -> list[GgufKey]:
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(state["model"]["merges"]):
        ranks.setdefault("".join(_pair(merge)), rank)
    scores = [-float(ranks[names[i]]) if names.get(i) in ranks else _LAST for i in range(count)]
    begins = begins_with_space(tokenizer)
    return [
        ("tokenizer.ggml.model", "llama", "string"),
        ("tokenizer.ggml.pre", "default", "string"),
        ("tokenizer.ggml.scores", scores, "array"),
        ("tokenizer.ggml.add_space_prefix", begins, "bool"),
    ]


def begins_with_space(tokenizer: Any) -> bool:
    """Whether a tokenizer puts a space before every text."""
    tokens = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens
    return bool(tokens) and tokens[0].startswith(SPACE)


def _listed(
    state: dict[str, Any], names: Mapping[int, str], count: int, *, byte_level: bool
) -> tuple[list[str], list[int]]:
    """All tokens and their kinds, by id."""
    added = {each["id"]: each for each in state["added_tokens"]}
    unknown = state["model"].get("unk_token")
    if (number := state["model"].get("unk_id")) is not None:
        unknown = names.get(number)
    texts, types = [], []
    for number in range(count):
        text = names.get(number)
        if text is None:
            text, kind = f"[PAD{number}]", UNUSED
        elif not byte_level and text == unknown:
            kind = UNKNOWN
        elif number in added and added[number]["special"]:
            kind = CONTROL
        elif number in added:
            kind = USER_DEFINED
            text = text if byte_level else text.replace(SPACE, " ")
        elif not byte_level and _is_byte(text):
            kind = BYTE
        else:
            kind = NORMAL
        texts.append(text)
        types.append(kind)
    return texts, types


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _around(tokenizer: Any) -> list[GgufKey]:
    """Whether BOS and EOS stand around every text, as the tokenizer itself has it."""
    ids = list(tokenizer("a").input_ids)
    found = []
    for name, place in (("bos", 0), ("eos", -1)):
        number = getattr(tokenizer, f"{name}_token_id", None)
        if number is not None:
            adds = len(ids) > 1 and ids[place] == number
            found.append((f"tokenizer.ggml.add_{name}_token", adds, "bool"))
    return found
