"""Runs GGUF files in llama.cpp itself, in an environment that has cyllama::

    python tests/export/targets/llama_cpp.py REQUEST.json > ANSWER.json

Nothing of qtui is imported. The request names files, windows of tokens and texts; the answer has
the NLL of every target of the windows, in nats, and the tokens of the texts. The cache of keys and
values is in float32 and attention is not fused, so that only the weights make a difference, and the
rounding of inputs of quantised layers.
"""

from __future__ import annotations

import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def score(file: str, windows: list[list[int]], texts: list[str]) -> dict[str, Any]:
    from cyllama.llama import llama_cpp as llama

    given = llama.LlamaModelParams()
    given.use_extra_bufts = False  # its kernels for AMX crash on some processors
    given.use_mmap = False

    class Model(llama.LlamaModel):  # type: ignore[misc]
        @property
        def n_vocab(self) -> int:  # cyllama 0.2.18 asks for it, and has none
            return int(self.get_vocab().n_vocab)

    model = Model(file, given, verbose=False)
    vocabulary = model.get_vocab()
    size = max(len(window) for window in windows)
    settings = llama.LlamaContextParams()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(size, 32)
    settings.type_k = settings.type_v = 0  # GGML_TYPE_F32
    settings.flash_attn_type = 0
    settings.n_threads = settings.n_threads_batch = 1
    found = []
    for window in windows:
        context = llama.LlamaContext(model, settings, verbose=False)
        batch = llama.LlamaBatch(n_tokens=len(window), embd=0, n_seq_max=1, verbose=False)
        batch.set_batch(window, 0, True)
        context.decode(batch)
        for place, target in enumerate(window[1:]):
            logits = context.get_logits_ith(place)
            top = max(logits)
            total = math.fsum(math.exp(each - top) for each in logits)
            found.append(math.log(total) + top - logits[target])
        context.close()
    return {
        "nll": found,
        "tokens": [vocabulary.tokenize(text, True, True) for text in texts],
        "description": model.desc,
    }


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    from cyllama.llama import llama_cpp as llama

    llama.llama_backend_init()
    answer = {
        name: score(each["file"], each["windows"], each["texts"]) for name, each in asked.items()
    }
    document = {"version": f"cyllama {version('cyllama')}", "files": answer}
    sys.stdout.write("\n@@@" + json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
