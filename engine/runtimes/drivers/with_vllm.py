"""vLLM, through its class for offline use.

Written from its documentation and source; the tests use a module with the same signatures, and it
has not been run with vLLM itself. Requests are added and stepped as its example
``examples/offline_inference/llm_engine_example.py`` does, so that each step can be timed. Prefixes
are not cached, or a prompt would be run once.
"""

from __future__ import annotations

import os
import time
from typing import Any

from vllm import LLM, SamplingParams, TokensPrompt

from engine.runtimes.child import Request, Run
from engine.runtimes.devices import visible


class Vllm:
    """A folder that vLLM has loaded."""

    def __init__(self, request: Request) -> None:
        device = request["device"]
        if device.startswith("cuda:"):
            os.environ["CUDA_VISIBLE_DEVICES"] = visible(int(device.removeprefix("cuda:")))
        self.llm: Any = LLM(
            model=request["path"],
            skip_tokenizer_init=True,
            trust_remote_code=request["trust_remote_code"],
            max_model_len=request["prompt"] + request["new"] + 1,
            max_num_seqs=max(request["batches"]),
            enable_prefix_caching=False,
            seed=0,
        )
        config = self.llm.llm_engine.model_config
        self.vocabulary = int(config.get_vocab_size())
        self.requests = 0
        self.about = {
            "device": "vllm's own" if device == "auto" else device,
            "threads": str(request["threads"]),
            "dtype": str(config.dtype).removeprefix("torch."),
            "quantization": str(config.quantization),
        }

    def prepare(self, batch: int, prompt: int, new: int) -> None:
        pass  # vLLM reserves its memory as it loads

    def run(self, prompts: list[list[int]], new: int) -> Run:
        """Greedy; the first token comes with the prompt, so that ``new`` more follow."""
        engine = self.llm.llm_engine
        sampling = SamplingParams(
            temperature=0.0, ignore_eos=True, max_tokens=new + 1, min_tokens=new + 1,
            detokenize=False,
        )  # fmt: skip
        made: dict[str, int] = {}
        began = time.perf_counter()
        for prompt in prompts:
            name = str(self.requests)
            self.requests += 1
            made[name] = 0
            engine.add_request(name, TokensPrompt(prompt_token_ids=prompt), sampling)
        prompt_s, before, steps, last = None, 0, [], began
        while engine.has_unfinished_requests():
            for output in engine.step():
                made[str(output.request_id)] = len(output.outputs[0].token_ids)
            now = time.perf_counter()
            if prompt_s is not None:
                steps.append(now - last)
            elif all(made.values()):
                prompt_s, before = now - began, sum(made.values())
            last = now
        if prompt_s is None:
            raise RuntimeError("vLLM ended without a token")
        return Run(prompt_s, steps, sum(made.values()) - before)

    def device_bytes(self) -> int | None:
        return None  # it reserves a share of the device whatever the model needs


def load(request: Request) -> Vllm:
    """Load the folder at ``request["path"]``."""
    return Vllm(request)
