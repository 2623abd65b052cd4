"""transformers: the folder as ``from_pretrained`` loads it, with the quantiser its config names."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from engine.runtimes.child import Request, Run


class Clock(StoppingCriteria):  # type: ignore[misc]
    """Notes when each token was there; transformers asks it after every one, and it never stops."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish = finish
        self.marks: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self._finish()
        self.marks.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Transformers:
    """A model that transformers has loaded."""

    def __init__(self, request: Request) -> None:
        torch.set_num_threads(request["threads"])
        wanted = request["device"]
        if wanted == "auto":
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(wanted)
        placed = importlib.util.find_spec("accelerate") is not None
        self.model = AutoModelForCausalLM.from_pretrained(
            request["path"],
            local_files_only=True,
            dtype="auto",
            trust_remote_code=request["trust_remote_code"],
            **({"device_map": {"": wanted}} if placed and wanted != "cpu" else {}),
        ).eval()
        if not placed and wanted != "cpu":
            self.model.to(self.device)
        config = self.model.config.get_text_config()
        self.vocabulary = int(config.vocab_size)
        cuda = self.device.type == "cuda"
        self.about = {
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "threads": str(torch.get_num_threads()),
            "torch": torch.__version__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": str(config._attn_implementation),
        }

    def prepare(self, batch: int, prompt: int, new: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def run(self, prompts: list[list[int]], new: int) -> Run:
        """Greedy; the first token comes with the prompt, so that ``new`` steps follow."""
        ids = torch.tensor(prompts, device=self.device)
        clock = Clock(self.finish)
        self.finish()
        began = time.perf_counter()
        self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            use_cache=True,
            min_new_tokens=new + 1,
            max_new_tokens=new + 1,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        marks = clock.marks
        steps = [later - sooner for sooner, later in pairwise(marks)]
        return Run(marks[0] - began, steps, len(steps) * len(prompts))

    def device_bytes(self) -> int | None:
        if self.device.type != "cuda":
            return None
        return int(torch.cuda.max_memory_reserved(self.device))


def load(request: Request) -> Transformers:
    """Load the folder at ``request["path"]``."""
    return Transformers(request)
