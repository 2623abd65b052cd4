"""llama.cpp through the package cyllama."""

from __future__ import annotations

from typing import Any

from cyllama.llama import llama_cpp as llama

from engine.runtimes.child import Request, Run
from engine.runtimes.drivers.decoding import (
    PIECE,
    Token,
    context_tokens,
    decoded,
    device_name,
    layers_on_device,
)


class Cyllama:
    """A GGUF file that llama.cpp has loaded."""

    def __init__(self, request: Request) -> None:
        llama.llama_backend_init()
        llama.disable_logging()
        given = llama.LlamaModelParams()
        given.n_gpu_layers = layers_on_device(request["device"])
        given.use_extra_bufts = request["repack"]
        self.model = llama.LlamaModel(request["path"], given, verbose=False)
        self.vocabulary = int(self.model.get_vocab().n_vocab)
        self.threads = request["threads"]
        self.context: Any = None
        self.sequences = 1
        devices = [
            each["description"] for each in llama.ggml_backend_dev_info() if each["type"] != "CPU"
        ]
        self.about = {
            "device": device_name(devices, request["device"]),
            "threads": str(self.threads),
            "model": str(self.model.desc),
        }

    def prepare(self, batch: int, prompt: int, new: int) -> None:
        if self.context is not None:
            self.context.close()
        settings = llama.LlamaContextParams()
        settings.n_ctx = context_tokens(batch, prompt, new)
        settings.n_batch = PIECE
        settings.n_seq_max = self.sequences = batch
        settings.n_threads = settings.n_threads_batch = self.threads
        self.context = llama.LlamaContext(self.model, settings, verbose=False)

    def clear(self) -> None:
        self.context.kv_cache_clear()

    def fill(self, tokens: list[Token]) -> object:
        batch = llama.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1, verbose=False)
        for each in tokens:
            batch.add(each.token, each.position, [each.sequence], each.last)
        return batch

    def decode(self, batch: object) -> None:
        self.context.decode(batch)
        self.context.synchronize()

    def run(self, prompts: list[list[int]], new: int) -> Run:
        return decoded(self, prompts, new, self.vocabulary)

    def device_bytes(self) -> int | None:
        return None  # llama.cpp does not say


def load(request: Request) -> Cyllama:
    """Load the file at ``request["path"]``."""
    return Cyllama(request)
