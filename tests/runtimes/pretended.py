"""Packages that look like runtimes, with signatures of the real ones, for a process to import."""

from __future__ import annotations

from pathlib import Path

CYLLAMA = '''
"""What with_cyllama uses of cyllama 0.2.18; a step lasts as long as a real one: no time."""
import os
import time

decoded = []

def llama_backend_init(): pass
def disable_logging(): pass
def ggml_backend_dev_info():
    return [{"name": "CPU", "description": "a processor", "type": "CPU"}]

class LlamaModelParams:
    n_gpu_layers = -1
    use_extra_bufts = True

class LlamaContextParams:
    n_ctx = n_batch = n_seq_max = n_threads = n_threads_batch = 0

class Vocab:
    n_vocab = 99

class LlamaModel:
    desc = "a model"
    def __init__(self, path_model, params=None, verbose=True):
        assert os.path.isfile(path_model)
        if os.environ.get("PRETEND") == "crash" and params.use_extra_bufts:
            os.abort()
        if os.environ.get("PRETEND") == "always crash":
            print("about to crash", flush=True)
            os.abort()
        if os.environ.get("PRETEND") == "memory":
            raise MemoryError("no room")
        if os.environ.get("PRETEND") == "exit":
            print("leaving early", flush=True)
            os._exit(3)
        if os.environ.get("PRETEND") == "killed":
            os.kill(os.getpid(), 9)
        if os.environ.get("PRETEND") == "hang":
            while True:
                time.sleep(60)
        if os.environ.get("PRETEND") == "crash beside another":
            if os.fork():
                os.abort()
            while True:
                time.sleep(60)
    def get_vocab(self):
        return Vocab()

class LlamaBatch:
    def __init__(self, *, n_tokens, embd, n_seq_max, verbose=True):
        self.room, self.tokens = n_tokens, []
    def add(self, id, pos, seq_ids, logits):
        assert len(self.tokens) < self.room and 0 <= id < 99
        self.tokens.append((pos, tuple(seq_ids), logits))

class LlamaContext:
    def __init__(self, model, params=None, verbose=True):
        self.params, self.seen = params, {}
    def close(self): pass
    def kv_cache_clear(self):
        self.seen = {}
    def decode(self, batch):
        assert len(batch.tokens) <= self.params.n_batch
        for pos, (sequence,), logits in batch.tokens:
            assert sequence < self.params.n_seq_max
            assert pos == self.seen.get(sequence, 0), "a position was left out"
            self.seen[sequence] = pos + 1
        assert sum(self.seen.values()) <= self.params.n_ctx
    def synchronize(self): pass
'''
VLLM = '''
"""The classes of vLLM 0.33 that with_vllm uses: names, parameters and attributes are its own."""
from types import SimpleNamespace
from typing import TypedDict

platforms = SimpleNamespace(current_platform=SimpleNamespace(device_type="cuda"))

class TokensPrompt(TypedDict):
    prompt_token_ids: list

class SamplingParams:
    def __init__(self, n=1, temperature=1.0, ignore_eos=False, max_tokens=16, min_tokens=0,
                 detokenize=True):
        assert ignore_eos and not detokenize  # else the tokenizer that was left out is needed
        self.max_tokens = max_tokens

class LLMEngine:
    """Prompts wait their turn: two of them are run in a step, as chunked prefill may have it."""
    def __init__(self):
        self.model_config = SimpleNamespace(
            get_vocab_size=lambda: 99, dtype="torch.bfloat16", quantization="gptq"
        )
        self.requests = {}
    def add_request(self, request_id, prompt, params, arrival_time=None):
        """Returns the name within the engine; outputs bear the one given."""
        assert isinstance(request_id, str) and request_id not in self.requests
        assert all(0 <= each < 99 for each in prompt["prompt_token_ids"])
        self.requests[request_id] = [0, params.max_tokens]
        return request_id + "-0a1b2c3d"
    def has_unfinished_requests(self):
        return bool(self.requests)
    def step(self):
        outputs, begun = [], 0
        for name, state in list(self.requests.items()):
            if state[0] == 0:
                begun += 1
                if begun > 2:
                    continue
            state[0] += 1
            tokens = SimpleNamespace(token_ids=list(range(state[0])))
            outputs.append(SimpleNamespace(request_id=name, outputs=[tokens]))
            if state[0] == state[1]:
                del self.requests[name]
        return outputs

class LLM:
    def __init__(self, model, *, skip_tokenizer_init=False, trust_remote_code=False, seed=None,
                 max_model_len=None, max_num_seqs=None, enable_prefix_caching=None):
        assert enable_prefix_caching is False and trust_remote_code is False
        self.llm_engine = LLMEngine()
'''
LLAMA_BENCH = """#!/bin/sh
# Prints what llama-bench prints, shortened: two repetitions of what it is asked.
case "$*" in
  *"-p 0 -n 16 -d 32"*) samples="400000000, 200000000" ;;
  *"-p 32 -n 0 -d 0"*) samples="100000000, 200000000" ;;
  *) echo "error: invalid parameter" >&2; exit 1 ;;
esac
cat <<END
[
  {
    "build_commit": "abc1234",
    "build_number": 6000,
    "cpu_info": "a processor",
    "gpu_info": "",
    "backends": "CPU",
    "n_threads": 2,
    "samples_ns": [ $samples ],
    "samples_ts": [ 1.0, 2.0 ]
  }
]
END
"""


def environment(folder: Path, **packages: str) -> Path:
    """A folder with packages, to be named in ``PYTHONPATH``."""
    for name, source in packages.items():
        package = folder / name
        package.mkdir(parents=True)
        if name == "cyllama":
            (package / "llama").mkdir()
            (package / "llama" / "llama_cpp.py").write_text(source, encoding="utf-8")
            (package / "llama" / "__init__.py").touch()
            source = ""
        (package / "__init__.py").write_text(source, encoding="utf-8")
    return folder
