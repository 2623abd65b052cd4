"""Writes a recipe in the layout of GPTQ, and reads back what it wrote."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from engine.export.folder_plan import Plan
from engine.export.folder_writer import FolderWriter
from engine.export.gptq.form import GPTQ
from engine.export.gptq.words import dequantised
from engine.export.load_check import NotReadBack, digest
from engine.export.refusal import some_of
from engine.export.tensor_groups import write_json
from engine.export.writer import Request

NAMES = ("qweight", "qzeros", "scales", "g_idx")
SMALLEST = 2.0**-14
"""Scales below it lose bits where a reader turns them to float16."""


class _ReadBack:
    """Every quantised weight is read from the files as version 1 defines it, and compared.

    Plain transformers loads such files through GPTQModel alone, which needs a compiler or a GPU.
    """

    def close(self) -> None:
        """Nothing is held."""

    def planned(self, request: Request, plan: Plan, folder: Path) -> None:
        """Names and shapes follow from the layout: there is nothing to ask."""

    def written(
        self,
        request: Request,
        plan: Plan,
        folder: Path,
        digests: Mapping[str, str],
        experts: Mapping[str, Mapping[int, str]],
    ) -> list[str]:
        """See `FolderCheck`; also writes ``quantize_config.json``, which older readers want."""
        config = plan.config["quantization_config"]
        write_json(folder / "quantize_config.json", config)
        dtype = getattr(torch, request.checkpoint.dtype)
        modules = {f"{name}.qweight" for name in _prefixes(plan)}
        wrong, small = [], False
        for file in plan.shards:
            with safe_open(folder / file, "pt") as shard:
                for key in sorted(modules.intersection(shard.keys())):
                    request.on_progress(0, 0, f"reading back {key}")
                    prefix = key.removesuffix(".qweight")
                    found = {name: shard.get_tensor(f"{prefix}.{name}") for name in NAMES}
                    bits = 32 * found["qweight"].shape[0] // len(found["g_idx"])
                    small |= bool((found["scales"].abs() < SMALLEST).any())
                    module = plan.quantised[prefix]
                    if digest(dequantised(found, bits).to(dtype)) != digests[module]:
                        wrong.append(module)
        if wrong:
            raise NotReadBack(f"other weights are read than were measured for {some_of(wrong)}")
        notes = ["every quantised weight was read back from the files and equals the measured one"]
        if importlib.util.find_spec("gptqmodel") is None:
            notes.append("not loaded by transformers: that takes GPTQModel, which is not installed")
        if small and dtype is torch.bfloat16:
            notes.append("some scales are below 2⁻¹⁴: readers that turn them to float16 lose bits")
        return notes


def _prefixes(plan: Plan) -> list[str]:
    names = [name for groups in plan.shards.values() for group in groups for name in group.slots]
    return [name.removesuffix(".qweight") for name in names if name.endswith(".qweight")]


WRITER = FolderWriter(GPTQ, _ReadBack)
