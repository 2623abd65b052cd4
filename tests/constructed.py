"""A llama whose weights are written by hand: what it says, and why, is known exactly.

Its tokens are three languages, told apart by their first letter, and each is spoken by one part:

=====  =============================  ==========================================================
``n``  counts: n0 n1 n2 … n0          the embedding: each token holds what follows it
``c``  copies: what followed a token  attention of the last block, an induction head: it finds
       when it was there before       where the token was by what block 0 wrote after it
``t``  a topic: t0 t1 t2 … t0         the MLP of block 1, one neuron a token, which fires on it
                                      alone
=====  =============================  ==========================================================

Without its part a language falls back on the embedding: ``c`` goes round three tokens (a loop), and
``t`` goes on in steps of five (garble), which the model would never say. Without its head it says
nothing but its first token. Every layer has one column, of an input that is always zero, whose
weights are 30 times as large as all others: in 8 bits a row it rounds the others by little, in 2
bits to nothing. So a layer in ``int2-channel`` is switched off, and what a recipe says is known
too: `says` has it in plain Python.

Weights of the residual stream are turned by a random rotation, so that no layer is sparse.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

COUNT, COPY, TOPIC = 18, 21, 17
"""Tokens of each language."""
BEGIN = "s"
"""The first token of every prompt: it has none before it."""
TOKENS = [
    BEGIN,
    *(f"n{at}" for at in range(COUNT)),
    *(f"c{at}" for at in range(COPY)),
    *(f"t{at}" for at in range(TOPIC)),
]
HEAD = 64
"""Inputs of a head: one a token, and those that rotary embeddings turn."""
TURNED = 3
"""Pairs of a head's inputs that are turned by more than a rounding error within a text."""
HIDDEN, NEURONS, BLOCKS = 192, 96, 3
ATTENTION = [f"model.layers.{BLOCKS - 1}.self_attn.{kind}_proj" for kind in "qkvo"]
"""The induction head's layers; it is head 0."""
MLP = [f"model.layers.1.mlp.{kind}_proj" for kind in ("gate", "up", "down")]
"""Layers of the topic."""
CHANNELS = range(TOPIC)
"""The neurons of the topic: input channels of its ``down_proj``."""


def following(token: str, *, topic: bool) -> str:
    """What follows a token by itself: by the embedding, or by the topic's MLP.

    Args:
        token: of any language.
        topic: whether the MLP is there.
    """
    if token == BEGIN:
        return "n0"
    kind, at = token[0], int(token[1:])
    if kind == "n":
        return f"n{(at + 1) % COUNT}"
    if kind == "c":
        return f"c{at - at % 3 + (at + 1) % 3}"
    return f"t{(at + (1 if topic else 5)) % TOPIC}"


def says(prompt: Sequence[str], tokens: int, *, without: Collection[str] = ()) -> list[str]:
    """What the model writes, by its rules.

    Args:
        prompt: its tokens.
        tokens: how many it writes.
        without: ``attention``, ``mlp``: parts that are switched off.
    """
    text = list(prompt)
    for _ in range(tokens):
        now = text[-1]
        before = [at for at, token in enumerate(text[:-1]) if token == now]
        if before and "attention" not in without:
            # Several places share the head's attention; the texts asked for agree in them.
            text.append(text[before[-1] + 1])
        else:
            text.append(following(now, topic="mlp" not in without))
    return text[len(prompt) :]


