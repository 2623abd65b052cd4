"""llama.cpp through llama-cpp-python's own bindings of its C interface, ``llama_cpp.llama_cpp``."""

from __future__ import annotations

from typing import Any

import llama_cpp

from engine.runtimes.child import Request, Run
from engine.runtimes.drivers.decoding import (
    PIECE,
    Token,
    context_tokens,
    decoded,
    device_name,
    layers_on_device,
)


class LlamaCppPython:
    """A GGUF file that llama.cpp has loaded."""

    def __init__(self, request: Request) -> None:
        llama_cpp.llama_backend_init()
        given = llama_cpp.llama_model_default_params()
        given.n_gpu_layers = layers_on_device(request["device"])
        given.use_extra_bufts = request["repack"]
        self.model = llama_cpp.llama_model_load_from_file(request["path"].encode(), given)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {request['path']}")
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(vocabulary))
        self.threads = request["threads"]
        self.context: Any = None
        self.batches: list[Any] = []
        offload = bool(llama_cpp.llama_supports_gpu_offload())
        self.about = {
            "device": device_name(["GPU"] if offload else [], request["device"]),
            "threads": str(self.threads),
        }

    def prepare(self, batch: int, prompt: int, new: int) -> None:
        if self.context is not None:
            llama_cpp.llama_free(self.context)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = context_tokens(batch, prompt, new)
        settings.n_batch = PIECE
        settings.n_seq_max = batch
        settings.n_threads = settings.n_threads_batch = self.threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise RuntimeError(
                f"llama.cpp cannot make a context of {settings.n_ctx} tokens: lower --batch, "
                f"--prompt or --new"
            )

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def fill(self, tokens: list[Token]) -> object:
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for place, each in enumerate(tokens):
            batch.token[place] = each.token
            batch.pos[place] = each.position
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = each.sequence
            batch.logits[place] = each.last
        self.batches.append(batch)
        return batch

    def decode(self, batch: object) -> None:
        code = llama_cpp.llama_decode(self.context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        llama_cpp.llama_synchronize(self.context)

    def run(self, prompts: list[list[int]], new: int) -> Run:
        try:
            return decoded(self, prompts, new, self.vocabulary)
        finally:
            while self.batches:
                llama_cpp.llama_batch_free(self.batches.pop())

    def device_bytes(self) -> int | None:
        return None  # llama.cpp does not say


def load(request: Request) -> LlamaCppPython:
    """Load the file at ``request["path"]``."""
    return LlamaCppPython(request)
