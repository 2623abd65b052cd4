"""Memory of ``qtui compare --weights``: one layer and its pieces, however many layers there are.

``python -m tests.bench.compare_memory [blocks ...]``: for each number of blocks of one width (4.2
million weights in the largest layer), an original in bfloat16 and its copy in GPTQ's 4 bits are
written, and compared in a process of their own. Its peak is told above what it has before the first
layer, which is what its imports take.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WIDTH, INNER, VOCABULARY = 1024, 4096, 2048
MIB = 1 << 20


def main() -> None:
    if sys.argv[1:2] == ["--inner"]:
        print(json.dumps(measured(Path(sys.argv[2]), Path(sys.argv[3]))))
        return
    print("blocks  original  artefact  at start  at most  more, of the largest layer in bfloat16")
    for blocks in map(int, sys.argv[1:] or ["4", "16", "32"]):
        with tempfile.TemporaryDirectory() as home:
            original, finished = written(Path(home), blocks)
            command = [sys.executable, "-m", __spec__.name, "--inner", str(original), str(finished)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(said.splitlines()[-1])
            start, peak = found["start"], found["peak"]
            sizes = [sum(f.stat().st_size for f in each.iterdir()) for each in (original, finished)]
            largest = 2 * WIDTH * INNER
            told = [f"{size / MIB:6.0f} MiB" for size in (*sizes, start, peak)]
            more = (peak - start) / largest
            print(f"{blocks:6}  {'  '.join(told)}  {more:.1f} times", flush=True)


def written(home: Path, blocks: int) -> tuple[Path, Path]:
    """An original and its copy in 4 bits."""
    import torch
    from safetensors.torch import save_file

    from engine.export.gptq import words
    from engine.formats.grammar import parse_format
    from engine.quant.quantize import stored_form

    original, finished = home / "original", home / "finished"
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": blocks, "num_attention_heads": 8,
        "num_key_value_heads": 8, "vocab_size": VOCABULARY, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    quantised = {
        "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": False, "desc_act": False,
        "checkpoint_format": "gptq",
    }  # fmt: skip
    chance = torch.Generator().manual_seed(0)
    fmt = parse_format("int4-g128")

    def random(out: int, inputs: int) -> torch.Tensor:
        return (torch.randn(out, inputs, generator=chance) * 0.02).bfloat16()

    for folder in (original, finished):
        folder.mkdir()
    outside = {
        "model.embed_tokens.weight": random(VOCABULARY, WIDTH),
        "model.norm.weight": torch.ones(WIDTH, dtype=torch.bfloat16),
    }
    save_file(outside, original / "outside.safetensors")
    save_file(outside, finished / "outside.safetensors")
    index: dict[Path, dict[str, str]] = {
        folder: dict.fromkeys(outside, "outside.safetensors") for folder in (original, finished)
    }
    for block in range(blocks):
        plain: dict[str, torch.Tensor] = {}
        packed: dict[str, torch.Tensor] = {}
        for kind, shape in {
            **{f"self_attn.{each}_proj": (WIDTH, WIDTH) for each in "qkvo"},
            **{f"mlp.{each}_proj": (INNER, WIDTH) for each in ("gate", "up")},
            "mlp.down_proj": (WIDTH, INNER),
        }.items():
            name = f"model.layers.{block}.{kind}"
            plain[f"{name}.weight"] = random(*shape)
            form = stored_form(plain[f"{name}.weight"].float(), fmt, torch.float16)
            packed |= words.tensors(name, fmt, form)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            name = f"model.layers.{block}.{norm}.weight"
            plain[name] = packed[name] = torch.ones(WIDTH, dtype=torch.bfloat16)
        file = f"block-{block}.safetensors"
        for folder, tensors in ((original, plain), (finished, packed)):
            save_file(tensors, folder / file)
            index[folder] |= dict.fromkeys(tensors, file)
    for folder, more in ((original, {}), (finished, {"quantization_config": quantised})):
        (folder / "config.json").write_text(json.dumps(config | more))
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index[folder]})
        )
    return original, finished


def measured(original: Path, finished: Path) -> dict[str, int]:
    """Bytes that a comparison of files takes at most, above what its imports do."""
    from engine import protocol as p
    from engine.diagnosis.of_artefacts import artefact_findings
    from engine.measure.compare.comparing import compare_files
    from engine.session import Session, apply
    from engine.store.facts import FactStore
    from tests.drive import open_files, settings

    opened = open_files(original, FactStore(original.parent / "facts.sqlite"), settings())
    session = Session()
    for event in (opened.read(), opened.listed()):
        apply(session, event)
    before = 0
    for step in compare_files(opened, [str(finished)], "j1"):
        before = before or _peak()  # headers are read, no layer yet
        if isinstance(step, p.ArtefactOpened | p.Learned):
            apply(session, step)
    (found,) = session.compared.values()
    assert {fact.rounding for fact in found.layers.values()} == {"nearest", "same"}
    assert artefact_findings(found) == []
    return {"start": before, "peak": _peak()}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