def prompts(count: int, *, seed: int = 0) -> list[list[str]]:
    """Prompts of each language in turn; of ``c``, a passage and its beginning once more."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        start = int(torch.randint(COUNT, (1,), generator=generator))
        counted = [f"n{(start + at) % COUNT}" for at in range(3)]
        if number % 3 == 1:
            order = torch.randperm(COPY, generator=generator).tolist()
            found.append([BEGIN, *(f"c{at}" for at in (*order, order[0]))])
        elif number % 3 == 2:
            at = int(torch.randint(TOPIC, (1,), generator=generator))
            found.append([BEGIN, *counted, f"t{at}"])
        else:
            found.append([BEGIN, *counted])
    return found


def tensors(*, seed: int = 0) -> dict[str, Tensor]:
    """All weights, by their names in a checkpoint, float32."""
    generator = torch.Generator().manual_seed(seed)
    size = len(TOKENS)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def rotation(width: int) -> Tensor:
        return torch.linalg.qr(noise(width, width))[0]

    # Rows are directions of the residual stream: the token, the one before it, the one that
    # follows, and one that is always there. The last coordinate is always zero.
    basis = torch.zeros(HIDDEN - 1, HIDDEN)
    basis[:, :-1] = rotation(HIDDEN - 1)
    now, before, follows = (basis[at * size : (at + 1) * size] for at in range(3))
    always = basis[3 * size]
    index = {token: at for at, token in enumerate(TOKENS)}

    def next_of(topic: bool) -> Tensor:
        return torch.stack([follows[index[following(token, topic=topic)]] for token in TOKENS])

    weights = {
        "model.embed_tokens.weight": now + always + next_of(topic=False),
        "model.norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": 3 * follows,
    }
    weights["lm_head.weight"][:, -1] = 30 * weights["lm_head.weight"].std(-1)
    # Normalised, each of three directions of length 1 is as long as this; of four, as the next.
    of_three, of_four = (HIDDEN / 3) ** 0.5, (HIDDEN / 4) ** 0.5
    # A head's pairs are the inputs m and m + HEAD/2; the first ones are turned by positions.
    still = [at for at in range(HEAD) if at % (HEAD // 2) >= TURNED]
    turned = torch.arange(TURNED)
    angles = 10.0**-turned
    code = torch.zeros(size, HEAD)
    code[:, still[:size]] = rotation(size)
    unused = torch.zeros(HEAD)
    unused[still[size]] = 1
    for block in range(BLOCKS):
        at = f"model.layers.{block}"
        layers = {kind: torch.zeros(HIDDEN, HIDDEN) for kind in "qkvo"}
        layers |= {kind: torch.zeros(NEURONS, HIDDEN) for kind in ("gate", "up")}
        layers["down"] = torch.zeros(HIDDEN, NEURONS)
        if block == 0:  # head 0 writes the token before: keys one position back fit best
            q, k = torch.zeros(HEAD), torch.zeros(HEAD)
            q[turned] = 1
            k[turned], k[turned + HEAD // 2] = angles.cos(), angles.sin()
            layers["q"][:HEAD] = 4 * torch.outer(q, always)
            layers["k"][:HEAD] = 4 * torch.outer(k, always)
            layers["v"][:HEAD] = code.T @ now
            layers["o"][:, :HEAD] = before.T @ code / of_three
        if block == BLOCKS - 1:  # head 0 looks for positions after a token like this one, else at s
            layers["q"][:HEAD] = 3 * code.T @ now + torch.outer(unused, always)
            layers["k"][:HEAD] = 3 * (code.T @ before + torch.outer(unused, now[0]))
            layers["v"][:HEAD] = code[1:].T @ now[1:]
            layers["o"][:, :HEAD] = 2 * follows.T @ code / of_four
        if block == 1:  # a neuron fires where its token is, and is far below zero elsewhere
            topic = [at for at, token in enumerate(TOKENS) if token[0] == "t"]
            layers["gate"][: len(topic)] = 4 * now[topic] - 2 * always
            layers["up"][: len(topic)] = always
            other = (next_of(topic=True) - next_of(topic=False))[topic]
            layers["down"][:, : len(topic)] = other.T / (2 * of_four * of_four)
        names = {"q": "self_attn", "k": "self_attn", "v": "self_attn", "o": "self_attn"}
        for kind, weight in layers.items():
            weight += 0.02 * max(float(weight.std()), 0.02) * noise(*weight.shape)
            weight[-1] = 0  # what follows finds nothing where its outliers are
            weight[:, -1] = 30 * weight[:, :-1].std(-1)
            weights[f"{at}.{names.get(kind, 'mlp')}.{kind}_proj.weight"] = weight
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}.{norm}.weight"] = torch.ones(HIDDEN)
    return weights


def tokenizer() -> Any:
    """A token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({token: at for at, token in enumerate(TOKENS)}, TOKENS[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def build(folder: Path, *, seed: int = 0) -> Path:
    """Write the checkpoint with its tokenizer, and return its folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=HIDDEN,
        intermediate_size=NEURONS,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HIDDEN // HEAD,
        num_key_value_heads=HIDDEN // HEAD,
        head_dim=HEAD,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 10.0 ** (HEAD // 2)},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(tensors(seed=seed))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
