"""Configurations and tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.traits.trait import change_config, trait


def _text(name: str, text: str, *says: str) -> None:
    @trait(f"config: {name}", "config.json", *says)
    def build(folder: Path) -> None:
        (folder / "config.json").write_text(text)


_text("nested 10,000 deep", '{"quantization_config":' * 10_000, "nested too deeply")
_text("lists 100,000 deep", '{"a":' + "[" * 100_000, "nested too deeply")
_text("a list", "[]", "a list")
_text("empty", "", "not valid JSON")
_text("a number of 5,000 digits", '{"vocab_size":' + "9" * 5000 + "}", "not valid JSON")
_text("not a number", '{"model_type":"llama","rms_norm_eps":NaN}', "NaN")


def _config(name: str, *says: str, command: Any = "triage", **given: object) -> None:
    @trait(f"config: {name}", *says, command=command)
    def build(folder: Path) -> None:
        change_config(folder, **given)


_config("a model_type that is a list", "config.json", "model_type", model_type=["llama"])
_config(
    "code of its own", "config.json", "--trust-remote-code", command="eval", model_type="evil",
    auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
)  # fmt: skip
for _bits in (0, -1, 10**9, "4"):
    _config(
        f"quantised to {_bits!r} bits", "config.json", "quant_method 'gptq'",
        quantization_config={"quant_method": "gptq", "bits": _bits, "group_size": 128},
    )  # fmt: skip
for _group in (0, -1, 2**24):
    _config(
        f"groups of {_group}", "config.json", "quant_method 'awq'",
        quantization_config={"quant_method": "awq", "bits": 4, "group_size": _group},
    )  # fmt: skip
_config("a quantization_config that is a list", "config.json", "a list", quantization_config=[1])
_config(
    "patterns that backtrack for ever", "config.json", "quant_method 'gptq'",
    quantization_config={
        "quant_method": "gptq", "bits": 4,
        "dynamic": {"+:(a+)+$": {"bits": 8}, "-:^(.*.*.*)*x$": {}},
        "extra_config": {"(.*)*": {"bits": 16}},
        "config_groups": {"group_0": {"targets": ["re:(a+)+$"]}}, "ignore": ["re:(.*.*)*y"],
    },
)  # fmt: skip
_config("10^9 blocks", "config.json", "num_hidden_layers", num_hidden_layers=10**9)
_config("-1 blocks", "config.json", "num_hidden_layers", num_hidden_layers=-1)
_config("blocks as text", "config.json", "num_hidden_layers", command="eval", num_hidden_layers="2")
_config("10^12 tokens", "config.json", "vocab_size", vocab_size=10**12)
_config("another vocabulary than the table", "lm_head", "[320, 64]", command="eval", vocab_size=321)
_config("a width of 10^12", "config.json", "hidden_size", hidden_size=10**12)
_config("no heads", "config.json", "num_attention_heads", num_attention_heads=0)
_config("10^10 heads", "config.json", "num_attention_heads", num_attention_heads=10**10)
_config("heads of 10^12", "config.json", "head_dim", head_dim=10**12)
_config("a text of 10^18 tokens", "max_position_embeddings", max_position_embeddings=10**18)
_config("rope that is a list", "config.json", command="eval", rope_parameters=[1])
_config(
    "an activation that runs", "config.json", command="eval",
    hidden_act="__import__('os').mkdir('executed')",
)  # fmt: skip
_config(
    "a name of markup and escape codes", model_type="llama",
    architectures=["[/]\x1b[2J<script>\u202e"],
)  # fmt: skip


# -- tokenizers -----------------------------------------------------------------------------------


def _tokenizer(name: str, change: Callable[[dict[str, Any]], None], *says: str) -> None:
    @trait(f"tokenizer: {name}", *says, command="eval")
    def build(folder: Path) -> None:
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))


def _splits(pattern: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        split = {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
        content["pre_tokenizer"] = {
            "type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]],
        }  # fmt: skip

    return change


_tokenizer(
    "a pattern that backtracks for ever", _splits(r"(?:\w+\s?)+[^\w\s.]"), "tokenizer", "time"
)
_tokenizer("a pattern that is none", _splits("(("), "tokenizer")
_tokenizer("a type that is unknown", lambda c: c.update(model={"type": "Evil"}), "tokenizer")
_tokenizer("ids of 10^18", lambda c: c["model"]["vocab"].update(e=10**18), "tokenizer")
_tokenizer("ids beyond the model", lambda c: c["model"]["vocab"].update(e=10**6), "1000000")
_tokenizer("no words at all", lambda c: c["model"].update(vocab={}), "token")


@trait("tokenizer: nested 100,000 deep", "tokenizer", command="eval")
def _deep(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"a":' * 100_000)


@trait("tokenizer: 2 GB", "tokenizer.json", "2000000000 bytes", command="eval")
def _large(folder: Path) -> None:
    with (folder / "tokenizer.json").open("r+b") as stream:
        stream.truncate(2_000_000_000)


@trait("tokenizer: a config nested 100,000 deep", "tokenizer", command="eval")
def _deep_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"a":' * 100_000)


@trait("tokenizer: a class of its own", "tokenizer", command="eval")
def _own_class(folder: Path) -> None:
    (folder / "evil.py").write_text("import os\nos.mkdir('executed')\nclass Tokenizer: pass\n")
    file = folder / "tokenizer_config.json"
    given = {
        "tokenizer_class": "Tokenizer",
        "auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), **given}))
