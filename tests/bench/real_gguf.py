"""A GGUF file of a pretrained model beside llama.cpp's own run of it, and beside its float32 self::

    python -m tests.bench.real_gguf FILE.gguf --llama-perplexity PROGRAM --text TEXT

The control is a GGUF file in float32 of the same weights, dequantised: what llama.cpp makes of it
has no rounding of inputs. Printed are NLL, KL against the control, and whether the file continues
prompts with sense and compares with its dequantised self at exactly zero.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

from engine.checkpoint import open_checkpoint
from engine.measure.evaluation.logits_file import read_logits
from engine.model.generation import Generation
from engine.model.load import load_network, load_tokenizer
from tests.bench.llama_perplexity import LlamaPerplexity, qtui_compare
from tests.checkpoint.gguf.test_real import NEW, PROMPTS
from tests.export.exporting import export_checkpoint
from tests.export.targets.renew_gguf import nll_here


def continues(file: Path) -> list[str]:
    """What it says after each prompt; raises where that is not what it should."""
    network, tokenizer = load_network(file, device="cpu"), load_tokenizer(file)
    found = []
    for prompt, expected in PROMPTS.items():
        batch = Generation(network, [list(tokenizer(prompt).input_ids)], held={}, new_tokens=NEW)
        while not batch.done:
            batch.step()
        found.append(prompt + tokenizer.decode(batch.tokens[0]))
        assert expected in found[-1], found[-1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--llama-perplexity", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=8)
    given = parser.parse_args()
    runs = LlamaPerplexity(given.llama_perplexity, given.context)
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        itself, control = home / "itself", home / "control.gguf"
        load_network(given.file, device="cpu").model.save_pretrained(itself)
        load_tokenizer(given.file).save_pretrained(itself)
        export_checkpoint(open_checkpoint(itself), {}, control, "gguf", check=True)
        logits = home / "control.logits"
        runs.save(control, given.text, logits, given.chunks)
        exact = runs.compare(control, logits)
        theirs = runs.compare(given.file, logits)
        ours = qtui_compare(home, "-", given.file, "--logits", logits)
        (artefact,) = ours["artefacts"]
        windows = read_logits(logits).windows
        rounded = nll_here(given.file, windows.ids, rounding=True)
        counted = rounded.view(windows.count, -1)[:, windows.first :]
        print(f"{windows.count} windows of {windows.seq_len} tokens, second halves")
        print(f"NLL, llama.cpp on the control    {math.log(exact['Mean PPL(Q)'][0]):.6f}")
        print(f"NLL, qtui on the file            {math.log(artefact['divergence']['ppl']):.6f}")
        print(f"NLL, llama.cpp on the file       {math.log(theirs['Mean PPL(Q)'][0]):.6f}")
        print(f"NLL, qtui, inputs rounded as there {float(counted.mean()):.6f}")
        print(f"KL from the control: qtui {artefact['divergence']['kld']['mean']:.3g}, ", end="")
        print(f"llama.cpp {theirs['Mean KLD'][0]:.3g} on the file")
        tokens = load_tokenizer(given.file)(given.text.read_text()).input_ids
        count = windows.tokens
        print(f"tokens equal: {tokens[:count] == windows.ids.flatten().tolist()}")
        (same,) = qtui_compare(home, itself, given.file, "--text", given.text, "--tokens", 2048)[
            "artefacts"
        ]
        worst = max(layer["errors"]["relative"] for layer in same["layers"])
        print(f"beside itself: KL {same['kl']}, greatest error of a weight {worst}")
        for line in continues(given.file):
            print(repr(line))


if __name__ == "__main__":
    main()
