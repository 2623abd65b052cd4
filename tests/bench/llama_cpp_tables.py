"""Logits files and tables of ``llama-perplexity`` beside ours, both ways::

    python -m tests.bench.llama_cpp_tables --llama-perplexity PROGRAM --text TEXT [MODEL]

``MODEL``, the bundled demo if not given, and the same with weights rounded to three bits are
written as GGUF files in float32: both programs run the same weights without rounding inputs.
llama.cpp writes the logits of the first, and prints the tables of the second against them; then
qtui writes such a file, and llama.cpp reads it. Printed is how far the tables are apart.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from engine.checkpoint import list_layers, open_checkpoint
from engine.demo import DEMO_PATH
from engine.formats.grammar import parse_format
from engine.model.load import load_network, load_tokenizer
from engine.quant.quantize import dequantized
from tests.bench.llama_perplexity import LlamaPerplexity, beside, qtui_compare
from tests.export.exporting import export_checkpoint


def saved(model: Path, folder: Path, format: str) -> Path:
    """The model in float32 as a folder, its layers rounded to a format; with a GGUF file of it."""
    network = load_network(model, device="cpu")
    with torch.no_grad():
        for row in list_layers(open_checkpoint(model)):
            if format and row.role == "linear":
                weight = network.weight(row.name)
                weight.copy_(dequantized(weight, parse_format(format), torch.float16))
    network.model.save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    file = folder.with_suffix(".gguf")
    export_checkpoint(open_checkpoint(folder), {}, file, "gguf", check=True)
    return file


def report(title: str, figures: dict[str, tuple[float, float]], ours: str) -> None:
    """Print all figures, and the greatest difference of those of KL."""
    print(f"\n{title}\n| | llama.cpp | {ours} |\n|---|---|---|")
    for name, (mine, theirs) in figures.items():
        print(f"| {name} | {theirs:.6f} | {mine:.6f} |")
    kld = [abs(mine - theirs) for name, (mine, theirs) in figures.items() if "KLD" in name]
    print(f"greatest difference of the KLD table: {max(kld):.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=DEMO_PATH)
    parser.add_argument("--llama-perplexity", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=8)
    given = parser.parse_args()
    runs = LlamaPerplexity(given.llama_perplexity, given.context)
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        base = saved(given.model, home / "base", "")
        other = saved(given.model, home / "other", "int3-g64")
        written = {"llama.cpp": home / "theirs.logits", "qtui": home / "ours.logits"}
        runs.save(base, given.text, written["llama.cpp"], given.chunks)
        tokens = given.chunks * given.context
        size = ["--tokens", tokens, "--seq-len", given.context, "--text", given.text]
        qtui_compare(home, home / "base", home / "other", "--save-logits", written["qtui"], *size)
        for writer, file in written.items():
            theirs = runs.compare(other, file)
            (artefact,) = qtui_compare(home, "-", home / "other", "--logits", file)["artefacts"]
            report(f"against the file of {writer}", beside(artefact["divergence"], theirs), "qtui")


if __name__ == "__main__":
    main()
