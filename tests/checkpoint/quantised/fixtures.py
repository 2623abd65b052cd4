"""Weights that other tools wrote, as checkpoints: see `tests.checkpoint.quantised.write`."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.checkpoint import Checkpoint, open_checkpoint
from tests.checkpoint.quantised.write import MODULE, TOOLS

WEIGHT = f"{MODULE}.weight"
HERE = Path(__file__).parent


@cache
def cases(tool: str) -> dict[str, Any]:
    """What a tool wrote, by the name of the case."""
    found: dict[str, Any] = json.loads((HERE / "written" / f"{tool}.json").read_text())["cases"]
    return found


def all_cases() -> list[tuple[str, str]]:
    """Every tool with each of its cases."""
    written = [tool for tool in TOOLS if (HERE / "written" / f"{tool}.json").is_file()]
    return [(tool, name) for tool in written for name in cases(tool)]


def tensors(case: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a case, by name."""
    return {name: tensor(stored) for name, stored in case["tensors"].items()}


def tensor(stored: dict[str, Any]) -> Tensor:
    """A tensor as a case has it."""
    raw = bytearray(zlib.decompress(base64.b85decode(stored["data"])))
    flat = torch.frombuffer(raw, dtype=torch.uint8).view(getattr(torch, stored["dtype"]))
    return flat.reshape(stored["shape"])


def save(
    folder: Path,
    stored: dict[str, Tensor],
    config: dict[str, Any] | None,
    metadata: dict[str, str] | None = None,
    **more: Any,
) -> Checkpoint:
    """A folder with these tensors and this ``quantization_config``, opened."""
    write_files(folder, stored, config, metadata, **more)
    return open_checkpoint(folder)


def write_files(
    folder: Path,
    stored: dict[str, Tensor],
    config: dict[str, Any] | None,
    metadata: dict[str, str] | None = None,
    **more: Any,
) -> None:
    """A folder with these tensors and this ``quantization_config``."""
    folder.mkdir(exist_ok=True, parents=True)
    said = {"model_type": "llama", "hidden_size": 64, **more}
    if config is not None:
        said["quantization_config"] = config
    (folder / "config.json").write_text(json.dumps(said))
    whole = {name: tensor.contiguous() for name, tensor in stored.items()}
    save_file(whole, folder / "model.safetensors", metadata)


def written(folder: Path, tool: str, name: str) -> Checkpoint:
    """A case as a checkpoint."""
    case = cases(tool)[name]
    config = dict(case["config"])
    more = config.pop("", {})  # what does not stand in quantization_config
    return save(folder, tensors(case), config or None, case.get("metadata"), **more)


def digest(tensor: Tensor) -> str:
    """The hash that a case has of its weight."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()
