"""A weight whose tensors are missing, or of another shape or dtype, is refused or still read."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
import torch
from torch import Tensor

from engine.checkpoint import list_layers, quantised, read_layer
from engine.errors import CheckpointError
from tests.checkpoint.quantised.fixtures import cases, save, tensors

CASES = (
    ("quanto", "int4-g128"),
    ("quanto", "int2-channel"),
    ("torchao", "int4-plain-g32"),
    ("torchao", "int4-words-g32"),
    ("torchao", "mxfp4-swizzled"),
    ("torchao", "nvfp4-scaled"),
    ("torchao-cuda", "tiles-g128-padded"),
    ("compressed-tensors", "experts-4-asym-g32"),
    ("auto-round", "mxint4"),
    ("mlx", "experts-4-g32"),
    ("transformers", "metal-4"),
    ("transformers", "mxfp8"),
    ("transformers", "deepseek-fp8"),
    ("transformers", "deepseek-fp4"),
    ("exllamav3", "3-mul1"),
    ("exllamav3", "4-3inst-signs"),
    ("gptqmodel", "gptq-4-asym-g32-act"),
    ("autoawq", "gemm-g32"),
    ("autoawq", "gemv_fast-g32"),
    ("bitsandbytes", "nf4-64-nested-32x64"),
    ("bitsandbytes", "int8"),
    ("hqq", "4-g32-axis1-bfloat16"),
    ("model-optimizer", "nvfp4"),
    ("model-optimizer", "int4-awq"),
    ("compressed-tensors", "pack-4-asym-g32"),
    ("compressed-tensors", "nvfp4"),
    ("compressed-tensors", "float-8-block16"),
    ("transformers", "bitlinear"),
)
SPOIL: dict[str, Callable[[Tensor], Tensor | None]] = {
    "missing": lambda _: None,
    "half of it": lambda tensor: tensor[: len(tensor) // 2] if tensor.ndim else tensor[None],
    "the last dimension less one": lambda tensor: tensor[..., :-1] if tensor.ndim else tensor,
    "flat": lambda tensor: tensor.flatten(),
    "one dimension more": lambda tensor: tensor[None],
    "nothing": lambda tensor: tensor.flatten()[:0],
    "int64": lambda tensor: torch.zeros(tensor.shape, dtype=torch.int64),
    "float64": lambda tensor: torch.zeros(tensor.shape, dtype=torch.float64),
    "all bits set": lambda tensor: (
        torch.full_like(tensor.reshape(-1).contiguous().view(torch.uint8), 255)
        .view(tensor.dtype)
        .reshape(tensor.shape)
    ),
    "all bits clear": torch.zeros_like,
}


@pytest.mark.parametrize(("tool", "name"), CASES)
def test_it_is_refused_in_a_sentence_or_read(tool: str, name: str, tmp_path: Path) -> None:
    case, refused = cases(tool)[name], list[tuple[Path, str]]()
    config = dict(case["config"])
    more = config.pop("", {})
    at = 0
    for piece in tensors(case):
        for spoil in SPOIL.values():
            stored, at = tensors(case), at + 1
            found = spoil(stored.pop(piece))
            if found is not None:
                stored[piece] = found
            elif not stored:
                continue
            folder = tmp_path / str(at)
            try:
                checkpoint = save(folder, stored, config or None, case.get("metadata"), **more)
                for row in list_layers(checkpoint):
                    read_layer(checkpoint, row)
            except CheckpointError as error:
                refused.append((folder, str(error)))
    assert len(refused) > 4
    assert all(str(folder) in sentence for folder, sentence in refused)


def test_every_reader_is_here(tmp_path: Path) -> None:
    found: set[str | None] = set()
    for tool, name in CASES:
        case = cases(tool)[name]
        config = dict(case["config"])
        more = config.pop("", {})
        folder = tmp_path / f"{tool}-{name}"
        checkpoint = save(folder, tensors(case), config or None, case.get("metadata"), **more)
        found |= {row.reader for row in list_layers(checkpoint)}
    modules = [
        import_module(each.name)
        for each in iter_modules(quantised.__path__, f"{quantised.__name__}.")
    ]
    every = {each.READER.name for each in modules if hasattr(each, "READER")}
    # Experts are in `tests/faults/traits`; integers without a scale are refused.
    assert every - found == {"mxfp4", "a quantiser of integers"}
