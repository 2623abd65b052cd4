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

__all__ = ["open"]


def open(source: str, *, profile: str = "standard", model: bool = True, **settings: Any) -> Model:
    """Open a checkpoint in this process.

    Returns as soon as the names of the layers are known; the model goes on loading meanwhile.

    Args:
        source: ``demo``, a folder in the Hugging Face layout, or a hub id.
        profile: how thoroughly to measure, by name: ``quick``, ``standard``, ``thorough`` or one of
            your own.
        model: False reads the files only, which is all that a triage needs.
        settings: fields of `engine.protocol.Settings` that replace the profile's, such as
            ``tokens=4096``, ``seq_len=512``, ``text="my.txt"``, ``device="cpu"``. Formats are
            estimated where a sweep names them, or ``estimate_formats`` does.

    Raises:
        UsageError: a setting that there is not.
        ProfileError: a profile that there is not.
        EngineError: the checkpoint cannot be read, or another engine has it open.
    """
    from engine.library.model import open_model

    return open_model(source, profile=profile, model=model, **settings)
