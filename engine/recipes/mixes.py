"""Built-in recipes: llama.cpp's mixes of GGUF types, and ``first-last``.

A mix gives every tensor a type by its class, its block's position, and the model's heads and
experts: the rules of ``llama_tensor_get_type`` in ``src/llama-quant.cpp`` of llama.cpp, as of
llama-cpp-python 0.3.36: without an importance matrix, but with one for the mixes of
`engine.recipes.importance_mixes`, whose body has ``+imatrix``. The types of head and embedding are
part of a mix; they have no importance, as in what ``llama-imatrix`` writes. If the block size of a
type does not divide the row, llama.cpp uses another type, as in its ``tensor_type_fallback``; such
layers are reported as fallbacks.

Two things differ from a converted model. DeepSeek's ``kv_b_proj`` is one layer here and two tensors
there, one of them transposed: it gets the mix's own type. A tied head is one tensor there, and here
a copy in the same type.

No tensors: only names, roles and shapes.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from engine.errors import UsageError
from engine.formats.family import family_of
from engine.formats.grammar import parse_format
from engine.formats.storage import why_not_held
from engine.recipes import importance_mixes
from engine.recipes.tensor_classes import (
    Row,
    TensorClass,
    Traits,
    more_bits,
    tensor_class,
    traits_of,
)

FIRST_LAST = "first-last"
FIRST_LAST_FORMAT = "int4-g128"
"""Format of the body under ``first-last`` if none is given."""

DEFAULTS = {
    "Q2_K": "q2_k", "Q3_K_S": "q3_k", "Q3_K_M": "q3_k", "Q3_K_L": "q3_k", "Q4_K_S": "q4_k",
    "Q4_K_M": "q4_k", "Q5_K_S": "q5_k", "Q5_K_M": "q5_k", "Q6_K": "q6_k", "Q8_0": "q8_0",
    "Q4_0": "q4_0", **importance_mixes.DEFAULTS,
}  # fmt: skip
"""Every mix, with the type of tensors that no rule matches."""
MIXES = tuple(DEFAULTS)
NAMES = (*MIXES, FIRST_LAST)

FALLBACKS = {
    "q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0",
    "iq2_xxs": "iq4_nl", "iq2_xs": "iq4_nl", "iq2_s": "iq4_nl", "iq3_xxs": "iq4_nl",
    "iq3_s": "iq4_nl",
}  # fmt: skip
"""llama.cpp's type for a row that blocks of 256 do not divide."""
_IMATRIX = "+imatrix"


