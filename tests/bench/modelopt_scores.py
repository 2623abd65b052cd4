"""Sensitivities as NVIDIA Model Optimizer finds them; run by `tests/bench/against_modelopt.py`.

    python tests/bench/modelopt_scores.py FOLDER WINDOWS.npy METHOD BATCH OUT

in an environment of its own, which has nothing of ours. ``OUT.json`` gets the scores of every fused
group in both formats and what they cost, ``OUT.safetensors`` the weights as it rounds them.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import modelopt
import modelopt.torch.quantization as mtq
import numpy as np
import torch
from modelopt.torch.opt.utils import named_hparams
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

FORMATS = {
    "int4-g128-sym": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "int8": "INT8_WEIGHT_ONLY_CFG",
}
"""Ours, and theirs that is the nearest: they divide by 7 and 127, we by 7.5 and 127.5."""
EFFECTIVE_BITS = 6.0
FORWARDS = 3

T = TypeVar("T")


def spent(step: Callable[[], T]) -> tuple[T, float, float]:
    """What a step gives, and its processor and clock seconds."""
    processor, clock = time.process_time(), time.perf_counter()
    found = step()
    return found, time.process_time() - processor, time.perf_counter() - clock


@torch.no_grad()
def plain(model: Any, batches: list[Tensor]) -> None:
    """One plain forward pass over all tokens."""
    for ids in batches:
        model(input_ids=ids, use_cache=False)


def search(model: Any, batches: list[Tensor], method: str) -> tuple[Any, dict[str, Any]]:
    """Their search; calibrating takes one batch, since weights alone are rounded."""

    def run(network: Any, ids: Tensor) -> Any:
        output = network(input_ids=ids, use_cache=False)
        return output if method == "gradient" else output.logits

    def loss(output: Any, ids: Tensor) -> Tensor:
        logits = output.logits[:, :-1].flatten(0, 1)
        return functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum")

    return mtq.auto_quantize(  # type: ignore[no-any-return]
        model,
        constraints={"effective_bits": EFFECTIVE_BITS},
        quantization_formats=[getattr(mtq, name) for name in FORMATS.values()],
        data_loader=batches,
        forward_step=run,
        loss_func=loss if method == "gradient" else None,
        num_calib_steps=1,
        num_score_steps=len(batches),
        method=method,
    )


def scores(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of every group and format."""
    names = {theirs: ours for ours, theirs in FORMATS.items()}
    for group in state["candidate_stats"].values():
        for recipe, score in zip(group["formats"], group["scores"], strict=True):
            if (theirs := str(recipe).split("(")[0]) in names:
                yield {"layers": group["module_names"], "format": names[theirs], "score": score}


def rounded(model: Any) -> dict[str, Tensor]:
    """Every layer's weight in both formats, as their quantiser has it."""
    names = {theirs: ours for ours, theirs in FORMATS.items()}
    paths = {id(module): name for name, module in model.named_modules()}
    found: dict[str, Tensor] = {}
    for _, choice in named_hparams(model, unique=True):
        for recipe, modules in choice._all_quantizer_choices.items():
            if (theirs := str(recipe).split("(")[0]) not in names:
                continue
            for module, quantizers in modules.items():
                choice._apply_quantizer_choice(recipe)
                weight = quantizers["weight_quantizer"](module._parameters["weight"].detach())
                found[f"{names[theirs]}/{paths[id(module)]}"] = weight.contiguous().clone()
    return found


def main(folder: str, windows: str, method: str, batch: int, out: str) -> None:
    """Search once and write what was found."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    batches = list(torch.from_numpy(np.load(windows)).split(batch))
    passes = [spent(lambda: plain(model, batches)) for _ in range(FORWARDS)]
    (searched, state), processor, clock = spent(lambda: search(model, batches, method))
    with open(f"{out}.json", "w") as file:
        json.dump(
            {
                "version": modelopt.__version__,
                "scores": list(scores(state)),
                "processor": processor / statistics.median(each[1] for each in passes),
                "clock": clock / statistics.median(each[2] for each in passes),
            },
            file,
        )
    save_file(rounded(searched), f"{out}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
