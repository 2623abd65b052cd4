"""llama.cpp's mixes for an importance matrix: ``IQ2_XXS`` to ``IQ3_M``.

Types of tensors by the rules of ``llama_tensor_get_type_impl`` in ``src/llama-quant.cpp``, as of
llama-cpp-python 0.3.36 with an importance matrix; see `engine.recipes.mixes`.
"""

from __future__ import annotations

from engine.recipes.tensor_classes import TensorClass, Traits, more_bits

DEFAULTS = {
    "IQ2_XXS": "iq2_xxs", "IQ2_XS": "iq2_xs", "IQ2_S": "iq2_xs", "IQ2_M": "iq2_s",
    "IQ3_XXS": "iq3_xxs", "IQ3_XS": "iq3_s", "IQ3_S": "iq3_s", "IQ3_M": "iq3_s",
}  # fmt: skip
"""Every mix, with the type of tensors that no rule matches."""
SMALL = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
_BETTER = ("IQ2_S", "IQ2_M")
"""Those of `SMALL` that give ``iq3_s`` where the others give ``q2_k``."""


def type_of(name: str, kind: TensorClass, traits: Traits, number: int, block: int) -> str:
    """The type of a tensor in a mix.

    Args:
        name: a key of `DEFAULTS`.
        kind: its class, neither output nor left.
        traits: of the model.
        number: how many of its class come before it.
        block: its block.
    """
    if kind == "token_embd":
        if name in ("IQ2_XXS", "IQ2_XS"):
            return "q2_k"
        return "iq3_s" if name in (*_BETTER, "IQ3_XXS") else DEFAULTS[name]
    at = block if traits.experts > 1 else number
    if name in SMALL:
        return _of_small(name, kind, traits, number)
    if kind == "attn_v":
        return _value(name, traits)
    if kind in ("attn_k", "attn_q"):
        if kind == "attn_k" and traits.experts == 8:
            return "q8_0"
        return {"IQ3_XS": "iq3_xxs", "IQ3_XXS": "iq2_s"}.get(name, DEFAULTS[name])
    if kind == "ffn_down":
        favoured = at < traits.blocks // 8
        favoured |= traits.experts == 8 and more_bits(at, traits.blocks)
        return "q4_k" if name == "IQ3_M" and favoured else DEFAULTS[name]
    if kind == "attn_output" and not traits.falcon:
        if traits.experts == 8:
            return "q5_k"
        return {"IQ3_XXS": "iq3_s", "IQ3_M": "q4_k"}.get(name, DEFAULTS[name])
    if kind in ("ffn_gate", "ffn_up") and name == "IQ3_XS":
        inner = traits.blocks // 8 <= at < 7 * traits.blocks // 8
        return "iq3_xxs" if inner else DEFAULTS[name]
    return DEFAULTS[name]


def _of_small(name: str, kind: TensorClass, traits: Traits, number: int) -> str:
    favoured = "iq3_s" if name in _BETTER else "q2_k"
    if kind == "attn_v":
        return "q4_k" if traits.queries_per_key >= 4 or traits.experts >= 4 else favoured
    if kind == "attn_k" and traits.experts == 8:
        return "q4_k"
    if kind == "ffn_down" and number < traits.blocks // 8:
        return favoured
    if kind == "attn_output":
        if traits.experts == 8:
            return "q5_k"
        return "iq3_s" if name in _BETTER else DEFAULTS[name]
    return DEFAULTS[name]


def _value(name: str, traits: Traits) -> str:
    wanted = DEFAULTS[name]
    if name == "IQ3_M" or traits.queries_per_key >= 4:
        wanted = "q5_k" if traits.seventy else "q4_k"
    return "q8_0" if traits.experts == 8 else wanted
