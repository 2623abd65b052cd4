"""Folders that hold something else than a checkpoint as saved by transformers."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from engine.checkpoint.json_files import read_object
from engine.errors import CheckpointError

ADAPTER = "adapter_config.json"

_OTHERS = (
    ("model_index.json", "is a pipeline of diffusers, which holds no causal language model"),
    (
        "consolidated*",
        "holds weights in Mistral's or Meta's own format ({file}): give the folder or hub id with "
        "the same model as saved by transformers (config.json and model.safetensors), or convert "
        "it with transformers' conversion script for its architecture",
    ),
    (
        "params.json",
        "holds Mistral's or Meta's own format ({file}): give the folder or hub id with the same "
        "model as saved by transformers (config.json and model.safetensors)",
    ),
    ("*.gguf", "has GGUF files: give one of them by name, such as {file}"),
    ("tf_model.h5", "has TensorFlow weights only ({file}): save it as safetensors first"),
    ("flax_model.msgpack", "has Flax weights only ({file}): save it as safetensors first"),
    ("*.onnx", "has ONNX files only ({file}): open the checkpoint that they were made from"),
    ("*.nemo", "has a NeMo archive ({file}): convert it to the format of transformers first"),
)
"""Files by which another format is known, and what is said of it."""


def refuse_other_formats(folder: Path) -> None:
    """Say what a folder without config or weights holds instead.

    Raises:
        CheckpointError: it is an adapter, or in another program's format.
    """
    if (folder / ADAPTER).is_file():
        raise CheckpointError(_adapter(folder))
    for pattern, sentence in _OTHERS:
        found = min((file.name for file in folder.glob(pattern)), default=None)
        if found is not None:
            raise CheckpointError(f"{folder} {sentence.format(file=found)}")


def adapter_note(folder: Path) -> str:
    """A sentence about an adapter that lies beside a whole model; empty if there is none."""
    if not (folder / ADAPTER).is_file():
        return ""
    return f"the adapter of {folder / ADAPTER} is not applied: merge it into the weights first"


def _adapter(folder: Path) -> str:
    base = None
    with suppress(CheckpointError):  # it is an adapter all the same
        base = read_object(folder, folder / ADAPTER)[0].get("base_model_name_or_path")
    model = f"of {base}" if isinstance(base, str) and base else "of a model that it does not name"
    return (
        f"{folder} is an adapter (LoRA or another of PEFT) {model}, not a model: open that model, "
        "or merge the adapter into it (merge_and_unload of PEFT) and open the result"
    )
