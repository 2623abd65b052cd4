"""Measure what quantising a causal language model costs, layer by layer.

    import engine

    model = engine.open("demo")
    print(model.sweep(formats=["int4-g128"], exact="top:5"))

Importing this imports no tensor library; using it changes nothing global.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.library.model import Model
    from engine.report.schema import BenchDocument

__all__ = ["bench", "open"]


def open(source: str, *, profile: str = "standard", model: bool = True, **settings: Any) -> Model:
    """Open a checkpoint in this process.

    Returns as soon as the layer names are known; the model keeps loading in the background.

    Args:
        source: ``demo``, a folder in the Hugging Face layout, a GGUF file, or a hub id.
        profile: how thoroughly to measure, by name: ``quick``, ``standard``, ``thorough`` or one of
            your own.
        model: False reads only the files, which is enough for a triage.
        settings: fields of `engine.protocol.Settings` that override the profile's, such as
            ``tokens=4096``, ``seq_len=512``, ``text="my.txt"``, ``device="cpu"``. Formats are
            estimated if a sweep or ``estimate_formats`` names them.

    Raises:
        UsageError: a setting does not exist.
        ProfileError: a profile does not exist.
        EngineError: the checkpoint cannot be read, or another engine has it open.
    """
    from engine.library.model import open_model

    return open_model(source, profile=profile, model=model, **settings)


def bench(artefact: str, **asked: Any) -> BenchDocument:
    """Time a finished checkpoint in a runtime, in a process of its own.

    Args:
        artefact: a folder, a GGUF file, or ``demo``.
        asked: fields of `engine.runtimes.running.Ask`, such as ``runtime="llama.cpp"``,
            ``batches=(1, 4)``, ``prompt=512``, ``new=128``, ``threads=8``.

    Raises:
        UsageError: a field does not exist or is out of range, or the runtime is not installed.
        EngineError: the checkpoint cannot be read, or the runtime failed.
    """
    from engine.library.bench import bench

    return bench(artefact, **asked)
