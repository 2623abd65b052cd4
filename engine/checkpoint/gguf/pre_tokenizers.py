r"""How byte-level tokenizers cut text before merging, by llama.cpp's names.

The names are the values of ``tokenizer.ggml.pre``; llama.cpp knows a name where ``tokenizer.json``
has the rule itself, which is given here as that file has it. Several names stand for one rule; the
first of them is the one that is written.

Source: ``llm_tokenizer_bpe`` in ``src/llama-vocab.cpp`` of llama.cpp, and the models' own files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes(*, cuts: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": cuts}


def _cut(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


def _after(*steps: dict[str, Any], cuts: bool = False) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [*steps, _bytes(cuts=cuts)]}


_PLAIN = _bytes(cuts=True)
_DIGITS = _after({"type": "Digits", "individual_digits": True}, cuts=True)

PRE_TOKENIZERS: Mapping[str, dict[str, Any]] = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "jais", "phi-2", "roberta-bpe"), _PLAIN),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS
    ),
    **dict.fromkeys(
        (
            *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0"),
            *("lfm2", "dbrx", "smaug-bpe"),
        ),
        _after(_cut(_LLAMA3)),
    ),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"), _after(_cut(_QWEN2))
    ),
    "tekken": _after(_cut(_TEKKEN)),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _after(_cut(_GPT4O))),
    # What llama.cpp does where a file names none.
    "default": _after(
        _cut(r"[\p{P}\$\+<=>\^~\|]+"),
        _cut(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
        _cut(r"\p{N}+"),
        _cut(r"[0-9][0-9][0-9]"),
    ),
}
"""By name."""
IGNORE_MERGES = frozenset(
    (
        *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        "tekken",
    )
)
"""With these llama.cpp takes a word that is a token whole, and adds BOS where nothing is said."""
COMPOSED = frozenset(("qwen2", "deepseek-r1-qwen", "megrez"))
"""Names of models whose own tokenizers compose characters first (NFC)."""


def pre_tokenizer_name(rule: Mapping[str, Any] | None, *, ignore_merges: bool) -> str | None:
    """llama.cpp's name of a rule of ``tokenizer.json``; None if it has none.

    Args:
        rule: its ``pre_tokenizer``.
        ignore_merges: the value of its ``model``.
    """
    wanted = _canonical(rule)
    for name, known in PRE_TOKENIZERS.items():
        same = (name in IGNORE_MERGES) == ignore_merges or name == "tekken"
        if _canonical(known) == wanted and same:
            return name
    return None


def _canonical(rule: Mapping[str, Any] | None) -> list[str]:
    """The steps of a rule as texts, however they are nested and whatever offsets they report."""
    if rule is None:
        return []
    steps: Sequence[Mapping[str, Any]] = rule.get("pretokenizers") or [rule]
    found = []
    for step in steps:
        kind = step.get("type")
        if kind == "Sequence":
            found += _canonical(step)
        elif kind == "Split":
            pattern = step.get("pattern")
            regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
            same = step.get("behavior") in ("Isolated", "Removed") and regex is not None
            removed = step.get("behavior") == "Removed"
            whole = same and removed == bool(step.get("invert"))
            found.append(f"cut {_respelled(regex)}" if whole and regex else f"other {step}")
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            found += [f"cut {_GPT2}"] if step.get("use_regex", True) else []
        elif kind == "Digits":
            found.append(r"cut \p{N}" if step.get("individual_digits") else f"other {step}")
        else:
            found.append(f"other {step}")
    return found


def _respelled(pattern: str) -> str:
    r"""A pattern without what changes nothing: ``(?:…)`` around all, ``\p{N}{1,1}``."""
    return pattern.replace(r"\p{N}{1,1}", r"\p{N}")
