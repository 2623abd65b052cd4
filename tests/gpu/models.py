"""Checkpoints and settings of the check."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Generator
from pathlib import Path
from typing import Any
from uuid import uuid4

from engine import protocol as p
from engine.measure.counts import JobCounts
from engine.store.facts import FactStore
from engine.workspace import Loaded
from tests.drive import load
from tests.gpu.steps import Options

ARCHITECTURES = ("llama", "qwen3", "gemma3", "gpt2", "phi3", "qwen3_moe")
"""A plain one, a tied head, sliding windows and two norms, transposed weights, fused projections,
fused experts."""

LARGE: dict[str, Any] = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
"""8 billion parameters, as Llama 3 has them."""
MIXTURE: dict[str, Any] = {
    "vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 6144, "head_dim": 128,
    "num_hidden_layers": 6, "num_attention_heads": 32, "num_key_value_heads": 4,
    "num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
"""2.2 billion parameters, the widths of Qwen3-30B-A3B with half of its experts."""
TINY_LARGE: dict[str, Any] = {
    "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
TINY_MIXTURE: dict[str, Any] = {
    "vocab_size": 512, "num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 64, "hidden_size": 128, "max_position_embeddings": 256,
}  # fmt: skip


def prose(folder: Path, size: int = 400_000) -> Path:
    """A text that every machine has: modules of Python's own library."""
    path = folder / "library.txt"
    if not path.exists():
        library = Path(sysconfig.get_paths()["stdlib"])
        files = sorted(library.glob("*.py"))
        text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
        path.write_text("".join(c for c in text if c.isascii())[:size], encoding="utf-8")
    return path


def tiny_checkpoint(options: Options, arch: str, dtype: str = "float32") -> Path:
    """A random checkpoint of a few layers; built once in a run."""
    import torch

    from tests import tiny

    folder = options.folder / f"{arch}-{dtype}"
    if not folder.exists():
        tiny.build(arch, folder, dtype=getattr(torch, dtype))
    return folder


def settings(options: Options, device: str, dtype: str = "fp32", **given: Any) -> p.Settings:
    """A few windows of 32 tokens."""
    text = str(prose(options.folder))
    chosen: dict[str, Any] = {
        "text": text, "calib": text, "tokens": 192, "seq_len": 32, "batch_tokens": 96,
        "calib_tokens": 256, "formats": ("int4-g32",), "sweep_formats": ("int4-g32",),
        "estimate_formats": ("int4-g32", "int8"), "device": device, "dtype": dtype,
    }  # fmt: skip
    return p.Settings(**{**chosen, **given})


def opened(
    options: Options, source: Path, device: str, dtype: str = "fp32", **given: Any
) -> Loaded:
    """A loaded model that knows no fact."""
    facts = FactStore(options.folder / f"{uuid4().hex}.sqlite")
    return load(source, facts, settings(options, device, dtype, **given))


def learnt(steps: Generator[Any, None, Any]) -> list[p.AnyFact]:
    """All facts of a job's steps, the last under every key."""
    found: dict[str, p.AnyFact] = {}
    for event in steps:
        if isinstance(event, p.Learned):
            found.update(zip(event.keys, event.facts, strict=True))
    return list(found.values())


def ended(steps: Generator[Any, None, Any]) -> Any:
    """What a job's steps return."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def counts() -> JobCounts:
    """Of a job that is run by itself."""
    return JobCounts()


def random_checkpoint(kind: str, folder: Path, device: str, fields: dict[str, Any]) -> Path:
    """A random checkpoint in bfloat16, built on the device and written with a tokenizer.

    Args:
        kind: name of the config class without ``Config``, such as ``Llama``.
        folder: where to write it.
        device: where to build it.
        fields: of the config.
    """
    import torch
    import transformers
    from torch import nn

    from tests import tiny

    config = getattr(transformers, f"{kind}Config")(
        **{"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": None, **fields}
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator(device).manual_seed(0)
    model.to_empty(device=device)
    fresh = type(model.model.rotary_emb)(config=config).to(device)
    model.model.rotary_emb = fresh  # its tables are no parameters, and were left empty
    depth = (2 * config.num_hidden_layers) ** 0.5
    with torch.no_grad():
        for name, each in model.named_parameters():
            if each.dim() == 1:
                nn.init.ones_(each)
                continue
            width = each.shape[-1] ** -0.5
            wide = 1.0 if "embed" in name else width
            if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                wide = width / depth
            each.normal_(0, wide, generator=generator)
    model.save_pretrained(folder, max_shard_size="4GB")
    tiny.tokenizer().save_pretrained(folder)
    return folder


def main() -> None:
    """Write the large checkpoint: ``python -m tests.gpu.models FOLDER [DEVICE]``."""
    device = sys.argv[2] if len(sys.argv) > 2 else "cuda"
    random_checkpoint("Llama", Path(sys.argv[1]), device, LARGE)


if __name__ == "__main__":
    main()
