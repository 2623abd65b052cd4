"""vLLM, through its class for offline use.

Read against the source of vLLM 0.33.0, and never run with vLLM itself: the tests use a module with
the same signatures. Requests are added and stepped as its example
``examples/deployment/llm_engine_example.py`` does, so that each step can be timed. The engine works
in a process of its own, which begins with the first prompt while others are added: the time from
then until each has a token is that of the prompt. An output bears the name that its request was
added under (``RequestState.external_req_id``) and, cumulative as is usual, all tokens so far.
Prefixes are not cached, or a prompt would be run once. ``ignore_eos`` alone keeps a sequence going;
``min_tokens`` would add a mask to every step.
"""

from __future__ import annotations

import os
import time
from typing import Any

import vllm
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
            "device": str(vllm.platforms.current_platform.device_type)
            if device == "auto"
            else device,
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
            temperature=0.0, ignore_eos=True, max_tokens=new + 1, detokenize=False
        )
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