def recipe_named(text: str) -> str:
    """The printed name of a built-in recipe, ignoring case.

    Raises:
        UsageError: there is none; the message has the nearest name.
    """
    by_spelling = {name.lower(): name for name in NAMES}
    spelled = text.strip().lower()
    if spelled in by_spelling:
        return by_spelling[spelled]
    near = difflib.get_close_matches(spelled.replace("-", "_"), by_spelling, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(spelled, by_spelling, n=1, cutoff=0.5)
    hint = f"did you mean {by_spelling[near[0]]}?" if near else f"there are {', '.join(NAMES)}"
    raise UsageError(f"there is no built-in recipe {text.strip()!r}: {hint}")


def asked_of(
    name: str, rows: Sequence[Row], *, architecture: str = "", tied: bool = False, format: str = ""
) -> list[str | None]:
    """The format that a built-in recipe gives each layer, ignoring its shape; None to keep it.

    Args:
        name: one of `NAMES`.
        rows: the layers, in the order of the model.
        architecture: the name of its class, as ``config.json`` has it.
        tied: whether head and embedding are one tensor.
        format: of the body under ``first-last``, a format of the grammar.

    Raises:
        UsageError: no such recipe, or a format for one that defines its own.
        FormatError: a format that does not parse.
    """
    name = recipe_named(name)
    if name == FIRST_LAST:
        return _first_last(rows, format or FIRST_LAST_FORMAT)
    if format:
        raise UsageError(f"the recipe {name} sets the format of every layer: leave the format out")
    return mixed(name, rows, architecture, tied=tied)


def body_format(name: str) -> str:
    """The format of what no rule of a mix matches; empty for a recipe that sets none itself."""
    name = recipe_named(name)
    held = DEFAULTS.get(name, "")
    return _weighed(held) if name in importance_mixes.DEFAULTS else held


def held_instead(name: str, format: str, shape: Sequence[int]) -> str:
    """The format of a layer that cannot hold the one of ``name``; empty if it is kept."""
    if recipe_named(name) == FIRST_LAST:
        return ""
    instead = FALLBACKS.get(format.removesuffix(_IMATRIX), "")
    if instead and format.endswith(_IMATRIX):
        instead = _weighed(instead)
    return instead if instead and why_not_held(parse_format(instead), shape) is None else ""


# --- first and last block ------------------------------------------------------------------------


def better_than(format: str) -> str:
    """A step up: the 8-bit format of the same family, or ``kept`` from 8 bits on.

    Raises:
        FormatError: a format that does not parse.
    """
    parsed = parse_format(format)
    if parsed.bits >= 8:
        return "kept"
    return family_of(parsed).eight_bits


def _first_last(rows: Sequence[Row], format: str) -> list[str | None]:
    better = better_than(format)
    outer = None if better == "kept" else better
    blocks = [row.block for row in rows if row.block >= 0]
    ends = {min(blocks), max(blocks)} if blocks else set()
    return [
        None if row.role in ("head", "embedding") else outer if row.block in ends else format
        for row in rows
    ]


# --- the mixes of llama.cpp ----------------------------------------------------------------------


def mixed(
    name: str, rows: Sequence[Row], architecture: str = "", *, tied: bool = False
) -> list[str | None]:
    """The type of each layer in a mix, ignoring its shape; None for a layer that it leaves."""
    traits = traits_of(rows, architecture)
    classes = [tensor_class(row.name, row.kind, row.role) for row in rows]
    values = classes.count("attn_v")
    seen: dict[TensorClass, int] = {}
    found: list[str | None] = [None] * len(rows)
    # Counted in the order of blocks, as llama.cpp lists its tensors.
    for at in sorted(range(len(rows)), key=lambda at: rows[at].block):
        kind = classes[at]
        number = seen.get(kind, 0)
        seen[kind] = number + 1
        if kind == "left":
            continue
        if kind == "output" or (tied and kind == "token_embd"):
            found[at] = _output(name, traits, rows[at])
        elif name in importance_mixes.DEFAULTS:
            held = importance_mixes.type_of(name, kind, traits, number, rows[at].block)
            found[at] = held if kind == "token_embd" else _weighed(held)
        elif kind == "attn_v":
            found[at] = _value(name, traits, number, values)
        elif kind == "attn_k":
            found[at] = "q8_0" if traits.experts == 8 else DEFAULTS[name]
        elif kind == "attn_output":
            found[at] = _attention_output(name, traits)
        elif kind == "ffn_down":
            found[at] = _down(name, traits, rows[at].block if traits.experts > 1 else number)
        else:
            found[at] = DEFAULTS[name]
    return found


def _weighed(type: str) -> str:
    """The type with an importance matrix, which ``q8_0`` does not look at."""
    return type if type == "q8_0" else type + _IMATRIX


def _output(name: str, traits: Traits, row: Row) -> str:
    if traits.falcon or DEFAULTS[name] == "q8_0":
        return "q8_0"
    if name not in (*importance_mixes.SMALL, "IQ3_XXS"):
        return "q6_k"
    return "q5_k" if row.shape[-1] % 256 == 0 else "q8_0"


def _value(name: str, traits: Traits, number: int, values: int) -> str:
    """Type of ``attn_v``, or of a tensor that contains it; ``number`` out of ``values``."""
    wanted = DEFAULTS[name]
    if name == "Q2_K":
        wanted = "q4_k" if traits.queries_per_key >= 4 else "q3_k"
    elif name == "Q3_K_M":
        wanted = "q5_k" if number < 2 else "q4_k"
    elif name == "Q3_K_L" or (name == "Q4_K_S" and number < 4):
        wanted = "q5_k"
    elif name in ("Q4_K_M", "Q5_K_M") and more_bits(number, values):
        wanted = "q6_k"
    if traits.seventy and wanted in ("q3_k", "q4_k"):
        wanted = "q5_k"
    return "q8_0" if traits.experts == 8 else wanted


def _attention_output(name: str, traits: Traits) -> str:
    wanted = DEFAULTS[name]
    if traits.falcon:
        return "q4_k" if name == "Q3_K_L" else wanted
    if traits.experts == 8:
        low = name in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M")
        return "q5_k" if low else wanted
    return {"Q2_K": "q3_k", "Q3_K_M": "q4_k", "Q3_K_L": "q5_k"}.get(name, wanted)


def _down(name: str, traits: Traits, number: int) -> str:
    """Type of ``ffn_down``, the ``number``th; with experts, of that block."""
    blocks, falcon = traits.blocks, traits.falcon
    if name == "Q2_K":
        return "q3_k"
    if name == "Q3_K_M":
        if number < blocks // 16:
            return "q5_k"
        return "q4_k" if not falcon or more_bits(number, blocks) else "q3_k"
    if name == "Q3_K_L":
        return "q4_k" if falcon else "q5_k"
    if name == "Q4_K_M" and falcon:
        if number < blocks // 16:
            return "q6_k"
        return "q5_k" if more_bits(number, blocks) else "q4_k"
    if name in ("Q4_K_M", "Q5_K_M") and more_bits(number, blocks):
        return "q6_k"
    if name == "Q4_K_S" and not falcon and number < blocks // 8:
        return "q5_k"
    return DEFAULTS[name]
